//! Messages survive the wire, and nothing on the wire survives being something else.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::raft::codec::{seal_entry, unseal_entry};
use crate::raft::types::{Membership, Proposal, SnapshotMeta, StoredMembership};

fn log_id() -> impl Strategy<Value = LogId> {
    (0..9u64, 0..1_000u64).prop_map(|(term, index)| LogId::new_term_index(term, index))
}

fn vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| {
        if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
    })
}

fn membership() -> impl Strategy<Value = Membership> {
    let voters = proptest::collection::btree_set(0..9u64, 1..5);
    (vec(voters, 1..3), proptest::collection::btree_set(9..20u64, 0..4)).prop_map(|(voters, learners)| {
        let nodes: BTreeSet<u64> = voters.iter().flatten().copied().chain(learners).collect();
        Membership::new(voters, nodes).expect("every voter is a node")
    })
}

fn payload() -> impl Strategy<Value = EntryPayload<Proposal, u64, openraft::EmptyNode>> {
    prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..300).prop_map(|bytes| EntryPayload::Normal(Proposal(bytes.into()))),
        membership().prop_map(EntryPayload::Membership),
    ]
}

fn entries(previous: Option<LogId>) -> impl Strategy<Value = Vec<LogEntry>> {
    let first = previous.map_or(0, |id| id.index + 1);
    vec((0..9u64, payload()), 0..5).prop_map(move |parts| {
        let indexes = first..;
        parts
            .into_iter()
            .zip(indexes)
            .map(|((term, payload), index)| LogEntry { log_id: LogId::new_term_index(term, index), payload })
            .collect()
    })
}

fn ballot() -> impl Strategy<Value = VoteRequest<Types>> {
    (vote(), of(log_id()), any::<bool>()).prop_map(|(vote, last, transfer)| {
        let mut request = VoteRequest::new(vote, last);
        request.leadership_transfer = transfer;
        request
    })
}

fn append() -> impl Strategy<Value = AppendEntriesRequest<Types>> {
    of(log_id()).prop_flat_map(|prev_log_id| {
        (vote(), entries(prev_log_id), of(log_id())).prop_map(move |(vote, entries, leader_commit)| {
            AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }
        })
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        append().prop_map(Request::Append),
        ballot().prop_map(Request::Vote),
        ballot().prop_map(Request::PreVote),
        (vote(), any::<u64>(), of(log_id()))
            .prop_map(|(from, to, last)| Request::Transfer(TransferLeaderRequest::new(from, to, last))),
        any::<u64>().prop_map(|within_ms| Request::ReadIndex { within_ms }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        Just(Response::Append(AppendEntriesResponse::Success)),
        of(log_id()).prop_map(|last| Response::Append(AppendEntriesResponse::PartialSuccess(last))),
        Just(Response::Append(AppendEntriesResponse::Conflict)),
        vote().prop_map(|vote| Response::Append(AppendEntriesResponse::HigherVote(vote))),
        (vote(), of(log_id()), any::<bool>())
            .prop_map(|(vote, last, granted)| Response::Vote(VoteResponse::new(vote, last, granted))),
        Just(Response::Transfer(Ok(()))),
        (vote(), vote()).prop_map(|(expected, actual)| {
            Response::Transfer(Err(TransferLeaderError::VoteChanged { expected, actual }))
        }),
        (of(log_id()), of(log_id())).prop_map(|(expected, actual)| {
            Response::Transfer(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
        }),
        any::<u64>().prop_map(|index| Response::ReadIndex(ReadIndex::At(index))),
        of(any::<u64>()).prop_map(|leader| Response::ReadIndex(ReadIndex::NotLeader(leader))),
        ".*".prop_map(|words| Response::ReadIndex(ReadIndex::Unavailable(words))),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in request()) {
        let decoded = Request::decode(&request.encode()).expect("what was encoded is decoded");
        prop_assert_eq!(format!("{request:?}"), format!("{decoded:?}"));
        if let (Request::Append(sent), Request::Append(received)) = (&request, &decoded) {
            prop_assert_eq!(&sent.entries, &received.entries);
        }
    }

    #[test]
    fn responses_round_trip(response in response()) {
        prop_assert_eq!(Response::decode(&response.encode()), Ok(response));
    }

    #[test]
    fn entries_round_trip(entries in entries(None)) {
        for entry in entries {
            let index = entry.log_id.index;
            prop_assert_eq!(unseal_entry(index, &seal_entry(&entry)), Ok(entry));
        }
    }

    #[test]
    fn snapshot_headers_round_trip(
        vote in vote(), last in of(log_id()), at in of(log_id()), membership in membership(), length: u64,
    ) {
        let meta = SnapshotMeta { last_log_id: last, last_membership: StoredMembership::new(at, membership) };
        let header = SnapshotHeader { vote: (&vote).into(), meta: (&meta).into(), length, sha256: [7; 32] };
        let decoded: SnapshotHeader = decode(&encode(&header)).expect("what was encoded is decoded");
        prop_assert_eq!(&decoded, &header);
        prop_assert_eq!(SnapshotMeta::try_from(decoded.meta), Ok(meta));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_understood(mut bytes in vec(any::<u8>(), 0..200), version: bool) {
        if version && !bytes.is_empty() {
            bytes[0] = 1;
        }
        let bytes = Bytes::from(bytes);
        let _ = Request::decode(&bytes);
        let _ = Response::decode(&bytes);
        let _ = unseal_entry(0, &bytes);
        let _ = decode::<SnapshotHeader>(&bytes);
    }

    #[test]
    fn damaged_messages_are_refused_or_understood(request in request(), at: prop::sample::Index, flip: u8) {
        let mut bytes = request.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = Request::decode(&bytes.into());
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes = Request::ReadIndex { within_ms: 1 }.encode().to_vec();
    bytes[0] = 2;
    let error = Request::decode(&bytes.into()).expect_err("version 2 is unknown");
    assert_eq!(error, CodecError::Version { found: 2 });
}

#[test]
fn entries_that_do_not_follow_each_other_are_refused() {
    let check = |previous: Option<u64>, indexes: &[u64], fine: bool| {
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: previous.map(|index| LogId::new_term_index(1, index)),
            entries: indexes
                .iter()
                .map(|index| LogEntry {
                    log_id: LogId::new_term_index(1, *index),
                    payload: EntryPayload::Blank,
                })
                .collect(),
            leader_commit: None,
        };
        assert_eq!(
            Request::decode(&Request::Append(request).encode()).is_ok(),
            fine,
            "{previous:?} {indexes:?}"
        );
    };
    check(None, &[], true);
    check(None, &[0, 1], true);
    check(Some(4), &[5, 6], true);
    check(None, &[1], false);
    check(Some(4), &[6], false);
    check(Some(4), &[5, 5], false);
    check(Some(u64::MAX), &[0], false);
}

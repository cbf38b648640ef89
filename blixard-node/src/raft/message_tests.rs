//! Messages survive the wire, and nothing on the wire survives being something else.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::raft::codec::{seal, seal_entry, unseal, unseal_entry};
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

}

fn id(index: u64) -> LogId {
    LogId::new_term_index(3, index)
}

fn members() -> Membership {
    let voters = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
    Membership::new(voters, BTreeSet::from([1, 2, 3, 4, 9])).expect("every voter is a node")
}

fn log() -> Vec<LogEntry> {
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Proposal(Bytes::from_static(b"what the leader proposes"))),
        EntryPayload::Membership(members()),
    ];
    payloads.into_iter().zip(5..).map(|(payload, index)| LogEntry { log_id: id(index), payload }).collect()
}

#[test]
fn requests_survive_every_damage() {
    let (vote, last) = (Vote::new_committed(3, 1), Some(id(4)));
    let append = AppendEntriesRequest { vote, prev_log_id: last, entries: log(), leader_commit: last };
    let requests = [
        Request::Append(append),
        Request::Vote(VoteRequest::new(vote, last)),
        Request::PreVote(VoteRequest::new(vote, None)),
        Request::Transfer(TransferLeaderRequest::new(vote, 2, last)),
        Request::ReadIndex { within_ms: 5_000 },
    ];
    let seeds = requests.map(|request| request.encode().to_vec());
    damage::survives("raft: request", &seeds, |input| {
        let request = Request::decode(&Bytes::copy_from_slice(input)).map_err(|error| error.to_string())?;
        let again = Request::decode(&request.encode()).expect("what was encoded is decoded");
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
        Ok(())
    });
}

#[test]
fn responses_survive_every_damage() {
    let (vote, last) = (Vote::new_committed(3, 1), Some(id(4)));
    let responses = [
        Response::Append(AppendEntriesResponse::PartialSuccess(last)),
        Response::Append(AppendEntriesResponse::HigherVote(vote)),
        Response::Vote(VoteResponse::new(vote, last, true)),
        Response::Transfer(Err(TransferLeaderError::LogNotFlushed { expected: last, actual: None })),
        Response::ReadIndex(ReadIndex::At(7)),
        Response::ReadIndex(ReadIndex::Unavailable("no quorum".to_owned())),
    ];
    let seeds = responses.map(|response| response.encode().to_vec());
    damage::survives("raft: response", &seeds, |input| {
        let response = Response::decode(input).map_err(|error| error.to_string())?;
        assert_eq!(Response::decode(&response.encode()), Ok(response));
        Ok(())
    });
}

#[test]
fn headers_and_answers_of_snapshots_survive_every_damage() {
    let meta =
        SnapshotMeta { last_log_id: Some(id(9)), last_membership: StoredMembership::new(None, members()) };
    let vote = VoteRecord::from(&Vote::new(4, 2));
    let header = SnapshotHeader { vote, meta: (&meta).into(), length: 1 << 20, sha256: [7; 32] };
    damage::survives("raft: header of a snapshot", &[encode(&header)], |input| {
        let header: SnapshotHeader = decode(input).map_err(|error| error.to_string())?;
        assert_eq!(decode::<SnapshotHeader>(&encode(&header)).as_ref(), Ok(&header));
        SnapshotMeta::try_from(header.meta).map(drop).map_err(|error| error.to_string())
    });
    let answers = [SnapshotAnswer::Done(vote), SnapshotAnswer::Failed("the digest differs".to_owned())];
    damage::survives("raft: answer to a snapshot", &answers.map(|answer| encode(&answer)), |input| {
        let answer: SnapshotAnswer = decode(input).map_err(|error| error.to_string())?;
        assert_eq!(decode::<SnapshotAnswer>(&encode(&answer)), Ok(answer));
        Ok(())
    });
}

/// A record whose checksum fits, but that says something else: what a bug wrote, or somebody on purpose.
#[test]
fn records_of_the_log_survive_every_damage() {
    let records = log().iter().map(|entry| encode(&EntryRecord::from(entry))).collect::<Vec<_>>();
    damage::survives("raft: record of an entry", &records, |input| {
        // The index is part of the record: each is looked up under its own.
        let place = |record: EntryRecord<'_>| {
            record.into_entry(Bytes::copy_from_slice).map(|entry| entry.log_id.index)
        };
        let index = decode(input).and_then(place).map_err(|error| error.to_string())?;
        let entry = unseal_entry(index, input).map_err(|error| error.to_string())?;
        assert_eq!(unseal_entry(index, &seal_entry(&entry)), Ok(entry));
        Ok(())
    });
    let sealed = log().iter().map(seal_entry).collect::<Vec<_>>();
    let whole = log();
    damage::survives("raft: sealed record of an entry", &sealed, |input| {
        let found = (5..8).find_map(|index| unseal_entry(index, input).ok());
        match found {
            // What the first release wrote has no checksum, so a version byte that flipped says nothing.
            Some(entry) if input[0] == 2 => assert!(whole.contains(&entry)),
            Some(_) => {}
            None => return Err(unseal_entry(5, input).expect_err("it is none of them").to_string()),
        }
        Ok(())
    });
}

#[test]
fn facts_of_the_log_survive_every_damage() {
    let vote = VoteRecord::from(&Vote::new_committed(3, 1));
    damage::survives("raft: vote on disk", &[encode(&vote), seal(b"vote", &vote)], |input| {
        let read: VoteRecord = unseal(b"vote", input).map_err(|error| error.to_string())?;
        assert!(input[0] == 1 || read == vote);
        Ok(())
    });
    let last = LogIdRecord::from(&id(8));
    damage::survives("raft: log id on disk", &[encode(&last), seal(b"purged", &last)], |input| {
        let read: LogIdRecord = unseal(b"purged", input).map_err(|error| error.to_string())?;
        assert!(input[0] == 1 || read == last);
        Ok(())
    });
    let meta =
        SnapshotMeta { last_log_id: None, last_membership: StoredMembership::new(Some(id(1)), members()) };
    let meta = SnapshotMetaRecord::from(&meta);
    damage::survives("raft: meta on disk", &[encode(&meta), seal(b"meta", &meta)], |input| {
        let read: SnapshotMetaRecord = unseal(b"meta", input).map_err(|error| error.to_string())?;
        assert!(input[0] == 1 || read == meta);
        SnapshotMeta::try_from(read).map(drop).map_err(|error| error.to_string())
    });
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

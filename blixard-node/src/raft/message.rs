//! What members' Rafts say to each other over [`blixard_core::wire::Channel::Raft`], and the
//! header of a snapshot's stream. Encoded as [`super::codec`] says.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::codec::{CodecError, EntryRecord, LogIdRecord, SnapshotMetaRecord, VoteRecord, decode, encode};
use super::types::{LogEntry, LogId, Types, Vote};

/// A question to another member's Raft.
#[derive(Debug)]
pub(super) enum Request {
    /// Take these entries; without any, a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// Vote for me.
    Vote(VoteRequest<Types>),
    /// Would you vote for me?
    PreVote(VoteRequest<Types>),
    /// Lead in my place.
    Transfer(TransferLeaderRequest<Types>),
    /// Which index must a read wait for, to see everything acknowledged before it was asked?
    ReadIndex {
        /// How long the asker waits, in milliseconds.
        within_ms: u64,
    },
}

/// The answer to the [`Request`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Response {
    /// Whether the entries were taken.
    Append(AppendEntriesResponse<Types>),
    /// The vote, or the would-be vote.
    Vote(VoteResponse<Types>),
    /// Whether the member stands for election at once; else why not.
    Transfer(Result<(), TransferLeaderError<Types>>),
    /// The index, or why there is none.
    ReadIndex(ReadIndex),
}

/// The answer to [`Request::ReadIndex`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ReadIndex {
    /// Wait until this index is applied.
    At(u64),
    /// This member does not lead; perhaps that one does.
    NotLeader(Option<u64>),
    /// It leads, but no quorum confirms it; why, for people.
    Unavailable(String),
}

#[derive(Serialize, Deserialize)]
enum RequestRecord<'a> {
    Append {
        vote: VoteRecord,
        previous: Option<LogIdRecord>,
        committed: Option<LogIdRecord>,
        #[serde(borrow)]
        entries: Vec<EntryRecord<'a>>,
    },
    Vote(BallotRecord),
    PreVote(BallotRecord),
    Transfer {
        from: VoteRecord,
        to: u64,
        last: Option<LogIdRecord>,
    },
    ReadIndex {
        within_ms: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct BallotRecord {
    vote: VoteRecord,
    last: Option<LogIdRecord>,
    #[serde(default)]
    transfer: bool,
}

#[derive(Serialize, Deserialize)]
enum ResponseRecord {
    Appended,
    AppendedUpTo(Option<LogIdRecord>),
    AppendConflict,
    HigherVote(VoteRecord),
    Vote { vote: VoteRecord, granted: bool, last: Option<LogIdRecord> },
    TransferAccepted,
    TransferVoteChanged { expected: VoteRecord, actual: VoteRecord },
    TransferLogNotFlushed { expected: Option<LogIdRecord>, actual: Option<LogIdRecord> },
    ReadIndex(ReadIndex),
}

impl From<&VoteRequest<Types>> for BallotRecord {
    fn from(request: &VoteRequest<Types>) -> Self {
        Self {
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(LogIdRecord::from),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<BallotRecord> for VoteRequest<Types> {
    fn from(record: BallotRecord) -> Self {
        let mut request = Self::new(record.vote.into(), record.last.map(LogId::from));
        request.leadership_transfer = record.transfer;
        request
    }
}

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let record = match self {
            Self::Append(append) => RequestRecord::Append {
                vote: (&append.vote).into(),
                previous: append.prev_log_id.as_ref().map(LogIdRecord::from),
                committed: append.leader_commit.as_ref().map(LogIdRecord::from),
                entries: append.entries.iter().map(EntryRecord::from).collect(),
            },
            Self::Vote(vote) => RequestRecord::Vote(vote.into()),
            Self::PreVote(vote) => RequestRecord::PreVote(vote.into()),
            Self::Transfer(transfer) => RequestRecord::Transfer {
                from: transfer.from_leader().into(),
                to: *transfer.to_node_id(),
                last: transfer.last_log_id().map(LogIdRecord::from),
            },
            Self::ReadIndex { within_ms } => RequestRecord::ReadIndex { within_ms: *within_ms },
        };
        encode(&record).into()
    }

    /// Decodes a request; its entries share the memory of `bytes`.
    pub(super) fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        Ok(match decode(bytes)? {
            RequestRecord::Append { vote, previous, committed, entries } => {
                let prev_log_id = previous.map(LogId::from);
                let entries = entries
                    .into_iter()
                    .map(|record| record.into_entry(|part| bytes.slice_ref(part)))
                    .collect::<Result<Vec<_>, _>>()?;
                check_consecutive(prev_log_id.as_ref(), &entries)?;
                Self::Append(AppendEntriesRequest {
                    vote: vote.into(),
                    prev_log_id,
                    entries,
                    leader_commit: committed.map(LogId::from),
                })
            }
            RequestRecord::Vote(ballot) => Self::Vote(ballot.into()),
            RequestRecord::PreVote(ballot) => Self::PreVote(ballot.into()),
            RequestRecord::Transfer { from, to, last } => {
                Self::Transfer(TransferLeaderRequest::new(from.into(), to, last.map(LogId::from)))
            }
            RequestRecord::ReadIndex { within_ms } => Self::ReadIndex { within_ms },
        })
    }
}

/// openraft takes it for granted that entries follow each other and what comes before them.
fn check_consecutive(previous: Option<&LogId>, entries: &[LogEntry]) -> Result<(), CodecError> {
    let mut expected = previous.map_or(Some(0), |id| id.index.checked_add(1));
    for entry in entries {
        if expected != Some(entry.log_id.index) {
            let reason = format!("entry {} where {expected:?} was due", entry.log_id.index);
            return Err(CodecError::damaged(reason));
        }
        expected = entry.log_id.index.checked_add(1);
    }
    Ok(())
}

impl Response {
    pub(super) fn encode(&self) -> Bytes {
        let record = match self {
            Self::Append(AppendEntriesResponse::Success) => ResponseRecord::Appended,
            Self::Append(AppendEntriesResponse::PartialSuccess(last)) => {
                ResponseRecord::AppendedUpTo(last.as_ref().map(LogIdRecord::from))
            }
            Self::Append(AppendEntriesResponse::Conflict) => ResponseRecord::AppendConflict,
            Self::Append(AppendEntriesResponse::HigherVote(vote)) => ResponseRecord::HigherVote(vote.into()),
            Self::Vote(response) => ResponseRecord::Vote {
                vote: (&response.vote).into(),
                granted: response.vote_granted,
                last: response.last_log_id.as_ref().map(LogIdRecord::from),
            },
            Self::Transfer(Ok(())) => ResponseRecord::TransferAccepted,
            Self::Transfer(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
                ResponseRecord::TransferVoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Self::Transfer(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
                ResponseRecord::TransferLogNotFlushed {
                    expected: expected.as_ref().map(LogIdRecord::from),
                    actual: actual.as_ref().map(LogIdRecord::from),
                }
            }
            Self::ReadIndex(answer) => ResponseRecord::ReadIndex(answer.clone()),
        };
        encode(&record).into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(match decode(bytes)? {
            ResponseRecord::Appended => Self::Append(AppendEntriesResponse::Success),
            ResponseRecord::AppendedUpTo(last) => {
                Self::Append(AppendEntriesResponse::PartialSuccess(last.map(LogId::from)))
            }
            ResponseRecord::AppendConflict => Self::Append(AppendEntriesResponse::Conflict),
            ResponseRecord::HigherVote(vote) => Self::Append(AppendEntriesResponse::HigherVote(vote.into())),
            ResponseRecord::Vote { vote, granted, last } => {
                Self::Vote(VoteResponse::new(Vote::from(vote), last.map(LogId::from), granted))
            }
            ResponseRecord::TransferAccepted => Self::Transfer(Ok(())),
            ResponseRecord::TransferVoteChanged { expected, actual } => {
                let (expected, actual) = (expected.into(), actual.into());
                Self::Transfer(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            ResponseRecord::TransferLogNotFlushed { expected, actual } => {
                let (expected, actual) = (expected.map(LogId::from), actual.map(LogId::from));
                Self::Transfer(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            ResponseRecord::ReadIndex(answer) => Self::ReadIndex(answer),
        })
    }
}

/// What a snapshot's stream begins with: the state's encoded bytes follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHeader {
    /// The sending leader's vote.
    pub(super) vote: VoteRecord,
    /// What the snapshot covers.
    pub(super) meta: SnapshotMetaRecord,
    /// How many bytes follow.
    pub(super) length: u64,
    /// SHA-256 of the bytes that follow.
    pub(super) sha256: [u8; 32],
}

/// What the receiver answers at the end of a snapshot's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SnapshotAnswer {
    /// Installed, or not needed; the receiver's vote.
    Done(VoteRecord),
    /// Not installed; why, for people.
    Failed(String),
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;

//! What members' Rafts say and keep, in plain terms, for whoever checks them from outside: the
//! simulator. Nothing here changes anything.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use bytes::Bytes;
use redb::{ReadableDatabase as _, StorageBackend};

use super::codec::{seal_entry, unseal_entry};
use super::log_store::ENTRIES;
use super::message::{Request, Response};
use super::store::Backend;
use super::types::LogEntry;
use crate::database::io_error;

/// The file of a member's log.
pub const LOG_FILE: &str = super::LOG_FILE;

/// An entry's place in the log, and what tells it from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMark {
    /// Its index.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// A hash of all of it.
    pub hash: u64,
}

impl EntryMark {
    fn of(entry: &LogEntry) -> Self {
        let mut hasher = DefaultHasher::new();
        seal_entry(entry).hash(&mut hasher);
        Self { index: entry.log_id.index, term: entry.log_id.leader_id.term, hash: hasher.finish() }
    }
}

/// What a member asks of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A leader has a follower append.
    Append {
        /// The leader's term.
        term: u64,
        /// The index and term of the entry before.
        previous: Option<(u64, u64)>,
        /// What to append.
        entries: Vec<EntryMark>,
        /// The index and term of the last entry that the leader knows to be committed.
        committed: Option<(u64, u64)>,
    },
    /// A candidate, which has voted for itself, asks for a vote.
    Vote {
        /// The term.
        term: u64,
        /// The candidate.
        candidate: u64,
    },
    /// Anything else.
    Other,
}

/// Understands a request; absent when it is none.
pub fn request(bytes: &Bytes) -> Option<Said> {
    Some(match Request::decode(bytes).ok()? {
        Request::Append(append) => Said::Append {
            term: append.vote.leader_id.term,
            previous: append.prev_log_id.map(|id| (id.index, id.leader_id.term)),
            entries: append.entries.iter().map(EntryMark::of).collect(),
            committed: append.leader_commit.map(|id| (id.index, id.leader_id.term)),
        },
        Request::Vote(vote) => {
            Said::Vote { term: vote.vote.leader_id.term, candidate: vote.vote.leader_id.voted_for }
        }
        _ => Said::Other,
    })
}

/// Whether an answer to a request for a vote grants it.
pub fn grants(answer: &[u8]) -> bool {
    matches!(Response::decode(answer), Ok(Response::Vote(vote)) if vote.vote_granted)
}

/// The entries from `from` on in a log's file.
///
/// # Errors
/// When it is no such file or damaged.
pub fn entries(log: Box<dyn StorageBackend>, from: u64) -> io::Result<Vec<EntryMark>> {
    let database = redb::Database::builder().create_with_backend(Backend(log)).map_err(io_error)?;
    let transaction = database.begin_read().map_err(io_error)?;
    let table = match transaction.open_table(ENTRIES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(io_error(error)),
    };
    let mut marks = Vec::new();
    for row in table.range(from..).map_err(io_error)? {
        let (index, bytes) = row.map_err(io_error)?;
        marks.push(EntryMark::of(&unseal_entry(index.value(), bytes.value())?));
    }
    Ok(marks)
}

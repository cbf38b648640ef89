//! What members' Rafts say and keep, in plain terms, for whoever checks them from outside: the
//! simulator. Nothing here changes anything but [`alter_snapshot`], which is how it damages a state.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use blixard_core::cluster::ClusterState;
use bytes::Bytes;
use openraft::EntryPayload;
use redb::{ReadOnlyTable, ReadableDatabase as _, StorageBackend, TableDefinition};

use super::codec::{seal_entry, unseal_entry};
use super::message::{Request, Response};
use super::snapshot;
use super::store::Backend;
use super::types::{LogEntry, Vote};
use super::wal;
use crate::database::{self, guarded, io_error};

/// The file of a member's log.
pub const LOG_FILE: &str = super::LOG_FILE;
/// The file of a member's snapshots.
pub const STATE_FILE: &str = super::STATE_FILE;

/// Who votes, by an entry of the log: one set of members, or two while the configuration changes, of
/// each of which it takes a majority.
pub type Configuration = Vec<BTreeSet<u64>>;

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
        let hash = hash(&seal_entry(entry));
        Self { index: entry.log_id.index, term: entry.log_id.leader_id.term, hash }
    }
}

fn hash(encoded: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    encoded.hash(&mut hasher);
    hasher.finish()
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
        /// Who votes from which of these entries on.
        configurations: Vec<(u64, Configuration)>,
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
            configurations: append.entries.iter().filter_map(configuration).collect(),
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

fn configuration(entry: &LogEntry) -> Option<(u64, Configuration)> {
    match &entry.payload {
        EntryPayload::Membership(members) => Some((entry.log_id.index, members.get_joint_config().clone())),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    }
}

/// The entries that a write to a log's file holds, each by its index and the hash that its [`EntryMark`]
/// has; absent when it may hold a part of something else: then the file tells what it holds. Looking at
/// each write as it is made costs next to nothing, reading the file after each would cost more than
/// writing it.
pub fn entries_in_write(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let found = wal::entries_in_write(bytes)?;
    Some(found.into_iter().map(|(index, sealed)| (index, hash(sealed))).collect())
}

/// The entries from `from` on in a log's file.
///
/// # Errors
/// When it is no such file or damaged.
pub fn entries(log: &dyn StorageBackend, from: u64) -> io::Result<Vec<EntryMark>> {
    let mut marks = Vec::new();
    wal::look(log, &mut |index, sealed| {
        if index >= from {
            marks.push(EntryMark::of(&unseal_entry(index, sealed)?));
        }
        Ok(())
    })?;
    Ok(marks)
}

/// A vote in a log's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptVote {
    /// The term it holds for.
    pub term: u64,
    /// Whom it names.
    pub candidate: u64,
    /// Whether the candidate has won the term, by what this member was told.
    pub won: bool,
}

/// The vote in a log's file.
///
/// # Errors
/// When it is no such file or damaged.
pub fn vote(log: &dyn StorageBackend) -> io::Result<Option<KeptVote>> {
    let facts = wal::look(log, &mut |_, _| Ok(()))?;
    let vote = facts.and_then(|facts| facts.vote).map(Vote::from);
    Ok(vote.map(|vote| KeptVote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.voted_for,
        won: vote.committed,
    }))
}

/// The index up to which the snapshot in a file covers the log.
///
/// # Errors
/// When it is no such file or damaged.
pub fn covered(snapshots: Box<dyn StorageBackend>) -> io::Result<Option<u64>> {
    let meta = read(snapshots, snapshot::SNAPSHOT, snapshot::read_meta)?.flatten();
    Ok(meta.and_then(|meta| meta.last_log_id).map(|last| last.index))
}

/// Has `change` change the state in a snapshot's file, and makes its digest that of what it holds then: as
/// memory does that loses a bit before the snapshot is encoded. False where there is no snapshot.
///
/// # Errors
/// When it is no such file or damaged.
pub fn alter_snapshot(
    snapshots: Box<dyn StorageBackend>,
    change: impl FnOnce(&mut ClusterState),
) -> io::Result<bool> {
    let database = redb::Database::builder().create_with_backend(Backend(snapshots)).map_err(io_error)?;
    let transaction = database.begin_write().map_err(io_error)?;
    let altered = snapshot::alter(&transaction, change)?;
    transaction.commit().map_err(io_error)?;
    Ok(altered)
}

/// What `work` reads from a table of a file; absent when the file has no such table.
fn read<K: redb::Key + 'static, V: redb::Value + 'static, T>(
    file: Box<dyn StorageBackend>,
    name: TableDefinition<'_, K, V>,
    work: impl FnOnce(&ReadOnlyTable<K, V>) -> io::Result<T>,
) -> io::Result<Option<T>> {
    guarded(|| {
        let database = redb::Database::builder().create_with_backend(Backend(file)).map_err(io_error)?;
        let transaction = database.begin_read().map_err(io_error)?;
        match transaction.open_table(name) {
            Ok(table) => work(&table).map(Some),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(io_error(error)),
        }
    })
}

/// Whether this thread is at work on a database: its panic becomes an error and is none of the daemon's.
pub fn is_guarded() -> bool {
    database::is_guarded()
}

#[cfg(test)]
mod tests {
    use super::super::types::{LogId, Proposal};
    use super::super::wal::Change;
    use super::*;

    #[test]
    fn entries_are_found_in_the_writes_that_hold_them() {
        let entry = |index: u64| {
            let proposal = vec![7; usize::try_from(37 * index % 9_000).expect("small")];
            let payload = EntryPayload::Normal(Proposal(proposal.into()));
            LogEntry { log_id: LogId::new_term_index(3, index), payload }
        };
        let group = wal::group(&[Change::Append((40..70).map(entry).collect()), Change::Truncate(None)]);
        let expect: Vec<_> = (40..70).map(|index| (index, hash(&seal_entry(&entry(index))))).collect();
        assert_eq!(entries_in_write(&group), Some(expect));
        assert_eq!(entries_in_write(&group[..4096]), None);
        assert_eq!(entries_in_write(&[7; 4096]), None);
        assert_eq!(entries_in_write(&[0; 4096]), Some(Vec::new()));
        assert_eq!(entries_in_write(&[]), Some(Vec::new()));
    }
}

//! What members' Rafts say and keep, in plain terms, for whoever checks them from outside: the
//! simulator. Nothing here changes anything but [`alter_snapshot`], which is how it damages a state.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use blixard_core::cluster::ClusterState;
use bytes::Bytes;
use openraft::EntryPayload;
use redb::{ReadOnlyTable, ReadableDatabase as _, StorageBackend, TableDefinition};

use super::codec::{is_entry, seal_entry, unseal_entry};
use super::log_store::{self, ENTRIES};
use super::message::{Request, Response};
use super::snapshot;
use super::store::Backend;
use super::types::LogEntry;
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

/// The entries in a page that is written to a log's file, each by its index and the hash that its
/// [`EntryMark`] has; none in a page of anything else. This is redb's documented layout of a leaf of
/// a table with keys of one width: reading each page as it is written costs next to nothing, opening
/// the file after each write would cost more than writing it.
pub fn entries_in_page(page: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    const LEAF: u8 = 1;
    const HEAD: usize = 4;
    const VALUE_END: usize = size_of::<u32>();
    const KEY: usize = size_of::<u64>();
    let count = match page {
        [LEAF, _, low, high, ..] => usize::from(u16::from_le_bytes([*low, *high])),
        _ => 0,
    };
    let keys = HEAD + count * VALUE_END;
    let end = move |number: usize| -> Option<usize> {
        let at = HEAD + number * VALUE_END;
        let bytes = page.get(at..at + VALUE_END)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    (0..count).filter_map(move |number| {
        let key = page.get(keys + number * KEY..keys + (number + 1) * KEY)?;
        let start = if number == 0 { keys + count * KEY } else { end(number - 1)? };
        let (index, value) = (u64::from_le_bytes(key.try_into().ok()?), page.get(start..end(number)?)?);
        is_entry(index, value).then(|| (index, hash(value)))
    })
}

/// The entries from `from` on in a log's file.
///
/// # Errors
/// When it is no such file or damaged.
pub fn entries(log: Box<dyn StorageBackend>, from: u64) -> io::Result<Vec<EntryMark>> {
    let mut marks = Vec::new();
    read(log, ENTRIES, |table| {
        for row in table.range(from..).map_err(io_error)? {
            let (index, bytes) = row.map_err(io_error)?;
            marks.push(EntryMark::of(&unseal_entry(index.value(), bytes.value())?));
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
pub fn vote(log: Box<dyn StorageBackend>) -> io::Result<Option<KeptVote>> {
    let vote = read(log, log_store::FACTS, log_store::vote)?.flatten();
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
    use std::sync::{Arc, Mutex};

    use super::super::types::{LogId, Proposal};
    use super::*;

    /// A file that keeps each page that is written to it.
    #[derive(Debug, Default)]
    struct Pages(redb::backends::InMemoryBackend, Arc<Mutex<Vec<Vec<u8>>>>);

    impl StorageBackend for Pages {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.1.lock().expect("no test panicked").push(data.to_vec());
            self.0.write(offset, data)
        }
    }

    #[test]
    fn entries_are_found_in_the_pages_that_are_written() {
        let pages = Pages::default();
        let written = pages.1.clone();
        let database = redb::Database::builder().create_with_backend(pages).expect("a new file");
        let value = |index: u64| {
            let proposal = vec![7; usize::try_from(37 * index % 9_000).expect("small")];
            let payload = EntryPayload::Normal(Proposal(proposal.into()));
            seal_entry(&LogEntry { log_id: LogId::new_term_index(3, index), payload })
        };
        for begin in [1, 40, 41, 90] {
            written.lock().expect("no test panicked").clear();
            let transaction = database.begin_write().expect("it is open");
            for index in begin..begin + 30 {
                transaction
                    .open_table(ENTRIES)
                    .and_then(|mut table| Ok(table.insert(index, value(index).as_slice()).map(drop)?))
                    .expect("it takes an entry");
            }
            transaction.commit().expect("it is written");
            let pages = written.lock().expect("no test panicked");
            let found: Vec<_> = pages.iter().flat_map(|page| entries_in_page(page)).collect();
            for index in begin..begin + 30 {
                assert!(found.contains(&(index, hash(&value(index)))), "entry {index}");
            }
        }
        for page in [&[][..], &[1], &[1, 0, 255, 255], &[1, 0, 1, 0, 255, 255, 255, 255, 1]] {
            assert_eq!(entries_in_page(page).count(), 0, "{page:?}");
        }
    }
}

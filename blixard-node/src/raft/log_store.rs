//! The log on disk: entries, the vote, and how far the log is purged and known to be committed.
//!
//! All writes go through the store's queue in the order openraft makes them, and are committed in
//! groups. `append` returns at once, its entries readable from the [`Tail`], and tells openraft when
//! its group is durable; a vote is durable before `save_vote` returns; truncation and purge need no
//! wait, since what is appended later is durable only after them. How far the log is committed rides
//! along with the next write: losing it costs nothing but a wait for the leader's word.
//!
//! Every record has a checksum. All are verified when the log opens and each when it is read: a
//! damaged log is an error of the kind [`io::ErrorKind::InvalidData`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::{ReadOnlyTable, ReadableTable as _, TableDefinition, WriteTransaction};

use super::codec::{LogIdRecord, VoteRecord, in_record, seal, seal_entry, unseal, unseal_entry};
use super::owner::{Owner, StoreError};
use super::store::{Files, Queue, Reader, Write};
use super::tail::{Tail, next_index, size};
use super::types::{LogEntry, LogId, Types, Vote};
use crate::context::NodeContext;
use crate::database::{Values, damaged, guarded, io_error};

pub(super) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
pub(super) const FACTS: Values = TableDefinition::new("facts");
const CLUSTER: &str = "cluster";
const NODE: &str = "node";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// The files of the log.
pub(super) const FILES: Files = Files { name: super::LOG_FILE, mark: "raft.mark", values: FACTS };

/// How much one read gives openraft to send to a follower, in bytes; one entry at least.
const READ_BYTES: usize = 1 << 20;

/// Reads the log. Cloning shares it.
#[derive(Clone)]
pub(super) struct LogReader {
    tail: Arc<Mutex<Tail>>,
    database: Reader,
}

/// The log of one member. openraft owns it; the store closes when it is dropped.
pub(super) struct LogStore {
    reader: LogReader,
    queue: Queue,
}

impl LogStore {
    /// Reads what `owner` left in the store, and makes the store its own when it is new.
    ///
    /// # Errors
    /// Whose the store is, when it is another's.
    pub(super) async fn open(database: Reader, queue: Queue, owner: Owner) -> Result<Self, StoreError> {
        let claim = Box::new(move |transaction: &WriteTransaction| {
            transaction.open_table(ENTRIES)?;
            let mut facts = transaction.open_table(FACTS)?;
            for (name, value) in [(NODE, seal(NODE.as_bytes(), &owner.node)), (CLUSTER, owner.seal(CLUSTER))]
            {
                if facts.get(name)?.is_none() {
                    facts.insert(name, value.as_slice())?;
                }
            }
            Ok(())
        });
        queue.write(claim).await?;
        let reading = database.clone();
        let (tail, found) = NodeContext::current().blocking(move || load(&reading)).await?;
        found.check(owner)?;
        Ok(Self { reader: LogReader { tail: Arc::new(Mutex::new(tail)), database }, queue })
    }

    /// The last entry that the log no longer holds.
    pub(super) fn purged(&self) -> Option<LogId> {
        lock(&self.reader.tail).purged
    }

    /// Reads it beside openraft, which owns it.
    pub(super) fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    async fn push(&self, write: Write, done: impl FnOnce(&mut Tail, io::Result<()>) + Send + 'static) {
        let tail = Arc::clone(&self.reader.tail);
        self.queue.push(write, move |outcome| done(&mut lock(&tail), outcome)).await;
    }
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the log through, and whose it is.
fn load(database: &Reader) -> io::Result<(Tail, Owner)> {
    database.read(|transaction| {
        let facts = transaction.open_table(FACTS).map_err(io_error)?;
        let owner = Owner {
            cluster: fact(&facts, CLUSTER)?.ok_or_else(|| damaged("it names no cluster".to_owned()))?,
            node: fact(&facts, NODE)?.ok_or_else(|| damaged("it names no owner".to_owned()))?,
        };
        let log_id = |name| fact::<LogIdRecord>(&facts, name).map(|id| id.map(LogId::from));
        let (purged, committed) = (log_id(PURGED)?, log_id(COMMITTED)?);
        let vote = vote(&facts)?;
        let mut last = purged;
        for row in transaction.open_table(ENTRIES).map_err(io_error)?.range::<u64>(..).map_err(io_error)? {
            let id = read_entry(row)?.log_id;
            if id.index != next_index(last) || last.is_some_and(|last| last.leader_id > id.leader_id) {
                return Err(damaged(format!("entry {id} does not follow {}", words(last))));
            }
            last = Some(id);
        }
        Ok((Tail::new(vote, purged, last, committed), owner))
    })
}

fn words(last: Option<LogId>) -> String {
    last.map_or_else(|| "the beginning".to_owned(), |last| format!("entry {last}"))
}

/// A fact of the log, if it is there.
fn fact<T: serde::de::DeserializeOwned>(
    facts: &ReadOnlyTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> io::Result<Option<T>> {
    let Some(bytes) = facts.get(name).map_err(io_error)? else { return Ok(None) };
    let read = unseal(name.as_bytes(), bytes.value());
    read.map(Some).map_err(|error| in_record(format_args!("its {name}"), error))
}

/// The vote among the facts of a log.
pub(super) fn vote(facts: &ReadOnlyTable<&'static str, &'static [u8]>) -> io::Result<Option<Vote>> {
    Ok(fact::<VoteRecord>(facts, VOTE)?.map(Vote::from))
}

type Row<'a> = (redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>);

fn read_entry(row: Result<Row<'_>, redb::StorageError>) -> io::Result<LogEntry> {
    let (index, bytes) = row.map_err(io_error)?;
    let index = index.value();
    unseal_entry(index, bytes.value()).map_err(|error| in_record(format_args!("entry {index}"), error))
}

fn put_log_id(
    transaction: &WriteTransaction,
    name: &'static str,
    id: Option<LogId>,
) -> Result<(), redb::Error> {
    if let Some(id) = id {
        let record = seal(name.as_bytes(), &LogIdRecord::from(&id));
        transaction.open_table(FACTS)?.insert(name, record.as_slice())?;
    }
    Ok(())
}

/// What the disk must still learn of the committed index, taken along by the write about to be made.
fn take_committed(tail: &mut Tail) -> Option<LogId> {
    if std::mem::take(&mut tail.committed.1) { tail.committed.0 } else { None }
}

impl Drop for LogStore {
    /// An orderly end writes down how far the log is committed, so that a restarted member holds
    /// the state it had before it hears from a leader.
    fn drop(&mut self) {
        if let Some(committed) = take_committed(&mut lock(&self.reader.tail)) {
            self.queue
                .try_push(Box::new(move |transaction| put_log_id(transaction, COMMITTED, Some(committed))));
        }
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let tail = lock(&self.reader.tail);
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        let committed = take_committed(&mut lock(&self.reader.tail));
        self.queue
            .write(Box::new(move |transaction| {
                let record = seal(VOTE.as_bytes(), &VoteRecord::from(&vote));
                transaction.open_table(FACTS)?.insert(VOTE, record.as_slice())?;
                put_log_id(transaction, COMMITTED, committed)
            }))
            .await?;
        lock(&self.reader.tail).vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        lock(&self.reader.tail).committed = (committed, true);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.reader.tail).committed.0)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let (sequence, committed) = {
            let mut tail = lock(&self.reader.tail);
            (tail.append(&entries), take_committed(&mut tail))
        };
        let write = Box::new(move |transaction: &WriteTransaction| {
            let mut table = transaction.open_table(ENTRIES)?;
            for entry in &entries {
                table.insert(entry.log_id.index, seal_entry(entry).as_slice())?;
            }
            put_log_id(transaction, COMMITTED, committed)
        });
        self.push(write, move |tail, outcome| {
            if outcome.is_ok() {
                tail.durable(sequence);
            }
            callback.io_completed(outcome);
        })
        .await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = lock(&self.reader.tail).truncate_after(last);
        let write = Box::new(move |transaction: &WriteTransaction| {
            transaction.open_table(ENTRIES)?.retain_in(from.., |_, _| false)?;
            Ok(())
        });
        self.push(write, |_, _| ()).await;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        lock(&self.reader.tail).purge(upto);
        let write = Box::new(move |transaction: &WriteTransaction| {
            transaction.open_table(ENTRIES)?.retain_in(..=upto.index, |_, _| false)?;
            put_log_id(transaction, PURGED, Some(upto))
        });
        self.push(write, |_, _| ()).await;
        Ok(())
    }
}

impl LogReader {
    /// Reads the entries of `range` that the log holds; stops after `bytes_max`, but not before the
    /// first.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let mut taken = 0;
        let mut fits = |entry: &LogEntry| {
            let fits = taken == 0 || taken + size(entry) <= bytes_max;
            taken += size(entry);
            fits
        };
        // The read begins while the tail is locked: what leaves the tail is in it.
        let (transaction, from_disk, cached) = {
            let tail = lock(&self.tail);
            let (from_disk, cached) = tail.read(range);
            if from_disk.is_empty() {
                return Ok(cached.take_while(|entry| fits(entry)).cloned().collect());
            }
            let cached: Vec<_> = cached.take_while(|entry| fits(entry)).cloned().collect();
            (self.database.begin()?, from_disk, cached)
        };
        let read = move || {
            // Dropped inside as well.
            let transaction = transaction;
            let table = transaction.open_table(ENTRIES).map_err(io_error)?;
            let (mut entries, mut taken) = (Vec::new(), 0);
            for row in table.range(from_disk.clone()).map_err(io_error)? {
                let entry = read_entry(row)?;
                check_follows(entries.last(), entry.log_id.index)?;
                taken += size(&entry);
                if taken > bytes_max && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
            check_follows(entries.last(), from_disk.end)?;
            entries.extend(cached);
            Ok(entries)
        };
        NodeContext::current().blocking(move || guarded(read)).await
    }
}

/// Entries may lack at the beginning of what is read, where openraft looks for itself, but nowhere
/// else.
fn check_follows(last: Option<&LogEntry>, index: u64) -> io::Result<()> {
    match last {
        Some(last) if last.log_id.index + 1 != index => {
            Err(damaged(format!("entry {} is missing", last.log_id.index + 1)))
        }
        _ => Ok(()),
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.tail).vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start..end, READ_BYTES).await
    }
}

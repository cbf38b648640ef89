//! The log as openraft sees it: entries, the vote, and how far the log is purged and known to be committed.
//!
//! All writes go through the log's queue in the order openraft makes them, and are written in groups.
//! `append` returns at once, its entries readable from the [`Tail`], and tells openraft when its group
//! is durable; a vote is durable before `save_vote` returns; truncation and purge need no wait, since
//! what is appended later is durable only after them. How far the log is committed rides along with the
//! next write: losing it costs nothing but a wait for the leader's word.
//!
//! Every entry has a checksum beside its group's. All are verified when the log opens and each when it is
//! read: a damaged log is an error of the kind [`io::ErrorKind::InvalidData`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::codec::{LogIdRecord, in_record, unseal_entry};
use super::queue::Queue;
use super::tail::{Tail, size};
use super::types::{LogEntry, LogId, Types, Vote};
use super::wal::{self, Change, Facts, Wal};
use crate::context::NodeContext;
use crate::database::damaged;

/// The files of the log.
pub(super) const FILES: wal::Files = wal::Files { name: super::LOG_FILE, mark: "raft.wal.mark" };

/// How much one read gives openraft to send to a follower, in bytes; one entry at least.
const READ_BYTES: usize = 1 << 20;

/// Reads the log. Cloning shares it.
#[derive(Clone)]
pub(super) struct LogReader {
    tail: Arc<Mutex<Tail>>,
    wal: Arc<Wal>,
}

/// The log of one member. openraft owns it; its file closes when it is dropped.
pub(super) struct LogStore {
    reader: LogReader,
    queue: Queue<Vec<Change>>,
}

impl LogStore {
    /// The log that was found in a file.
    pub(super) fn new(wal: Arc<Wal>, facts: &Facts, queue: Queue<Vec<Change>>) -> Self {
        let log_id = |id: Option<LogIdRecord>| id.map(LogId::from);
        let vote = facts.vote.map(Vote::from);
        let tail = Tail::new(vote, log_id(facts.purged), log_id(facts.last), log_id(facts.committed));
        Self { reader: LogReader { tail: Arc::new(Mutex::new(tail)), wal }, queue }
    }

    /// The last entry that the log no longer holds.
    pub(super) fn purged(&self) -> Option<LogId> {
        lock(&self.reader.tail).purged
    }

    /// Reads it beside openraft, which owns it.
    pub(super) fn reader(&self) -> LogReader {
        self.reader.clone()
    }
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change, and with it what the disk must still learn of the committed index.
fn with_committed(tail: &mut Tail, change: Change) -> Vec<Change> {
    let committed = take_committed(tail).map(Change::Committed);
    std::iter::once(change).chain(committed).collect()
}

/// What the disk must still learn of the committed index.
fn take_committed(tail: &mut Tail) -> Option<LogId> {
    if std::mem::take(&mut tail.committed.1) { tail.committed.0 } else { None }
}

impl Drop for LogStore {
    /// An orderly end writes down how far the log is committed, so that a restarted member holds
    /// the state it had before it hears from a leader.
    fn drop(&mut self) {
        if let Some(committed) = take_committed(&mut lock(&self.reader.tail)) {
            self.queue.try_push(vec![Change::Committed(committed)]);
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
        let changes = with_committed(&mut lock(&self.reader.tail), Change::Vote(*vote));
        self.queue.write(changes).await?;
        lock(&self.reader.tail).vote = Some(*vote);
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
        let (sequence, changes) = {
            let mut tail = lock(&self.reader.tail);
            (tail.append(&entries), with_committed(&mut tail, Change::Append(entries)))
        };
        let tail = Arc::clone(&self.reader.tail);
        let done = move |outcome: io::Result<()>| {
            if outcome.is_ok() {
                lock(&tail).durable(sequence);
            }
            callback.io_completed(outcome);
        };
        self.queue.push(changes, done).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        lock(&self.reader.tail).truncate_after(last);
        self.queue.push(vec![Change::Truncate(last)], |_| ()).await;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        lock(&self.reader.tail).purge(upto);
        self.queue.push(vec![Change::Purge(upto)], |_| ()).await;
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
        // The read begins while the tail is locked: what leaves the tail is on the disk.
        let (reading, from_disk, cached) = {
            let tail = lock(&self.tail);
            let (from_disk, cached) = tail.read(range);
            if from_disk.is_empty() {
                return Ok(cached.take_while(|entry| fits(entry)).cloned().collect());
            }
            let cached: Vec<_> = cached.take_while(|entry| fits(entry)).cloned().collect();
            (self.wal.begin(from_disk.clone(), bytes_max), from_disk, cached)
        };
        let read = move || {
            let (mut entries, mut taken) = (Vec::new(), 0);
            for read in reading.entries() {
                let (index, sealed) = read?;
                let entry = unseal_entry(index, &sealed)
                    .map_err(|error| in_record(format_args!("entry {index}"), error))?;
                check_follows(entries.last(), index)?;
                taken += size(&entry);
                if taken > bytes_max && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
            if reading.is_cut {
                return Ok(entries);
            }
            check_follows(entries.last(), from_disk.end)?;
            entries.extend(cached);
            Ok(entries)
        };
        NodeContext::current().blocking(read).await
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

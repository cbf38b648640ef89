//! The end of the log in memory: what openraft has appended, durable or not.
//!
//! Entries are readable from here at once, and stay at least until they are durable. Positions in
//! the writer's queue (`sequence`), not indexes, say what is durable: after a truncation an index
//! stands for another entry.

use std::collections::BTreeMap;
use std::ops::Range;

use openraft::EntryPayload;

use super::types::{LogEntry, LogId, Vote};

/// How much durable data is kept for followers that are a little behind, in bytes.
const CACHE_BYTES: usize = 4 << 20;
/// What an entry counts for beside its proposal, in bytes.
const ENTRY_BYTES: usize = 128;

/// What openraft knows of the log, whether or not the disk does yet.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The last vote that is durable.
    pub(super) vote: Option<Vote>,
    /// The last entry of those dropped because a snapshot covers them.
    pub(super) purged: Option<LogId>,
    /// The last entry; when there is none, `purged`.
    pub(super) last: Option<LogId>,
    /// The last entry known to be committed, and whether the disk does not know it yet.
    pub(super) committed: (Option<LogId>, bool),
    entries: BTreeMap<u64, Cached>,
    bytes: usize,
    queued: u64,
    durable: u64,
}

#[derive(Debug)]
struct Cached {
    entry: LogEntry,
    sequence: u64,
}

impl Tail {
    /// The tail of a log as the disk holds it.
    pub(super) fn new(
        vote: Option<Vote>,
        purged: Option<LogId>,
        last: Option<LogId>,
        committed: Option<LogId>,
    ) -> Self {
        Self { vote, purged, last, committed: (committed, false), ..Self::default() }
    }

    /// Adds entries, which follow the last one, and returns the sequence of their write.
    pub(super) fn append(&mut self, entries: &[LogEntry]) -> u64 {
        self.queued += 1;
        for entry in entries {
            self.bytes += size(entry);
            self.last = Some(entry.log_id);
            let cached = Cached { entry: entry.clone(), sequence: self.queued };
            if let Some(replaced) = self.entries.insert(entry.log_id.index, cached) {
                self.bytes -= size(&replaced.entry);
            }
        }
        self.queued
    }

    /// Learns that every write up to `sequence` is durable.
    pub(super) fn durable(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
        while self.bytes > CACHE_BYTES
            && let Some(first) = self.entries.first_entry()
            && first.get().sequence <= self.durable
        {
            self.bytes -= size(&first.remove().entry);
        }
    }

    /// Drops the entries after `last`, and returns the first index dropped.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) -> u64 {
        let from = next_index(last);
        for cached in self.entries.split_off(&from).into_values() {
            self.bytes -= size(&cached.entry);
        }
        self.last = self.last.min(last).max(self.purged);
        from
    }

    /// Drops the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        let kept = self.entries.split_off(&next_index(Some(upto)));
        for cached in std::mem::replace(&mut self.entries, kept).into_values() {
            self.bytes -= size(&cached.entry);
        }
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(self.purged);
    }

    /// The part of `range` that the log holds, divided into what must be read from the disk and the
    /// entries after it, which are here.
    pub(super) fn read(&self, range: Range<u64>) -> (Range<u64>, impl Iterator<Item = &LogEntry>) {
        let start = range.start.max(next_index(self.purged));
        let end = range.end.min(next_index(self.last)).max(start);
        let here = self.entries.first_key_value().map_or(end, |(first, _)| (*first).clamp(start, end));
        (start..here, self.entries.range(here..end).map(|(_, cached)| &cached.entry))
    }
}

/// The index after `id`.
pub(super) fn next_index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

/// What an entry takes of a cache or a message, in bytes, roughly.
pub(super) fn size(entry: &LogEntry) -> usize {
    ENTRY_BYTES
        + match &entry.payload {
            EntryPayload::Normal(proposal) => proposal.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::{CACHE_BYTES, Tail};
    use crate::raft::types::{LogEntry, LogId, Proposal};

    fn entries(term: u64, indexes: std::ops::Range<u64>, bytes: usize) -> Vec<LogEntry> {
        indexes
            .map(|index| LogEntry {
                log_id: LogId::new_term_index(term, index),
                payload: openraft::EntryPayload::Normal(Proposal(vec![0; bytes].into())),
            })
            .collect()
    }

    fn check(tail: &Tail, range: std::ops::Range<u64>, from_disk: std::ops::Range<u64>, here: &[(u64, u64)]) {
        let (disk, cached) = tail.read(range);
        assert_eq!(disk, from_disk);
        let cached: Vec<_> = cached.map(|entry| (entry.log_id.leader_id.term, entry.log_id.index)).collect();
        assert_eq!(cached, here);
    }

    #[test]
    fn reads_are_divided_between_disk_and_memory() {
        let mut tail = Tail { last: Some(LogId::new_term_index(1, 9)), ..Tail::default() };
        check(&tail, 0..5, 0..5, &[]);
        check(&tail, 5..50, 5..10, &[]);
        tail.append(&entries(2, 10..12, 1));
        check(&tail, 8..12, 8..10, &[(2, 10), (2, 11)]);
        check(&tail, 11..50, 11..11, &[(2, 11)]);
        check(&tail, 30..50, 30..30, &[]);
        tail.purge(LogId::new_term_index(1, 7));
        check(&tail, 0..11, 8..10, &[(2, 10)]);
        tail.purge(LogId::new_term_index(2, 20));
        check(&tail, 0..50, 21..21, &[]);
        assert_eq!(tail.last, Some(LogId::new_term_index(2, 20)));
    }

    #[test]
    fn entries_stay_until_they_are_durable_also_after_a_truncation() {
        let mut tail = Tail::default();
        let first = tail.append(&entries(1, 0..4, CACHE_BYTES));
        assert_eq!(tail.truncate_after(Some(LogId::new_term_index(1, 1))), 2);
        let second = tail.append(&entries(2, 2..4, CACHE_BYTES));
        tail.durable(first);
        check(&tail, 0..9, 0..2, &[(2, 2), (2, 3)]);
        tail.durable(second);
        check(&tail, 0..9, 0..4, &[]);
        assert_eq!(tail.bytes, 0);
    }
}

//! Reading a log's file through: what it holds, and where its end is.
//!
//! A group that does not read is the end of the log where it was never durable, and damage where it
//! was. It was when the mark beside the file counts it, or when something after it was written, for
//! that was written only then.

use std::collections::BTreeMap;
use std::io;

use redb::StorageBackend;

use super::format::{BLOCK, Facts, Found, GROUP_HEAD, GroupHead, Header, Written, records};
use super::layout::{Geometry, Layout, Position};
use crate::database::damaged;
use crate::raft::codec::{LogIdRecord, in_record, unseal_entry};
use crate::raft::tail::next_index;
use crate::raft::types::LogId;

/// What was found in a log's file.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The header of the newest unit that is kept.
    pub(super) header: Header,
    pub(super) layout: Layout,
    pub(super) facts: Facts,
    /// Where the next group goes, its number, and the checksum of the one before.
    pub(super) end: Position,
    pub(super) group: u64,
    pub(super) before: u32,
    /// Places with headers of units that were begun for a group which was never whole.
    pub(super) unfinished: Vec<u64>,
}

/// Reads the file of a log of which so many groups were durable for certain; absent when nothing in it
/// is a unit.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when what is there is not what was written; else the disk's.
pub(super) fn recover(
    file: &dyn StorageBackend,
    geometry: Geometry,
    durable: u64,
) -> io::Result<Option<Recovered>> {
    let places = file.len()? / geometry.place_bytes;
    let mut headers = BTreeMap::new();
    for place in 0..places {
        let mut block = [0; BLOCK as usize];
        file.read(place * geometry.place_bytes, &mut block)?;
        let header = Header::read(&block).map_err(|error| in_record("a header", error))?;
        if let Some(header) = header {
            if header.place_bytes != geometry.place_bytes {
                let (found, asked) = (header.place_bytes, geometry.place_bytes);
                return Err(io::Error::other(format!("its units have {found} bytes each, not {asked}")));
            }
            if let Some((other, _)) = headers.insert(header.unit, (place, header)) {
                return Err(damaged(format!("places {other} and {place} hold the same unit")));
            }
        }
    }
    let Some(newest) = headers.keys().next_back().copied() else { return Ok(None) };
    // What is before a gap was let go of before that place was taken for another unit.
    let oldest = (0..newest).rev().take_while(|unit| headers.contains_key(unit)).last().unwrap_or(newest);
    let headers = headers.split_off(&oldest);
    let scan = Scan::new(file, geometry, &headers, places);
    scan.through(durable).map(Some)
}

/// How a log is laid out in a file, by the first header in it; absent where there is none.
///
/// # Errors
/// The disk's.
pub(super) fn geometry_of(file: &dyn StorageBackend) -> io::Result<Option<Geometry>> {
    let mut block = [0; BLOCK as usize];
    for block_number in 0..file.len()? / BLOCK {
        file.read(block_number * BLOCK, &mut block)?;
        if let Ok(Some(header)) = Header::read(&block) {
            return Ok(Some(Geometry { place_bytes: header.place_bytes }));
        }
    }
    Ok(None)
}

struct Scan<'a> {
    file: &'a dyn StorageBackend,
    geometry: Geometry,
    headers: &'a BTreeMap<u64, (u64, Header)>,
    /// Of the oldest unit.
    header: &'a Header,
    layout: Layout,
    facts: Facts,
    at: Position,
    group: u64,
    before: u32,
}

impl<'a> Scan<'a> {
    fn new(
        file: &'a dyn StorageBackend,
        geometry: Geometry,
        headers: &'a BTreeMap<u64, (u64, Header)>,
        places: u64,
    ) -> Self {
        let (_, header) = headers.values().next().expect("there is a unit");
        let units = headers.iter().map(|(unit, (place, _))| (*unit, *place));
        Self {
            file,
            geometry,
            headers,
            header,
            layout: Layout::new(geometry, units, places),
            facts: header.facts,
            at: header.begins,
            group: header.group,
            before: header.before,
        }
    }

    fn through(mut self, durable: u64) -> io::Result<Recovered> {
        while let Some((head, group)) = self.next_group()? {
            self.take(&head, &group)?;
        }
        let whole = self.group - 1;
        if whole < durable {
            return Err(damaged(format!("it holds {whole} of {durable} groups, or it is an old copy")));
        }
        if let Some(later) = self.later()? {
            return Err(damaged(format!(
                "group {} does not read, and group {later} was written",
                self.group
            )));
        }
        self.check_entries()?;
        let newest = self.geometry.unit(self.at.saturating_sub(1).max(self.header.begins));
        let unfinished = self.layout.drop_after(newest);
        if let Some(purged) = self.facts.purged {
            self.layout.purged(LogId::from(purged), self.at);
        }
        let Self { layout, facts, at, group, before, .. } = self;
        let (_, (_, header)) = self.headers.range(..=newest).next_back().expect("there is a unit");
        Ok(Recovered { header: header.clone(), layout, facts, end: at, group, before, unfinished })
    }

    /// The group that the stream goes on with; absent when none that is whole does.
    fn next_group(&self) -> io::Result<Option<(GroupHead, Vec<u8>)>> {
        let Some(bytes) = self.read(self.at, GROUP_HEAD)? else { return Ok(None) };
        let Some(head) = GroupHead::read(&bytes) else { return Ok(None) };
        if head.number != self.group || head.before != self.before {
            return Ok(None);
        }
        let Some(group) = self.read(self.at, head.length)? else { return Ok(None) };
        Ok(head.is_whole(&self.header.salt, &group).then_some((head, group)))
    }

    /// A part of the stream; absent when it goes beyond the units that are there.
    fn read(&self, at: Position, length: usize) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        for (unit, offset, length) in self.geometry.pieces(at..at + length as u64) {
            let Some((place, _)) = self.headers.get(&unit) else { return Ok(None) };
            self.file
                .read(place * self.geometry.place_bytes + offset, &mut bytes[filled..filled + length])?;
            filled += length;
        }
        Ok(Some(bytes))
    }

    /// Takes in what a whole group says.
    fn take(&mut self, head: &GroupHead, group: &[u8]) -> io::Result<()> {
        let number = head.number;
        for found in records(group) {
            let found = found.map_err(|error| in_record(format_args!("group {number}"), error))?;
            match found {
                Found::Entry { index, start, sealed } => self.entry(index, start, sealed)?,
                Found::Vote(vote) => self.facts.vote = Some(vote),
                Found::Committed(upto) => self.facts.committed = Some(upto),
                Found::Truncate(after) => {
                    self.facts.truncated(after);
                    self.layout.truncated(next_index(self.facts.last.map(LogId::from)));
                }
                Found::Purge(upto) => self.facts.purged(upto),
            }
        }
        self.at += (head.length as u64).next_multiple_of(BLOCK);
        self.group += 1;
        self.before = head.checksum;
        Ok(())
    }

    fn entry(&mut self, index: u64, start: usize, sealed: &[u8]) -> io::Result<()> {
        let entry = unseal_entry(index, sealed);
        let id = entry.map_err(|error| in_record(format_args!("entry {index}"), error))?.log_id;
        let last = self.facts.last.map(LogId::from);
        if index != next_index(last) || last.is_some_and(|last| last.leader_id > id.leader_id) {
            let before = last.map_or_else(|| "the beginning".to_owned(), |last| format!("entry {last}"));
            return Err(damaged(format!("entry {id} does not follow {before}")));
        }
        self.layout.written(self.at, Written { id, start, length: sealed.len() });
        self.facts.last = Some(LogIdRecord::from(&id));
        Ok(())
    }

    /// Checks that all entries which are not purged are here. They follow each other.
    fn check_entries(&self) -> io::Result<()> {
        let next = next_index(self.facts.purged.map(LogId::from));
        let first = self.layout.entries().range(next..).next().map(|(index, _)| *index);
        let expected = (self.facts.last > self.facts.purged).then_some(next);
        if first == expected { Ok(()) } else { Err(damaged(format!("entry {next} is missing, and {first:?} is the first"))) }
    }

    /// The number of a group after the end of the log that was written, and so was the one at its end.
    fn later(&self) -> io::Result<Option<u64>> {
        // A header is written with the group that begins at its unit's start, or with the one that goes
        // on into it.
        let begun = self
            .headers
            .values()
            .map(|(_, header)| header.group - u64::from(header.begins > self.geometry.start(header.unit)));
        if let Some(later) = begun.max().filter(|begun| *begun > self.group) {
            return Ok(Some(later));
        }
        let end = self.geometry.start(self.geometry.unit(self.at) + 1);
        let mut at = self.at + BLOCK;
        while at < end {
            let Some(bytes) = self.read(at, GROUP_HEAD)? else { return Ok(None) };
            if let Some(head) = GroupHead::read(&bytes)
                && head.number > self.group
                && let Some(group) = self.read(at, head.length)?
                && head.is_whole(&self.header.salt, &group)
            {
                return Ok(Some(head.number));
            }
            at += BLOCK;
        }
        Ok(None)
    }
}

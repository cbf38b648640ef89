//! Where in the file what is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use redb::StorageBackend;

use super::format::{BLOCK, Effect, Written};
use crate::raft::types::LogId;

/// A byte of the log, counted from its beginning, over all units that there ever were.
pub(super) type Position = u64;

/// How the stream is laid into places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// How large a place is, in bytes: some blocks.
    pub(super) place_bytes: u64,
}

impl Geometry {
    /// How much of the stream a unit holds, in bytes.
    fn held(self) -> u64 {
        self.place_bytes - BLOCK
    }

    /// The number of the unit that holds a position.
    pub(super) fn unit(self, position: Position) -> u64 {
        position / self.held()
    }

    /// Where a unit begins to hold the stream.
    pub(super) fn start(self, unit: u64) -> Position {
        unit * self.held()
    }

    /// The units that hold a part of the stream.
    pub(super) fn units(self, part: Range<Position>) -> Range<u64> {
        let after = if part.is_empty() { part.start } else { part.end.next_multiple_of(self.held()) };
        self.unit(part.start)..self.unit(after)
    }

    /// A part of the stream by units: the unit, where in its place the piece begins, and how long it is.
    pub(super) fn pieces(self, part: Range<Position>) -> impl Iterator<Item = (u64, u64, usize)> {
        self.units(part.clone()).map(move |unit| {
            let start = self.start(unit).max(part.start);
            let end = self.start(unit + 1).min(part.end);
            let length = usize::try_from(end - start).expect("it is in memory");
            (unit, BLOCK + start - self.start(unit), length)
        })
    }
}

/// A unit of the log.
#[derive(Debug)]
struct Unit {
    /// Which place it is in, counted from the file's beginning.
    place: u64,
    /// The largest index of an entry that it takes to find again; none when there is no such entry.
    newest: Option<u64>,
    /// Who reads it holds this.
    read: Arc<()>,
}

/// An entry on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: Position,
    pub(super) length: usize,
}

/// An entry to be read. While it lives its place is not written anew.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) index: u64,
    /// Where in the file its pieces are, and how long.
    pieces: Vec<(u64, usize)>,
    _read: Vec<Arc<()>>,
}

impl Pinned {
    /// Reads it from the log's file, as it is sealed.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn read(&self, file: &dyn StorageBackend) -> io::Result<Vec<u8>> {
        let mut sealed = vec![0; self.pieces.iter().map(|(_, length)| length).sum()];
        let mut filled = 0;
        for (offset, length) in &self.pieces {
            file.read(*offset, &mut sealed[filled..filled + length])?;
            filled += length;
        }
        Ok(sealed)
    }
}

/// A place that can be made ready for the next unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spare {
    /// It may have the header of a unit that is no more. That must be gone, durably, before anything else is
    /// written there: else a torn write would leave a unit that looks as if it were whole.
    Used(u64),
    /// It is to be made, at the end of the file.
    New(u64),
}

/// Which unit is in which place, and where in them the entries are.
#[derive(Debug)]
pub(super) struct Layout {
    geometry: Geometry,
    /// Without a gap.
    units: BTreeMap<u64, Unit>,
    /// Places of units that are no more, whose headers may still be there.
    free: BTreeSet<u64>,
    /// Free places without a header.
    ready: BTreeSet<u64>,
    /// Units that are no more, which somebody may be reading.
    retired: Vec<Unit>,
    /// How many places the file has.
    places: u64,
    entries: BTreeMap<u64, Place>,
}

impl Layout {
    /// Units by number, each with its place, in a file of so many places.
    pub(super) fn new(geometry: Geometry, units: impl IntoIterator<Item = (u64, u64)>, places: u64) -> Self {
        let unit = |place| Unit { place, newest: None, read: Arc::new(()) };
        let units: BTreeMap<_, _> = units.into_iter().map(|(number, place)| (number, unit(place))).collect();
        let mut free: BTreeSet<u64> = (0..places).collect();
        for unit in units.values() {
            free.remove(&unit.place);
        }
        let (ready, retired, entries) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        Self { geometry, units, free, ready, retired, places, entries }
    }

    /// The place of a unit.
    pub(super) fn place(&self, unit: u64) -> Option<u64> {
        self.units.get(&unit).map(|unit| unit.place)
    }

    /// Lets go of the units after this one. The places that they were in.
    pub(super) fn drop_after(&mut self, unit: u64) -> Vec<u64> {
        let dropped: Vec<u64> =
            self.units.split_off(&(unit + 1)).into_values().map(|unit| unit.place).collect();
        self.free.extend(&dropped);
        dropped
    }

    /// Gives the next unit a place: the first that is ready, else a free one, else one at the file's end.
    /// The place, and whether the header of another unit must go from it first.
    pub(super) fn add(&mut self, unit: u64) -> (u64, bool) {
        self.reclaim();
        let ready = self.ready.pop_first().map(|place| (place, false));
        let (place, is_used) =
            ready.or_else(|| self.free.pop_first().map(|place| (place, true))).unwrap_or_else(|| {
                self.places += 1;
                (self.places - 1, false)
            });
        self.units.insert(unit, Unit { place, newest: None, read: Arc::new(()) });
        (place, is_used)
    }

    /// Takes up what a group changes, which is a part of the stream.
    pub(super) fn apply(&mut self, group: &Range<Position>, effects: &[Effect]) {
        let mut purged = None;
        for effect in effects {
            match effect {
                Effect::Written(entry) => self.written(group.start, *entry),
                Effect::Truncated(from) => self.truncated(*from),
                Effect::Purged(upto) => purged = purged.max(Some(*upto)),
            }
        }
        // Last: what the group says behind a purge may be in a unit that had nothing but what is purged.
        if let Some(upto) = purged {
            self.purged(upto, group.end);
        }
    }

    /// Notes an entry of a group that begins at a position.
    pub(super) fn written(&mut self, group: Position, entry: Written) {
        let at = group + entry.start as u64;
        let index = entry.id.index;
        // To find it again takes the group's beginning.
        for unit in self.geometry.units(group..at + entry.length as u64) {
            let unit = self.units.get_mut(&unit).expect("it was written to");
            unit.newest = unit.newest.max(Some(index));
        }
        let place = Place { at, length: entry.length };
        self.entries.insert(index, place);
    }

    /// The entries from an index on are no more.
    pub(super) fn truncated(&mut self, from: u64) {
        self.entries.split_off(&from);
    }

    /// The entries up to one are no more, nor are the units that held only such, before the one that
    /// holds what is before `position`.
    pub(super) fn purged(&mut self, upto: LogId, position: Position) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        // The one with the log's last bytes stays: it says what the log says.
        let current = self.geometry.unit(position.saturating_sub(1));
        while let Some(first) = self.units.first_entry()
            && *first.key() < current
            && first.get().newest.is_none_or(|newest| newest <= upto.index)
        {
            self.retired.push(first.remove());
        }
        self.reclaim();
    }

    /// Frees the places that nobody reads any more.
    fn reclaim(&mut self) {
        let read = |unit: &Unit| Arc::strong_count(&unit.read) > 1;
        let (kept, gone) = std::mem::take(&mut self.retired).into_iter().partition(read);
        self.retired = kept;
        self.free.extend(gone.into_iter().map(|unit: Unit| unit.place));
    }

    /// What makes a place ready, when none is.
    pub(super) fn spare(&mut self) -> Option<Spare> {
        self.reclaim();
        if !self.ready.is_empty() {
            return None;
        }
        Some(self.free.first().map_or(Spare::New(self.places), |place| Spare::Used(*place)))
    }

    /// A place has no header any more, or is new at the file's end.
    pub(super) fn made_ready(&mut self, place: u64) {
        self.free.remove(&place);
        self.ready.insert(place);
        self.places = self.places.max(place + 1);
    }

    /// Lets go of free places at the end of the file while there are more than `keep`. How many the file
    /// has then, if that is fewer.
    pub(super) fn shrink(&mut self, keep: usize) -> Option<u64> {
        let before = self.places;
        while self.free.len() + self.ready.len() > keep {
            let last = self.places - 1;
            if !self.free.remove(&last) && !self.ready.remove(&last) {
                break;
            }
            self.places = last;
        }
        (self.places < before).then_some(self.places)
    }

    /// The entries that are here.
    pub(super) fn entries(&self) -> &BTreeMap<u64, Place> {
        &self.entries
    }

    /// The entries of a range that are here, to be read: as many as have `bytes_max` bytes, and one more.
    /// Whether there are others after those.
    pub(super) fn pin(&self, range: Range<u64>, bytes_max: usize) -> (Vec<Pinned>, bool) {
        let (mut pinned, mut taken) = (Vec::new(), 0_usize);
        for (index, place) in self.entries.range(range) {
            if taken > bytes_max {
                return (pinned, true);
            }
            taken = taken.saturating_add(place.length);
            let part = place.at..place.at + place.length as u64;
            let (mut pieces, mut read) = (Vec::new(), Vec::new());
            for (unit, offset, length) in self.geometry.pieces(part) {
                let unit = &self.units[&unit];
                pieces.push((unit.place * self.geometry.place_bytes + offset, length));
                read.push(Arc::clone(&unit.read));
            }
            pinned.push(Pinned { index: *index, pieces, _read: read });
        }
        (pinned, false)
    }
}

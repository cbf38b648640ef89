//! The write-ahead log: the file that holds a member's log.
//!
//! What openraft asks for (entries, a vote, a truncation, a purge, how far the log is committed) is
//! written as records, one group for all that waits, in one write and one flush; `format` says how it
//! is laid out. Units whose entries are all purged are written anew, so in the long run the file has
//! the size of what is in use, its blocks are allocated, and a flush changes nothing but data.

mod format;
mod layout;
mod recover;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

use self::format::{BLOCK, Effect, Found, Group, GroupHead, Header, records};
pub(super) use self::format::{Change, Facts};
use self::layout::{Geometry, Layout, Pinned, Position, Spare};
use self::recover::{Recovered, geometry_of, recover};
use super::owner::Owner;
use super::queue::{Closing, Completion, Open, Sink};
use crate::database::{Mark, damaged};
use crate::platform::Disk;

/// How many free places at the end of the file are kept.
const FREE_PLACES: usize = 4;

/// The names of a log's files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files {
    pub(super) name: &'static str,
    pub(super) mark: &'static str,
}

/// A log's file, which its writer and its readers share.
pub(super) struct Wal {
    file: Box<dyn StorageBackend>,
    geometry: Geometry,
    layout: Mutex<Layout>,
    /// Dropped last: [`Closing`] waits for it.
    _open: Open,
}

/// A log that has been opened.
pub(super) struct Opened {
    pub(super) wal: Arc<Wal>,
    pub(super) writer: Writer,
    /// Whose it is.
    pub(super) owner: Owner,
    pub(super) facts: Facts,
    pub(super) closing: Closing,
}

/// Opens the log, making it `owner`'s when there is none. `salt` is for a new one.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when someone else has the file open, [`io::ErrorKind::InvalidData`]
/// when it is damaged, [`io::ErrorKind::NotFound`] when there was a log and there is none any more; else
/// what failed.
pub(super) fn open(
    disk: &dyn Disk,
    files: Files,
    place_bytes: u64,
    owner: Owner,
    salt: [u8; 16],
) -> io::Result<Opened> {
    let geometry = Geometry { place_bytes };
    let mark = Mark::open(disk, files.mark)?;
    let file = disk.open(files.name)?;
    match file.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
        // A disk that is simulated has locks of its own.
        Ok(true) | Err(BackendError::Unsupported) => {}
        Ok(false) => {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "it is in use by another process"));
        }
        Err(BackendError::Io(error)) => return Err(error),
        Err(_) => return Err(io::Error::other("its lock cannot be taken")),
    }
    let durable = mark.commits();
    let recovered = match recover(&*file, geometry, durable.unwrap_or(0))? {
        Some(recovered) => recovered,
        None if durable.is_none() => {
            make(&*file, geometry, owner, salt)?;
            recover(&*file, geometry, 0)?.ok_or_else(|| damaged("it holds nothing".to_owned()))?
        }
        None if file.len()? == 0 => {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is missing or empty"));
        }
        None => return Err(damaged("nothing in it is a part of a log".to_owned())),
    };
    let Recovered { header, layout, facts, end, group, before, unfinished } = recovered;
    for place in unfinished {
        file.write(place * place_bytes, &[0; BLOCK as usize])?;
    }
    // What was written and never flushed counts from now on.
    file.sync_data()?;
    if durable.is_none() {
        mark.write(group - 1);
        mark.flush()?;
    }
    let (open, closing) = Open::new();
    let wal = Arc::new(Wal { file, geometry, layout: Mutex::new(layout), _open: open });
    let writer = Writer {
        name: files.name,
        wal: Arc::clone(&wal),
        mark: Arc::new(mark),
        owner: header.owner,
        salt: header.salt,
        facts,
        end,
        group,
        before,
    };
    Ok(Opened { wal, writer, owner: header.owner, facts, closing })
}

/// Whether there is a log: one that was made, though it may be damaged.
///
/// # Errors
/// The disk's.
pub(super) fn is_begun(disk: &dyn Disk, files: Files) -> io::Result<bool> {
    Ok(disk.exists(files.mark)? && Mark::open(disk, files.mark)?.commits().is_some())
}

/// Hands over the entries in a log's file, as they are sealed, and returns what it says beside them; absent
/// when there is no log in it. For whoever looks on.
///
/// # Errors
/// `entry`'s; [`io::ErrorKind::InvalidData`] when it is damaged; else the disk's.
pub(super) fn look(
    file: &dyn StorageBackend,
    entry: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<Option<Facts>> {
    let Some(geometry) = geometry_of(file)? else { return Ok(None) };
    let Some(recovered) = recover(file, geometry, 0)? else { return Ok(None) };
    let (pinned, _) = recovered.layout.pin(0..u64::MAX, usize::MAX);
    for pinned in pinned {
        entry(pinned.index, &pinned.read(file)?)?;
    }
    Ok(Some(recovered.facts))
}

/// The entries that a write holds, as they are sealed; absent when it may hold a part of something.
pub(super) fn entries_in_write(bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if is_zero(bytes) || Header::read(bytes).is_ok_and(|header| header.is_some()) {
        return Some(Vec::new());
    }
    let group = bytes.get(..GroupHead::read(bytes)?.length)?;
    let entry = |found| match found {
        Ok(Found::Entry { index, sealed, .. }) => Some((index, sealed)),
        _ => None,
    };
    Some(records(group).filter_map(entry).collect())
}

/// A group of changes, as it is written.
#[cfg(test)]
pub(super) fn group(changes: &[Change]) -> Vec<u8> {
    let mut group = Group::new();
    changes.iter().for_each(|change| group.push(change));
    group.seal(&[0; 16], 1, 0).0
}

/// Makes a new log. Until its mark is there, it is made anew by the next start.
fn make(file: &dyn StorageBackend, geometry: Geometry, owner: Owner, salt: [u8; 16]) -> io::Result<()> {
    let place_bytes = geometry.place_bytes;
    file.set_len(0)?;
    file.set_len(place_bytes)?;
    fill(file, geometry, 0)?;
    let facts = Facts::default();
    let header = Header { owner, salt, place_bytes, unit: 0, begins: 0, group: 1, before: 0, facts };
    file.write(0, &header.to_block())?;
    file.sync_data()
}

/// Fills a place with zeros, so that its blocks are the file's before they are needed.
fn fill(file: &dyn StorageBackend, geometry: Geometry, place: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(geometry.place_bytes).expect("a place is small")];
    file.write(place * geometry.place_bytes, &zeros)?;
    file.sync_data()
}

impl Wal {
    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read the entries of a range: as many as have `bytes_max` bytes, and one more.
    pub(super) fn begin(self: &Arc<Self>, range: Range<u64>, bytes_max: usize) -> Reading {
        let (pinned, is_cut) = self.layout().pin(range, bytes_max);
        Reading { wal: Arc::clone(self), pinned, is_cut }
    }

    /// Keeps a free place ahead, and not many more than one.
    fn prepare(&self) -> io::Result<()> {
        let fewer = self.layout().shrink(FREE_PLACES);
        if let Some(places) = fewer {
            self.file.set_len(places * self.geometry.place_bytes)?;
        }
        let spare = self.layout().spare();
        match spare {
            None => return Ok(()),
            Some(Spare::Used(place)) => {
                self.clear(place)?;
                self.layout().made_ready(place);
            }
            Some(Spare::New(place)) => {
                self.file.set_len((place + 1) * self.geometry.place_bytes)?;
                fill(&*self.file, self.geometry, place)?;
                self.layout().made_ready(place);
            }
        }
        Ok(())
    }

    /// Removes the header from a place, durably.
    fn clear(&self, place: u64) -> io::Result<()> {
        self.file.write(place * self.geometry.place_bytes, &[0; BLOCK as usize])?;
        self.file.sync_data()
    }
}

/// Entries about to be read: they stay where they are.
pub(super) struct Reading {
    wal: Arc<Wal>,
    pinned: Vec<Pinned>,
    /// Whether the range goes on beyond them.
    pub(super) is_cut: bool,
}

impl Reading {
    /// Reads the entries, each with its index, as they are sealed.
    pub(super) fn entries(&self) -> impl Iterator<Item = io::Result<(u64, Vec<u8>)>> + '_ {
        self.pinned.iter().map(|pinned| Ok((pinned.index, pinned.read(&*self.wal.file)?)))
    }
}

/// Writes the log.
pub(super) struct Writer {
    name: &'static str,
    wal: Arc<Wal>,
    mark: Arc<Mark>,
    owner: Owner,
    salt: [u8; 16],
    facts: Facts,
    /// Where the next group goes, its number, and the checksum of the one before.
    end: Position,
    group: u64,
    before: u32,
}

impl Writer {
    /// Writes and flushes a group.
    fn write(&mut self, group: Group, facts: Facts) -> io::Result<Vec<Effect>> {
        let (bytes, checksum, effects) = group.seal(&self.salt, self.group, self.before);
        let geometry = self.wal.geometry;
        let part = self.end..self.end + bytes.len() as u64;
        let mut header = Header {
            owner: self.owner,
            salt: self.salt,
            place_bytes: geometry.place_bytes,
            unit: 0,
            begins: self.end,
            group: self.group,
            before: self.before,
            facts: self.facts,
        };
        let mut written = 0;
        for (unit, offset, length) in geometry.pieces(part.clone()) {
            let place = self.wal.layout().place(unit);
            let place = match place {
                Some(place) => place,
                None => {
                    if geometry.start(unit) > part.start {
                        // The group goes on into it: it begins with the one after.
                        (header.begins, header.group, header.before) = (part.end, self.group + 1, checksum);
                        header.facts = facts;
                    }
                    header.unit = unit;
                    let (place, is_used) = self.wal.layout().add(unit);
                    if is_used {
                        self.wal.clear(place)?;
                    }
                    self.wal.file.write(place * geometry.place_bytes, &header.to_block())?;
                    place
                }
            };
            let at = place * geometry.place_bytes + offset;
            self.wal.file.write(at, &bytes[written..written + length])?;
            written += length;
        }
        self.wal.file.sync_data()?;
        (self.end, self.group, self.before, self.facts) = (part.end, self.group + 1, checksum, facts);
        Ok(effects)
    }
}

impl Sink for Writer {
    type Write = Vec<Change>;

    fn name(&self) -> &'static str {
        self.name
    }

    fn commit(&mut self, writes: Vec<Vec<Change>>) -> io::Result<Completion> {
        let mut groups = Vec::new();
        let mut writes = writes.into_iter().peekable();
        while writes.peek().is_some() {
            let (mut group, mut facts) = (Group::new(), self.facts);
            while let Some(write) = writes.next_if(|_| !group.is_full()) {
                for change in &write {
                    group.push(change);
                    facts.note(change);
                }
            }
            let begins = self.end;
            let effects = self.write(group, facts)?;
            groups.push((begins..self.end, effects));
        }
        let (wal, mark) = (Arc::clone(&self.wal), Arc::clone(&self.mark));
        let durable = self.group - 1;
        Ok(Box::new(move || {
            mark.write(durable);
            groups.iter().for_each(|(group, effects)| wal.layout().apply(group, effects));
        }))
    }

    fn rest(&mut self) {
        if let Err(error) = self.wal.prepare() {
            tracing::debug!(store = self.name, err = %error, "no place is made ready");
        }
    }
}

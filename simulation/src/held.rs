//! Which entries the durable part of a member's log holds.
//!
//! Kept up with each flush from what it wrote, because to read the file each time would take longer than
//! the history does. Read from the file itself where a group was written in pieces, or not all of a flush
//! is there.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use blixard_node::raft::inspect;

/// How many entries are remembered, from the newest back.
const KEPT: usize = 4_096;

/// The hash of each entry, by its index. What was purged stays: a snapshot covers it.
#[derive(Debug, Default)]
pub(crate) struct Held {
    entries: BTreeMap<u64, u64>,
    /// Whether the file must be read first.
    stale: bool,
}

impl Held {
    /// A write became durable.
    pub(crate) fn flushed(&mut self, bytes: &[u8]) {
        match inspect::entries_in_write(bytes) {
            Some(entries) => self.entries.extend(entries),
            None => self.stale = true,
        }
        while self.entries.len() > KEPT {
            self.entries.pop_first();
        }
    }

    /// Not all of a flush became durable.
    pub(crate) fn forget(&mut self) {
        self.stale = true;
    }

    /// The hash of the entry of an index in the file, which is `durable`.
    pub(crate) fn entry(&mut self, index: u64, durable: &[u8]) -> Option<u64> {
        if std::mem::take(&mut self.stale) {
            // A log that is not durable yet holds nothing.
            let found = inspect::entries(&*Image::of(durable), 0).unwrap_or_default();
            self.entries = found.into_iter().map(|entry| (entry.index, entry.hash)).collect();
        }
        self.entries.get(&index).copied()
    }
}

/// A copy of a file, to open without touching it. Cloning shares the copy.
#[derive(Debug, Clone)]
pub(crate) struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    /// A copy of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Box<Self> {
        Box::new(Self(Arc::new(Mutex::new(bytes.to_vec()))))
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.with(|bytes| bytes.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

impl redb::StorageBackend for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|bytes| {
            let found = bytes.get(place(offset)..place(offset) + out.len());
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.resize(place(len), 0));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|bytes| bytes[place(offset)..place(offset) + data.len()].copy_from_slice(data));
        Ok(())
    }
}

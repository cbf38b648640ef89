//! `committed_entries_are_durable`: an entry that a node applies is on the disks of several.
//!
//! Ongaro, "Consensus", section 3.8: a member answers for an entry once it is durable. Looked at,
//! for some entries, at the moment when the first node shows that it has applied them, in what a
//! loss of power would leave of each log. Shows an acknowledgement before the flush, without
//! waiting for a power loss to hit the moment in between.

use std::io;
use std::sync::Mutex;

use blixard_node::raft::inspect::{self, LOG_FILE};

use crate::world::World;

/// At which indices: reading logs is slow.
const EVERY: u64 = 50;
/// Fewer members than this are not looked at: one alone may be the quorum.
const VOTERS_MIN: usize = 3;
/// On how many disks an entry is at least when so many vote. While the configuration changes it is
/// not known here which quorum it takes; that of the smallest is two.
const HOLDERS_MIN: usize = 2;

/// Whether an index is one of those that are looked at.
pub(super) fn is_due(index: u64) -> bool {
    index.is_multiple_of(EVERY)
}

/// Checks that an entry just applied is durable where it must be.
///
/// # Errors
/// Which machines hold it, when they are too few.
pub(crate) fn durable(world: &World, index: u64, voters: usize) -> Result<(), String> {
    if voters < VOTERS_MIN {
        return Ok(());
    }
    let holds = |number: &u64| {
        let Some(bytes) = world.machine(*number).disk.durable(LOG_FILE) else { return false };
        // A log whose first commit is not durable yet holds nothing.
        let entries = inspect::entries(Box::new(Image(Mutex::new(bytes))), index).unwrap_or_default();
        entries.first().is_some_and(|entry| entry.index == index)
    };
    let holders: Vec<u64> = (1..=world.machines.len() as u64).filter(holds).collect();
    if holders.len() >= HOLDERS_MIN {
        return Ok(());
    }
    Err(format!("entry {index} was applied, and only the machines {holders:?} have it on disk"))
}

/// A copy of a file, to open without touching it.
#[derive(Debug)]
struct Image(Mutex<Vec<u8>>);

impl Image {
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

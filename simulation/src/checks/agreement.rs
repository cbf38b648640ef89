//! `states_agree`: whoever has applied the same index has the same state.
//!
//! State machine safety (Ongaro, "Consensus", figure 3.2), by digest. Shows an apply that depends
//! on more than the log, an entry lost after it was committed, and a log that parted.

use std::collections::BTreeMap;

/// The digest of the state at each index, and who showed it first.
#[derive(Default)]
pub(super) struct Agreement {
    digests: BTreeMap<u64, (u64, [u8; 32])>,
}

impl Agreement {
    pub(super) fn seen(&mut self, machine: u64, index: u64, digest: [u8; 32]) -> Result<(), String> {
        let (first, known) = *self.digests.entry(index).or_insert((machine, digest));
        if known == digest {
            return Ok(());
        }
        Err(format!("machines {first} and {machine} have different states at index {index}"))
    }

    pub(super) fn highest(&self) -> u64 {
        self.digests.last_key_value().map_or(0, |(index, _)| *index)
    }
}

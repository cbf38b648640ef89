//! `starts_are_confirmed`: a daemon starts containers only from a state that holds everything that
//! was committed when the daemon began.
//!
//! A machine that returns knows of its replicas what its disk holds; meanwhile they may have been
//! removed, or run elsewhere. So it asks a quorum first (docs/architecture.md; hashicorp/nomad issues
//! 3971 and 9705 are of clients that did not). Shows an agent that acts on what its disk says.

use std::collections::BTreeMap;

/// What each daemon had to learn first, and what it knows, as indexes.
#[derive(Default)]
pub(super) struct Confirmed {
    machines: BTreeMap<u64, (u64, u64)>,
}

impl Confirmed {
    /// The daemon of a machine begins when `committed` is the highest index that any node applied.
    pub(super) fn daemon_starts(&mut self, machine: u64, committed: u64) {
        self.machines.insert(machine, (committed, 0));
    }

    /// A machine's node has applied this much.
    pub(super) fn applied(&mut self, machine: u64, index: u64) {
        self.machines.entry(machine).or_default().1 = index;
    }

    /// Checks that a machine may start a container.
    pub(super) fn started(&self, machine: u64) -> Result<(), String> {
        let (needed, known) = self.machines.get(&machine).copied().unwrap_or_default();
        if known >= needed {
            return Ok(());
        }
        Err(format!(
            "machine {machine} starts a container and knows index {known}; {needed} was committed when its daemon began"
        ))
    }
}

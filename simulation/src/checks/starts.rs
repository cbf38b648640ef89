//! `replicas_start_once`: a replica runs on one machine and once at a time, and its attempts rise
//! while its daemon runs: one whose end no quorum recorded is forgotten with the daemon.
//!
//! A replica's node never changes; a new attempt begins when the container of the last one has
//! ended. Seen in what the runtimes do, not in what the cluster believes. Two running replicas of
//! one slot and version are right only while the state names all but one of them as superseded,
//! stopping or lost, which the state's own invariants check. Shows an agent that starts what is
//! another's, starts again without looking what runs, or runs an old attempt after a new one.

use std::collections::BTreeMap;

use blixard_core::id::ReplicaId;

/// Where each replica was started, and its last attempt there.
#[derive(Default)]
pub(super) struct Starts {
    places: BTreeMap<ReplicaId, (u64, u32)>,
}

impl Starts {
    /// The daemon of a machine starts.
    pub(super) fn daemon_starts(&mut self, machine: u64) {
        for (_, last) in self.places.values_mut().filter(|(place, _)| *place == machine) {
            *last = 0;
        }
    }

    /// A machine starts a container while `running`, attempts of the same replica, run there.
    pub(super) fn started(
        &mut self,
        machine: u64,
        replica: ReplicaId,
        attempt: u32,
        running: &[u32],
    ) -> Result<(), String> {
        let (place, last) = *self.places.entry(replica).or_insert((machine, attempt));
        if place != machine {
            return Err(format!("replica {replica} was started on machine {place} and on machine {machine}"));
        }
        if let Some(other) = running.first() {
            return Err(format!(
                "attempt {attempt} of replica {replica} was started while attempt {other} runs"
            ));
        }
        if attempt < last {
            return Err(format!("attempt {attempt} of replica {replica} was started after attempt {last}"));
        }
        self.places.insert(replica, (machine, attempt));
        Ok(())
    }
}

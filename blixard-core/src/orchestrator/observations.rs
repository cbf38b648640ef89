//! What the leader saw for itself and no log entry says.

use std::collections::BTreeMap;

use crate::cluster::{ClusterState, Phase, Replica};
use crate::id::ReplicaId;
use crate::time::UtcMs;

/// Since when replicas run, by the leader's clock, as far back as it leads. Agents report their
/// own clocks' times, which are good for display only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observations {
    running: BTreeMap<ReplicaId, (u32, UtcMs)>,
}

impl Observations {
    /// What a leader that begins at `now` knows: what runs, runs since now.
    pub fn new(state: &ClusterState, now: UtcMs) -> Self {
        let mut observations = Self::default();
        for (&id, replica) in &state.replicas {
            observations.note(id, replica, now);
        }
        observations
    }

    /// Takes in a replica as it is at `now`. A new attempt runs anew.
    pub fn note(&mut self, id: ReplicaId, replica: &Replica, now: UtcMs) {
        if replica.status.phase != Phase::Running {
            self.forget(id);
        } else if self.running.get(&id).is_none_or(|(attempt, _)| *attempt != replica.status.attempt) {
            self.running.insert(id, (replica.status.attempt, now));
        }
    }

    /// Drops a replica that is gone.
    pub fn forget(&mut self, id: ReplicaId) {
        self.running.remove(&id);
    }

    /// Since when a replica's present attempt runs.
    pub fn running_since(&self, id: ReplicaId) -> Option<UtcMs> {
        self.running.get(&id).map(|&(_, since)| since)
    }
}

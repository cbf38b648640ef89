//! `no_strays`: no container runs on without an assignment, and nothing that should run is left
//! alone, while the node that is to see to it can.
//!
//! A node that has been up, with a runtime that answers and a leader that it hears, for [`GRACE`]
//! and whose own state has not named a container's replica for as long has removed the container.
//! Nomad and Swarm both had clients that kept allocations which the servers had forgotten. Shows
//! a removal that is tried once only, and a container that a failed start left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::cluster::Desired;
use blixard_core::id::ReplicaId;

use crate::machine::Machine;

/// How long a container may run without an assignment: longer than the longest back-off between
/// two tries to remove it.
pub(super) const GRACE: Duration = Duration::from_secs(90);

/// Since when each container has had no assignment.
#[derive(Default)]
pub(super) struct Strays {
    since: BTreeMap<(u64, ReplicaId, u32), Duration>,
}

impl Strays {
    /// Looks at one machine.
    pub(super) fn look(&mut self, machine: &Machine, now: Duration) -> Result<(), String> {
        let number = machine.number;
        let node = machine.running().filter(|_| machine.containers.is_well());
        let Some(node) = node.filter(|node| node.handle.raft().leader.is_some()) else {
            self.since.retain(|(place, _, _), _| *place != number);
            return Ok(());
        };
        let state = node.handle.state();
        let assigned = |replica: ReplicaId, attempt: u32| {
            state.replicas.get(&replica).is_some_and(|row| {
                row.node == node.handle.id && row.desired != Desired::Stop && attempt >= row.status.attempt
            })
        };
        let running = machine.containers.running();
        let strays: Vec<_> = running
            .iter()
            .map(|(replica, attempt, _)| (number, *replica, *attempt))
            .filter(|(_, replica, attempt)| !assigned(*replica, *attempt))
            .collect();
        self.since.retain(|key, _| key.0 != number || strays.contains(key));
        for key in strays {
            let since = *self.since.entry(key).or_insert(now);
            if now.saturating_sub(since) > GRACE {
                return Err(format!(
                    "attempt {} of replica {} has run on machine {number} without an assignment for {GRACE:?}",
                    key.2, key.1
                ));
            }
        }
        Ok(())
    }
}

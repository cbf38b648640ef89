//! `healthy_containers_are_kept`: an agent does not end a container that should run and does.
//!
//! Reconnecting keeps healthy work (docs/architecture.md; hashicorp/nomad issue 5876 is of the
//! opposite). Shows an agent that acts on a state older than what runs on its machine.

use blixard_core::cluster::replica::Desired;
use blixard_core::cluster::{ClusterState, Phase};
use blixard_core::id::ReplicaId;

/// Checks that a container which ran when its machine's agent removed it was not wanted, by a state
/// that is at least as new as the agent's.
pub(super) fn check(state: &ClusterState, replica: ReplicaId, attempt: u32) -> Result<(), String> {
    let Some(row) = state.replicas.get(&replica) else { return Ok(()) };
    let wanted =
        row.desired != Desired::Stop && (row.status.attempt, row.status.phase) == (attempt, Phase::Running);
    if !wanted {
        return Ok(());
    }
    Err(format!("node {} ended attempt {attempt} of replica {replica}, which should run and ran", row.node))
}

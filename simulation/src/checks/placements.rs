//! `placements_are_allowed`: a replica is placed on a node that is up and takes replicas, and in a
//! slot whose back-off is over. What failed of one version holds up no other, and no move of what runs.
//!
//! Drains and back-off (docs/architecture.md). Shows a planner that overlooks either and an apply
//! that trusts it.

use blixard_core::cluster::replica::Desired;
use blixard_core::cluster::{Availability, ClusterState, NodeStatus, Replica, Service};
use blixard_core::id::ReplicaId;

/// Checks one entry's work.
pub(super) fn check(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    for (id, row) in after.replicas.iter().filter(|(id, _)| **id >= before.next_replica) {
        // A plan comes last in its entry: what it saw of nodes and services is what is there after.
        let node = after.nodes.get(&row.node);
        let ready = node.map(|node| (node.status, node.availability));
        if ready != Some((NodeStatus::Up, Availability::Active)) {
            return Err(format!("replica {id} is placed on node {}, which is {ready:?}", row.node));
        }
        // What supersedes one of the same that has not ended is no next try: it is moved.
        let superseded = |(other, old): (ReplicaId, &Replica)| {
            let kept = before.replicas.get(&other).is_some_and(|old| old.desired != Desired::Stop);
            let alike = |service: &Service| other != *id && service.same_containers(old.version, row.version);
            kept && old.lost_since.is_none()
                && !old.status.phase.is_final()
                && after.services.get(&row.service).is_some_and(alike)
        };
        if after.replicas_in(&row.service, row.slot).any(superseded) {
            continue;
        }
        let backoff = after.services.get(&row.service).and_then(|service| {
            let alike = |failed| service.same_containers(failed, row.version);
            service.backoff.get(&row.slot).filter(|backoff| backoff.version.is_none_or(alike))
        });
        if let Some(backoff) = backoff.filter(|backoff| backoff.not_before > after.time) {
            return Err(format!(
                "replica {id} of version {} is placed at {} in slot {} of `{}`, which waits until {} for what failed \
                 of version {:?}",
                row.version, after.time, row.slot, row.service, backoff.not_before, backoff.version
            ));
        }
    }
    Ok(())
}

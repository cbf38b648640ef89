//! Which replicas are a node's own, out of the replicated state.

use std::collections::BTreeMap;

use super::Assignment;
use crate::cluster::{ClusterState, Replica};
use crate::id::{NodeId, ReplicaId};

/// The replicas of `node`, each with what it runs and what it has to wait for.
///
/// A replica whose version is no longer kept goes on running but is blocked from starting.
pub fn assignments(state: &ClusterState, node: NodeId) -> BTreeMap<ReplicaId, Assignment> {
    let own = state.replicas.iter().filter(|(_, replica)| replica.node == node);
    own.filter_map(|(id, replica)| Some((*id, assignment(state, replica)?))).collect()
}

fn assignment(state: &ClusterState, replica: &Replica) -> Option<Assignment> {
    let service = state.services.get(&replica.service)?;
    let kept = service.spec_of(replica.version);
    let blocked = match kept {
        None => Some(format!("version {} of `{}` is no longer kept", replica.version, replica.service)),
        Some(_) => waits_for(state, replica),
    };
    let spec = kept.unwrap_or(&service.current().spec);
    Some(Assignment {
        stop_timeout_s: replica.stop_timeout_s.unwrap_or(spec.stop_timeout_s),
        spec: spec.clone(),
        slot: replica.slot,
        version: replica.version,
        desired: replica.desired,
        blocked,
        status: replica.status.clone(),
    })
}

fn waits_for(state: &ClusterState, replica: &Replica) -> Option<String> {
    let after = replica.after?;
    let earlier = state.replicas.get(&after)?;
    Some(format!("waits for replica {after} on node {} to stop", earlier.node))
}

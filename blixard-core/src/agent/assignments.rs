//! Which replicas are a node's own, out of the replicated state.

use std::collections::BTreeMap;

use super::{Assignment, MountedVolume};
use crate::cluster::{ClusterState, Replica};
use crate::id::{NodeId, ReplicaId, VolumeName};
use crate::spec::ServiceSpec;

/// The replicas of `node`, each with what it runs and what it has to wait for.
///
/// A replica whose version is no longer kept goes on running but is blocked from starting.
pub fn assignments(state: &ClusterState, node: NodeId) -> BTreeMap<ReplicaId, Assignment> {
    state.replicas_on(node).filter_map(|(id, replica)| Some((id, assignment(state, replica)?))).collect()
}

fn assignment(state: &ClusterState, replica: &Replica) -> Option<Assignment> {
    let service = state.services.get(&replica.service)?;
    let kept = service.spec_of(replica.version);
    let blocked = match kept {
        None => Some(format!("version {} of `{}` is no longer kept", replica.version, replica.service)),
        Some(spec) => waits_for(state, replica).or_else(|| elsewhere(state, spec, replica.node)),
    };
    let spec = kept.unwrap_or(&service.current().spec);
    Some(Assignment {
        volumes: volumes(state, spec),
        stop_timeout_s: replica.stop_timeout_s.unwrap_or(spec.stop_timeout_s),
        spec: spec.clone(),
        slot: replica.slot,
        version: replica.version,
        desired: replica.desired,
        blocked,
        status: replica.status.clone(),
    })
}

fn volumes(state: &ClusterState, spec: &ServiceSpec) -> BTreeMap<VolumeName, MountedVolume> {
    let mounted = spec.mounted_volumes().filter_map(|name| {
        let volume = state.volumes.get(name)?;
        let fresh = volume.version.is_none();
        Some((name.clone(), MountedVolume { id: volume.id, epoch: volume.epoch, fresh }))
    });
    mounted.collect()
}

/// Why a replica cannot start on `node`: a volume that it mounts is written to elsewhere.
fn elsewhere(state: &ClusterState, spec: &ServiceSpec, node: NodeId) -> Option<String> {
    spec.mounted_volumes().find_map(|name| match state.volumes.get(name)?.primary {
        Some(primary) if primary == node => None,
        Some(primary) => Some(format!("volume `{name}` has its primary copy on node {primary}")),
        None => Some(format!("volume `{name}` has no primary copy")),
    })
}

fn waits_for(state: &ClusterState, replica: &Replica) -> Option<String> {
    let after = replica.after?;
    let earlier = state.replicas.get(&after)?;
    Some(format!("waits for replica {after} on node {} to stop", earlier.node))
}

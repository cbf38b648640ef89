//! What must hold between a state and the one an entry made of it.

use std::collections::BTreeSet;

use super::ensure;
use crate::cluster::{ClusterState, EventKind, Replica};
use crate::id::ReplicaId;

type Check = Result<(), String>;

/// The rows that both states have.
fn kept<'a>(
    before: &'a ClusterState,
    after: &'a ClusterState,
) -> impl Iterator<Item = (&'a ReplicaId, &'a Replica, &'a Replica)> {
    before.replicas.iter().filter_map(|(id, old)| Some((id, old, after.replicas.get(id)?)))
}

/// The applied index rises; log time, ids and the feature level never fall. Shows an entry
/// applied twice, or a clock taken over unclamped.
pub(super) fn counters_only_rise(before: &ClusterState, after: &ClusterState) -> Check {
    ensure(after.applied > before.applied, || format!("applied {} after {}", after.applied, before.applied))?;
    ensure(after.time >= before.time, || format!("time went from {} to {}", before.time, after.time))?;
    ensure(after.level >= before.level, || format!("level went from {} to {}", before.level, after.level))?;
    ensure(after.requests_from >= before.requests_from, || "forgotten requests came back".to_owned())?;
    ensure(after.next_replica >= before.next_replica, || "replica ids went back".to_owned())?;
    let old = |id: &ReplicaId| before.replicas.contains_key(id);
    let reused = after.replicas.keys().find(|id| **id < before.next_replica && !old(id));
    ensure(reused.is_none(), || format!("replica id {reused:?} was used again"))
}

/// A replica's service, slot, version and node never change, and what is desired of it is only
/// lowered. Shows a replica moved or revived in place.
pub(super) fn replicas_keep_what_they_are(before: &ClusterState, after: &ClusterState) -> Check {
    for (id, old, new) in kept(before, after) {
        let identity = |row: &Replica| (row.service.clone(), row.slot, row.version, row.node, row.after);
        ensure(identity(old) == identity(new), || format!("replica {id} was {old:?}, is {new:?}"))?;
        ensure(new.desired >= old.desired, || {
            format!("replica {id} went from {:?} to {:?}", old.desired, new.desired)
        })?;
    }
    Ok(())
}

/// `(attempt, phase)` never goes back, and an end is final. Shows an old report taken for new.
pub(super) fn statuses_only_move_forward(before: &ClusterState, after: &ClusterState) -> Check {
    for (id, old, new) in kept(before, after) {
        let (from, to) = ((old.status.attempt, old.status.phase), (new.status.attempt, new.status.phase));
        ensure(to >= from && (to == from || !old.status.phase.is_final()), || {
            format!("replica {id} went from {from:?} to {to:?}")
        })?;
    }
    Ok(())
}

/// A node whose facts stayed the same has what a replica placed on it reserves. Shows a placement
/// that was not re-checked. (A node may shrink under the replicas it has.)
pub(super) fn new_replicas_fit(before: &ClusterState, after: &ClusterState) -> Check {
    for (id, row) in after.replicas.iter().filter(|(id, _)| **id >= before.next_replica) {
        let (Some(old), Some(new)) = (before.nodes.get(&row.node), after.nodes.get(&row.node)) else {
            continue;
        };
        let Some(spec) = after.spec_of(row).filter(|_| row.counts() && old.facts == new.facts) else {
            continue;
        };
        let (asked, reserved) = (spec.reservations, after.reserved_on(row.node));
        let fits = |asked: u64, reserved: u64, capacity: u64| asked == 0 || reserved <= capacity;
        ensure(
            fits(asked.cpu_millis, reserved.cpu_millis, new.facts.cpu_millis)
                && fits(asked.memory_bytes, reserved.memory_bytes, new.facts.memory_bytes),
            || format!("replica {id} was placed on node {}, which has {reserved:?} reserved", row.node),
        )?;
    }
    Ok(())
}

/// A member keeps its key, a removed one stays removed, a new one has an id that was never used.
/// Shows an id bound to a second key.
pub(super) fn members_keep_their_keys(before: &ClusterState, after: &ClusterState) -> Check {
    ensure(before.cluster.is_none() || before.cluster == after.cluster, || "the cluster changed".to_owned())?;
    for (id, old) in &before.nodes {
        let key = after.nodes.get(id).map(|node| node.key).or(after.removed_nodes.get(id).copied());
        ensure(key == Some(old.key), || format!("node {id} lost or changed its key"))?;
    }
    for (id, old) in &before.removed_nodes {
        ensure(after.removed_nodes.get(id) == Some(old), || format!("node {id} is no longer removed"))?;
    }
    Ok(())
}

/// A service's version never falls, and a version's specification never changes but for its bounds
/// of replicas, unless the service was removed meanwhile, which is told. Shows a replica that would
/// run something else than it was placed for.
pub(super) fn versions_only_rise(before: &ClusterState, after: &ClusterState) -> Check {
    let overflowed = after.events.front().is_some_and(|oldest| oldest.id.index > before.applied);
    if overflowed && !before.events.is_empty() {
        return Ok(());
    }
    let removed: BTreeSet<_> = after
        .events
        .iter()
        .filter(|event| event.id.index > before.applied && event.kind == EventKind::ServiceRemoved)
        .filter_map(|event| event.service.as_ref())
        .collect();
    for (name, old) in before.services.iter().filter(|(name, _)| !removed.contains(name)) {
        let Some(new) = after.services.get(name) else {
            return Err(format!("`{name}` went untold"));
        };
        ensure(new.current().version >= old.current().version, || format!("`{name}` went back a version"))?;
        for version in &old.versions {
            let same = new
                .spec_of(version.version)
                .is_none_or(|spec| *spec == version.spec || version.spec.differs_in_replicas_only(spec));
            ensure(same, || format!("version {} of `{name}` changed", version.version))?;
        }
    }
    Ok(())
}

/// Old events stay as they are until they make room, and new ones are of the new entry. Shows a
/// stream that would differ by where it is read.
pub(super) fn events_go_on(before: &ClusterState, after: &ClusterState) -> Check {
    let added = after.events.iter().rev().take_while(|event| event.id.index > before.applied).count();
    let stayed = after.events.len() - added;
    let evicted = before.events.len().saturating_sub(stayed);
    ensure(after.events.iter().take(stayed).eq(before.events.iter().skip(evicted)), || {
        "old events changed".to_owned()
    })?;
    let mut new = after.events.iter().skip(stayed);
    ensure(new.all(|event| event.id.index == after.applied), || "an event of no entry".to_owned())
}

/// The epoch of a volume only rises, and so does its version within an epoch; in one epoch it has one
/// primary. Shows two writers, or a version taken back.
pub(super) fn volumes_go_forward(before: &ClusterState, after: &ClusterState) -> Check {
    for (name, old) in &before.volumes {
        let Some(new) = after.volumes.get(name).filter(|new| new.id == old.id) else { continue };
        ensure(old.epoch <= new.epoch, || {
            format!("volume `{name}` went from epoch {} to {}", old.epoch, new.epoch)
        })?;
        let same = old.epoch == new.epoch;
        let version = |volume: &crate::cluster::Volume| volume.version.map(|version| version.id);
        ensure(!same || version(old) <= version(new), || {
            format!("volume `{name}` went from {:?} to {:?}", old.version, new.version)
        })?;
        ensure(!same || new.primary.is_none() || old.primary == new.primary, || {
            format!(
                "volume `{name}` has two primaries in epoch {}: {:?}, {:?}",
                old.epoch, old.primary, new.primary
            )
        })?;
    }
    Ok(())
}

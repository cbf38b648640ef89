//! What must hold in every state.

use std::collections::{BTreeMap, BTreeSet};

use super::ensure;
use crate::cluster::index::claims;
use crate::cluster::{ClusterState, Phase};
use crate::limits;

type Check = Result<(), String>;

/// A service has a version, and they ascend. Shows a version dropped or numbered wrongly.
pub(super) fn versions_ascend(state: &ClusterState) -> Check {
    for (name, service) in &state.services {
        let numbers: Vec<_> = service.versions.iter().map(|version| version.version).collect();
        ensure(!numbers.is_empty() && numbers.is_sorted_by(|a, b| a < b), || {
            format!("`{name}` has versions {numbers:?}")
        })?;
        ensure(service.versions.iter().all(|version| version.spec.name == *name), || {
            format!("`{name}` has a version of another service")
        })?;
    }
    Ok(())
}

/// `1 <= min <= desired <= max`. Shows a scale or a new version that was not held to the bounds.
pub(super) fn desired_is_within_bounds(state: &ClusterState) -> Check {
    for (name, service) in &state.services {
        let (bounds, desired) = (service.spec().replicas, service.desired);
        ensure((1..=desired).contains(&bounds.min) && desired <= bounds.max, || {
            format!("`{name}` wants {desired} of {} to {}", bounds.min, bounds.max)
        })?;
    }
    Ok(())
}

/// A replica that counts is in a wanted slot: with the next invariant, never more than `max`
/// count. Shows a replica left running by a scale, a stop or a removal.
pub(super) fn counting_replicas_hold_wanted_slots(state: &ClusterState) -> Check {
    for (id, replica) in state.replicas.iter().filter(|(_, replica)| replica.counts()) {
        let wanted = state.services.get(&replica.service).map_or(0, |service| service.wanted());
        ensure(replica.slot < wanted, || {
            format!("replica {id} counts in slot {} of `{}`, of {wanted}", replica.slot, replica.service)
        })?;
    }
    Ok(())
}

/// One replica counts in a slot. Shows a placement that was not re-checked, or a returned node
/// beside its replacement.
pub(super) fn slots_hold_one_counting_replica(state: &ClusterState) -> Check {
    let mut holders = BTreeMap::new();
    for (id, replica) in state.replicas.iter().filter(|(_, replica)| replica.counts()) {
        let other = holders.insert((&replica.service, replica.slot), id);
        ensure(other.is_none(), || {
            format!("replicas {other:?} and {id} count in slot {} of `{}`", replica.slot, replica.service)
        })?;
    }
    Ok(())
}

/// A replica's service, version and node exist, and a row whose container is gone does not.
/// Shows a removal that left rows behind.
pub(super) fn replicas_refer_to_what_exists(state: &ClusterState) -> Check {
    for (id, replica) in &state.replicas {
        ensure(state.spec_of(replica).is_some(), || {
            format!("replica {id} runs version {} of `{}`", replica.version, replica.service)
        })?;
        ensure(state.nodes.contains_key(&replica.node), || {
            format!("replica {id} is on node {}", replica.node)
        })?;
        ensure(replica.status.phase != Phase::Gone, || format!("replica {id} is gone and has a row"))?;
        ensure(replica.after.is_none_or(|after| after < *id), || {
            format!("replica {id} waits for {:?}", replica.after)
        })?;
    }
    Ok(())
}

/// Ids are given out in order. Shows one that could be given twice.
pub(super) fn replica_ids_are_below_the_next(state: &ClusterState) -> Check {
    let last = state.replicas.keys().next_back();
    ensure(last.is_none_or(|last| *last < state.next_replica), || {
        format!("replica {last:?} exists, the next is {}", state.next_replica)
    })
}

/// What a service publishes, by its current version or one that a replica runs, is its own. Shows
/// two services that would answer on one port.
pub(super) fn ports_have_one_owner(state: &ClusterState) -> Check {
    let mut owners = BTreeMap::new();
    let running =
        state.replicas.values().filter_map(|replica| Some((&replica.service, state.spec_of(replica)?)));
    let current = state.services.iter().map(|(name, service)| (name, &service.current().spec));
    for (name, spec) in running.chain(current) {
        for claim in claims(spec) {
            let owner = *owners.entry(claim).or_insert(name);
            ensure(owner == name, || format!("port {claim:?} is of `{owner}` and `{name}`"))?;
        }
    }
    Ok(())
}

/// No two nodes have one container network, and each is of the range. Shows an allocation that
/// overlooked a node.
pub(super) fn subnets_differ(state: &ClusterState) -> Check {
    let range: BTreeSet<_> = state.subnets.networks().collect();
    let mut seen = BTreeSet::new();
    for (id, node) in &state.nodes {
        ensure(seen.insert(node.subnet) && range.contains(&node.subnet), || {
            format!("node {id} has the network {}", node.subnet)
        })?;
    }
    Ok(())
}

/// No two members, present or removed, have one key. Shows a machine admitted twice.
pub(super) fn keys_differ(state: &ClusterState) -> Check {
    let members = state.nodes.iter().map(|(id, node)| (id, node.key));
    let mut seen = BTreeSet::new();
    for (id, key) in members.chain(state.removed_nodes.iter().map(|(id, key)| (id, *key))) {
        ensure(seen.insert(key), || format!("node {id} has the key of another"))?;
    }
    Ok(())
}

/// A removed id is no member. Shows an id used again.
pub(super) fn removed_ids_are_not_members(state: &ClusterState) -> Check {
    let back = state.removed_nodes.keys().find(|id| state.nodes.contains_key(*id));
    ensure(back.is_none(), || format!("node {back:?} is removed and a member"))?;
    ensure(state.nodes.len() <= limits::NODES_MAX, || format!("{} nodes", state.nodes.len()))
}

/// Both tables of requests hold the same, bounded, and nothing that counts as forgotten. Shows
/// an expiry that forgot half.
pub(super) fn requests_agree(state: &ClusterState) -> Check {
    let (by_id, by_time) = (&state.requests, &state.requests_by_time);
    ensure(by_id.len() == by_time.len() && by_id.len() <= limits::REQUESTS_MAX, || {
        format!("{} by id, {} by time", by_id.len(), by_time.len())
    })?;
    for (at, id) in by_time.keys() {
        ensure(by_id.get(id).is_some_and(|(remembered, _)| remembered == at), || {
            format!("request {id} is not remembered under {at}")
        })?;
    }
    Ok(())
}

/// Events are at most so many, and their ids ascend up to the last entry. Shows one numbered
/// wrongly: a stream would miss or repeat it.
pub(super) fn events_are_bounded_and_ordered(state: &ClusterState) -> Check {
    let ids: Vec<_> = state.events.iter().map(|event| event.id).collect();
    ensure(ids.len() <= limits::EVENTS_MAX, || format!("{} events", ids.len()))?;
    ensure(ids.is_sorted_by(|a, b| a < b), || "their ids do not ascend".to_owned())?;
    ensure(ids.last().is_none_or(|last| last.index <= state.applied), || {
        format!("{:?} is after entry {}", ids.last(), state.applied)
    })
}

/// Pending reasons and back-offs are of wanted slots. Shows a reason that would be shown for ever.
pub(super) fn kept_slots_are_wanted(state: &ClusterState) -> Check {
    for (name, service) in &state.services {
        let wanted = service.wanted();
        let mut kept = service.pending.keys().chain(service.backoff.keys());
        ensure(kept.all(|slot| *slot < wanted), || format!("`{name}` keeps slots above {wanted}"))?;
    }
    Ok(())
}

/// The index says what the tables say. Shows a change made past it.
pub(super) fn index_agrees(state: &ClusterState) -> Check {
    let mut rebuilt = state.clone();
    rebuilt.reindex();
    ensure(rebuilt.index == state.index, || {
        format!("it is {:?}, the tables give {:?}", state.index, rebuilt.index)
    })
}

/// The primary copy and every other are on members, and numbers are given out in order. Shows a member
/// removed that a volume still counts on.
pub(super) fn volumes_are_where_members_are(state: &ClusterState) -> Check {
    for (name, volume) in &state.volumes {
        let strangers = volume.copies.keys().find(|node| !state.nodes.contains_key(*node));
        ensure(strangers.is_none(), || format!("volume `{name}` has a copy on node {strangers:?}"))?;
        ensure(volume.primary.is_none_or(|node| volume.copies.contains_key(&node)), || {
            format!("the primary of volume `{name}`, node {:?}, is none of its copies", volume.primary)
        })?;
        ensure(volume.id < state.next_volume, || {
            format!("volume `{name}` is {}, the next is {}", volume.id, state.next_volume)
        })?;
    }
    Ok(())
}

/// No copy is ahead of what was published, and two of one version have one root. Shows a copy that would
/// be promoted with what no primary ever had.
pub(super) fn copies_hold_what_was_published(state: &ClusterState) -> Check {
    for (name, volume) in &state.volumes {
        ensure(volume.version.is_none_or(|version| version.id.epoch <= volume.epoch), || {
            format!("volume `{name}` has version {:?} in epoch {}", volume.version, volume.epoch)
        })?;
        for (node, held) in volume.copies.iter().filter_map(|(node, copy)| Some((node, copy.version?))) {
            let published = volume.version.is_some_and(|newest| newest.id > held.id || newest == held);
            ensure(published, || {
                format!("node {node} holds {held:?} of volume `{name}`: {:?}", volume.version)
            })?;
        }
    }
    Ok(())
}

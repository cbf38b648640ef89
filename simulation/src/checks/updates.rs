//! `updates_keep_what_runs`: a replica that is ready ends in an update only when another is ready in
//! its slot; and where the new one must wait for it to be gone, one slot of its service at a time.
//!
//! Start-first and stop-first (docs/architecture.md). Shows an update that takes the old version away
//! before the new one runs, and one that does all slots at once.

use std::collections::BTreeMap;

use blixard_core::cluster::replica::Desired;
use blixard_core::cluster::{Availability, ClusterState, EventKind, NodeStatus, Phase, Replica};
use blixard_core::id::ServiceName;
use blixard_core::spec::NetworkMode;

/// How many slots of a service may be without a ready replica because of one entry.
const SLOTS_MAX: u32 = 1;

/// Checks one entry's work.
pub(super) fn check(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    let mut emptied = BTreeMap::new();
    for (id, old) in before.replicas.iter().filter(|(_, row)| row.desired != Desired::Stop) {
        let Some(row) = after.replicas.get(id).filter(|row| row.desired == Desired::Stop) else { continue };
        if !is_kept(before, after, row) || old.lost_since.is_some() || row.lost_since.is_some() {
            continue;
        }
        if is_changed(after, &row.service) {
            continue;
        }
        let mut others = after.replicas_in(&row.service, row.slot);
        let serves = |other: &Replica| is_ready(after, other) || other.status.phase == Phase::Completed;
        if others.any(|(_, other)| other.desired != Desired::Stop && serves(other)) {
            continue;
        }
        let name = &row.service;
        if old.desired == Desired::Retire {
            return Err(format!(
                "replica {id}, superseded in slot {} of `{name}`, was ready and was stopped before another was",
                row.slot
            ));
        }
        let slots = emptied.entry(name).or_insert(0);
        *slots += 1;
        if *slots > SLOTS_MAX {
            return Err(format!("{slots} slots of `{name}` have no ready replica any more, by one entry"));
        }
    }
    Ok(())
}

/// Whether a replica is ready and nothing but an update may end it: its slot and its service stay, its
/// node takes replicas, and another may run beside it.
fn is_kept(before: &ClusterState, after: &ClusterState, row: &Replica) -> bool {
    let wanted =
        |state: &ClusterState| state.services.get(&row.service).map_or(0, |service| service.wanted());
    let active = after.nodes.get(&row.node).is_some_and(|node| node.availability == Availability::Active);
    let apart = after.services.get(&row.service).is_none_or(|service| {
        service
            .versions
            .iter()
            .any(|version| version.spec.network == NetworkMode::Host || version.spec.is_pinned())
    });
    row.slot < wanted(before).min(wanted(after)) && active && !apart && is_ready(after, row)
}

/// Whether the entry holds what may have wanted fewer replicas of a service for a moment: a write
/// that scales, stops or starts it, or several writes.
fn is_changed(after: &ClusterState, name: &ServiceName) -> bool {
    let all = after.events.iter().rev().take_while(|event| event.id.index == after.applied);
    let kinds = all.filter(|event| event.service.as_ref() == Some(name)).map(|event| event.kind);
    let writes: Vec<EventKind> = kinds
        .filter(|kind| {
            matches!(
                kind,
                EventKind::ServiceSubmitted | EventKind::ServiceChanged | EventKind::ServiceRemoved
            )
        })
        .collect();
    writes.len() > 1 || writes.iter().any(|kind| *kind != EventKind::ServiceSubmitted)
}

fn is_ready(state: &ClusterState, row: &Replica) -> bool {
    let up = state.nodes.get(&row.node).is_some_and(|node| node.status == NodeStatus::Up);
    let probed = state.spec_of(row).is_none_or(|spec| spec.healthcheck.is_some());
    up && row.status.phase == Phase::Running && row.status.healthy.unwrap_or(!probed)
}

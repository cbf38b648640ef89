//! Where volumes are: who holds a copy, and who takes over where the primary is lost.
//!
//! Planned before services, whose replicas go where their volumes are, and after them: a volume that nobody
//! has mounted yet is nowhere, and its first replica's place decides.

use std::collections::BTreeMap;

use super::draft::Draft;
use crate::cluster::{Availability, ClusterState, NodeStatus, PlanStep, Volume};
use crate::id::{NodeId, VolumeName};

/// Takes the steps of every volume; answers the volumes that they are about.
pub(super) fn plan(draft: &mut Draft<'_>) -> Vec<VolumeName> {
    let state = draft.state().clone();
    if state.volumes.is_empty() {
        return Vec::new();
    }
    let mut crowd = crowds(&state);
    let mut changed = Vec::new();
    for (name, volume) in &state.volumes {
        let mut steps = Vec::new();
        let mut primary = volume.primary;
        if state.primary_is_lost(volume)
            && let Some(node) = volume.heir(|node| is_up(&state, node))
        {
            primary = Some(node);
            steps.push(PlanStep::PromoteVolume { volume: name.clone(), node });
        }
        if primary.is_some() {
            for node in new_copies(&state, volume, &crowd) {
                *crowd.entry(node).or_default() += 1;
                steps.push(PlanStep::AddVolumeCopy { volume: name.clone(), node });
            }
        }
        if !steps.is_empty() {
            let taken = draft.take(steps);
            debug_assert!(taken.is_ok(), "volume {name}: {taken:?}");
            changed.push(name.clone());
        }
    }
    changed
}

/// The nodes that are to hold a copy besides those that do: as many as are wanted hold one on nodes that
/// are not down, the least crowded first.
fn new_copies(state: &ClusterState, volume: &Volume, crowd: &BTreeMap<NodeId, usize>) -> Vec<NodeId> {
    let there = |node: &NodeId| state.nodes.get(node).is_some_and(|row| row.status != NodeStatus::Down);
    let held = volume.copies.keys().filter(|node| there(node)).count();
    let missing = usize::try_from(volume.wanted).unwrap_or(usize::MAX).saturating_sub(held);
    let takes =
        |row: &crate::cluster::Node| row.status == NodeStatus::Up && row.availability == Availability::Active;
    let others = state.nodes.iter().filter(|(id, row)| takes(row) && !volume.copies.contains_key(*id));
    let mut others: Vec<NodeId> = others.map(|(id, _)| *id).collect();
    others.sort_by_key(|id| (crowd.get(id).copied().unwrap_or(0), *id));
    others.truncate(missing);
    others
}

/// How many volumes each node holds.
fn crowds(state: &ClusterState) -> BTreeMap<NodeId, usize> {
    let mut crowd = BTreeMap::new();
    for node in state.volumes.values().flat_map(|volume| volume.copies.keys()) {
        *crowd.entry(*node).or_default() += 1;
    }
    crowd
}

fn is_up(state: &ClusterState, node: NodeId) -> bool {
    state.nodes.get(&node).is_some_and(|row| row.status == NodeStatus::Up)
}

//! Where volumes are: who holds a copy, and who takes over where the primary is lost.
//!
//! Planned before services, whose replicas go where their volumes are, and after them: a volume that nobody
//! has mounted yet is nowhere, and its first replica's place decides.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use crate::cluster::{Availability, ClusterState, Node, NodeStatus, PlanStep, Volume};
use crate::id::{NodeId, VolumeName};

/// Takes the steps of some volumes; answers those that have another primary now.
pub(super) fn plan(draft: &mut Draft<'_>, volumes: &BTreeSet<VolumeName>) -> Vec<VolumeName> {
    let state = draft.state().clone();
    let mut crowd = None;
    let mut promoted = Vec::new();
    for (name, volume) in volumes.iter().filter_map(|name| Some((name, state.volumes.get(name)?))) {
        let mut steps = Vec::new();
        let mut primary = volume.primary;
        if state.primary_is_lost(volume)
            && let Some(node) = volume.heir(|node| is_up(&state, node))
        {
            primary = Some(node);
            steps.push(PlanStep::PromoteVolume { volume: name.clone(), node });
            promoted.push(name.clone());
        }
        let missing = missing_copies(&state, volume);
        if primary.is_some() && missing > 0 {
            let crowd = crowd.get_or_insert_with(|| crowds(&state));
            for node in new_copies(&state, volume, missing, crowd) {
                *crowd.entry(node).or_default() += 1;
                steps.push(PlanStep::AddVolumeCopy { volume: name.clone(), node });
            }
        }
        if !steps.is_empty() {
            let taken = draft.take(steps);
            debug_assert!(taken.is_ok(), "volume {name}: {taken:?}");
        }
    }
    promoted
}

/// The volumes to which a change of `node` may matter: those that have a copy there, and those that lack one.
pub(super) fn concerned(state: &ClusterState, node: NodeId) -> impl Iterator<Item = &VolumeName> {
    let concerns =
        move |volume: &Volume| volume.copies.contains_key(&node) || missing_copies(state, volume) > 0;
    state.volumes.iter().filter(move |(_, volume)| concerns(volume)).map(|(name, _)| name)
}

/// How many nodes are to hold a copy besides those that do and are not down.
fn missing_copies(state: &ClusterState, volume: &Volume) -> usize {
    let there = |node: &NodeId| state.nodes.get(node).is_some_and(|row| row.status != NodeStatus::Down);
    let held = volume.copies.keys().filter(|node| there(node)).count();
    usize::try_from(volume.wanted).unwrap_or(usize::MAX).saturating_sub(held)
}

/// The nodes that are to hold the copies that are missing, as many as there are: the least crowded first.
fn new_copies(
    state: &ClusterState,
    volume: &Volume,
    missing: usize,
    crowd: &BTreeMap<NodeId, usize>,
) -> Vec<NodeId> {
    let takes = |row: &Node| row.status == NodeStatus::Up && row.availability == Availability::Active;
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

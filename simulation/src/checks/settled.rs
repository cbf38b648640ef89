//! `settles`: once nothing goes wrong any more, the cluster becomes what it is asked to be.
//!
//! Liveness after healing, as TigerBeetle's simulator demands it of a healed core: one leader that
//! all follow, every member Up and equal, every wanted slot held by one running replica, exactly
//! the containers that the state names, and a plan with nothing to do. Shows a lost wake-up, a
//! report that is never sent again, a container nobody removes and a planner that goes in circles.

use std::collections::BTreeSet;

use blixard_core::cluster::{ClusterState, NodeStatus, Phase};
use blixard_core::orchestrator::Planner;

use crate::world::World;

/// Checks that a world without faults has settled.
///
/// # Errors
/// What is not so yet.
pub fn settled(world: &World) -> Result<(), String> {
    let running = world.running();
    if running.len() != world.machines.len() {
        return Err(format!("{} of {} nodes run", running.len(), world.machines.len()));
    }
    let leaders: BTreeSet<_> = running.iter().map(|node| node.handle.raft().leader).collect();
    if leaders.len() != 1 || leaders.contains(&None) {
        return Err(format!("the nodes take {leaders:?} for the leader"));
    }
    let states: Vec<_> = running.iter().map(|node| node.handle.state()).collect();
    let applied: BTreeSet<_> = states.iter().map(|state| state.applied).collect();
    if applied.len() != 1 {
        return Err(format!("the nodes have applied {applied:?}"));
    }
    let state = &states[0];
    if let Some((id, node)) = state.nodes.iter().find(|(_, node)| node.status != NodeStatus::Up) {
        return Err(format!("node {id} is {:?}", node.status));
    }
    if state.nodes.len() != running.len() {
        return Err(format!("{} of {} nodes are members", state.nodes.len(), running.len()));
    }
    slots(state)?;
    containers(world, state)?;
    plan(state)
}

/// A planner that sees the state for the first time has nothing to do about it.
fn plan(state: &ClusterState) -> Result<(), String> {
    let plan = Planner::new(state, state.time).plan(state, state.time).0;
    if plan.steps.is_empty() { Ok(()) } else { Err(format!("there is still to do: {:?}", plan.steps)) }
}

/// Every wanted slot has one replica of the current version, which runs; there are no others.
fn slots(state: &ClusterState) -> Result<(), String> {
    for (name, service) in &state.services {
        if service.removing {
            return Err(format!("`{name}` is still being removed"));
        }
        for slot in 0..service.wanted() {
            let held = state.replicas.values().any(|replica| {
                replica.service == *name
                    && replica.slot == slot
                    && replica.counts()
                    && replica.version == service.current().version
                    && replica.status.phase == Phase::Running
            });
            if !held {
                let why = service.pending.get(&slot);
                let rows: Vec<_> = state
                    .replicas
                    .iter()
                    .filter(|(_, replica)| replica.service == *name && replica.slot == slot)
                    .map(|(id, replica)| (id, replica.node, replica.desired, &replica.status))
                    .collect();
                return Err(format!("slot {slot} of `{name}` has no running replica ({why:?}): {rows:?}"));
            }
        }
    }
    let wanted: usize = state.services.values().map(|service| service.wanted() as usize).sum();
    if state.replicas.len() != wanted {
        return Err(format!("there are {} replicas, {wanted} are wanted", state.replicas.len()));
    }
    Ok(())
}

/// Each machine runs the containers of its replicas and no others.
fn containers(world: &World, state: &ClusterState) -> Result<(), String> {
    for machine in &world.machines {
        let wanted: BTreeSet<_> = state
            .replicas
            .iter()
            .filter(|(_, replica)| replica.node == machine.member())
            .map(|(id, replica)| (*id, replica.status.attempt))
            .collect();
        let found: BTreeSet<_> = machine
            .containers
            .running()
            .into_iter()
            .map(|(replica, attempt, _)| (replica, attempt))
            .collect();
        if wanted != found {
            return Err(format!("machine {} runs {found:?}, the state names {wanted:?}", machine.number));
        }
    }
    Ok(())
}

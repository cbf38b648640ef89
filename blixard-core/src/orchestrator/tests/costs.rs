//! How much is looked at for a change: not more because there is more beside it.

use std::collections::BTreeSet;

use super::super::membership::leave_blocker;
use super::world::*;
use crate::agent::assignments;
use crate::cluster::{ClusterState, NodeStatus};
use crate::id::NodeId;
use crate::orchestrator::Planner;
use crate::scheduler::LOOKED_AT;

/// A planner that has nothing left to do.
fn rested(world: &mut World) -> Planner {
    world.converge();
    let mut planner = Planner::new(&world.state, world.now);
    assert!(planner.plan(&world.state, world.now).0.steps.is_empty());
    planner
}

/// The services that are looked at when the planner sees the world as it is.
fn looked_at(planner: &mut Planner, world: &World) -> Vec<String> {
    let report = planner.plan(&world.state, world.now).1;
    report.services.keys().map(ToString::to_string).collect()
}

/// The state without what its index knows of a table's rows: who asks the index finds none.
fn unindexed(state: &ClusterState) -> ClusterState {
    let mut unindexed = state.clone();
    unindexed.replicas.clear();
    unindexed.reindex();
    unindexed.replicas.clone_from(&state.replicas);
    unindexed
}

#[test]
fn what_is_on_a_node_is_asked_of_the_index() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| spec.replicas = replicas(2)));
    let mut planner = rested(&mut world);
    let blocker = |state: &ClusterState| leave_blocker(state, &BTreeSet::new(), NodeId(1));
    assert_eq!(assignments(&world.state, NodeId(1)).len(), 1);
    assert!(blocker(&world.state).is_some());
    let blind = unindexed(&world.state);
    assert_eq!(assignments(&blind, NodeId(1)).len(), 0, "every replica is looked at");
    assert_eq!(blocker(&blind), None, "every replica is looked at");
    world.state = blind;
    planner.look(&world.state, world.now);
    world.node(1).status = NodeStatus::Unknown;
    assert_eq!(looked_at(&mut planner, &world), [""; 0], "every replica is looked at");
}

#[test]
fn a_node_that_changes_has_the_services_on_it_looked_at() {
    let mut world = World::new(2);
    for service in ["a", "b", "c"] {
        world.submit(spec(service, |_| {}));
    }
    let mut planner = rested(&mut world);
    assert_eq!(world.places("b"), "0@2 v1");
    world.node(2).status = NodeStatus::Unknown;
    assert_eq!(looked_at(&mut planner, &world), ["b"]);
    assert_eq!(looked_at(&mut planner, &world), [""; 0]);
}

#[test]
fn nodes_are_ranked_once_for_all_slots_that_are_filled() {
    for spread in [None, Some("node.name".to_owned())] {
        let mut world = World::new(50);
        world.submit(spec("web", |spec| (spec.replicas, spec.placement.spread) = (replicas(500), spread)));
        LOOKED_AT.set(0);
        assert_eq!(world.plan().0.steps.len(), 500);
        assert_eq!(LOOKED_AT.get(), 50 + 499, "all nodes, then each that was given a replica");
    }
}

//! How much is looked at for a change: not more because there is more beside it.

use std::collections::BTreeSet;

use super::super::membership::leave_blocker;
use super::world::*;
use crate::agent::assignments;
use crate::cluster::{ClusterState, Command, NodeStatus, Phase, Write};
use crate::id::NodeId;
use crate::limits::PLAN_REWORDED_MAX;
use crate::orchestrator::Planner;
use crate::scheduler::LOOKED_AT;
use crate::spec::{Constraint, ConstraintOperator};

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

/// A node that `full` fills, and services that wait for half of it each.
fn crowded(waiting: u32) -> (World, Planner) {
    let mut world = World::new(1);
    world.submit(spec("full", |spec| spec.reservations = memory(1024))).converge();
    world.submit(spec("also", |_| {}));
    for number in 0..waiting {
        world.submit(spec(&format!("wait-{number}"), |spec| spec.reservations = memory(512)));
    }
    let planner = rested(&mut world);
    (world, planner)
}

#[test]
fn who_waits_for_room_is_looked_at_when_there_is_some_and_as_many_as_fit() {
    let (mut world, mut planner) = crowded(9);
    world.again(2);
    assert_eq!(looked_at(&mut planner, &world), ["also"], "a restart makes no room");
    world.phase(2, Phase::Running).write(Write::Stop { service: name("also"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["also"], "what stops made too little");
    world.submit(spec("more", |_| {}));
    assert_eq!(looked_at(&mut planner, &world), ["more"], "what is placed takes room");
    world.write(Write::Stop { service: name("full"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["full", "more", "wait-0", "wait-1"]);
}

/// Two services take the room, whose plan is never applied; one of them goes.
#[test]
fn who_was_told_of_room_that_was_never_taken_is_looked_at_again() {
    let (mut world, mut planner) = crowded(3);
    world.write(Write::Stop { service: name("full"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["full", "wait-0", "wait-1"]);
    world.write(Write::Stop { service: name("wait-0"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["wait-0", "wait-1", "wait-2"]);
}

#[test]
fn an_update_that_waits_for_less_where_the_old_one_is_goes_on_with_that() {
    let mut world = World::new(1);
    world.submit(spec("app", |spec| spec.reservations = memory(512)));
    world.submit(spec("beside", |spec| spec.reservations = memory(256))).converge();
    world.submit(spec("app", |spec| spec.reservations = memory(1024)));
    let mut planner = rested(&mut world);
    world.write(Write::Stop { service: name("beside"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["app", "beside"], "256 MiB more are free, 512 as before");
    assert_eq!(show(&world.plan().0, world.now), "stop 1\nplace app/0 v2 on 1 after 1\n");
}

#[test]
fn who_waits_for_a_service_is_looked_at_when_something_else_is_said_of_it() {
    let mut world = World::new(1);
    for number in 0..9 {
        world.submit(spec(&format!("app-{number}"), |spec| spec.depends_on = vec![name("db")]));
    }
    world.submit(spec("other", |_| {}));
    let mut planner = rested(&mut world);
    world.fail(1, "crash");
    assert_eq!(looked_at(&mut planner, &world), ["other"]);
    world.submit(spec("db", |_| {}));
    let all: Vec<String> = (0..9).map(|number| format!("app-{number}")).chain(["db".to_owned()]).collect();
    assert_eq!(looked_at(&mut planner, &world)[..10], all[..], "it exists now");
    world.settle();
    while !looked_at(&mut planner, &world).is_empty() {}
    world.phase(2, Phase::Pulling);
    assert_eq!(looked_at(&mut planner, &world), ["db"], "it does not run yet");
    world.phase(2, Phase::Running);
    assert_eq!(looked_at(&mut planner, &world), all);
}

#[test]
fn who_waits_for_a_node_is_looked_at_when_that_changes_in_what_matters() {
    let mut world = World::new(2);
    let on = |label: &str| {
        let (label, value) = (label.to_owned(), "yes".to_owned());
        vec![Constraint { label, operator: ConstraintOperator::Equal, value }]
    };
    for label in ["ssd", "gpu"] {
        world.submit(spec(label, |spec| spec.placement.constraints = on(label)));
    }
    world.submit(spec("web", |_| {}));
    let mut planner = rested(&mut world);
    world.write(Write::Stop { service: name("web"), timeout_s: None });
    assert_eq!(looked_at(&mut planner, &world), ["web"], "what stops has no label");
    world.agents_act().settle();
    assert_eq!(looked_at(&mut planner, &world), ["web"]);
    world.node(2).facts.labels.insert("ssd".to_owned(), "yes".to_owned());
    assert_eq!(looked_at(&mut planner, &world), ["ssd"]);
    world.settle();
    while !looked_at(&mut planner, &world).is_empty() {}
    world.node(1).hold_until = Some(world.now);
    assert_eq!(looked_at(&mut planner, &world), [""; 0], "who waits for a label does not care");
    world.node(1).status = NodeStatus::Unknown;
    assert_eq!(looked_at(&mut planner, &world), ["gpu"], "another thing is in the way there");
}

#[test]
fn many_who_wait_are_told_of_a_node_a_few_at_a_time() {
    let mut world = World::new(2);
    let many = PLAN_REWORDED_MAX + 10;
    for number in 0..many {
        world.submit(spec(&format!("wait-{number:03}"), |spec| spec.reservations = memory(2048)));
    }
    world.submit(spec("zoo", |spec| spec.reservations = memory(1536)));
    let mut planner = rested(&mut world);
    world.node(2).facts.memory_bytes = 1536 * MIB;
    let (first, _) = planner.plan(&world.state, world.now);
    assert!(
        show(&first, world.now).starts_with("place zoo/0 v1 on 2\n"),
        "what fits does not wait for words"
    );
    assert_eq!(first.steps.len(), 1 + PLAN_REWORDED_MAX);
    assert_eq!(planner.wake_at(), Some(world.now));
    world.apply(Command::Plan(first));
    let mut told = PLAN_REWORDED_MAX;
    while planner.wake_at().is_some() {
        let (next, _) = planner.plan(&world.state, world.now);
        told += next.steps.len();
        world.apply(Command::Plan(next));
    }
    assert_eq!(told, many);
    assert_eq!(show(&world.plan().0, world.now), "", "everybody was told");
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

#[test]
fn that_no_node_fits_is_found_once_for_all_slots() {
    let mut world = World::new(50);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(20);
        let (label, value) = ("node.id".to_owned(), "7".to_owned());
        spec.placement.constraints = vec![Constraint { label, operator: ConstraintOperator::Equal, value }];
    }));
    world.converge();
    world.node(7).status = NodeStatus::Down;
    LOOKED_AT.set(0);
    assert_eq!(world.plan().0.steps.len(), 20 + 20, "each is lost, and each waits");
    assert_eq!(LOOKED_AT.get(), 2 * 50, "once while they are lost, and once after that");
}

#[test]
fn that_no_node_fits_is_found_once_for_all_who_ask_for_the_same() {
    let mut world = World::new(50);
    for number in 0..20 {
        world.submit(spec(&format!("web-{number}"), |spec| spec.reservations = memory(2048)));
    }
    LOOKED_AT.set(0);
    assert_eq!(world.plan().0.steps.len(), 20);
    assert_eq!(LOOKED_AT.get(), 50);
}

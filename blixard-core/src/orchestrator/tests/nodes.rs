//! Nodes go down, come back and stay away.

use super::world::*;
use crate::cluster::{Availability, NodeStatus, Phase, Write};
use crate::id::NodeId;
use crate::time::UtcMs;

/// `web` with a replica on each of two nodes out of three, all running.
fn two_of_three() -> World {
    let mut world = World::new(3);
    world.submit(spec("web", |spec| spec.replicas = replicas(2))).converge();
    assert_eq!(world.places("web"), "0@1 v1, 1@2 v1");
    world
}

#[test]
fn silent_node_moves_nothing() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Unknown;
    world.expect("");
}

#[test]
fn replicas_of_a_down_node_are_replaced_in_one_plan_and_stop_once_replaced() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.expect("lost 2\nplace web/1 v1 on 3");
    world.phase(3, Phase::Starting).expect("");
    world.phase(3, Phase::Running).expect("stop 2").agents_act().expect("");
    world.node(2).status = NodeStatus::Up;
    world.expect("").agents_act().expect("");
    assert_eq!(world.places("web"), "0@1 v1, 1@3 v1");
}

#[test]
fn probed_replacement_must_be_healthy_before_the_lost_one_stops() {
    let mut world = World::new(2);
    world.submit(spec("web", probe)).converge();
    world.node(1).status = NodeStatus::Down;
    world.expect("lost 1\nplace web/0 v1 on 2");
    world.phase(2, Phase::Running).expect("");
    world.replica(2).status.healthy = Some(false);
    world.expect("");
    world.replica(2).status.healthy = Some(true);
    world.expect("stop 1");
}

#[test]
fn early_return_cancels_the_replacement() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.expect("lost 2\nplace web/1 v1 on 3");
    world.phase(3, Phase::Pulling);
    world.node(2).status = NodeStatus::Up;
    world.expect("stop 3\nback 2").agents_act().expect("");
    assert_eq!(world.places("web"), "0@1 v1, 1@2 v1");
}

#[test]
fn late_return_stops_what_was_replaced() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.settle();
    world.phase(3, Phase::Running);
    world.node(2).status = NodeStatus::Up;
    world.expect("stop 2");
}

#[test]
fn replacement_on_a_silent_node_decides_nothing() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.settle();
    world.phase(3, Phase::Running);
    world.node(2).status = NodeStatus::Up;
    world.node(3).status = NodeStatus::Unknown;
    world.expect("");
}

#[test]
fn replacement_that_is_lost_too_is_replaced_again() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.settle();
    world.node(3).status = NodeStatus::Down;
    world.expect("lost 3\nplace web/1 v1 on 1");
    world.node(2).status = NodeStatus::Up;
    world.node(3).status = NodeStatus::Up;
    world.expect("stop 4\nback 2\nstop 3");
}

#[test]
fn lost_replica_without_a_place_waits_and_comes_back() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {})).converge();
    world.node(1).status = NodeStatus::Down;
    world.expect("lost 1\npending web/0: no node fits: node 1 (alpha) is down");
    assert_eq!(
        world.report("web").to_string(),
        "0 of 1 replicas run, 1 lost; slot 0: no node fits: node 1 (alpha) is down"
    );
    world.node(1).status = NodeStatus::Up;
    world.expect("back 1");
}

#[test]
fn announced_absence_moves_nothing_until_it_has_lasted_too_long() {
    let mut world = two_of_three();
    let until = UtcMs(world.now.0 + 60_000);
    world.node(2).hold_until = Some(until);
    world.node(2).status = NodeStatus::Down;
    world.expect("");
    assert_eq!(world.plan().1.wake_at(), Some(until));
    world.advance(60_000).expect("lost 2\nplace web/1 v1 on 3");
}

#[test]
fn pinned_replica_is_not_replaced_and_comes_back() {
    for read_only in [false, true] {
        let mut world = World::new(3);
        world.submit(spec("db", |spec| spec.volumes = volume(read_only))).converge();
        assert_eq!(world.places("db"), "0@1 v1");
        world.node(1).status = NodeStatus::Down;
        world.expect("lost 1\npending db/0: its volumes are on node 1 (alpha), which is down");
        world.node(1).status = NodeStatus::Up;
        world.expect("back 1");
    }
}

#[test]
fn replica_that_ran_to_its_end_is_not_lost() {
    let mut world = World::new(2);
    world.submit(spec("job", |_| {})).settle();
    world.phase(1, Phase::Completed);
    world.node(1).status = NodeStatus::Down;
    world.expect("");
}

#[test]
fn replicas_of_a_removed_node_are_replaced() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.write(Write::RemoveNode { node: NodeId(2), force: true }).expect("place web/1 v1 on 3");
}

#[test]
fn replica_lost_on_a_node_that_returns_to_leave_is_superseded() {
    let mut world = two_of_three();
    world.node(2).status = NodeStatus::Down;
    world.expect("lost 2\nplace web/1 v1 on 3");
    world.node(2).status = NodeStatus::Up;
    world.node(2).availability = Availability::Leaving;
    world.expect("retire 2\nback 2").agents_act().expect("stop 2");
}

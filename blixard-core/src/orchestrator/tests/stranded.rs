//! Drains and bad updates at once: what an update superseded on a node that is being emptied.

use super::world::*;
use crate::cluster::{Availability, NodeStatus, Phase, Write};
use crate::id::{NodeId, ReplicaId};
use crate::spec::{NetworkMode, ServiceSpec};

/// A version of `web` with this many replicas, told from others by its `mark`.
fn web(count: u32, mark: u32) -> ServiceSpec {
    spec("web", |spec| {
        spec.replicas = replicas(count);
        spec.stop_timeout_s = mark;
    })
}

/// Version 1 with one replica on node 1, and version 2 tried by replica 2 on node 2.
fn trying(nodes: u64) -> World {
    let mut world = World::new(nodes);
    world.submit(web(1, 1)).converge();
    world.submit(web(1, 2)).expect("retire 1\nplace web/0 v2 on 2");
    world
}

/// The same, with node 1 drained once version 2 has ended a first time: replica 3 stands in.
fn standing_in() -> World {
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).node(1).availability = Availability::Draining;
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    world
}

/// How many replicas of `web` are on a node and not told to stop.
fn on(world: &World, node: u64) -> usize {
    let stays = |row: &&crate::cluster::Replica| {
        row.node == NodeId(node) && row.desired != crate::cluster::Desired::Stop
    };
    world.state.replicas.values().filter(stays).count()
}

#[test]
fn a_drain_moves_what_a_bad_update_left_behind() {
    for availability in [Availability::Draining, Availability::Leaving] {
        let mut world = trying(3);
        world.phase(2, Phase::Waiting).expect("").node(1).availability = availability;
        world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
        world.phase(3, Phase::Pulling).expect("").advance(60_000).expect("");
        world.phase(2, Phase::Gone).expect("").advance(60_000).expect("");
        world.begins(3).expect("stop 1").phase(1, Phase::Gone).expect("");
        assert_eq!(on(&world, 1), 0);
        world.phase(3, Phase::Running).expect("retire 3\nplace web/0 v2 on 3");
        for _ in 0..5 {
            world.phase(4, Phase::Waiting).expect("").advance(60_000).expect("");
            world.again(4).expect("").begins(4).expect("");
        }
        assert_eq!(world.state.replicas.len(), 2, "the old one serves, and the new one is tried");
        world.phase(4, Phase::Running).expect("stop 3");
    }
}

#[test]
fn a_bad_update_goes_on_in_the_slot_where_it_was_stopped() {
    let mut world = World::new(3);
    world.submit(web(3, 1)).converge();
    world.submit(web(3, 2)).expect("retire 1\nplace web/0 v2 on 1");
    world.phase(4, Phase::Waiting).expect("").node(1).availability = Availability::Draining;
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 4\nplace older web/0 v1 on 2");
    world.advance(1_000).expect("").phase(4, Phase::Gone).expect("");
    world.phase(5, Phase::Running).expect("stop 1\nretire 5\nplace web/0 v2 on 3");
    world.phase(1, Phase::Gone).phase(6, Phase::Waiting).expect("").advance(60_000).expect("");
    assert_eq!(world.places("web"), "0@3 v2, 1@2 v1, 2@3 v1");
}

#[test]
fn what_may_still_come_is_waited_for() {
    let mut world = trying(3);
    world.phase(2, Phase::Pulling).node(1).availability = Availability::Draining;
    world.expect("").advance(9_999).expect("").advance(1);
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    let mut world = trying(3);
    world.begins(2).node(1).availability = Availability::Draining;
    world.expect("").advance(100_000).expect("").phase(2, Phase::Running).expect("stop 1");
}

#[test]
fn a_new_version_that_is_on_the_drained_node_itself_is_moved_first_while_it_may_come() {
    let mut world = trying(3);
    world.node(2).availability = Availability::Draining;
    world.expect("retire 2\nplace web/0 v2 on 3\nstop 2").node(1).availability = Availability::Draining;
    world.expect("").phase(3, Phase::Waiting);
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 3\nplace older web/0 v1 on 3");
}

#[test]
fn what_ended_before_it_was_proven_does_not_keep_a_node_from_being_empty() {
    let mut world = trying(3);
    world.begins(2).ends(2, 0).expect("").node(1).availability = Availability::Draining;
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    let mut world = trying(3);
    world.fail(2, "no such command").settle();
    world.phase(2, Phase::Gone).settle();
    world.node(1).availability = Availability::Draining;
    world.expect("place older web/0 v1 on 2").advance(1_000).expect("");
    world.begins(3).expect("stop 1").phase(3, Phase::Running).expect("retire 3\nplace web/0 v2 on 3");
}

#[test]
fn a_newer_version_does_not_wait_for_the_stand_in() {
    let mut world = standing_in();
    world.submit(web(1, 3)).expect("retire 3\nplace web/0 v3 on 3\nstop 3");
    world.begins(4).expect("").phase(4, Phase::Running).expect("stop 1");
}

#[test]
fn a_rollback_keeps_the_stand_in() {
    let mut world = standing_in();
    world.write(Write::Rollback { service: name("web"), version: None }).expect("");
    world.begins(3).expect("stop 1").phase(1, Phase::Gone).expect("").advance(60_000).expect("");
    assert_eq!(world.places("web"), "0@2 v1");
    let mut world = trying(3);
    world.node(1).availability = Availability::Draining;
    world.write(Write::Rollback { service: name("web"), version: None });
    world.expect("stop 2\nplace web/0 v3 on 2").begins(3).expect("stop 1");
}

#[test]
fn a_stand_in_that_fails_is_tried_again_after_its_back_off_and_the_new_version_is_not() {
    let mut world = standing_in();
    world.fail(3, "crash").expect(
        "stop 3
         backoff web/0 failures 2 wait 2000 ms
         pending web/0: last try failed on node 2 (beta): crash; next try at 1970-01-01T00:16:42.000Z",
    );
    world.phase(2, Phase::Gone).phase(3, Phase::Gone).expect("").advance(1_999).expect("");
    world.advance(1).expect("place older web/0 v1 on 3");
    assert!(world.state.replicas.contains_key(&ReplicaId(1)), "the old one serves on");
    world.phase(4, Phase::Running).expect("stop 1\nretire 4\nplace web/0 v2 on 2");
}

#[test]
fn a_stand_in_is_moved_off_a_drained_node_too() {
    let mut world = standing_in();
    world.phase(2, Phase::Gone).node(2).availability = Availability::Draining;
    world.expect("retire 3\nplace older web/0 v1 on 3\nstop 3").advance(60_000).expect("");
    world.node(2).availability = Availability::Active;
    world.expect("").begins(4).expect("stop 1").advance(10_000);
    world.expect("forgive web/0\nretire 4\nplace web/0 v2 on 2");
}

/// A version of `web` that reserves so much.
fn sized(mark: u32, mib: u64) -> ServiceSpec {
    ServiceSpec { reservations: memory(mib), ..web(1, mark) }
}

#[test]
fn what_fits_nowhere_else_stays_and_says_why() {
    let mut world = World::new(2);
    world.submit(sized(1, 768)).converge();
    world.submit(sized(2, 100)).expect("retire 1\nplace web/0 v2 on 2");
    world.submit(spec("db", |spec| spec.reservations = memory(512))).expect("place db/0 v1 on 2");
    world.phase(2, Phase::Waiting).node(1).availability = Availability::Draining;
    world.expect(
        "pending web/0: version 1 cannot move off node 1 (alpha), which is draining: no node fits: node 1 (alpha) \
         is draining; node 2 (beta) has 512 MiB of memory free of the 768 MiB needed; version 2 is not proven",
    );
    world.expect("").node(1).availability = Availability::Active;
    world.expect("filled web/0");
    let mut world = World::new(1);
    world.submit(web(1, 1)).converge();
    world.submit(web(1, 2)).expect("retire 1\nplace web/0 v2 on 1");
    world.phase(2, Phase::Waiting).node(1).availability = Availability::Draining;
    world.expect(
        "pending web/0: cannot move off node 1 (alpha), which is draining: no node fits: node 1 (alpha) is draining",
    );
}

#[test]
fn what_a_next_try_would_have_to_stop_first_stays() {
    let mut world = World::new(2);
    world.submit(sized(1, 600)).converge();
    world.submit(sized(2, 600)).expect("retire 1\nplace web/0 v2 on 2");
    world.phase(2, Phase::Waiting).node(1).availability = Availability::Draining;
    let why = "version 1 cannot move off node 1 (alpha), which is draining: on node 2 (beta) version 2 would not \
               fit beside it; version 2 is not proven";
    world.expect(&format!("pending web/0: {why}")).advance(60_000).expect("");
    world.write(Write::Rollback { service: name("web"), version: None });
    world.expect("stop 2\nplace web/0 v3 on 2").begins(3).expect("stop 1");
    let host = |mark| ServiceSpec { network: NetworkMode::Host, ..web(1, mark) };
    let mut world = World::new(2);
    world.submit(host(1)).converge();
    world.node(1).availability = Availability::Draining;
    world.submit(host(2)).expect("retire 1\nplace web/0 v2 on 2");
    world.phase(2, Phase::Waiting).expect("").advance(60_000).expect("");
}

#[test]
fn a_drain_moves_the_old_version_where_the_new_one_fits_nowhere() {
    let mut world = World::new(2);
    world.submit(web(1, 1)).converge();
    world.submit(sized(2, 2048)).settle();
    world.node(1).availability = Availability::Draining;
    world.expect(
        "retire 1
         place older web/0 v1 on 2
         pending web/0: version 2 waits: no node fits: node 1 (alpha) is draining; node 2 (beta) has 1 GiB of memory \
         free of the 2 GiB needed",
    );
    world.advance(60_000).expect("").begins(2).expect("stop 1");
}

#[test]
fn a_stand_in_goes_on_when_the_drained_node_fails_meanwhile() {
    let mut world = standing_in();
    world.phase(2, Phase::Gone).node(1).status = NodeStatus::Down;
    world.advance(60_000).expect("").phase(3, Phase::Pulling).expect("");
    world.begins(3).expect("").phase(3, Phase::Running).expect("stop 1\nretire 3\nplace web/0 v2 on 3");
}

#[test]
fn what_is_lost_in_the_middle_of_a_bad_update_comes_back() {
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").node(1).status = NodeStatus::Down;
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    world.phase(2, Phase::Gone).expect("").begins(3).expect("").advance(1_000);
    world.phase(3, Phase::Running).expect("stop 1\nretire 3\nplace web/0 v2 on 3");
    // A version that may still come has the time that it has anyway.
    let mut world = trying(3);
    world.phase(2, Phase::Pulling).node(1).status = NodeStatus::Down;
    world.expect("").advance(9_999).expect("").advance(1);
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    let mut world = trying(3);
    world.begins(2).node(1).status = NodeStatus::Down;
    world.expect("").advance(60_000).expect("").phase(2, Phase::Running).expect("stop 1");
}

#[test]
fn a_stand_in_that_is_lost_before_it_is_proven_comes_back() {
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").fail(1, "killed");
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    world.phase(2, Phase::Gone).expect("").begins(3).expect("").node(2).status = NodeStatus::Down;
    world.expect("lost 3\nplace older web/0 v1 on 3").begins(4).expect("stop 3").advance(1_000);
    world.phase(4, Phase::Running).expect("stop 1\nretire 4\nplace web/0 v2 on 1");
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").fail(1, "killed").settle();
    world.begins(3).expect("").fail(3, "killed").settle();
    world.advance(60_000).expect("place older web/0 v1 on 3");
}

#[test]
fn a_node_that_said_when_it_returns_has_lost_nothing() {
    let mut world = trying(3);
    let until = world.now.after(std::time::Duration::from_secs(30));
    world.phase(2, Phase::Waiting).node(1).status = NodeStatus::Down;
    world.node(1).hold_until = Some(until);
    world.expect("").advance(29_999).expect("").advance(1);
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    let mut world = trying(3);
    world.fail(2, "no such command").settle();
    world.phase(2, Phase::Gone).expect("").node(1).status = NodeStatus::Down;
    let until = world.now.after(std::time::Duration::from_millis(500));
    world.node(1).hold_until = Some(until);
    world.expect("");
    assert_eq!(world.plan().1.wake_at(), Some(until));
    world.advance(500).expect("place older web/0 v1 on 2");
}

#[test]
fn what_ends_in_the_middle_of_a_bad_update_comes_back() {
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").fail(1, "killed");
    world.expect("backoff web/0 failures 1 wait 1000 ms\nstop 2\nplace older web/0 v1 on 2");
    world.phase(2, Phase::Gone).expect("").advance(60_000).expect("").begins(3).expect("");
    world.phase(3, Phase::Running).expect("stop 1\nretire 3\nplace web/0 v2 on 1");
    // The new one has failed and waits: the old one does not.
    let mut world = trying(3);
    world.fail(2, "no such command").settle();
    world.phase(2, Phase::Gone).expect("").fail(1, "killed").expect("place older web/0 v1 on 2");
    // What its policy leaves as it ended is not started again.
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").fail(1, "killed").replica(1).status.left = true;
    world.expect("stop 1");
    let mut world = trying(3);
    world.phase(2, Phase::Waiting).expect("").ends(1, 0).expect("stop 1");
}

#[test]
fn what_has_no_room_to_come_back_says_why() {
    let why = |what: &str| {
        format!(
            "pending web/0: version 1 {what} node 1 (alpha): on node 2 (beta) version 2 would not fit beside it; \
             version 2 is not proven"
        )
    };
    let mut world = World::new(2);
    world.submit(sized(1, 600)).converge();
    world.submit(sized(2, 600)).expect("retire 1\nplace web/0 v2 on 2");
    world.phase(2, Phase::Waiting).node(1).status = NodeStatus::Down;
    world.expect(&why("is lost with"));
    world.node(1).status = NodeStatus::Up;
    world.expect("filled web/0").fail(1, "killed").expect(&why("ended on"));
}

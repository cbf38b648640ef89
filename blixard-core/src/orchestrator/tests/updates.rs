//! Bad versions, and how they are undone: proof, the newest version at once, stand-ins, ends.

use std::sync::Arc;

use super::world::*;
use crate::cluster::{Availability, NodeStatus, Phase, PlanStep, Write};
use crate::id::{NodeId, ReplicaId};
use crate::spec::{RestartPolicy, ServiceSpec};

/// A version of `web` with this many replicas, told from others by its `mark`.
fn web(count: u32, mark: u32) -> ServiceSpec {
    spec("web", |spec| {
        spec.replicas = replicas(count);
        spec.stop_timeout_s = mark;
    })
}

/// Version 1 of `web` with one replica on each of this many nodes, all running.
fn running(count: u32) -> World {
    let mut world = World::new(u64::from(count));
    world.submit(web(count, 1)).converge();
    world
}

/// Version 1 with three replicas, and version 2 tried in slot 0 by replica 4.
fn trying() -> World {
    let mut world = running(3);
    world.submit(web(3, 2)).expect("retire 1\nplace web/0 v2 on 1");
    world
}

#[test]
fn what_is_ready_and_not_proven_replaces_nothing() {
    let mut world = trying();
    for _ in 0..5 {
        world.begins(4).expect("").advance(3_000).expect("");
        world.phase(4, Phase::Waiting).expect("").again(4).expect("");
    }
    world.phase(4, Phase::Running).expect("stop 1\nretire 2\nplace web/1 v2 on 2");
}

#[test]
fn what_ends_soon_replaces_nothing_that_serves() {
    let mut world = trying();
    world.begins(4).expect("").ends(4, 0).expect("");
    let mut world = trying();
    world.begins(4).expect("").ends(4, 1).expect("");
    assert_eq!(world.places("web"), "0@1 v2, 1@2 v1, 2@3 v1");
}

#[test]
fn a_job_that_ended_is_updated_though_the_new_one_ends_soon() {
    let mut world = running(2);
    world.ends(1, 0).ends(2, 0).expect("");
    world.submit(web(2, 2)).expect("retire 1\nplace web/0 v2 on 1\nstop 1");
    world.begins(3).expect("").ends(3, 0).expect("retire 2\nplace web/1 v2 on 2\nstop 2");
}

#[test]
fn the_newest_version_supersedes_one_that_never_was_ready_at_once() {
    let check = |change: &dyn Fn(&mut World)| {
        let mut world = trying();
        change(&mut world);
        world.settle();
        world.submit(web(3, 3)).expect("stop 4\nplace web/0 v3 on 1");
        world.phase(5, Phase::Running).expect("stop 1\nretire 2\nplace web/1 v3 on 2");
    };
    check(&|_| ());
    check(&|world| {
        world.phase(4, Phase::Pulling);
    });
    check(&|world| {
        world.phase(4, Phase::Waiting);
    });
    check(&|world| {
        world.begins(4).replica(4).status.healthy = Some(false);
    });
    check(&|world| {
        world.ends(4, 1);
    });
}

#[test]
fn a_back_off_of_the_bad_version_does_not_hold_the_good_one_up() {
    let mut world = trying();
    world.fail(4, "crash").settle();
    world.agents_act().settle();
    world.submit(web(3, 3)).expect("place web/0 v3 on 1").phase(5, Phase::Running);
    world.expect("stop 1\nretire 2\nplace web/1 v3 on 2");
}

#[test]
fn a_version_that_is_ready_for_a_moment_is_superseded_start_first() {
    let mut world = trying();
    world.begins(4).submit(web(3, 3)).expect("retire 4\nplace web/0 v3 on 1\nstop 4");
    assert_eq!(world.state.replicas[&ReplicaId(1)].desired, crate::cluster::Desired::Retire);
}

#[test]
fn the_good_version_again_leaves_what_runs_it_alone() {
    let mut world = trying();
    world.phase(4, Phase::Waiting).submit(web(3, 1)).expect("stop 4\nplace web/0 v3 on 1");
    world.begins(5).expect("stop 1");
    world.agents_act().expect("");
    assert_eq!(world.places("web"), "0@1 v3, 1@2 v1, 2@3 v1");
    assert_eq!(world.report("web").outdated, 0);
}

#[test]
fn a_writer_is_given_back_its_good_version_after_the_bad_one_is_gone() {
    let db = |mark| {
        spec("db", |spec| {
            spec.volumes = volume(false);
            spec.stop_timeout_s = mark;
        })
    };
    let mut world = World::new(2);
    world.submit(db(1)).converge();
    world.submit(db(2)).expect("stop 1\nplace db/0 v2 on 1 after 1");
    world.submit(db(1)).expect("stop 2\nplace db/0 v3 on 1 after 2");
    world.phase(2, Phase::Gone).expect("");
    assert_eq!(world.state.replicas[&ReplicaId(3)].after, Some(ReplicaId(2)));
    assert!(world.state.replicas.contains_key(&ReplicaId(1)), "the first writer still stops");
}

#[test]
fn what_is_lost_in_a_bad_update_is_replaced_by_the_version_that_was_proven() {
    let mut world = trying();
    world.node(3).status = NodeStatus::Down;
    world.expect("lost 3\nplace older web/2 v1 on 2");
    let mut world = trying();
    world.phase(4, Phase::Waiting).fail(2, "crash");
    world.settle();
    world.agents_act().advance(1_000).expect("place older web/1 v1 on 2");
}

#[test]
fn a_stand_in_is_not_superseded_by_the_version_it_stands_in_for() {
    let mut world = trying();
    world.node(3).status = NodeStatus::Down;
    world.settle();
    world.phase(5, Phase::Pulling).expect("").phase(4, Phase::Waiting).expect("");
    world.begins(5).expect("stop 3");
    world.again(4).expect("").phase(4, Phase::Running).expect("stop 1\nretire 2\nplace web/1 v2 on 1");
}

#[test]
fn scaling_in_a_bad_update_adds_replicas_of_the_version_that_was_proven() {
    let mut world = running(2);
    world.submit(web(3, 2)).settle();
    assert_eq!(world.places("web"), "0@1 v1, 1@2 v1, 2@1 v2", "a new slot is what it is tried in");
    let mut world = trying();
    world.submit(web(5, 2)).expect("place older web/3 v1 on 2\nplace older web/4 v1 on 3");
}

#[test]
fn a_drain_in_a_bad_update_moves_what_was_proven() {
    let mut world = trying();
    world.phase(4, Phase::Waiting).node(2).availability = Availability::Draining;
    world.expect("retire 2\nplace older web/1 v1 on 3");
    world.begins(5).expect("stop 2");
    world.node(3).availability = Availability::Draining;
    world.agents_act().expect("retire 5\nplace older web/1 v1 on 1");
}

#[test]
fn a_drain_moves_what_stands_in_for_a_version_that_waits_for_its_next_try() {
    let mut world = World::new(3);
    world.submit(web(1, 1)).converge();
    world.node(1).status = NodeStatus::Down;
    world.submit(web(1, 2)).settle();
    assert_eq!(world.places("web"), "0@2 v2");
    world.fail(2, "crash").settle();
    world.agents_act().node(1).status = NodeStatus::Up;
    world.expect("back 1");
    world.node(1).availability = Availability::Draining;
    world.expect("retire 1\nplace older web/0 v1 on 2");
    world.begins(3).expect("stop 1");
    world.advance(1_000).expect("").phase(3, Phase::Running).expect("retire 3\nplace web/0 v2 on 3");
}

#[test]
fn a_drain_says_that_it_waits_for_the_next_try_of_what_failed() {
    let mut world = World::new(3);
    world.submit(web(1, 1)).settle();
    world.begins(1).node(1).status = NodeStatus::Down;
    world.submit(web(1, 2)).settle();
    world.fail(2, "crash").settle();
    world.node(1).status = NodeStatus::Up;
    world.expect("back 1");
    world.node(1).availability = Availability::Draining;
    world.expect("pending web/0: cannot move off node 1 (alpha), which is draining: version 2 failed here, and is tried again at 1970-01-01T00:16:41.000Z");
    world.advance(1_000).expect("retire 1\nplace web/0 v2 on 3");
}

#[test]
fn a_failing_old_version_does_not_hold_the_new_one_up() {
    let mut world = running(3);
    for _ in 0..3 {
        for slot in 0..3 {
            let (id, _) = world.state.counting_in(&name("web"), slot).expect("it is filled");
            world.fail(id.0, "crash");
        }
        world.settle();
        world.agents_act().advance(1_000_000).settle();
        world.agents_act().settle();
    }
    let failing = |world: &World| world.state.services[&name("web")].backoff.len();
    assert_eq!(failing(&world), 3);
    world.submit(web(3, 2)).settle();
    assert_eq!(failing(&world), 0);
    for slot in 1..3 {
        let (id, _) = world.state.counting_in(&name("web"), slot).expect("it is filled");
        world.fail(id.0, "crash").settle();
    }
    assert_eq!(failing(&world), 2, "of the old version");
    let (id, _) = world.state.counting_in(&name("web"), 0).expect("it is filled");
    world.agents_act().phase(id.0, Phase::Running).settle();
    assert_eq!(world.places("web"), "0@1 v2, 1@2 v2, 2@3 v2", "nothing waits for the old one");
}

#[test]
fn without_a_proven_version_every_slot_is_given_the_newest_at_once() {
    let mut world = World::new(3);
    world.submit(web(3, 1)).settle();
    world.phase(1, Phase::Waiting).phase(2, Phase::Pulling);
    world.submit(web(3, 2));
    world.expect("stop 1\nplace web/0 v2 on 1\nstop 2\nplace web/1 v2 on 2\nstop 3\nplace web/2 v2 on 3");
}

#[test]
fn what_its_policy_leaves_keeps_its_slot_until_it_is_started_anew() {
    let never = |mark| {
        let mut spec = web(2, mark);
        spec.restart.policy = RestartPolicy::Never;
        spec
    };
    let ended = || {
        let mut world = World::new(2);
        world.submit(never(1)).converge();
        world.ends(1, 3).ends(2, 0).expect("").advance(1_000_000).expect("");
        world
    };
    let anew = "place web/0 v1 on 1\nplace web/1 v1 on 2";
    ended().write(Write::Start { service: name("web") }).expect(anew);
    ended().write(Write::Scale { service: name("web"), replicas: 2 }).expect(anew);
    let mut world = ended();
    world.node(1).status = NodeStatus::Down;
    world.expect("");
    let mut world = ended();
    world.submit(never(2)).expect("retire 1\nplace web/0 v2 on 1\nstop 1");
}

#[test]
fn a_rollback_is_a_new_version_of_what_was_proven() {
    let mut world = trying();
    world.phase(4, Phase::Waiting);
    world.write(Write::Rollback { service: name("web"), version: None });
    let service = &world.state.services[&name("web")];
    assert_eq!((service.current().version, service.current().rollback_of), (3, Some(1)));
    assert!(service.runs_current(1));
    world.expect("stop 4\nplace web/0 v3 on 1").begins(5).expect("stop 1");
}

#[test]
fn an_older_version_is_placed_only_where_it_is_meant_to_be() {
    let mut world = trying();
    world.write(Write::StopReplica { replica: ReplicaId(3), timeout_s: None });
    let step = |version, older: bool| {
        let (service, slot, node, after) = (name("web"), 2, NodeId(3), None);
        if older {
            PlanStep::PlaceOlder { service, slot, version, node, after }
        } else {
            PlanStep::Place { service, slot, version, node, after }
        }
    };
    let mut state = world.state.clone();
    let at_two = |version| Err(format!("`web` is at version 2, not {version}"));
    assert_eq!(state.step(&step(1, false)), at_two(1));
    assert_eq!(state.step(&step(2, true)), at_two(2));
    assert_eq!(state.step(&step(3, true)), at_two(3));
    assert_eq!(state.step(&step(0, true)), Err("version 0 of `web` is no longer kept".to_owned()));
    assert_eq!(state.step(&step(1, true)), Ok(()));
}

#[test]
fn a_version_keeps_that_it_was_proven_and_how_it_failed() {
    let mut world = trying();
    let version = |world: &World, n: usize| world.state.services[&name("web")].versions[n].clone();
    assert_eq!(version(&world, 0).proven_at, Some(START));
    let again = "exited with code 3; starting again at 1970-01-01T00:16:41.000Z";
    world.phase(4, Phase::Starting).advance(7).fail(4, again);
    let failure = version(&world, 1).failure.expect("it failed");
    assert_eq!((failure.at, failure.message.as_str()), (world.now, "web-0 on node 1: exited with code 3"));
    world.settle();
    world.agents_act().advance(2_000).settle();
    world.agents_act();
    assert_eq!((version(&world, 1).failure, version(&world, 1).proven_at), (None, Some(world.now)));
}

#[test]
fn the_same_specification_is_not_submitted_as_a_rollback() {
    let mut world = trying();
    let rollback = |version| Write::Rollback { service: name("web"), version };
    world.write(rollback(Some(2)));
    assert_eq!(world.state.services[&name("web")].current().version, 2);
    world.write(Write::Submit { spec: Arc::new(web(7, 2)), origin: NodeId(1) });
    world.write(rollback(Some(1)));
    let service = &world.state.services[&name("web")];
    assert_eq!(service.spec().replicas, replicas(7), "how many there are is not rolled back");
}

#[test]
fn a_removed_name_is_free_though_a_node_is_down() {
    let mut world = running(2);
    world.node(2).status = NodeStatus::Down;
    world.settle();
    world.write(Write::Remove { service: name("web") }).settle();
    world.agents_act().settle();
    assert!(world.state.services.is_empty() && world.state.replicas.is_empty());
    world.submit(web(1, 1)).settle();
    assert_eq!(world.places("web"), "0@1 v1");
}

#[test]
fn what_was_proven_nowhere_is_moved_off_no_node_but_replaced_by_the_newest() {
    let mut world = World::new(3);
    world.submit(web(3, 1)).settle();
    world.begins(1).begins(2).begins(3).settle();
    world.submit(web(3, 2)).expect("retire 1\nplace web/0 v2 on 1");
    world.node(2).availability = Availability::Draining;
    world.expect("retire 2\nplace web/1 v2 on 3");
}

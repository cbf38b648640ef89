//! Updates and drains, one slot at a time.

use super::world::*;
use crate::cluster::{Availability, NodeStatus, Phase};
use crate::spec::NetworkMode;

/// `web` with one replica on each of this many nodes, all running.
fn running(count: u32) -> World {
    let mut world = World::new(u64::from(count));
    world.submit(spec("web", |spec| spec.replicas = replicas(count))).converge();
    world
}

fn second(count: u32) -> crate::spec::ServiceSpec {
    spec("web", |spec| {
        spec.replicas = replicas(count);
        spec.stop_timeout_s = 1;
    })
}

#[test]
fn update_starts_the_new_replica_first_and_goes_slot_by_slot() {
    let mut world = running(2);
    world.submit(second(2)).expect("retire 1\nplace web/0 v2 on 1");
    world.phase(3, Phase::Pulling).expect("");
    world.begins(3).expect("");
    world.phase(3, Phase::Running).expect("stop 1\nretire 2\nplace web/1 v2 on 2");
    world.phase(1, Phase::Stopping).expect("");
    world.converge();
    assert_eq!(world.places("web"), "0@1 v2, 1@2 v2");
}

#[test]
fn update_waits_for_health() {
    let mut world = running(2);
    let mut changed = second(2);
    probe(&mut changed);
    world.submit(changed).settle();
    world.phase(3, Phase::Running).expect("");
    world.replica(3).status.healthy = Some(true);
    world.expect("stop 1\nretire 2\nplace web/1 v2 on 2");
}

#[test]
fn failing_version_replaces_one_slot_at_most() {
    let mut world = running(3);
    world.submit(second(3)).expect("retire 1\nplace web/0 v2 on 1").fail(4, "no such command");
    world.expect(
        "backoff web/0 failures 1 wait 1000 ms
         stop 4
         pending web/0: last try failed on node 1 (alpha): no such command; next try at 1970-01-01T00:16:41.000Z",
    );
    for _ in 0..10 {
        world.agents_act().advance(300_000).settle();
        let tried = *world.state.replicas.keys().next_back().expect("a replica was placed");
        world.fail(tried.0, "no such command").settle();
    }
    let old: Vec<u64> =
        world.state.replicas.iter().filter(|(_, row)| row.version == 1).map(|(id, _)| id.0).collect();
    assert_eq!(old, [1, 2, 3], "the old replicas run on");
    world.advance(1).submit(spec("web", |spec| {
        spec.replicas = replicas(3);
        spec.stop_timeout_s = 2;
    }));
    world.converge();
    assert_eq!(world.places("web"), "0@1 v3, 1@2 v3, 2@3 v3");
}

#[test]
fn version_that_ran_only_briefly_after_failing_holds_the_update() {
    let mut world = running(2);
    world.submit(second(2)).settle();
    world.fail(3, "crash").settle();
    world.agents_act().advance(1000).settle();
    world.agents_act().settle();
    world.agents_act().expect("");
    world.advance(9_999).expect("");
    world.advance(1).expect("forgive web/0\nretire 2\nplace web/1 v2 on 1");
}

#[test]
fn writers_and_host_network_replicas_are_updated_stop_first() {
    let volumes = |spec: &mut crate::spec::ServiceSpec| spec.volumes = volume(false);
    let host = |spec: &mut crate::spec::ServiceSpec| spec.network = NetworkMode::Host;
    let check = |kind: &dyn Fn(&mut crate::spec::ServiceSpec)| {
        let mut world = World::new(3);
        world.submit(spec("db", kind)).converge();
        world.submit(spec("db", |spec| {
            kind(spec);
            spec.stop_timeout_s = 1;
        }));
        world.expect("stop 1\nplace db/0 v2 on 1 after 1");
    };
    check(&volumes);
    check(&host);
}

#[test]
fn readers_of_a_volume_are_updated_start_first() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| spec.volumes = volume(true))).converge();
    world.submit(spec("web", |spec| {
        spec.volumes = volume(true);
        spec.stop_timeout_s = 1;
    }));
    world.expect("retire 1\nplace web/0 v2 on 1");
}

#[test]
fn update_that_fits_only_into_the_old_replicas_room_is_stop_first() {
    let mut world = World::new(1);
    world.submit(spec("web", |spec| spec.reservations = memory(768))).converge();
    world.submit(spec("web", |spec| spec.reservations = memory(1024)));
    world.expect("stop 1\nplace web/0 v2 on 1 after 1");
}

#[test]
fn update_that_fits_nowhere_keeps_the_old_replica_and_says_why() {
    let mut world = World::new(1);
    world.submit(spec("web", |spec| spec.reservations = memory(512))).converge();
    world.submit(spec("web", |spec| spec.reservations = memory(2048)));
    world.expect(
        "pending web/0: version 2 waits: no node fits: node 1 (alpha) has 512 MiB of memory free of the 2 GiB needed",
    );
    assert_eq!(world.places("web"), "0@1 v1");
}

#[test]
fn silent_node_is_asked_for_no_update() {
    let mut world = running(2);
    world.node(1).status = NodeStatus::Unknown;
    world.submit(second(2)).expect("retire 2\nplace web/1 v2 on 2");
}

#[test]
fn draining_node_is_emptied_one_slot_at_a_time() {
    for availability in [Availability::Draining, Availability::Leaving] {
        let mut world = World::new(2);
        world.submit(spec("web", |spec| spec.replicas = replicas(4))).converge();
        world.node(2).availability = availability;
        world.expect("retire 2\nplace web/1 v1 on 1");
        world.phase(5, Phase::Running).expect("stop 2").expect("");
        world.agents_act().expect("retire 4\nplace web/3 v1 on 1");
        world.converge();
        assert_eq!(world.places("web"), "0@1 v1, 1@1 v1, 2@1 v1, 3@1 v1");
    }
}

#[test]
fn drain_without_another_place_keeps_the_replica_and_says_why() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(2);
        spec.reservations = memory(768);
    }));
    world.converge();
    world.node(2).availability = Availability::Draining;
    world.expect(
        "pending web/1: cannot move off node 2 (beta), which is draining: no node fits: \
         node 1 (alpha) has 256 MiB of memory free of the 768 MiB needed; node 2 (beta) is draining",
    );
    world.node(2).availability = Availability::Active;
    world.expect("filled web/1");
}

#[test]
fn pinned_replica_stays_on_a_draining_node_and_says_why() {
    let mut world = World::new(2);
    world.submit(spec("db", |spec| spec.volumes = volume(false))).converge();
    world.node(1).availability = Availability::Draining;
    world.expect(
        "pending db/0: cannot move off node 1 (alpha), which is draining: \
         its volumes are on node 1 (alpha), which is draining",
    );
}

#[test]
fn drain_does_not_wait_for_a_slot_that_keeps_failing() {
    let mut world = World::new(3);
    world.submit(spec("web", |spec| spec.replicas = replicas(2))).converge();
    world.fail(1, "crash").settle();
    world.agents_act();
    world.node(2).availability = Availability::Draining;
    world.expect("retire 2\nplace web/1 v1 on 1");
}

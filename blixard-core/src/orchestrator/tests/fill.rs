//! Slots are filled, held at their number, wait and fail.

use super::world::*;
use crate::cluster::{Command, Entry, Phase, Write};
use crate::id::ReplicaId;
use crate::limits::{PLAN_STEPS_MAX, RESTART_RESET_AFTER};
use crate::orchestrator::Planner;
use crate::spec::{Constraint, ConstraintOperator};
use crate::time::UtcMs;

#[test]
fn each_slot_gets_one_replica_spread_over_nodes() {
    let mut world = World::new(3);
    world.submit(spec("web", |spec| spec.replicas = replicas(4)));
    world.expect(
        "place web/0 v1 on 1
         place web/1 v1 on 2
         place web/2 v1 on 3
         place web/3 v1 on 1",
    );
}

#[test]
fn a_plan_is_bounded_and_the_rest_stays_due() {
    let mut world = World::new(36);
    for number in 0..9 {
        world.submit(spec(&format!("web-{number}"), |spec| {
            spec.replicas = replicas(1_000);
            spec.reservations = Default::default();
        }));
    }
    let mut planner = Planner::new(&world.state, world.now);
    let mut placed = Vec::new();
    loop {
        let (plan, _) = planner.plan(&world.state, world.now);
        if plan.steps.is_empty() {
            break;
        }
        placed.push(plan.steps.len());
        let entry = Entry::new(world.now, vec![Command::Plan(plan)]);
        world.state.apply(world.state.applied + 1, &entry);
    }
    assert_eq!(placed, [PLAN_STEPS_MAX, PLAN_STEPS_MAX, 9_000 - 2 * PLAN_STEPS_MAX]);
    assert_eq!(world.state.replicas.len(), 9_000);
}

/// Where a slot is placed, try after try, when every one fails.
fn places_of_a_slot_that_fails(world: &mut World, tries: u64) -> Vec<u64> {
    let mut places = Vec::new();
    for _ in 0..tries {
        world.settle();
        let (id, row) = world.state.counting_in(&name("web"), 0).expect("it is placed");
        places.push(row.node.0);
        world.fail(id.0, "start failed: its port is taken").settle();
        world.agents_act().settle();
        let until = world.state.services[&name("web")].backoff[&0].not_before;
        world.now = until.max(world.now);
    }
    places
}

#[test]
fn a_replica_that_fails_is_tried_on_another_node() {
    let mut world = World::new(3);
    world.submit(spec("web", |_| {}));
    // Five waits of 1 to 16 s; the node where the failure is longest ago comes first.
    assert_eq!(places_of_a_slot_that_fails(&mut world, 5), [1, 2, 3, 1, 2]);
}

#[test]
fn where_a_replica_failed_is_forgotten_in_time_and_with_another_version() {
    let failed = || {
        let mut world = World::new(2);
        world.submit(spec("web", |_| {}));
        assert_eq!(places_of_a_slot_that_fails(&mut world, 1), [1]);
        world
    };
    failed().expect("place web/0 v1 on 2");
    failed().advance(600_000).expect("place web/0 v1 on 1");
    let mut world = failed();
    world.submit(spec("web", |spec| spec.image.reference = "other".to_owned()));
    world.expect("place web/0 v2 on 1");
}

#[test]
fn a_node_where_a_replica_failed_is_better_than_none() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {}));
    assert_eq!(places_of_a_slot_that_fails(&mut world, 3), [1, 1, 1]);
}

#[test]
fn services_are_planned_in_the_order_of_their_names() {
    let mut world = World::new(2);
    world.submit(spec("b", |_| {})).submit(spec("a", |_| {}));
    world.expect(
        "place a/0 v1 on 1
         place b/0 v1 on 2",
    );
}

#[test]
fn scaling_down_and_stopping_stops_the_highest_slots() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| spec.replicas = replicas(3))).converge();
    world.write(Write::Scale { service: name("web"), replicas: 1 }).expect("").agents_act().expect("");
    assert_eq!(world.places("web"), "0@1 v1");
    world.write(Write::Stop { service: name("web"), timeout_s: None }).expect("").agents_act().expect("");
    assert_eq!(world.places("web"), "");
    world.write(Write::Start { service: name("web") }).expect("place web/0 v1 on 1");
}

#[test]
fn removed_service_is_forgotten_with_its_last_replica() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {})).converge();
    world.write(Write::Remove { service: name("web") }).expect("").agents_act();
    world.expect("forget web");
    assert!(world.state.services.is_empty());
}

#[test]
fn slot_without_a_fitting_node_says_why_once() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(3);
        spec.reservations = memory(768);
    }));
    world.expect(
        "place web/0 v1 on 1
         place web/1 v1 on 2
         pending web/2: no node fits: node 1 (alpha) and node 2 (beta) have 256 MiB of memory free of the 768 MiB needed",
    );
    world.state.nodes.insert(crate::id::NodeId(3), node(3));
    world.expect("place web/2 v1 on 3");
}

#[test]
fn as_many_run_as_have_addresses_and_the_rest_waits() {
    let mut world = World::new(3);
    world.submit(spec("web", |spec| spec.replicas = replicas(1_000)));
    let mut planner = Planner::new(&world.state, world.now);
    let mut plan = |world: &mut World| {
        let plan = planner.plan(&world.state, world.now).0;
        world.apply(Command::Plan(plan.clone()));
        show(&plan, world.now)
    };
    let why = "no node fits: no free address on node 1 (alpha), node 2 (beta) and node 3 (gamma)";
    let made = plan(&mut world);
    assert_eq!(made.lines().filter(|line| line.starts_with("place ")).count(), 3 * 253);
    assert_eq!(made.lines().filter(|line| line.ends_with(why)).count(), 1_000 - 3 * 253);
    assert_eq!(world.agents_act().report("web").running, 3 * 253);
    assert_eq!(plan(&mut world), "", "nothing churns");
    // A container that fails gives its address up once it is gone, and not to its own slot before its time.
    world.fail(4, "crash");
    let later =
        "pending web/3: last try failed on node 1 (alpha): crash; next try at 1970-01-01T00:16:41.000Z";
    assert_eq!(plan(&mut world), format!("backoff web/3 failures 1 wait 1000 ms\nstop 4\n{later}\n"));
    world.phase(4, Phase::Gone);
    assert_eq!(plan(&mut world), "place web/759 v1 on 1\n");
    world.advance(1_000);
    assert_eq!(plan(&mut world), format!("pending web/3: {why}\n"));
    world.write(Write::StopReplica { replica: ReplicaId(2), timeout_s: None });
    assert_eq!(plan(&mut world), format!("pending web/1: {why}\n"), "what stops has its address still");
    world.phase(2, Phase::Gone);
    assert_eq!(plan(&mut world), "place web/1 v1 on 2\n");
}

#[test]
fn an_update_on_a_node_without_a_free_address_takes_the_old_ones() {
    let mut world = World::new(1);
    world.submit(spec("web", |spec| spec.replicas = replicas(253))).converge();
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(253);
        spec.stop_timeout_s = 1;
    }));
    world.expect("stop 1\nplace web/0 v2 on 1 after 1").expect("").agents_act().agents_act();
    world.expect("stop 2\nplace web/1 v2 on 1 after 2");
}

#[test]
fn room_that_a_later_service_gives_free_is_used_in_the_same_plan() {
    let mut world = World::new(1);
    world.submit(spec("zoo", |spec| spec.reservations = memory(1024))).converge();
    world.submit(spec("ape", |spec| spec.reservations = memory(1024)));
    world.expect("pending ape/0: no node fits: node 1 (alpha) has 0 B of memory free of the 1 GiB needed");
    world.fail(1, "crash").expect(
        "backoff zoo/0 failures 1 wait 1000 ms
         stop 1
         place ape/0 v1 on 1
         pending zoo/0: last try failed on node 1 (alpha): crash; next try at 1970-01-01T00:16:41.000Z",
    );
}

#[test]
fn failed_replica_is_replaced_after_a_growing_backoff() {
    let mut world = World::new(2);
    world.submit(spec("web", |_| {})).expect("place web/0 v1 on 1").fail(1, "image not found");
    world.expect(
        "backoff web/0 failures 1 wait 1000 ms
         stop 1
         pending web/0: last try failed on node 1 (alpha): image not found; next try at 1970-01-01T00:16:41.000Z",
    );
    assert_eq!(world.plan().1.wake_at(), Some(UtcMs(START.0 + 1000)));
    world.agents_act().expect("");
    world.advance(999).expect("");
    world.advance(1).expect("place web/0 v1 on 2").fail(2, "");
    world.replica(2).status.exit_code = Some(3);
    world.expect(
        "backoff web/0 failures 2 wait 2000 ms
         stop 2
         pending web/0: last try failed on node 2 (beta): it ended with code 3; next try at 1970-01-01T00:16:43.000Z",
    );
}

#[test]
fn long_run_forgives_failures() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {})).settle();
    world.fail(1, "no").settle();
    world.agents_act().advance(1000).settle();
    world.agents_act().expect("");
    let due = world.now.after(RESTART_RESET_AFTER);
    assert_eq!(world.plan().1.wake_at(), Some(due));
    world.advance(RESTART_RESET_AFTER.as_millis() as u64 - 1).expect("");
    world.advance(1).expect("forgive web/0");
}

#[test]
fn corrected_bundle_runs_without_waiting_for_the_old_ones_backoff() {
    let mut world = World::new(1);
    world.submit(spec("web", |_| {})).settle();
    world.fail(1, "no such command").settle();
    world.advance(10).submit(spec("web", |spec| spec.stop_timeout_s = 1));
    world.expect("place web/0 v2 on 1");
}

#[test]
fn completed_replica_fills_its_slot() {
    let mut world = World::new(2);
    world.submit(spec("job", |_| {})).settle();
    world.phase(1, Phase::Completed).expect("");
    assert_eq!(world.report("job").completed, 1);
}

#[test]
fn slots_wait_until_their_dependencies_run_and_are_healthy() {
    let mut world = World::new(1);
    world.submit(spec("app", |spec| spec.depends_on = vec![name("db")]));
    world.expect("pending app/0: waits for service db, which does not exist");
    world.submit(spec("db", |spec| {
        spec.replicas = crate::spec::ReplicaBounds { min: 2, max: 2 };
        probe(spec);
    }));
    world.expect(
        "place db/0 v1 on 1
         place db/1 v1 on 1
         pending app/0: waits for service db: 0 of 2 replicas run",
    );
    world.phase(1, Phase::Running).phase(2, Phase::Running).expect("");
    world.replica(1).status.healthy = Some(true);
    world.expect("pending app/0: waits for service db: 1 of 2 replicas run");
    world.replica(2).status.healthy = Some(true);
    world.expect("place app/0 v1 on 1");
    world.replica(2).status.healthy = Some(false);
    world.expect("");
}

#[test]
fn dependency_that_is_stopped_is_named_as_such() {
    let mut world = World::new(1);
    world.submit(spec("db", |_| {})).submit(spec("app", |spec| spec.depends_on = vec![name("db")]));
    world.write(Write::Stop { service: name("db"), timeout_s: None });
    world.expect("pending app/0: waits for service db, which is stopped");
}

#[test]
fn constraints_hold() {
    let mut world = World::new(3);
    world.node(2).facts.labels.insert("disk".to_owned(), "ssd".to_owned());
    let ssd =
        Constraint { label: "disk".to_owned(), operator: ConstraintOperator::Equal, value: "ssd".to_owned() };
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(2);
        spec.placement.constraints = vec![ssd];
    }));
    world.expect("place web/0 v1 on 2\nplace web/1 v1 on 2");
}

#[test]
fn host_network_takes_one_replica_a_node() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(3);
        spec.network = crate::spec::NetworkMode::Host;
    }));
    world.expect(
        "place web/0 v1 on 1
         place web/1 v1 on 2
         pending web/2: no node fits: node 1 (alpha) runs replica 1 of it on its own network; \
         node 2 (beta) runs replica 2 of it on its own network",
    );
}

#[test]
fn failed_writer_is_gone_before_the_next_one_starts() {
    let mut world = World::new(2);
    world.submit(spec("db", |spec| spec.volumes = volume(false))).expect("place db/0 v1 on 1");
    world.fail(1, "no").settle();
    world.advance(1000).expect("place db/0 v1 on 1 after 1");
}

#[test]
fn report_is_one_sentence() {
    let mut world = World::new(1);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(2);
        spec.reservations = memory(1024);
    }));
    world.converge();
    assert_eq!(
        world.report("web").to_string(),
        "1 of 2 replicas run; slot 1: no node fits: node 1 (alpha) has 0 B of memory free of the 1 GiB needed"
    );
}

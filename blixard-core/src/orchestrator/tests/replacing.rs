//! Replacing single replicas on demand, and evening out the nodes.

use super::world::*;
use crate::cluster::{Availability, Command, Desired, Outcome, Phase, Write};
use crate::id::{NodeId, ReplicaId, RequestId};
use crate::orchestrator::{Move, rebalance, starts_first};
use crate::spec::{NetworkMode, ServiceSpec};

/// `web` with so many replicas on the first nodes of several; the others are activated only then.
fn crowded(nodes: u64, active: u64, web: ServiceSpec) -> World {
    let mut world = World::new(nodes);
    for id in active + 1..=nodes {
        world.node(id).availability = Availability::Draining;
    }
    world.submit(web).converge();
    for id in active + 1..=nodes {
        world.node(id).availability = Availability::Active;
    }
    world
}

fn web(count: u32) -> ServiceSpec {
    spec("web", |spec| spec.replicas = replicas(count))
}

fn moves(world: &World) -> Vec<(u64, u64, u64)> {
    let flat = |Move { replica, from, to }: Move| (replica.0, from.0, to.0);
    rebalance(&world.state).into_iter().map(flat).collect()
}

#[test]
fn moves_even_out_the_nodes_and_end() {
    for (nodes, active, count) in [(3, 2, 6), (2, 1, 4), (3, 1, 3), (5, 3, 7), (4, 1, 10)] {
        let mut world = crowded(nodes, active, web(count));
        let planned = moves(&world);
        assert!(!planned.is_empty(), "{nodes} {active} {count}");
        let mut made = 0;
        while let Some(&(replica, from, to)) = moves(&world).first() {
            world.write(Write::Replace { replica: ReplicaId(replica) }).converge();
            assert!(!world.state.replicas.contains_key(&ReplicaId(replica)), "{replica} is left on {from}");
            let there = |(_, row): &(ReplicaId, &crate::cluster::Replica)| row.node == NodeId(to);
            assert!(world.state.replicas_of(&name("web")).any(|row| there(&row)), "nothing came to {to}");
            made += 1;
            assert!(made <= planned.len(), "more moves than were planned");
        }
        let held: Vec<usize> = (1..=nodes)
            .map(|id| world.state.replicas.values().filter(|row| row.node == NodeId(id)).count())
            .collect();
        let (least, most) = (held.iter().min().copied(), held.iter().max().copied());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{held:?}");
    }
}

#[test]
fn what_runs_the_current_version_by_another_number_moves_too() {
    let mut world = crowded(3, 1, web(3));
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(3);
        spec.stop_timeout_s = 99;
    }));
    let planned = moves(&crowded(3, 1, web(3)));
    assert!(!planned.is_empty());
    assert_eq!(moves(&world), [], "it is being updated");
    world.write(Write::Rollback { service: name("web"), version: None });
    assert_eq!(moves(&world), planned);
}

#[test]
fn what_is_even_or_may_not_move_stays() {
    let mut even = World::new(3);
    even.submit(web(3)).converge();
    assert_eq!(moves(&even), []);
    let check = |change: fn(&mut ServiceSpec), why: &str| {
        let mut changed = web(2);
        change(&mut changed);
        assert_eq!(moves(&crowded(2, 1, changed)), [], "{why}");
    };
    check(|spec| spec.volumes = volume(false), "a volume that is written pins it");
    check(|spec| spec.volumes = volume(true), "so does one that is read");
    let mut changing = crowded(2, 1, web(2));
    assert_eq!(moves(&changing), [(1, 1, 2)]);
    changing.phase(2, Phase::Waiting);
    assert_eq!(moves(&changing), [], "the service is not settled");
    let mut drained = crowded(2, 1, web(2));
    drained.node(2).availability = Availability::Draining;
    assert_eq!(moves(&drained), [], "a drained node takes nothing");
}

#[test]
fn a_replaced_replica_runs_until_its_replacement_does() {
    let mut world = World::new(2);
    world.submit(web(2)).converge();
    world.write(Write::Replace { replica: ReplicaId(1) }).expect("place web/0 v1 on 1");
    assert_eq!(world.replica(1).desired, Desired::Retire);
    world.phase(3, Phase::Running).expect("stop 1");
}

#[test]
fn only_what_should_run_can_be_replaced() {
    let mut world = World::new(2);
    world.submit(web(2)).converge();
    world.write(Write::StopReplica { replica: ReplicaId(1), timeout_s: None });
    let mut refused = |replica: u64, why: &str| {
        let request = RequestId([u8::try_from(replica).expect("small"); 16]);
        let write = Write::Replace { replica: ReplicaId(replica) };
        let outcome = world.apply(Command::Write { request, made_at: START, write, by: None });
        assert!(matches!(&outcome, Outcome::Refused(said) if said.to_string().contains(why)), "{outcome:?}");
    };
    refused(1, "is being replaced or stopped already");
    refused(9, "there is no replica `9`");
}

#[test]
fn the_replacement_starts_first_where_both_may_run_and_fit() {
    let check = |change: fn(&mut ServiceSpec), expect: bool| {
        let mut changed = web(1);
        change(&mut changed);
        let mut world = World::new(1);
        world.submit(changed).converge();
        assert_eq!(starts_first(&world.state, ReplicaId(1)), expect, "{:?}", world.state.services);
    };
    check(|_| {}, true);
    check(|spec| spec.volumes = volume(true), true);
    check(|spec| spec.volumes = volume(false), false);
    check(|spec| spec.network = NetworkMode::Host, false);
    check(|spec| spec.reservations = memory(900), false);
}

//! Services follow their volumes.

use std::collections::BTreeMap;

use super::world::{World, mounted, replicas, show, spec};
use crate::cluster::volume::{VersionId, VolumeCopy, VolumeRoot, VolumeStatus, VolumeVersion};
use crate::cluster::{Availability, Command, NodeStatus, Phase};
use crate::id::{NodeId, VolumeId};
use crate::orchestrator::Planner;
use crate::time::UtcMs;

/// Has a node tell that it holds a version of the only volume.
fn holds(world: &mut World, node: u64, epoch: u64, seq: u64) {
    let root = VolumeRoot([u8::try_from(seq).expect("small"); 32]);
    let id = VersionId { epoch, seq };
    let version = Some(VolumeVersion { id, root, files: 1, bytes: 1, at: UtcMs(0) });
    let epoch = world.state.volumes.values().next().expect("a volume").epoch;
    let copy = VolumeCopy { version, trouble: None };
    let statuses = BTreeMap::from([(VolumeId(1), VolumeStatus { epoch, copy })]);
    world.apply(Command::Volumes { node: NodeId(node), statuses });
}

fn database() -> World {
    let mut world = World::new(3);
    world.submit(spec("db", |spec| spec.volumes = mounted("pgdata")));
    world.expect("place db/0 v1 on 1\ncopy pgdata on 2");
    world
}

#[test]
fn a_volume_gets_its_copies_once_it_is_somewhere() {
    let mut world = database();
    world.expect("");
    world.node(2).status = NodeStatus::Down;
    world.expect("copy pgdata on 3").expect("");
    world.node(2).status = NodeStatus::Up;
    world.expect("");
}

#[test]
fn a_version_that_is_published_has_no_service_looked_at() {
    let mut world = database();
    world.converge();
    holds(&mut world, 1, 1, 1);
    let mut planner = Planner::new(&world.state, world.now);
    let mut looked_at = |world: &World| planner.plan(&world.state, world.now).1.services.len();
    assert_eq!(looked_at(&world), 1, "the first plan is of all services");
    holds(&mut world, 1, 1, 2);
    assert_eq!(looked_at(&world), 0);
    holds(&mut world, 2, 1, 2);
    assert_eq!(looked_at(&world), 0);
    world.node(1).status = NodeStatus::Down;
    let (plan, _) = planner.plan(&world.state, world.now);
    assert_eq!(show(&plan, world.now), "promote pgdata on 2\ncopy pgdata on 3\nstop 1\nplace db/0 v1 on 2\n");
}

#[test]
fn replicas_are_where_their_volume_is() {
    let mut world = database();
    world.converge();
    world.submit(spec("backup", |spec| {
        spec.volumes = mounted("pgdata");
        spec.replicas = replicas(2);
    }));
    world.expect("place backup/0 v1 on 1\nplace backup/1 v1 on 1");
}

#[test]
fn a_service_fails_over_to_the_node_that_holds_what_was_acknowledged() {
    let mut world = database();
    world.converge();
    holds(&mut world, 1, 1, 1);
    holds(&mut world, 2, 1, 1);
    holds(&mut world, 1, 1, 2);
    world.node(1).status = NodeStatus::Unknown;
    world.expect("");
    world.node(1).status = NodeStatus::Down;
    world.expect("promote pgdata on 2\ncopy pgdata on 3\nstop 1\nplace db/0 v1 on 2");
    world.expect("");
    world.node(1).status = NodeStatus::Up;
    world.expect("");
    world.agents_act();
    assert!(
        world.state.replicas.values().all(|row| row.node == NodeId(2) && row.status.phase <= Phase::Running)
    );
}

#[test]
fn nothing_is_promoted_that_lacks_what_was_acknowledged() {
    let mut world = database();
    world.converge();
    holds(&mut world, 1, 1, 1);
    world.node(2).status = NodeStatus::Down;
    world.expect("copy pgdata on 3");
    world.node(2).status = NodeStatus::Up;
    holds(&mut world, 3, 1, 1);
    holds(&mut world, 1, 1, 2);
    holds(&mut world, 2, 1, 2);
    for node in [1, 2] {
        world.node(node).status = NodeStatus::Down;
    }
    world.expect("lost 1\npending db/0: its volumes are on node 1 (alpha), which is down");
    world.node(2).status = NodeStatus::Up;
    world.expect("promote pgdata on 2\nstop 1\nplace db/0 v1 on 2");
}

#[test]
fn a_volume_without_a_copy_waits_for_its_node() {
    let mut world = database();
    world.converge();
    world.node(1).status = NodeStatus::Down;
    world.expect("copy pgdata on 3\nlost 1\npending db/0: its volumes are on node 1 (alpha), which is down");
    world.node(1).status = NodeStatus::Up;
    world.expect("back 1");
}

#[test]
fn a_drained_node_keeps_what_it_holds_and_says_so() {
    let mut world = database();
    world.converge();
    world.node(1).availability = Availability::Draining;
    world.expect(
        "pending db/0: cannot move off node 1 (alpha), which is draining: its volumes are on node 1 (alpha), which is draining",
    );
}

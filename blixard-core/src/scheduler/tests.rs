use super::{NodeUsage, Ranking, Request, Used, choose, fits};
use crate::cluster::volume::Home;
use crate::cluster::{Availability, Command, Desired, NodeStatus, Phase, Plan, PlanStep, ReplicaStatus};
use crate::id::NodeId;
use crate::limits::NODE_ADDRESSES;
use crate::orchestrator::tests::world::{World, memory, name, replicas, spec, volume};
use crate::spec::{Constraint, ConstraintOperator, NetworkMode, PortSpec, Reservations, ServiceSpec};

/// Where one more replica of `asked`, submitted on node 1, goes, or why nowhere.
fn place(world: &World, asked: &ServiceSpec) -> Result<u64, String> {
    let home = world.state.home_of(asked, NodeId(1));
    let request = Request {
        service: &asked.name,
        spec: asked,
        home,
        network_held: Default::default(),
        failed_on: Default::default(),
    };
    let usage = NodeUsage::of(&world.state);
    let choice = choose(&world.state.nodes, &usage, &request);
    if let Ok(node) = choice {
        assert!(fits(&world.state.nodes, &usage, &request, node));
    }
    choice.map(|node| node.0).map_err(|no_fit| no_fit.to_string())
}

fn constrained(label: &str, operator: ConstraintOperator, value: &str) -> ServiceSpec {
    spec("web", |spec| {
        let (label, value) = (label.to_owned(), value.to_owned());
        spec.placement.constraints = vec![Constraint { label, operator, value }];
    })
}

#[test]
fn constraints_match_labels_and_built_in_labels() {
    use ConstraintOperator::{Equal, NotEqual};
    let mut world = World::new(3);
    world.node(2).facts.labels.insert("disk".to_owned(), "ssd".to_owned());
    world.node(3).facts.arch = "arm64".to_owned();
    let check = |label: &str, operator, value: &str, expect: Option<u64>| {
        let found = place(&world, &constrained(label, operator, value)).ok();
        assert_eq!(found, expect, "{label} {operator:?} {value}");
    };
    check("disk", Equal, "ssd", Some(2));
    check("disk", NotEqual, "ssd", Some(1));
    check("disk", Equal, "hdd", None);
    check("node.id", Equal, "3", Some(3));
    check("node.id", NotEqual, "1", Some(2));
    check("node.name", Equal, "gamma", Some(3));
    check("node.arch", Equal, "arm64", Some(3));
    check("node.os", Equal, "linux", Some(1));
    check("node.os", NotEqual, "linux", None);
}

#[test]
fn freest_node_wins_then_the_emptiest_then_the_lowest_id() {
    let mut world = World::new(3);
    assert_eq!(place(&world, &spec("web", |_| {})), Ok(1));
    world.submit(spec("a", |_| {})).converge();
    assert_eq!(place(&world, &spec("web", |_| {})), Ok(2));
    world.submit(spec("b", |spec| spec.reservations = memory(512))).converge();
    assert_eq!(world.places("b"), "0@2 v1");
    assert_eq!(place(&world, &spec("web", |_| {})), Ok(3));
    world.node(3).facts.memory_bytes = 1 << 40;
    world.submit(spec("c", |spec| spec.reservations = memory(512))).converge();
    assert_eq!(place(&world, &spec("web", |_| {})), Ok(1), "1 has all free, 3 a little less than all");
}

#[test]
fn replicas_are_spread_over_the_values_of_a_label() {
    let mut world = World::new(4);
    for (node, rack) in [(1, "x"), (2, "x"), (3, "y")] {
        world.node(node).facts.labels.insert("rack".to_owned(), rack.to_owned());
    }
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(6);
        spec.placement.spread = Some("rack".to_owned());
    }));
    world.converge();
    assert_eq!(world.places("web"), "0@1 v1, 1@3 v1, 2@4 v1, 3@2 v1, 4@3 v1, 5@4 v1");
}

/// Places of one ranking, each of which is that of a ranking made anew.
#[test]
fn a_ranking_that_is_kept_is_that_of_the_nodes_as_they_are() {
    for spread in [None, Some("rack".to_owned())] {
        let mut world = World::new(5);
        for (node, rack) in [(1, "x"), (2, "x"), (3, "y"), (4, "y")] {
            world.node(node).facts.labels.insert("rack".to_owned(), rack.to_owned());
        }
        world.node(4).status = NodeStatus::Unknown;
        world.submit(spec("db", |spec| spec.reservations = memory(300))).converge();
        let asked = spec("web", |spec| {
            (spec.replicas, spec.reservations, spec.placement.spread) = (replicas(20), memory(200), spread);
        });
        world.submit(asked.clone());
        let request = Request {
            service: &asked.name,
            spec: &asked,
            home: Home::Anywhere,
            network_held: Default::default(),
            failed_on: Default::default(),
        };
        let mut usage = NodeUsage::of(&world.state);
        let mut kept = Ranking::new(&world.state.nodes, &usage, &request, request.ask(&world.state.nodes));
        let mut placed = 0;
        while let Ok(node) = kept.best(&world.state.nodes, &request) {
            assert_eq!(choose(&world.state.nodes, &usage, &request), Ok(node));
            world.apply(Command::Plan(Plan { steps: vec![place_step(placed, node)] }));
            placed += 1;
            let (id, row) = world.state.replicas.iter().next_back().expect("it was placed");
            assert_eq!(usage.set(*id, row, Some(&asked)), Some(node));
            kept.refresh(&world.state.nodes, &usage, &request, node);
        }
        assert_eq!(placed, 5 + 5 + 5 + 3, "1 GiB on each of four nodes, less what db holds");
        assert_eq!(kept.best(&world.state.nodes, &request), choose(&world.state.nodes, &usage, &request));
        assert_eq!(usage, NodeUsage::of(&world.state));
    }
}

fn place_step(slot: u32, node: NodeId) -> PlanStep {
    PlanStep::Place { service: name("web"), slot, version: 1, node, after: None }
}

#[test]
fn every_obstacle_is_named() {
    let mut world = World::new(4);
    world.submit(spec("db", |spec| spec.reservations = memory(768))).converge();
    world.node(2).availability = Availability::Draining;
    world.node(4).status = NodeStatus::Down;
    let asked = spec("web", |spec| {
        spec.reservations = memory(512);
        spec.placement.constraints = vec![Constraint {
            label: "node.id".to_owned(),
            operator: ConstraintOperator::NotEqual,
            value: "3".to_owned(),
        }];
    });
    assert_eq!(
        place(&world, &asked).expect_err("none fits"),
        "no node fits: node 1 (alpha) has 256 MiB of memory free of the 512 MiB needed; node 2 (beta) is draining; \
         node 3 (gamma) lacks label node.id!=3; node 4 (delta) is down"
    );
}

#[test]
fn nodes_with_the_same_obstacle_are_named_together() {
    let check = |down: u64, expect: &str| {
        let mut world = World::new(down);
        for node in 1..=down {
            world.node(node).status = NodeStatus::Unknown;
        }
        assert_eq!(place(&world, &spec("web", |_| {})).expect_err("none fits"), expect);
    };
    check(0, "no node fits: the cluster has none");
    check(1, "no node fits: node 1 (alpha) does not answer");
    check(3, "no node fits: node 1 (alpha), node 2 (beta) and node 3 (gamma) do not answer");
    check(5, "no node fits: node 1 (alpha), node 2 (beta), node 3 (gamma) and 2 more nodes do not answer");
}

#[test]
fn shortage_of_many_nodes_is_told_by_the_one_that_comes_closest() {
    let mut world = World::new(5);
    for node in 1..=5 {
        world.node(node).facts.cpu_millis = node * 100;
    }
    let asked = spec("web", |spec| spec.reservations = Reservations { cpu_millis: 1500, memory_bytes: 0 });
    assert_eq!(
        place(&world, &asked).expect_err("none fits"),
        "no node fits: node 1 (alpha), node 2 (beta), node 3 (gamma) and 2 more nodes have at most 0.5 CPUs \
         free of the 1.5 CPUs needed"
    );
}

/// What a container network's addresses are all taken by: as many replicas of `crowd` as there are.
fn crowd(world: &mut World, nodes: u32) {
    world.submit(spec("crowd", |spec| spec.replicas = replicas(nodes * NODE_ADDRESSES)));
    world.settle();
}

#[test]
fn nodes_without_a_free_address_are_told_as_such() {
    let check = |nodes: u32, expect: &str| {
        let mut world = World::new(nodes.into());
        crowd(&mut world, nodes);
        assert_eq!(place(&world, &spec("web", |_| {})).expect_err("none fits"), expect);
        assert!(place(&world, &spec("web", |spec| spec.network = NetworkMode::Host)).is_ok());
    };
    check(1, "no node fits: no free address on node 1 (alpha)");
    check(2, "no node fits: no free address on node 1 (alpha) and node 2 (beta)");
    let mut world = World::new(1);
    crowd(&mut world, 1);
    let pinned = spec("db", |spec| spec.volumes = volume(true));
    let expect = "its volumes are on node 1 (alpha), which has no free address";
    assert_eq!(place(&world, &pinned).expect_err("it does not fit"), expect);
}

#[test]
fn an_address_is_held_until_the_container_is_gone() {
    use Phase::{Assigned, Completed, Failed, Running, Stopping, Waiting};
    let free = |desired, phase, left| {
        let mut world = World::new(1);
        world.submit(spec("web", |_| {})).settle();
        world.replica(1).desired = desired;
        world.replica(1).status = ReplicaStatus { phase, left, ..ReplicaStatus::assigned() };
        NodeUsage::of(&world.state).node(NodeId(1)).map_or(NODE_ADDRESSES, Used::free_addresses)
    };
    for held in [Assigned, Running, Stopping, Waiting, Failed] {
        assert_eq!(
            [Desired::Run, Desired::Stop].map(|desired| free(desired, held, false)),
            [252, 252],
            "{held:?}"
        );
    }
    assert_eq!([free(Desired::Run, Completed, false), free(Desired::Run, Failed, true)], [253, 253]);
}

#[test]
fn port_that_something_else_holds_is_avoided() {
    let mut world = World::new(2);
    world.node(1).facts.reserved_ports = vec![80];
    let ports = |host_port| {
        vec![PortSpec {
            container_port: 8080,
            host_port,
            protocol: Default::default(),
            host_ip: None,
            publish: Default::default(),
        }]
    };
    assert_eq!(place(&world, &spec("web", |spec| spec.ports = ports(Some(80)))), Ok(2));
    assert_eq!(place(&world, &spec("web", |spec| spec.ports = ports(None))), Ok(1));
    world.node(2).facts.reserved_ports = vec![80];
    assert_eq!(
        place(&world, &spec("web", |spec| spec.ports = ports(Some(80)))).expect_err("none fits"),
        "no node fits: node 1 (alpha) and node 2 (beta) have port 80/tcp in use by something else"
    );
}

#[test]
fn pinned_replica_goes_where_its_volumes_are_or_nowhere() {
    let mut world = World::new(2);
    let asked = spec("db", |spec| {
        spec.volumes = volume(true);
        spec.reservations = memory(512);
    });
    assert_eq!(place(&world, &asked), Ok(1));
    let reason = |world: &World| place(world, &asked).expect_err("none fits");
    world.node(1).facts.memory_bytes = 1 << 28;
    assert_eq!(
        reason(&world),
        "its volumes are on node 1 (alpha), which has 256 MiB of memory free of the 512 MiB needed"
    );
    world.node(1).status = NodeStatus::Down;
    assert_eq!(reason(&world), "its volumes are on node 1 (alpha), which is down");
    world.state.nodes.remove(&NodeId(1));
    assert_eq!(reason(&world), "its volumes are on node 1, which is no longer a member");
}

#[test]
fn usage_kept_step_by_step_is_that_of_the_state() {
    let mut world = World::new(2);
    world.submit(spec("web", |spec| {
        spec.replicas = replicas(3);
        spec.reservations = memory(100);
    }));
    world.converge();
    let mut usage = NodeUsage::of(&world.state);
    let ids: Vec<_> = world.state.replicas.keys().copied().collect();
    for id in &ids {
        usage.supersede(*id);
    }
    assert_eq!(usage.node(NodeId(1)).map(|used| used.replicas), Some(2));
    assert_eq!(usage.of_service(&name("web")).count(), 0);
    for id in &ids {
        usage.set(*id, &world.state.replicas[id], Some(world.state.services[&name("web")].spec()));
    }
    assert_eq!(usage, NodeUsage::of(&world.state));
    let of_web: Vec<_> = usage.of_service(&name("web")).collect();
    assert_eq!(of_web, [(NodeId(1), 2), (NodeId(2), 1)]);
    assert_eq!(usage.of_service_on(&name("web"), NodeId(1)), 2);
    for id in ids {
        usage.remove(id);
    }
    assert_eq!(usage, NodeUsage::default());
}

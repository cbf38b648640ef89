//! Where a connection to a published port goes on a node that has no ready replica of its service.
//!
//! On a node that has one the kernel translates, to the node's own replicas alone. What is not translated the
//! daemon takes, and hands it to a node that has one: so any member answers for any
//! service. A port that is published on an address of one node, or by `publish: node`, is not led
//! anywhere, nor are datagrams, nor the ports of services on the host's network. Where a replica on the
//! host's network is placed, its ports are its program's: it could not listen on one that the daemon has.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::index::claims;
use crate::cluster::{ClusterState, Desired, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::readiness::serves;
use crate::spec::{NetworkMode, PortSpec, Protocol, ServiceSpec};

/// A replica that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The node it is on.
    pub node: NodeId,
    /// Which one.
    pub replica: ReplicaId,
    /// The port in its container.
    pub container_port: u16,
}

/// What is known of a port on one node.
#[derive(Default)]
struct Known {
    ready_here: bool,
    ready_elsewhere: bool,
    placed_elsewhere: bool,
}

impl Known {
    fn is_listened_on(&self) -> bool {
        self.ready_elsewhere || (self.ready_here && self.placed_elsewhere)
    }
}

/// The TCP ports that node `own` takes connections on for other nodes, each with its service: those of
/// which a replica is ready elsewhere. Also those that translation leads to a replica of `own` while
/// another is placed elsewhere, which may be told to be ready and to take its place by one entry: no
/// connection comes in vain between the end of the translation and the start of listening.
///
/// Never one that a program on the network of `own` itself may listen on, from when its replica is placed
/// until it will not start again: it could not listen, and an update from one network to the other, which
/// waits for it before what is led to elsewhere stops, would never end.
///
/// Connections to any other port are refused, as they are where no replica is ready anywhere; and on a node
/// that is among `wrong`, whose states are known not to be the majority's: `state` is then no guide.
pub fn ports(state: &ClusterState, own: NodeId, wrong: &BTreeSet<NodeId>) -> BTreeMap<u16, ServiceName> {
    let mut ports = BTreeMap::new();
    if wrong.contains(&own) {
        return ports;
    }
    for name in state.services.iter().filter(|(_, service)| leads_anywhere(service)).map(|(name, _)| name) {
        let (mut known, mut programs) = (BTreeMap::<u16, Known>::new(), Vec::new());
        for (_, replica) in state.replicas_of(name) {
            let Some(spec) = state.spec_of(replica) else { continue };
            if replica.node == own && has_nodes_network(replica, spec) {
                programs.push(spec);
            }
            for (host_port, _) in led_ports(spec) {
                let known = known.entry(host_port).or_default();
                let ready = serves(state, replica);
                match replica.node == own {
                    true => known.ready_here |= ready,
                    false => {
                        known.ready_elsewhere |= ready;
                        known.placed_elsewhere |= replica.desired == Desired::Run;
                    }
                }
            }
        }
        let is_left = |port| programs.iter().any(|program| may_listen_on(program, port));
        let listened_on = known.into_iter().filter(|(port, known)| known.is_listened_on() && !is_left(*port));
        ports.extend(listened_on.map(|(port, _)| (port, name.clone())));
    }
    ports
}

/// The replicas of a service on other nodes than `own` that take connections to its `host_port`, by their
/// numbers. None on nodes among `wrong`, which would say by their states what is theirs; and none at all
/// when `own` is.
pub fn endpoints(
    state: &ClusterState,
    own: NodeId,
    wrong: &BTreeSet<NodeId>,
    name: &ServiceName,
    host_port: u16,
) -> Vec<Endpoint> {
    let is_led_to = |node: NodeId| node != own && !wrong.contains(&own) && !wrong.contains(&node);
    let ready = state.replicas_of(name).filter(|(_, row)| is_led_to(row.node) && serves(state, row));
    let led = ready.flat_map(|(id, row)| {
        let ports = state.spec_of(row).into_iter().flat_map(|spec| led_ports(spec));
        let ports = ports.filter(move |(published, _)| *published == host_port);
        ports.map(move |(_, container_port)| Endpoint { node: row.node, replica: id, container_port })
    });
    led.collect()
}

/// The TCP ports of a service that are led on: on the node, and in the container.
fn led_ports(spec: &ServiceSpec) -> impl Iterator<Item = (u16, u16)> + '_ {
    let led = |port: &&PortSpec| port.protocol == Protocol::Tcp && port.is_everywhere();
    let ports = spec.ports.iter().filter(led).filter(|_| spec.network == NetworkMode::Bridge);
    ports.filter_map(|port| Some((port.host_port?, port.container_port)))
}

/// Whether the program of a replica has its node's own network, now or when it is started again.
fn has_nodes_network(replica: &Replica, spec: &ServiceSpec) -> bool {
    spec.network == NetworkMode::Host && !replica.status.phase.is_final()
}

/// Whether a program on its node's own network may listen on a TCP port of its service: on those that it
/// declares, and when it declares none on any.
fn may_listen_on(spec: &ServiceSpec, port: u16) -> bool {
    let tcp = claims(spec).filter(|(_, protocol)| *protocol == Protocol::Tcp);
    let mut declared = tcp.map(|(port, _)| port).peekable();
    declared.peek().is_none() || declared.any(|declared| declared == port)
}

/// Which attempt of a replica a connection is for that another member leads to node `own`; none when it is
/// no replica of that node, or its port is not one that is led on. What members say is not believed.
pub fn led_to(state: &ClusterState, own: NodeId, replica: ReplicaId, container_port: u16) -> Option<u32> {
    let row = state.replicas.get(&replica).filter(|row| row.node == own)?;
    let is_led = led_ports(state.spec_of(row)?).any(|(_, port)| port == container_port);
    is_led.then_some(row.status.attempt)
}

/// Whether any kept version of a service has a port that is led on: most services are told by their
/// specification alone.
fn leads_anywhere(service: &Service) -> bool {
    service.versions.iter().any(|version| version.spec.ports.iter().any(|port| port.host_port.is_some()))
}

/// The order in which endpoints are tried for the `turn`-th connection to their port: round-robin over
/// all, and at most `tries`.
pub fn in_turn(endpoints: &[Endpoint], turn: usize, tries: usize) -> impl Iterator<Item = Endpoint> + '_ {
    let first = turn.checked_rem(endpoints.len()).unwrap_or(0);
    endpoints.iter().cycle().skip(first).take(endpoints.len().min(tries)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{NodeStatus, Phase};
    use crate::orchestrator::tests::world::{World, name, replicas, spec};
    use crate::spec::Publish;

    fn port(host_port: u16) -> PortSpec {
        PortSpec {
            container_port: 80,
            host_port: Some(host_port),
            protocol: Protocol::Tcp,
            host_ip: None,
            publish: Publish::Cluster,
        }
    }

    /// Three nodes, and two replicas on nodes 1 and 2.
    fn world(change: impl FnOnce(&mut ServiceSpec)) -> World {
        let mut world = World::new(3);
        let service = spec("web", |spec| {
            spec.replicas = replicas(2);
            spec.ports = vec![port(8080)];
            change(spec);
        });
        world.submit(service).converge();
        world
    }

    /// The nodes that connections to port 8080 of node `own` are led to, if it takes any.
    fn nodes(world: &World, own: u64) -> Option<Vec<u64>> {
        nodes_without(world, own, &[])
    }

    /// The same where the states of the nodes `wrong` are known to be.
    fn nodes_without(world: &World, own: u64, wrong: &[u64]) -> Option<Vec<u64>> {
        let (state, own) = (&world.state, NodeId(own));
        let wrong = wrong.iter().copied().map(NodeId).collect();
        let service = ports(state, own, &wrong).remove(&8080)?;
        assert_eq!(service, name("web"));
        let led = endpoints(state, own, &wrong, &service, 8080);
        Some(led.iter().map(|endpoint| endpoint.node.0).collect())
    }

    #[test]
    fn a_node_leads_to_all_that_are_ready_elsewhere() {
        let mut world = world(|_| {});
        assert_eq!([1, 2, 3].map(|own| nodes(&world, own)), [Some(vec![2]), Some(vec![1]), Some(vec![1, 2])]);
        world.replica(1).desired = Desired::Retire;
        assert_eq!(nodes(&world, 3), Some(vec![1, 2]), "it serves until its successor does");
        world.replica(1).desired = Desired::Stop;
        assert_eq!([1, 2, 3].map(|own| nodes(&world, own)), [Some(vec![2]), None, Some(vec![2])]);
        world.replica(1).desired = Desired::Run;
        world.phase(1, Phase::Waiting);
        assert_eq!(nodes(&world, 3), Some(vec![2]));
        assert_eq!(nodes(&world, 2), Some(vec![]), "it is listened on before it may be needed");
        world.phase(2, Phase::Waiting);
        assert_eq!([1, 2, 3].map(|own| nodes(&world, own)), [None, None, None], "refused everywhere");
        world.phase(2, Phase::Running).node(2).status = NodeStatus::Unknown;
        assert_eq!(nodes(&world, 3), None, "none is known to be ready");
    }

    #[test]
    fn nobody_leads_to_a_node_whose_state_is_wrong_and_it_leads_nobody() {
        let world = world(|_| {});
        let led = |wrong: &[u64]| [1, 2, 3].map(|own| nodes_without(&world, own, wrong));
        assert_eq!(led(&[1]), [None, Some(vec![]), Some(vec![2])]);
        assert_eq!(led(&[3]), [Some(vec![2]), Some(vec![1]), None]);
        assert_eq!(led(&[1, 2]), [None, None, Some(vec![])]);
        let found_since = [NodeId(3)].into();
        assert!(endpoints(&world.state, NodeId(3), &found_since, &name("web"), 8080).is_empty());
    }

    #[test]
    fn what_belongs_to_one_node_is_not_led_anywhere() {
        let check = |change: fn(&mut ServiceSpec)| assert_eq!(nodes(&world(change), 3), None);
        check(|spec| spec.ports[0].publish = Publish::Node);
        check(|spec| spec.ports[0].host_ip = Some([127, 0, 0, 1].into()));
        check(|spec| spec.ports[0].protocol = Protocol::Udp);
        check(|spec| spec.ports[0].host_port = None);
        check(|spec| {
            spec.network = NetworkMode::Host;
            spec.ports[0].container_port = 8080;
        });
    }

    fn port_of_host(port: u16) -> PortSpec {
        PortSpec { container_port: port, host_port: None, ..self::port(port) }
    }

    fn udp_of_host(port: u16) -> PortSpec {
        PortSpec { protocol: Protocol::Udp, ..port_of_host(port) }
    }

    /// A version on the hosts' network whose program listens on `port`.
    fn on_the_host(port: u16, change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
        spec("web", |spec| {
            spec.replicas = replicas(2);
            spec.network = NetworkMode::Host;
            spec.ports = vec![port_of_host(port)];
            change(spec);
        })
    }

    /// Whether a replica that is placed on a node listens there itself, now or when it is started again.
    fn has_own(world: &World, node: u64) -> bool {
        let rows = world.state.replicas_on(NodeId(node)).map(|(_, row)| row);
        let mut specs = rows.filter(|row| !row.status.phase.is_final()).map(|row| world.state.spec_of(row));
        specs.any(|spec| spec.is_some_and(|spec| spec.network == NetworkMode::Host))
    }

    #[test]
    fn a_node_leaves_a_port_to_a_program_on_its_own_network() {
        let mut world = world(|_| {});
        world.submit(on_the_host(8080, |_| {})).settle();
        let placed = |world: &World| {
            let mut new = world.state.replicas.iter().filter(|(_, row)| row.version == 2);
            let (id, row) = new.next().expect("one is placed");
            assert!(new.next().is_none(), "one at a time");
            (id.0, row.node.0)
        };
        let (id, node) = placed(&world);
        let [other] = [1, 2].into_iter().filter(|other| *other != node).collect::<Vec<_>>()[..] else {
            panic!("it is on neither of the two: {node}");
        };
        assert_eq!(nodes(&world, 3), Some(vec![other]), "a node without replicas leads on");
        assert_eq!(nodes(&world, node), None, "it is let go before the container may start");
        for phase in [Phase::Pulling, Phase::Starting, Phase::Running, Phase::Waiting] {
            world.replica(id).status.phase = phase;
            assert_eq!(nodes(&world, node), None, "{phase:?}: it starts again, or runs");
        }
        world.replica(id).desired = Desired::Stop;
        world.replica(id).status.phase = Phase::Stopping;
        assert_eq!(nodes(&world, node), None, "its program may listen until it is gone");
        for phase in [Phase::Completed, Phase::Failed, Phase::Gone] {
            world.replica(id).status.phase = phase;
            assert_eq!(nodes(&world, node), Some(vec![other]), "{phase:?}: nothing will listen there");
        }
    }

    #[test]
    fn an_update_from_one_network_to_the_other_never_meets_the_daemon_on_its_port() {
        let published = || {
            spec("web", |spec| {
                spec.replicas = replicas(2);
                spec.ports = vec![port(8080)];
            })
        };
        let mut world = world(|_| {});
        let mut led = 0;
        for (version, spec) in [(2, on_the_host(8080, |_| {})), (3, published())] {
            world.submit(spec);
            for _ in 0..20 {
                world.settle();
                for node in 1..=3 {
                    let listened_on = nodes(&world, node).is_some();
                    led += usize::from(listened_on);
                    assert!(!listened_on || !has_own(&world, node), "version {version}, node {node}");
                }
                world.agents_act();
            }
            let reached = world.state.replicas.values().all(|row| row.version == version);
            assert!(reached && world.state.replicas.len() == 2, "{}", world.places("web"));
        }
        assert!(led > 0, "nothing was led in between");
    }

    #[test]
    fn a_program_on_the_network_of_a_node_is_left_what_it_declares_and_all_when_it_declares_none() {
        let check = |spec: ServiceSpec, is_led: bool| {
            let mut world = world(|_| {});
            world.submit(spec).settle();
            let node = (1..=2).find(|node| has_own(&world, *node)).expect("it is placed");
            assert_eq!(nodes(&world, node), is_led.then_some(vec![3 - node]));
        };
        check(on_the_host(8080, |_| {}), false);
        check(on_the_host(9090, |_| {}), true);
        check(on_the_host(9090, |spec| spec.ports.push(port_of_host(8080))), false);
        check(on_the_host(9090, |spec| spec.ports.push(udp_of_host(8080))), true);
        check(on_the_host(8080, |spec| spec.ports = vec![udp_of_host(8080)]), false);
        check(on_the_host(8080, |spec| spec.ports.clear()), false);
    }

    #[test]
    fn a_member_is_led_to_ports_of_this_node_that_are_published_everywhere() {
        let led = |world: &World, own, replica, port| {
            led_to(&world.state, NodeId(own), ReplicaId(replica), port).is_some()
        };
        let world_of = world(|_| {});
        assert!(led(&world_of, 1, 1, 80));
        assert!(!led(&world_of, 1, 1, 22), "no published port");
        assert!(!led(&world_of, 1, 1, 8080), "the port in the container counts");
        assert!(!led(&world_of, 2, 1, 80), "another node's");
        assert!(!led(&world_of, 1, 9, 80), "nobody");
        assert!(!led(&world(|spec| spec.ports[0].publish = Publish::Node), 1, 1, 80), "kept to its node");
    }

    #[test]
    fn connections_take_endpoints_in_turn_and_go_on_to_the_next_where_one_fails() {
        let endpoints = [1, 2, 3].map(|node| Endpoint {
            node: NodeId(node),
            replica: ReplicaId(node),
            container_port: 80,
        });
        let order = |turn, tries| -> Vec<u64> {
            in_turn(&endpoints, turn, tries).map(|endpoint| endpoint.node.0).collect()
        };
        assert_eq!(order(0, 3), [1, 2, 3]);
        assert_eq!(order(4, 2), [2, 3]);
        assert_eq!(order(usize::MAX, 9).len(), 3);
        assert_eq!(in_turn(&[], 5, 3).count(), 0);
    }
}

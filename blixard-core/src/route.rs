//! Where a connection to a published port goes on a node that has no ready replica of its service.
//!
//! On a node that has one the kernel translates, to the node's own replicas alone. What is not translated the
//! daemon takes, and hands it to a node that has one: so any member answers for any
//! service. A port that is published on an address of one node, or by `publish: node`, is not led
//! anywhere, nor are datagrams, nor the ports of services on the host's network.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{ClusterState, Desired, Service};
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

/// The TCP ports that node `own` takes connections on for other nodes, each with its service: those of
/// which a replica is ready elsewhere. Also those that translation leads to a replica of `own` while
/// another is placed elsewhere, which may be told to be ready and to take its place by one entry: no
/// connection comes in vain between the end of the translation and the start of listening.
///
/// Connections to any other port are refused, as they are where no replica is ready anywhere; and on a node
/// that is among `wrong`, whose states are known not to be the majority's: `state` is then no guide.
pub fn ports(state: &ClusterState, own: NodeId, wrong: &BTreeSet<NodeId>) -> BTreeMap<u16, ServiceName> {
    let mut ports = BTreeMap::new();
    if wrong.contains(&own) {
        return ports;
    }
    for name in state.services.iter().filter(|(_, service)| leads_anywhere(service)).map(|(name, _)| name) {
        let mut known: BTreeMap<u16, Known> = BTreeMap::new();
        for (_, replica) in state.replicas_of(name) {
            let Some(spec) = state.spec_of(replica) else { continue };
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
        known.retain(|_, known| known.ready_elsewhere || (known.ready_here && known.placed_elsewhere));
        ports.extend(known.into_keys().map(|port| (port, name.clone())));
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

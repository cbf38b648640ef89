//! Replacing single replicas because somebody asks: to start them anew, or to even out the nodes.
//!
//! Nothing here acts. [`starts_first`] says how one replica can be replaced; [`rebalance`] which
//! should be, and where each would go. What is asked for is one replica at a time:
//! [`Write::Replace`](crate::cluster::Write::Replace), after which the leader's plan fills the slot
//! as it fills any other. The same rank decides there that decided here, so that a move which is
//! proposed is the one that happens.

use super::slot::exclusive;
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, ClusterState, NodeStatus, Phase, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::limits::MOVES_MAX;
use crate::scheduler::{self, NodeUsage, Request};
use crate::spec::ServiceSpec;

/// A replica that would be better off on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub replica: ReplicaId,
    /// Where it is.
    pub from: NodeId,
    /// Where its replacement would go.
    pub to: NodeId,
}

/// Whether a replacement of `id` can start while it runs on: not when the two must not meet, nor
/// when there is room for the second only once the first is gone.
pub fn starts_first(state: &ClusterState, id: ReplicaId) -> bool {
    let Some((replica, service)) = current(state, id) else { return false };
    if exclusive(service.spec()) || state.spec_of(replica).is_none_or(|spec| exclusive(spec)) {
        return false;
    }
    destination(state, &NodeUsage::of(state), id, replica, service).is_some()
}

/// The moves that even out how replicas are spread, in the order in which they are best made; none
/// when the spread is as even as constraints and room allow. At most [`MOVES_MAX`].
///
/// Only what runs, is of the current version and may run beside its replacement is moved, and
/// nothing of a service that is being changed already. Each move leaves the nodes more even than it
/// found them, so that the moves come to an end.
pub fn rebalance(state: &ClusterState) -> Vec<Move> {
    let mut usage = NodeUsage::of(state);
    let mut moves = Vec::new();
    let mut movable: Vec<(ReplicaId, &Replica, &Service)> = state
        .services
        .iter()
        .filter(|(name, service)| is_settled(state, name, service) && !exclusive(service.spec()))
        .flat_map(|(name, service)| state.replicas_of(name).map(move |(id, row)| (id, row, service)))
        .filter(|(_, row, _)| can_leave(state, row))
        .collect();
    movable.sort_by_key(|(id, row, _)| (std::cmp::Reverse(crowd(&usage, row.node)), *id));
    let mut at = 0;
    while let Some(&(id, row, service)) = movable.get(at).filter(|_| moves.len() < MOVES_MAX) {
        at += 1;
        let Some(to) = better(state, &usage, id, row, service) else { continue };
        moves.push(Move { replica: id, from: row.node, to });
        let moved = Replica { node: to, ..row.clone() };
        usage.set(id, &moved, Some(service.spec()));
    }
    moves
}

/// A replica that should run, and its service.
fn current(state: &ClusterState, id: ReplicaId) -> Option<(&Replica, &Service)> {
    let replica = state.replicas.get(&id).filter(|row| row.counts())?;
    Some((replica, state.services.get(&replica.service)?))
}

/// Whether nothing of a service is being started, replaced or stopped.
fn is_settled(state: &ClusterState, name: &ServiceName, service: &Service) -> bool {
    let version = service.current().version;
    service.wanted() > 0
        && state.replicas_of(name).all(|(_, row)| {
            row.counts()
                && row.version == version
                && matches!(row.status.phase, Phase::Running | Phase::Completed)
        })
}

fn can_leave(state: &ClusterState, row: &Replica) -> bool {
    row.desired == Desired::Run
        && row.status.phase == Phase::Running
        && state
            .nodes
            .get(&row.node)
            .is_some_and(|node| node.status == NodeStatus::Up && node.availability == Availability::Active)
}

/// Where a replacement of a replica that runs on would be placed.
fn destination(
    state: &ClusterState,
    usage: &NodeUsage,
    id: ReplicaId,
    replica: &Replica,
    service: &Service,
) -> Option<NodeId> {
    let mut beside = usage.clone();
    beside.supersede(id);
    let request = Request {
        service: &replica.service,
        spec: service.spec(),
        home: state.home_of(service.spec(), service.origin),
        network_held: Default::default(),
        failed_on: Default::default(),
    };
    scheduler::choose(&state.nodes, &beside, &request).ok()
}

/// The node that is better for a replica than its own, when there is one: fewer replicas of the
/// service in its spread domain, then on the node, then fewer of any service.
fn better(
    state: &ClusterState,
    usage: &NodeUsage,
    id: ReplicaId,
    replica: &Replica,
    service: &Service,
) -> Option<NodeId> {
    let to = destination(state, usage, id, replica, service).filter(|to| *to != replica.node)?;
    let mut without = usage.clone();
    without.remove(id);
    let load = |node| load(state, &without, &replica.service, service.spec(), node);
    (load(to) < load(replica.node)).then_some(to)
}

/// How crowded a node is for a service.
fn load(
    state: &ClusterState,
    usage: &NodeUsage,
    name: &ServiceName,
    spec: &ServiceSpec,
    node: NodeId,
) -> (u32, u32, u32) {
    let here = |id: NodeId| usage.of_service_on(name, id);
    let domain = match spec.placement.spread.as_deref() {
        None => 0,
        Some(key) => {
            let label = |id| state.nodes.get(&id).and_then(|row| scheduler::label(id, row, key));
            let alike = state.nodes.keys().filter(|id| label(**id) == label(node));
            alike.map(|id| here(*id)).sum()
        }
    };
    (domain, here(node), crowd(usage, node))
}

/// How many replicas a node holds.
fn crowd(usage: &NodeUsage, node: NodeId) -> u32 {
    usage.node(node).map_or(0, |used| used.replicas)
}

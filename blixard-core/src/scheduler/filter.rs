//! What keeps a replica off a node.

use std::borrow::Cow;

use super::usage::needs_address;
use super::{Request, Used};
use crate::cluster::index::claims;
use crate::cluster::{Availability, Node, NodeStatus};
use crate::id::{NodeId, ReplicaId};
use crate::spec::{Constraint, ConstraintOperator, Protocol};

/// The first thing that keeps a replica off a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Its heartbeats stopped for long.
    Down,
    /// Its heartbeats stopped a moment ago.
    Unknown,
    /// It is being emptied.
    Draining,
    /// It is being emptied to be removed.
    Leaving,
    /// A constraint does not hold.
    Constraint(Constraint),
    /// Something outside blixard holds a port on it.
    PortReserved(u16, Protocol),
    /// Another replica of the service is in the way, on the node's own network.
    NetworkHeld(ReplicaId),
    /// Too little CPU, in thousandths.
    Cpu {
        /// What is free.
        free: u64,
        /// What is reserved.
        needed: u64,
    },
    /// Too little memory, in bytes.
    Memory {
        /// What is free.
        free: u64,
        /// What is reserved.
        needed: u64,
    },
    /// Its container network has no free address.
    Addresses,
}

/// What keeps `request` off a node, in the order a person would want to know it: the node's
/// state, then what never changes by itself, then what may become free.
pub(super) fn misfit(request: &Request<'_>, node: &Node, used: Option<&Used>, id: NodeId) -> Option<Misfit> {
    unready(node)
        .or_else(|| constraint(request, node, id))
        .or_else(|| port(request, node))
        .or_else(|| network(request, id))
        .or_else(|| resources(request, node, used))
        .or_else(|| addresses(request, used))
}

fn unready(node: &Node) -> Option<Misfit> {
    match (node.status, node.availability) {
        (NodeStatus::Down, _) => Some(Misfit::Down),
        (_, Availability::Draining) => Some(Misfit::Draining),
        (_, Availability::Leaving) => Some(Misfit::Leaving),
        (NodeStatus::Unknown, Availability::Active) => Some(Misfit::Unknown),
        (NodeStatus::Up, Availability::Active) => None,
    }
}

fn constraint(request: &Request<'_>, node: &Node, id: NodeId) -> Option<Misfit> {
    let broken = |constraint: &&Constraint| {
        let equal = label(id, node, &constraint.label).as_deref() == Some(constraint.value.as_str());
        equal != (constraint.operator == ConstraintOperator::Equal)
    };
    request.spec.placement.constraints.iter().find(broken).cloned().map(Misfit::Constraint)
}

fn port(request: &Request<'_>, node: &Node) -> Option<Misfit> {
    claims(request.spec)
        .find(|(port, _)| node.facts.reserved_ports.contains(port))
        .map(|(port, protocol)| Misfit::PortReserved(port, protocol))
}

fn network(request: &Request<'_>, id: NodeId) -> Option<Misfit> {
    request.network_held.get(&id).copied().map(Misfit::NetworkHeld)
}

fn resources(request: &Request<'_>, node: &Node, used: Option<&Used>) -> Option<Misfit> {
    let needed = request.spec.reservations;
    let (cpu_used, memory_used) = used.map_or((0, 0), |used| (used.cpu_millis, used.memory_bytes));
    let cpu_free = node.facts.cpu_millis.saturating_sub(cpu_used);
    let memory_free = node.facts.memory_bytes.saturating_sub(memory_used);
    if cpu_free < needed.cpu_millis {
        Some(Misfit::Cpu { free: cpu_free, needed: needed.cpu_millis })
    } else if memory_free < needed.memory_bytes {
        Some(Misfit::Memory { free: memory_free, needed: needed.memory_bytes })
    } else {
        None
    }
}

fn addresses(request: &Request<'_>, used: Option<&Used>) -> Option<Misfit> {
    let full = used.is_some_and(|used| used.free_addresses() == 0);
    (full && needs_address(request.spec)).then_some(Misfit::Addresses)
}

/// A node's value for a label: `node.id`, `node.name`, `node.arch` and `node.os` are built in and
/// win over labels of the same name.
pub fn label<'a>(id: NodeId, node: &'a Node, key: &str) -> Option<Cow<'a, str>> {
    match key {
        "node.id" => Some(Cow::Owned(id.to_string())),
        "node.name" => Some(Cow::Borrowed(node.facts.name.as_str())),
        "node.arch" => Some(Cow::Borrowed(node.facts.arch.as_str())),
        "node.os" => Some(Cow::Borrowed(node.facts.os.as_str())),
        _ => node.facts.labels.get(key).map(|value| Cow::Borrowed(value.as_str())),
    }
}

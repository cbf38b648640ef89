//! What keeps a replica off a node.

use std::borrow::Cow;

use super::{Ask, Used};
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

/// What keeps a replica that asks for `ask` off a node, where `held` is another one of its service that is
/// in the way, in the order a person would want to know it: the node's
/// state, then what never changes by itself, then what may become free.
pub(super) fn misfit(
    ask: &Ask,
    held: Option<ReplicaId>,
    node: &Node,
    used: Option<&Used>,
    id: NodeId,
) -> Option<Misfit> {
    unready(node)
        .or_else(|| constraint(ask, node, id))
        .or_else(|| port(ask, node))
        .or_else(|| held.map(Misfit::NetworkHeld))
        .or_else(|| resources(ask, node, used))
        .or_else(|| addresses(ask, used))
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

fn constraint(ask: &Ask, node: &Node, id: NodeId) -> Option<Misfit> {
    let broken = |constraint: &&Constraint| {
        let equal = label(id, node, &constraint.label).as_deref() == Some(constraint.value.as_str());
        equal != (constraint.operator == ConstraintOperator::Equal)
    };
    ask.constraints.iter().find(broken).cloned().map(Misfit::Constraint)
}

fn port(ask: &Ask, node: &Node) -> Option<Misfit> {
    let reserved = |(port, _): &&(u16, Protocol)| node.facts.reserved_ports.contains(port);
    ask.ports.iter().find(reserved).map(|&(port, protocol)| Misfit::PortReserved(port, protocol))
}

fn resources(ask: &Ask, node: &Node, used: Option<&Used>) -> Option<Misfit> {
    let (cpu_used, memory_used) = used.map_or((0, 0), |used| (used.cpu_millis, used.memory_bytes));
    let cpu_free = node.facts.cpu_millis.saturating_sub(cpu_used);
    let memory_free = node.facts.memory_bytes.saturating_sub(memory_used);
    if cpu_free < ask.cpu_millis {
        Some(Misfit::Cpu { free: cpu_free, needed: ask.cpu_millis })
    } else if memory_free < ask.memory_bytes {
        Some(Misfit::Memory { free: memory_free, needed: ask.memory_bytes })
    } else {
        None
    }
}

fn addresses(ask: &Ask, used: Option<&Used>) -> Option<Misfit> {
    let full = used.is_some_and(|used| used.free_addresses() == 0);
    (full && ask.address).then_some(Misfit::Addresses)
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

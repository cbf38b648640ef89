//! What replicas ask of a node.

use imbl::OrdMap;

use super::filter::{self, Misfit};
use super::usage::needs_address;
use super::{Claim, NodeUsage, Request, Used};
use crate::cluster::Node;
use crate::cluster::index::claims;
use crate::cluster::volume::Home;
use crate::id::NodeId;
use crate::spec::{Constraint, Protocol};

/// What a replica asks of a node, whose ever it is: those that ask for the same fit on the same nodes, but
/// for what other replicas of their services are in the way of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// The only node that it may be on.
    pub(super) home: Option<NodeId>,
    pub(super) constraints: Vec<Constraint>,
    /// The ports that it takes, of those that something outside blixard holds on some node.
    pub(super) ports: Vec<(u16, Protocol)>,
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
    pub(super) address: bool,
}

impl Ask {
    /// What the replica of a request asks for, of the members `nodes`.
    pub(super) fn new(nodes: &OrdMap<NodeId, Node>, request: &Request<'_>) -> Self {
        let spec = request.spec;
        let is_reserved = |port: &u16| nodes.values().any(|node| node.facts.reserved_ports.contains(port));
        Self {
            home: if let Home::At(home) = request.home { Some(home) } else { None },
            constraints: spec.placement.constraints.clone(),
            ports: claims(spec).filter(|(port, _)| is_reserved(port)).collect(),
            cpu_millis: spec.reservations.cpu_millis,
            memory_bytes: spec.reservations.memory_bytes,
            address: needs_address(spec),
        }
    }

    /// What it asks of the node of a claim that it takes the place of.
    pub fn in_place_of(&self, claim: &Claim) -> Self {
        Self {
            home: Some(claim.node),
            cpu_millis: self.cpu_millis.saturating_sub(claim.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(claim.memory_bytes),
            address: self.address && !claim.address,
            ..self.clone()
        }
    }

    /// Whether a node takes it.
    pub fn fits(&self, nodes: &OrdMap<NodeId, Node>, usage: &NodeUsage, id: NodeId) -> bool {
        let takes = |node: &Node| self.misfit(id, node, usage.node(id)).is_none();
        self.home.is_none_or(|home| home == id) && nodes.get(&id).is_some_and(takes)
    }

    /// Whether something else is in the way on a node once it is `new` in place of `old`, while it holds
    /// the same. Absent is a node that is no member.
    pub fn sees_change(&self, usage: &NodeUsage, id: NodeId, old: Option<&Node>, new: Option<&Node>) -> bool {
        let misfit = |node: &Node| self.misfit(id, node, usage.node(id));
        let name = |node: &Node| node.facts.name.clone();
        self.home.is_none_or(|home| home == id)
            && (old.map(misfit) != new.map(misfit) || old.map(name) != new.map(name))
    }

    fn misfit(&self, id: NodeId, node: &Node, used: Option<&Used>) -> Option<Misfit> {
        filter::misfit(self, None, node, used, id)
    }
}

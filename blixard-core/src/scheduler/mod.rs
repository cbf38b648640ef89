//! Which node a replica goes to, or why none takes it.
//!
//! [`choose`] filters the nodes, ranks those that fit and, when none does, explains in one
//! sentence; a [`Ranking`] does so for many equal replicas, one after another. Neither changes
//! anything or waits: the orchestrator asks with the usage its draft has reached, and records either
//! the node or the sentence.

mod ask;
mod explain;
mod filter;
mod rank;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeMap;

use imbl::OrdMap;

pub use self::ask::Ask;
pub(crate) use self::explain::Named;
pub use self::filter::label;
#[cfg(test)]
pub(crate) use self::rank::LOOKED_AT;
pub use self::rank::Ranking;
pub use self::usage::{Claim, NodeUsage, Used};
use crate::cluster::Node;
use crate::cluster::volume::Home;
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// One replica that needs a node.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Whose replica.
    pub service: &'a ServiceName,
    /// What it runs.
    pub spec: &'a ServiceSpec,
    /// Where what it mounts is.
    pub home: Home,
    /// Nodes on which another replica of the service is in the way, and which: one of the two is
    /// on the node's own network.
    pub network_held: BTreeMap<NodeId, ReplicaId>,
    /// Nodes on which the same failed lately and was not proven, and when: they are tried once no other fits.
    pub failed_on: BTreeMap<NodeId, UtcMs>,
}

impl Request<'_> {
    /// What it asks of `nodes`, the members.
    pub fn ask(&self, nodes: &OrdMap<NodeId, Node>) -> Ask {
        Ask::new(nodes, self)
    }
}

/// Why no node takes a replica: one sentence for people, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NoFit {
    why: String,
    ask: Option<Ask>,
}

impl NoFit {
    /// What no node gives; absent when it could be nowhere whatever nodes there are.
    pub fn ask(&self) -> Option<&Ask> {
        self.ask.as_ref()
    }
}

/// The best node for `request`, given what the nodes already hold.
///
/// # Errors
/// [`NoFit`] when no node takes it, naming for each node the first thing that is in the way.
pub fn choose(
    nodes: &OrdMap<NodeId, Node>,
    usage: &NodeUsage,
    request: &Request<'_>,
) -> Result<NodeId, NoFit> {
    match &request.home {
        Home::Nowhere(why) => return Err(NoFit { why: why.clone(), ask: None }),
        Home::At(home) => return at_home(nodes, usage, request, *home),
        Home::Anywhere => {}
    }
    Ranking::new(nodes, usage, request, request.ask(nodes)).best(nodes, request)
}

/// The node that what is mounted is on, if it takes `request`.
fn at_home(
    nodes: &OrdMap<NodeId, Node>,
    usage: &NodeUsage,
    request: &Request<'_>,
    home: NodeId,
) -> Result<NodeId, NoFit> {
    let ask = request.ask(nodes);
    let why = match nodes.get(&home) {
        None => explain::pinned_to_stranger(home),
        Some(node) => match filter::misfit(&ask, held(request, home), node, usage.node(home), home) {
            None => return Ok(home),
            Some(misfit) => explain::pinned(home, node, &misfit),
        },
    };
    Err(NoFit { why, ask: Some(ask) })
}

/// Whether `node` itself takes `request`, whatever the others would.
pub fn fits(nodes: &OrdMap<NodeId, Node>, usage: &NodeUsage, request: &Request<'_>, node: NodeId) -> bool {
    let nowhere = matches!(request.home, Home::Nowhere(_));
    !nowhere && held(request, node).is_none() && request.ask(nodes).fits(nodes, usage, node)
}

/// Which other replica of the service is in the way on a node.
fn held(request: &Request<'_>, node: NodeId) -> Option<ReplicaId> {
    request.network_held.get(&node).copied()
}

//! Which node a replica goes to, or why none takes it.
//!
//! [`choose`] filters the nodes, ranks those that fit and, when none does, explains in one
//! sentence; a [`Ranking`] does so for many equal replicas, one after another. Neither changes
//! anything or waits: the orchestrator asks with the usage its draft has reached, and records either
//! the node or the sentence.

mod explain;
mod filter;
mod rank;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeMap;

use imbl::OrdMap;

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

/// Why no node takes a replica: one sentence for people, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoFit(String);

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
        Home::Nowhere(why) => return Err(NoFit(why.clone())),
        Home::At(home) => return at_home(nodes, usage, request, *home),
        Home::Anywhere => {}
    }
    Ranking::new(nodes, usage, request).best(nodes, request)
}

/// The node that what is mounted is on, if it takes `request`.
fn at_home(
    nodes: &OrdMap<NodeId, Node>,
    usage: &NodeUsage,
    request: &Request<'_>,
    home: NodeId,
) -> Result<NodeId, NoFit> {
    let Some(node) = nodes.get(&home) else { return Err(NoFit(explain::pinned_to_stranger(home))) };
    match filter::misfit(request, node, usage.node(home), home) {
        None => Ok(home),
        Some(misfit) => Err(NoFit(explain::pinned(home, node, &misfit))),
    }
}

/// Whether `node` itself takes `request`, whatever the others would.
pub fn fits(nodes: &OrdMap<NodeId, Node>, usage: &NodeUsage, request: &Request<'_>, node: NodeId) -> bool {
    let allowed = match request.home {
        Home::Anywhere => true,
        Home::At(home) => home == node,
        Home::Nowhere(_) => false,
    };
    allowed
        && nodes.get(&node).is_some_and(|row| filter::misfit(request, row, usage.node(node), node).is_none())
}

//! Which of the nodes that fit is best.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use imbl::OrdMap;

use super::{NodeUsage, Request, Used, label};
use crate::cluster::Node;
use crate::id::NodeId;

/// The best of `fitting`: none on which the same failed lately, or the one where that is longest ago, then
/// fewest replicas of the service in its spread domain, then on the node
/// itself, then most free relative resources, then fewest replicas of any service, then the
/// lowest id. Nodes without the spread label are one domain together.
pub(super) fn best(
    fitting: &[(NodeId, &Node)],
    nodes: &OrdMap<NodeId, Node>,
    usage: &NodeUsage,
    request: &Request<'_>,
) -> Option<NodeId> {
    let here = |id: NodeId| usage.node(id).map_or(0, |used| used.of_service(request.service));
    let spread = request.spec.placement.spread.as_deref();
    let domains = spread.map(|key| {
        let mut counts = BTreeMap::new();
        for (&id, node) in nodes {
            *counts.entry(label(id, node, key)).or_insert(0_u32) += here(id);
        }
        (key, counts)
    });
    let in_domain = |id: NodeId, node: &Node| match &domains {
        None => 0,
        Some((key, counts)) => counts.get(&label(id, node, key)).copied().unwrap_or(0),
    };
    let order = |&(id, node): &(NodeId, &Node)| {
        let used = usage.node(id);
        let replicas = used.map_or(0, |used| used.replicas);
        let failed = request.failed_on.get(&id);
        (failed, in_domain(id, node), here(id), Reverse(free_permille(node, used)), replicas, id)
    };
    fitting.iter().map(order).min().map(|(.., id)| id)
}

/// The scarcer of a node's CPU and memory, in thousandths still free.
fn free_permille(node: &Node, used: Option<&Used>) -> u64 {
    let share = |total: u64, used: u64| {
        let free = u128::from(total.saturating_sub(used)) * 1000;
        free.checked_div(u128::from(total)).and_then(|share| u64::try_from(share).ok()).unwrap_or(0)
    };
    let (cpu, memory) = used.map_or((0, 0), |used| (used.cpu_millis, used.memory_bytes));
    share(node.facts.cpu_millis, cpu).min(share(node.facts.memory_bytes, memory))
}

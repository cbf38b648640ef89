//! Which of the nodes that fit is best.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use imbl::OrdMap;

use super::explain::none_fits;
use super::filter::{Misfit, misfit};
use super::{Ask, NoFit, NodeUsage, Request, Used, held, label};
use crate::cluster::Node;
use crate::id::NodeId;

/// The nodes, ranked for a group of equal replicas: those of one version of a service that may be on any
/// node. Nodes are looked at once for all of them; a replica that is placed changes what one node holds,
/// and that one alone is looked at again.
///
/// The best has the fewest replicas of the service in its spread domain, then on the node itself, then
/// most free relative resources, then fewest replicas of any service, then the lowest id. Nodes without
/// the spread label are one domain together.
#[derive(Debug, Clone)]
pub struct Ranking {
    ask: Ask,
    /// In the order of their ids.
    rows: Vec<Row>,
    /// How many replicas of the service each spread domain has. Without a spread label nodes are one domain.
    domains: Vec<u32>,
}

/// One node.
#[derive(Debug, Clone)]
struct Row {
    id: NodeId,
    domain: usize,
    /// Replicas of the service.
    here: u32,
    free_permille: u64,
    /// Replicas of any service.
    replicas: u32,
    misfit: Option<Misfit>,
}

impl Ranking {
    /// The nodes as they are, for replicas that `request` is one of and that ask for `ask`.
    pub fn new(nodes: &OrdMap<NodeId, Node>, usage: &NodeUsage, request: &Request<'_>, ask: Ask) -> Self {
        let spread = request.spec.placement.spread.as_deref();
        let mut known: BTreeMap<Option<Cow<'_, str>>, usize> = BTreeMap::new();
        let counts: BTreeMap<NodeId, u32> = usage.of_service(request.service).collect();
        let mut domains = Vec::new();
        let mut rows = Vec::with_capacity(nodes.len());
        let mut holders = usage.nodes().peekable();
        for (&id, node) in nodes {
            while holders.next_if(|(other, _)| *other < id).is_some() {}
            let used = holders.next_if(|(other, _)| *other == id).map(|(_, used)| used);
            let next = domains.len();
            let domain = *known.entry(spread.and_then(|key| label(id, node, key))).or_insert(next);
            if domain == next {
                domains.push(0);
            }
            let here = counts.get(&id).copied().unwrap_or(0);
            domains[domain] += here;
            let misfit = misfit(&ask, held(request, id), node, used, id);
            rows.push(Row::new(id, node, used, (domain, here), misfit));
        }
        Self { ask, rows, domains }
    }

    /// Takes in what `node` holds now. `nodes` and `request` are those that the ranking began with.
    pub fn refresh(
        &mut self,
        nodes: &OrdMap<NodeId, Node>,
        usage: &NodeUsage,
        request: &Request<'_>,
        node: NodeId,
    ) {
        let Ok(at) = self.rows.binary_search_by_key(&node, |row| row.id) else { return };
        let Some(known) = nodes.get(&node) else { return };
        let (domain, before) = (self.rows[at].domain, self.rows[at].here);
        let here = usage.of_service_on(request.service, node);
        let used = usage.node(node);
        let misfit = misfit(&self.ask, held(request, node), known, used, node);
        self.rows[at] = Row::new(node, known, used, (domain, here), misfit);
        self.domains[domain] = self.domains[domain] - before + here;
    }

    /// The best node for `request`, which is one of those replicas: none on which it failed lately, or the one
    /// where that is longest ago, come before all else. `nodes` are those that the ranking began with.
    ///
    /// # Errors
    /// [`NoFit`] when none fits, naming for each the first thing that is in the way.
    pub fn best(&self, nodes: &OrdMap<NodeId, Node>, request: &Request<'_>) -> Result<NodeId, NoFit> {
        let several = self.domains.len() > 1;
        let order = |row: &&Row| {
            let in_domain = if several { self.domains[row.domain] } else { 0 };
            let failed = request.failed_on.get(&row.id);
            (failed, in_domain, row.here, Reverse(row.free_permille), row.replicas, row.id)
        };
        let fitting = self.rows.iter().filter(|row| row.misfit.is_none());
        fitting.min_by_key(order).map(|row| row.id).ok_or_else(|| {
            let misfit = |row: &Row| Some((row.id, nodes.get(&row.id)?, row.misfit.clone()?));
            let why = none_fits(&self.rows.iter().filter_map(misfit).collect::<Vec<_>>());
            NoFit { why, ask: Some(self.ask.clone()) }
        })
    }
}

impl Row {
    fn new(
        id: NodeId,
        node: &Node,
        used: Option<&Used>,
        (domain, here): (usize, u32),
        misfit: Option<Misfit>,
    ) -> Self {
        #[cfg(test)]
        LOOKED_AT.set(LOOKED_AT.get() + 1);
        let (free_permille, replicas) = (free_permille(node, used), used.map_or(0, |used| used.replicas));
        Self { id, domain, here, free_permille, replicas, misfit }
    }
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

#[cfg(test)]
thread_local! {
    /// How often this thread looked at a node.
    pub(crate) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

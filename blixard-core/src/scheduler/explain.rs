//! Says why no node takes a replica.
//!
//! Nodes that stand in the way alike are named together, and of many only the first few are named,
//! so that the sentence, which is kept in the replicated state, stays short in a large cluster.

use std::fmt;

use super::filter::Misfit;
use crate::cluster::Node;
use crate::id::NodeId;

/// How many nodes with the same fault are named; the rest are counted.
const NODES_NAMED_MAX: usize = 3;

/// A node as people know it: `node 2 (beta)`.
pub(crate) struct Named<'a>(pub(crate) NodeId, pub(crate) Option<&'a Node>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)?;
        match self.1 {
            Some(node) if !node.facts.name.is_empty() => write!(f, " ({})", node.facts.name),
            _ => Ok(()),
        }
    }
}

/// Why a pinned replica cannot be where its volumes are.
pub(super) fn pinned(id: NodeId, node: &Node, misfit: &Misfit) -> String {
    format!("its volumes are on {}, which {}", Named(id, Some(node)), Predicate(misfit, false))
}

/// Why a pinned replica cannot be where its volumes are when that node was removed.
pub(super) fn pinned_to_stranger(id: NodeId) -> String {
    format!("its volumes are on {}, which is no longer a member", Named(id, None))
}

/// Why none of the nodes fits.
pub(super) fn none_fits(misfits: &[(NodeId, &Node, Misfit)]) -> String {
    if misfits.is_empty() {
        return "no node fits: the cluster has none".to_owned();
    }
    let mut groups: Vec<Vec<&(NodeId, &Node, Misfit)>> = Vec::new();
    for entry in misfits {
        match groups.iter_mut().find(|group| alike(&group[0].2, &entry.2)) {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    let clauses: Vec<String> = groups.iter().flat_map(|group| clauses(group)).collect();
    format!("no node fits: {}", clauses.join("; "))
}

/// Whether two nodes' faults are told together. Shortages are, whatever is free.
fn alike(a: &Misfit, b: &Misfit) -> bool {
    match (a, b) {
        (Misfit::Cpu { .. }, Misfit::Cpu { .. })
        | (Misfit::Memory { .. }, Misfit::Memory { .. })
        | (Misfit::NetworkHeld(_), Misfit::NetworkHeld(_)) => true,
        (a, b) => a == b,
    }
}

fn clauses(group: &[&(NodeId, &Node, Misfit)]) -> Vec<String> {
    let misfit = &group[0].2;
    if *misfit == Misfit::Addresses {
        return vec![format!("no free address on {}", listed(group))];
    }
    let same = group.iter().all(|(.., other)| other == misfit);
    if group.len() > NODES_NAMED_MAX {
        let worst = most_free(group);
        return vec![format!("{} {}", listed(group), Predicate(worst, true).or_at_most(same))];
    }
    if same && group.len() > 1 {
        return vec![format!("{} {}", listed(group), Predicate(misfit, true))];
    }
    group
        .iter()
        .map(|(id, node, misfit)| format!("{} {}", Named(*id, Some(node)), Predicate(misfit, false)))
        .collect()
}

/// The nodes of a group: `node 1 (alpha), node 2 (beta) and node 3 (gamma)`; the first few of many.
fn listed(group: &[&(NodeId, &Node, Misfit)]) -> String {
    let mut names: Vec<String> =
        group.iter().take(NODES_NAMED_MAX).map(|(id, node, _)| Named(*id, Some(node)).to_string()).collect();
    let last = match group.len() - names.len() {
        0 => names.pop().unwrap_or_default(),
        1 => "1 more node".to_owned(),
        others => format!("{others} more nodes"),
    };
    if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) }
}

/// The misfit of the node that comes closest.
fn most_free<'a>(group: &[&'a (NodeId, &Node, Misfit)]) -> &'a Misfit {
    let free = |misfit: &Misfit| match misfit {
        Misfit::Cpu { free, .. } | Misfit::Memory { free, .. } => *free,
        _ => 0,
    };
    group.iter().map(|(.., misfit)| misfit).max_by_key(|misfit| free(misfit)).expect("a group is not empty")
}

/// What a node with a misfit is or has: `is draining`; of several nodes when the flag is set.
struct Predicate<'a>(&'a Misfit, bool);

impl Predicate<'_> {
    /// The same, for nodes of which this is the one that comes closest.
    fn or_at_most(&self, same: bool) -> String {
        match self.0 {
            Misfit::Cpu { free, needed } if !same => {
                format!("have at most {} free of the {} needed", Cpus(*free), Cpus(*needed))
            }
            Misfit::Memory { free, needed } if !same => {
                format!("have at most {} of memory free of the {} needed", Bytes(*free), Bytes(*needed))
            }
            Misfit::NetworkHeld(_) => "each run a replica of it on their own network".to_owned(),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Predicate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(misfit, many) = self;
        let pick = |one: &'static str, several: &'static str| if *many { several } else { one };
        let (is, has, lacks) = (pick("is", "are"), pick("has", "have"), pick("lacks", "lack"));
        match misfit {
            Misfit::Down => write!(f, "{is} down"),
            Misfit::Unknown => write!(f, "{} not answer", pick("does", "do")),
            Misfit::Draining => write!(f, "{is} draining"),
            Misfit::Leaving => write!(f, "{is} leaving"),
            Misfit::Constraint(constraint) => write!(f, "{lacks} label {constraint}"),
            Misfit::PortReserved(port, protocol) => {
                write!(f, "{has} port {port}/{protocol} in use by something else")
            }
            Misfit::NetworkHeld(replica) => {
                write!(f, "{} replica {replica} of it on its own network", pick("runs", "run"))
            }
            Misfit::Cpu { free, needed } => {
                write!(f, "{has} {} free of the {} needed", Cpus(*free), Cpus(*needed))
            }
            Misfit::Memory { free, needed } => {
                write!(f, "{has} {} of memory free of the {} needed", Bytes(*free), Bytes(*needed))
            }
            Misfit::Addresses => write!(f, "{has} no free address"),
        }
    }
}

/// Thousandths of a CPU: `1.5 CPUs`.
struct Cpus(u64);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:03}", self.0 % 1000);
        match fraction.trim_end_matches('0') {
            "" if self.0 == 1000 => f.write_str("1 CPU"),
            "" => write!(f, "{} CPUs", self.0 / 1000),
            digits => write!(f, "{}.{digits} CPUs", self.0 / 1000),
        }
    }
}

/// Bytes, in the largest binary unit that keeps at least one whole: `512 MiB`, `1.5 GiB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match unit.into_iter().find(|(shift, _)| self.0 >> shift > 0) {
            None => write!(f, "{} B", self.0),
            Some((shift, name)) => {
                let tenths = (u128::from(self.0) * 10) >> shift;
                match tenths % 10 {
                    0 => write!(f, "{} {name}", tenths / 10),
                    tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
                }
            }
        }
    }
}

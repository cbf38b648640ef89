//! What is known of members: facts, addresses, health, holds, availability, feature level.

use std::net::SocketAddr;

use super::{About, Answer};
use crate::cluster::node::NodeFacts;
use crate::cluster::{Availability, ClusterState, EventKind, Node, NodeStatus, Outcome, Refusal};
use crate::id::NodeId;
use crate::time::UtcMs;

impl ClusterState {
    /// Changes a member by `change`, which answers what to tell when it changed something.
    fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> Option<String>) -> Answer {
        let node = self.nodes.get_mut(&id).ok_or_else(|| Refusal::not_found("node", id))?;
        let told = change(node).map(|what| format!("node {id} ({}) {what}", node.facts.name));
        if let Some(message) = told {
            self.emit(EventKind::NodeChanged, About::node(id), message);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn facts(&mut self, id: NodeId, facts: &NodeFacts) -> Answer {
        self.change_node(id, |node| {
            let changed = node.facts != *facts;
            node.facts.clone_from(facts);
            changed.then(|| format!("started with changed facts, version {}", facts.version))
        })
    }

    pub(super) fn addresses(&mut self, id: NodeId, addresses: &[SocketAddr]) -> Answer {
        self.change_node(id, |node| {
            let changed = node.facts.addresses != addresses;
            node.facts.addresses = addresses.to_vec();
            let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            changed.then(|| format!("now listens on {}", listed.join(", ")))
        })
    }

    /// A node that comes up has ended its planned stop.
    pub(super) fn health(&mut self, id: NodeId, status: NodeStatus) -> Answer {
        let now = self.time;
        self.change_node(id, |node| {
            if node.status == status {
                return None;
            }
            node.status = status;
            node.status_since = now;
            if status == NodeStatus::Up {
                node.hold_until = None;
            }
            Some(match status {
                NodeStatus::Up => "is up".to_owned(),
                NodeStatus::Unknown => "stopped answering".to_owned(),
                NodeStatus::Down => "is down".to_owned(),
            })
        })
    }

    pub(super) fn hold(&mut self, id: NodeId, until: Option<UtcMs>) -> Answer {
        self.change_node(id, |node| {
            if node.hold_until == until {
                return None;
            }
            node.hold_until = until;
            Some(match until {
                Some(until) => format!("stops for a while: nothing moves until {until}"),
                None => "is no longer expected to be away".to_owned(),
            })
        })
    }

    pub(super) fn set_availability(&mut self, id: NodeId, availability: Availability) -> Answer {
        self.change_node(id, |node| {
            if node.availability == availability {
                return None;
            }
            node.availability = availability;
            Some(match availability {
                Availability::Active => "takes replicas".to_owned(),
                Availability::Draining => "is draining: its replicas move elsewhere".to_owned(),
                Availability::Leaving => "is leaving: its replicas move elsewhere".to_owned(),
            })
        })
    }

    /// The software of each member must know the level: what decides is what members told, never
    /// what this software knows.
    pub(super) fn raise_level(&mut self, level: u16) -> Answer {
        if level <= self.level {
            return Err(Refusal::conflict(format!("the feature level is {} and is only raised", self.level)));
        }
        if let Some((id, node)) = self.nodes.iter().find(|(_, node)| node.facts.level < level) {
            return Err(Refusal::conflict(format!(
                "node {id} ({}) knows feature level {}, not {level}: upgrade it first",
                node.facts.name, node.facts.level
            )));
        }
        self.level = level;
        Ok(Outcome::Done)
    }
}

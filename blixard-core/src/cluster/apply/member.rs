//! Membership: the first member, those that join, and removal.
//!
//! An id is bound to one key for ever. Both are remembered after removal, so that neither comes
//! back: a machine that returns joins as a new member.

use std::collections::BTreeSet;

use super::{About, Answer};
use crate::cluster::node::NodeFacts;
use crate::cluster::{
    Availability, ClusterState, EventKind, Node, NodeStatus, Outcome, Refusal, SubnetRange, Token,
};
use crate::id::{ClusterId, NodeId, NodeKey, TokenId};
use crate::limits::NODES_MAX;

impl ClusterState {
    pub(super) fn bootstrap(
        &mut self,
        cluster: ClusterId,
        subnets: SubnetRange,
        node: NodeId,
        key: NodeKey,
        facts: &NodeFacts,
        token: &(TokenId, Token),
    ) -> Answer {
        if let Some(present) = self.cluster {
            return Err(Refusal::conflict(format!("this log belongs to cluster {present} already")));
        }
        if !self.nodes.is_empty() || !self.services.is_empty() {
            return Err(Refusal::conflict("only an empty state makes a cluster"));
        }
        if !subnets.is_valid() {
            return Err(Refusal::out_of_bounds(format!(
                "container networks are cut from a range of prefix length 8 to 24, not {subnets}"
            )));
        }
        check_id(node)?;
        self.cluster = Some(cluster);
        self.subnets = subnets;
        self.level = self.level.max(facts.level);
        self.tokens.insert(token.0, token.1.clone());
        self.admit(node, key, facts)?;
        Ok(Outcome::Joined { node, cluster })
    }

    pub(super) fn join(
        &mut self,
        asked: Option<NodeId>,
        key: NodeKey,
        facts: &NodeFacts,
        token: TokenId,
        secret_sha256: &[u8; 32],
    ) -> Answer {
        let Some(cluster) = self.cluster else {
            return Err(Refusal::conflict("there is no cluster to join yet"));
        };
        let member = self.nodes.iter().find(|(_, member)| member.key == key).map(|(id, _)| *id);
        if let Some(node) = member {
            return self.rejoin(node, asked, facts, cluster);
        }
        if let Some((id, _)) = self.removed_nodes.iter().find(|(_, removed)| **removed == key) {
            return Err(Refusal::denied(format!(
                "this machine was node {id} and was removed: start it with an empty data directory to join anew"
            )));
        }
        self.check_join_token(token, secret_sha256)?;
        if facts.level < self.level {
            return Err(Refusal::denied(format!(
                "the cluster uses feature level {}, the joiner's software {} knows {}: upgrade it",
                self.level, facts.version, facts.level
            )));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::out_of_bounds(format!("a cluster has at most {NODES_MAX} nodes")));
        }
        let node = self.free_id(asked)?;
        self.admit(node, key, facts)?;
        self.use_token(token);
        Ok(Outcome::Joined { node, cluster })
    }

    /// Answers a member that asks again, as one does that crashed between asking and starting.
    fn rejoin(
        &mut self,
        node: NodeId,
        asked: Option<NodeId>,
        facts: &NodeFacts,
        cluster: ClusterId,
    ) -> Answer {
        if let Some(asked) = asked.filter(|asked| *asked != node) {
            return Err(Refusal::denied(format!("this machine is node {node} already, not {asked}")));
        }
        self.facts(node, facts)?;
        Ok(Outcome::Joined { node, cluster })
    }

    /// The id asked for, when it was never used, or the lowest that never was.
    fn free_id(&self, asked: Option<NodeId>) -> Result<NodeId, Refusal> {
        let used = |id: &NodeId| self.nodes.contains_key(id) || self.removed_nodes.contains_key(id);
        let Some(asked) = asked else {
            let lowest = (1..).map(NodeId).find(|id| !used(id));
            return lowest.ok_or_else(|| Refusal::out_of_bounds("every node id has been used"));
        };
        check_id(asked)?;
        if self.nodes.contains_key(&asked) {
            return Err(Refusal::denied(format!(
                "node {asked} is another machine (its key differs): choose another --id, or start it with node {asked}'s data directory"
            )));
        }
        if self.removed_nodes.contains_key(&asked) {
            return Err(Refusal::denied(format!(
                "node {asked} was removed and its id is not used again: choose another --id"
            )));
        }
        Ok(asked)
    }

    fn admit(&mut self, id: NodeId, key: NodeKey, facts: &NodeFacts) -> Result<(), Refusal> {
        let used: BTreeSet<_> = self.nodes.values().map(|node| node.subnet).collect();
        let subnet = self.subnets.lowest_unused(&used).ok_or_else(|| {
            Refusal::out_of_bounds(format!("every container network of {} is in use", self.subnets))
        })?;
        let node = Node {
            key,
            facts: facts.clone(),
            subnet,
            status: NodeStatus::Up,
            availability: Availability::Active,
            hold_until: None,
            joined_at: self.time,
            status_since: self.time,
        };
        self.nodes.insert(id, node);
        self.emit(EventKind::NodeJoined, About::node(id), format!("node {id} ({}) joined", facts.name));
        Ok(())
    }

    pub(super) fn remove_node(&mut self, id: NodeId, force: bool) -> Answer {
        let node = self.nodes.get(&id).ok_or_else(|| Refusal::not_found("node", id))?;
        if self.nodes.len() == 1 {
            return Err(Refusal::conflict(format!(
                "node {id} is the only member: a cluster keeps at least one"
            )));
        }
        let replicas: Vec<_> = self.replicas_on(id).map(|(replica, _)| replica).collect();
        let left = node.availability == Availability::Leaving && replicas.is_empty();
        if !(force || left || node.status == NodeStatus::Down) {
            return Err(Refusal::conflict(format!(
                "node {id} is not down and holds {} replicas: have it leave first, or force its removal",
                replicas.len()
            )));
        }
        for replica in replicas {
            self.drop_replica(replica, "its node was removed");
        }
        if let Some(node) = self.nodes.remove(&id) {
            self.removed_nodes.insert(id, node.key);
            let message = format!("node {id} ({}) was removed", node.facts.name);
            self.emit(EventKind::NodeRemoved, About::node(id), message);
        }
        Ok(Outcome::Done)
    }
}

fn check_id(id: NodeId) -> Result<(), Refusal> {
    if id.0 == 0 {
        return Err(Refusal::out_of_bounds("node ids start at 1"));
    }
    Ok(())
}

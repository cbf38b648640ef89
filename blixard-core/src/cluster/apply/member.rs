//! Membership: the first member, those that join, and removal.
//!
//! An id is bound to one key for ever. Both are remembered after removal, so that neither comes
//! back: a machine that returns joins as a new member.

use std::collections::BTreeSet;

use super::{About, Answer};
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::node::NodeFacts;
use crate::cluster::{
    Availability, ClusterState, Desired, EventKind, Node, NodeStatus, Outcome, Phase, Refusal, Replica,
    SubnetRange, Token,
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
                "this machine was node {id} and was removed: `blixard node purge --yes` on it, then it can join anew"
            )));
        }
        self.check_join_token(token, secret_sha256)?;
        self.check_facts(facts)?;
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

    /// A node that left goes once nothing runs on it; a replica that ran to its end keeps no node.
    pub(super) fn remove_node(&mut self, id: NodeId, force: bool) -> Answer {
        let node = self.nodes.get(&id).ok_or_else(|| Refusal::not_found("node", id))?;
        if self.nodes.len() == 1 {
            return Err(Refusal::conflict(format!(
                "node {id} is the only member: a cluster keeps at least one"
            )));
        }
        let replicas: Vec<_> = self.replicas_on(id).map(|(replica, _)| replica).collect();
        let ended = |row: &Replica| row.desired == Desired::Run && row.status.phase == Phase::Completed;
        let left =
            node.availability == Availability::Leaving && self.replicas_on(id).all(|(_, row)| ended(row));
        let down = node.status == NodeStatus::Down;
        // Since the second feature level, what is on a node goes with it only when that is said.
        if down && self.knows(SECOND_LEVEL) && !force && !replicas.is_empty() && !left {
            return Err(Refusal::conflict(format!(
                "node {id} is down and still holds {} replicas, which go with it and stop only if it returns: remove it with --force",
                replicas.len()
            )));
        }
        if !(force || left || down) {
            return Err(Refusal::conflict(format!(
                "node {id} is not down and holds {} replicas: have it leave first, or remove it with --force",
                replicas.len()
            )));
        }
        for replica in replicas {
            self.drop_replica(replica, "its node was removed");
        }
        self.leave_volumes(id);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{
        CLUSTER, Cluster, assert_refused, bootstrap, facts, join, key, name, place, spec,
        status as replica_status,
    };
    use crate::cluster::{Command, NodeStatus, Write};

    fn joined(node: u64) -> Outcome {
        Outcome::Joined { node: NodeId(node), cluster: CLUSTER }
    }

    fn remove(node: u64, force: bool) -> Write {
        Write::RemoveNode { node: NodeId(node), force }
    }

    #[test]
    fn a_cluster_is_made_once() {
        let mut cluster = Cluster::of(1);
        assert_refused(cluster.command(bootstrap()), "already");
        let mut empty = ClusterState::new();
        let outcomes = empty.apply(1, &crate::cluster::Entry::new(Default::default(), vec![join(None, 2)]));
        assert!(matches!(outcomes.as_slice(), [Outcome::Refused(_)]));
    }

    #[test]
    fn a_joiner_gets_the_lowest_id_and_network_never_used() {
        let mut cluster = Cluster::of(3);
        assert_eq!(cluster.write(remove(2, true)), Outcome::Done);
        assert_eq!(cluster.command(join(None, 4)), joined(4));
        let subnet = |node: u64| cluster.state.nodes[&NodeId(node)].subnet.octets();
        assert_eq!(subnet(3), [10, 210, 2, 0]);
        assert_eq!(subnet(4), [10, 210, 1, 0]);
    }

    #[test]
    fn an_id_belongs_to_one_key_for_ever() {
        let check = |asked: Option<u64>, key_byte: u8, expect: Result<u64, &str>| {
            let mut cluster = Cluster::of(3);
            assert_eq!(cluster.write(remove(3, true)), Outcome::Done);
            let outcome = cluster.command(join(asked, key_byte));
            match expect {
                Ok(node) => assert_eq!(outcome, joined(node)),
                Err(part) => assert_refused(outcome, part),
            }
        };
        check(None, 2, Ok(2));
        check(Some(2), 2, Ok(2));
        check(Some(7), 9, Ok(7));
        check(Some(5), 2, Err("is node 2 already"));
        check(Some(2), 9, Err("another machine"));
        check(Some(3), 9, Err("not used again"));
        check(None, 3, Err("was node 3 and was removed"));
        check(Some(0), 9, Err("start at 1"));
    }

    #[test]
    fn a_member_that_asks_again_refreshes_its_facts() {
        let mut cluster = Cluster::of(2);
        let again = Command::Join {
            node: None,
            key: key(2),
            facts: facts("renamed"),
            token: TokenId([0; 8]),
            secret_sha256: [0; 32],
        };
        assert_eq!(cluster.command(again), joined(2));
        assert_eq!(cluster.state.nodes[&NodeId(2)].facts.name, "renamed");
    }

    #[test]
    fn older_software_than_the_feature_level_does_not_join() {
        let mut cluster = Cluster::of(1);
        let raised = NodeFacts { level: 3, ..facts("one") };
        cluster.command(Command::Facts { node: NodeId(1), facts: raised });
        assert_eq!(cluster.command(Command::Level { level: 3 }), Outcome::Done);
        assert_refused(cluster.command(join(None, 2)), "feature level 3");
    }

    #[test]
    fn members_are_bounded_by_the_range_of_networks_and_by_number() {
        let mut cluster = Cluster::of(1);
        cluster.state.subnets = SubnetRange { prefix: 23, ..SubnetRange::default() };
        assert_eq!(cluster.command(join(None, 2)), joined(2));
        assert_refused(cluster.command(join(None, 3)), "every container network");

        let mut cluster = Cluster::of(250);
        assert_refused(cluster.command(join(None, 251)), "at most 250");
    }

    #[test]
    fn a_member_goes_when_it_is_down_or_left_or_forced() {
        let check = |status, availability, phase: Option<Phase>, force, expect: Option<&str>| {
            let mut cluster = Cluster::of(2);
            cluster.submit(spec("web", 1, 1));
            if let Some(phase) = phase {
                cluster.planned(vec![place("web", 0, 1, 2)]);
                cluster.report(2, 1, replica_status(0, phase));
            }
            cluster.health(2, status);
            cluster.write(Write::SetAvailability { node: NodeId(2), availability });
            let outcome = cluster.write(remove(2, force));
            match expect {
                Some(part) => assert_refused(outcome, part),
                None => {
                    assert_eq!(outcome, Outcome::Done);
                    assert_eq!(cluster.state.replicas_of(&name("web")).count(), 0);
                }
            }
        };
        use crate::cluster::Availability::{Active, Draining, Leaving};
        use NodeStatus::{Down, Unknown, Up};
        let running = Some(Phase::Running);
        check(Up, Active, None, false, Some("have it leave"));
        check(Up, Draining, None, false, Some("have it leave"));
        check(Up, Leaving, running, false, Some("holds 1 replicas"));
        check(Unknown, Active, running, false, Some("have it leave"));
        check(Up, Leaving, None, false, None);
        check(Up, Leaving, Some(Phase::Completed), false, None);
        check(Down, Active, running, false, Some("holds 1 replicas, which go with it"));
        check(Down, Active, running, true, None);
        check(Down, Active, None, false, None);
        check(Up, Active, running, true, None);
    }

    #[test]
    fn the_only_member_stays() {
        let mut cluster = Cluster::of(1);
        assert_refused(cluster.write(remove(1, true)), "only member");
        assert_refused(cluster.write(remove(9, true)), "no node");
    }
}

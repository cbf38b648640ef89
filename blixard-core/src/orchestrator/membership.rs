//! Who votes.
//!
//! [`next_change`] compares the members of the cluster with Raft's configuration and answers the
//! next change, one at a time; the leader's driver makes it and asks again. It changes nothing.
//!
//! The voters are the largest odd number of nodes up to [`VOTERS_TARGET`], the rest are learners
//! that hold the full state. Two nodes are one voter and one learner: two voters would stop when
//! either one does, one voter stops with that one only (docs/adr). Voters that are up stay voters;
//! a voter that is down is replaced by a learner that is up and has caught up, if there is one.
//! Nodes that leave, and nodes that are members no more, do not vote; the leader hands over first.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;

use crate::cluster::replica::Desired;
use crate::cluster::{Availability, ClusterState, Node, NodeStatus, Phase};
use crate::id::NodeId;
use crate::limits::VOTERS_TARGET;

/// How many log entries a learner may lack and still become a voter: what a healthy one is behind
/// at the highest write rates. A voter further behind would make writes wait for it.
pub const PROMOTION_LAG_MAX: u64 = 1_000;

/// Raft's configuration, as its leader has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftMembers {
    /// Who leads: this node.
    pub leader: NodeId,
    /// The sets of voters of which each has to agree: the newest last, before it the one that a change
    /// that is half done comes from.
    pub configurations: Vec<BTreeSet<NodeId>>,
    /// Who receives the log and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// How many entries each lacks; absent: not known to have any.
    pub lag: BTreeMap<NodeId, u64>,
}

impl RaftMembers {
    /// Who votes, in any configuration.
    fn voters(&self) -> BTreeSet<NodeId> {
        self.configurations.iter().flatten().copied().collect()
    }

    /// Whether these vote, and no change to them is half done. Openraft leaves that to the leader that
    /// began it: when another leads since, it is the other's to finish, or the voters before the change
    /// would have to agree to everything for good.
    fn has(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.configurations.iter().eq([voters])
    }
}

/// One change of Raft's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipChange {
    /// It is as it should be, or has to wait for a node.
    Nothing,
    /// Let these nodes receive the log.
    AddLearner(BTreeSet<NodeId>),
    /// Make these the voters, in one joint change; voters that are not among them become learners.
    ChangeVoters(BTreeSet<NodeId>),
    /// Hand leadership over to this voter.
    TransferLeader(NodeId),
    /// Send these learners nothing more.
    RemoveFromRaft(BTreeSet<NodeId>),
}

/// The next change that brings Raft's configuration closer to what the members call for.
pub fn next_change(nodes: &OrdMap<NodeId, Node>, raft: &RaftMembers) -> MembershipChange {
    let voting = raft.voters();
    let known = |id: &NodeId| voting.contains(id) || raft.learners.contains(id);
    let strangers: BTreeSet<NodeId> =
        raft.learners.iter().copied().filter(|id| !nodes.contains_key(id) && *id != raft.leader).collect();
    if !strangers.is_empty() {
        return MembershipChange::RemoveFromRaft(strangers);
    }
    let missing: BTreeSet<NodeId> =
        nodes.iter().filter(|(id, node)| stays(node) && !known(id)).map(|(&id, _)| id).collect();
    if !missing.is_empty() {
        return MembershipChange::AddLearner(missing);
    }
    let cluster = Cluster { nodes, raft, voting };
    let Some(voters) = cluster.voters() else { return MembershipChange::Nothing };
    if !voters.contains(&raft.leader) {
        return cluster.hand_over(&voters);
    }
    if raft.has(&voters) { MembershipChange::Nothing } else { cluster.change(voters) }
}

/// Whether a member means to stay.
fn stays(node: &Node) -> bool {
    node.availability != Availability::Leaving
}

/// The members and Raft's configuration, looked at together.
struct Cluster<'a> {
    nodes: &'a OrdMap<NodeId, Node>,
    raft: &'a RaftMembers,
    /// Who votes, in any configuration.
    voting: BTreeSet<NodeId>,
}

impl Cluster<'_> {
    fn status(&self, id: NodeId) -> NodeStatus {
        if id == self.raft.leader {
            return NodeStatus::Up;
        }
        self.nodes.get(&id).map_or(NodeStatus::Down, |node| node.status)
    }

    fn up(&self, id: NodeId) -> bool {
        self.status(id) == NodeStatus::Up
    }

    fn caught_up(&self, id: NodeId) -> bool {
        self.raft.lag.get(&id).is_some_and(|lag| *lag <= PROMOTION_LAG_MAX)
    }

    /// Who should vote; absent while that has to wait for a learner to catch up.
    fn voters(&self) -> Option<BTreeSet<NodeId>> {
        let stays = |id: &NodeId| self.nodes.get(id).is_some_and(stays);
        let voting: Vec<NodeId> = self.voting.iter().copied().filter(stays).collect();
        let learning = self.raft.learners.iter().copied().filter(stays);
        let learning: Vec<NodeId> = learning.filter(|&id| self.status(id) != NodeStatus::Down).collect();
        let target = voters_for(voting.len() + learning.len());
        let (present, down): (Vec<NodeId>, Vec<NodeId>) =
            voting.into_iter().partition(|&id| self.status(id) != NodeStatus::Down);
        let (leader, present): (Vec<NodeId>, Vec<NodeId>) =
            present.into_iter().partition(|&id| id == self.raft.leader);
        let ready = learning.into_iter().filter(|&id| self.up(id) && self.caught_up(id));
        let preferred = leader.into_iter().chain(present).chain(ready).chain(down);
        let mut chosen: Vec<NodeId> = preferred.take(target).collect();
        if chosen.len().is_multiple_of(2) {
            chosen.pop();
        }
        let newest = self.raft.configurations.last().map_or(0, BTreeSet::len);
        let waits = chosen.len() < target && chosen.len() < newest;
        (!chosen.is_empty() && !waits).then(|| chosen.into_iter().collect())
    }

    /// The leader may not vote any more, or does not already: a voter of the configuration before
    /// the newest can be elected. Another voter has to lead first, one that stays and is up; when
    /// there is none yet, one is added.
    fn hand_over(&self, voters: &BTreeSet<NodeId>) -> MembershipChange {
        let heirs = voters.iter().copied().filter(|id| self.voting.contains(id) && self.up(*id));
        let lag = |id: &NodeId| self.raft.lag.get(id).copied().unwrap_or(u64::MAX);
        if let Some(heir) = heirs.min_by_key(|id| (lag(id), *id)) {
            return MembershipChange::TransferLeader(heir);
        }
        let union: BTreeSet<NodeId> = voters.union(&self.voting).copied().collect();
        if self.raft.has(&union) { MembershipChange::Nothing } else { self.change(union) }
    }

    /// Changes the voters if a quorum of the old ones can agree to it and one of the new ones can
    /// go on. Of a voter that was removed nobody knows whether it is up: it is asked.
    fn change(&self, voters: BTreeSet<NodeId>) -> MembershipChange {
        let may_agree = |id: NodeId| self.up(id) || !self.nodes.contains_key(&id);
        let quorum =
            |set: &BTreeSet<NodeId>| set.iter().filter(|id| may_agree(**id)).count() >= quorum_of(set.len());
        if self.raft.configurations.iter().chain([&voters]).all(quorum) {
            MembershipChange::ChangeVoters(voters)
        } else {
            MembershipChange::Nothing
        }
    }
}

/// How many of so many nodes should vote.
fn voters_for(nodes: usize) -> usize {
    let most = nodes.min(VOTERS_TARGET);
    if most.is_multiple_of(2) { most.saturating_sub(1) } else { most }
}

/// How many of so many voters have to agree.
pub fn quorum_of(voters: usize) -> usize {
    voters / 2 + 1
}

/// What a leaving node still has to give up before it is removed, for people; absent when it may
/// go. A replica that ran to its end keeps no node.
pub fn leave_blocker(state: &ClusterState, voters: &BTreeSet<NodeId>, node: NodeId) -> Option<String> {
    let stopped = |desired: Desired, phase: Phase| match phase {
        Phase::Gone => true,
        Phase::Completed => desired == Desired::Run,
        _ => false,
    };
    let here = state.replicas_on(node);
    let held = here.filter(|(_, replica)| !stopped(replica.desired, replica.status.phase)).count();
    match (held, voters.contains(&node)) {
        (0, false) => None,
        (0, true) => Some("it still votes".to_owned()),
        (1, _) => Some("1 replica is still on it".to_owned()),
        (held, _) => Some(format!("{held} replicas are still on it")),
    }
}

#[cfg(test)]
#[path = "tests/membership.rs"]
mod tests;

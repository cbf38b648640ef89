//! What this member knows of Raft, and waiting for it to change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::NodeId;
use blixard_core::time::Mono;
use openraft::metrics::RaftServerMetrics;
use openraft::{Instant as _, RaftMetrics};

use super::RaftNode;
use super::types::{LogId, Types};
use crate::handle::RaftStatus;
use crate::watch::{Closed, Receiver};

/// Tells when leader, term or membership change, and when the leader falls silent or is heard again.
pub struct StatusWatch {
    node: RaftNode,
    changes: Receiver<RaftServerMetrics<Types>>,
    contacts: Receiver<()>,
    /// The silence that was told of: none is told of twice.
    told: Option<Mono>,
}

impl StatusWatch {
    pub(super) fn new(node: &RaftNode) -> Self {
        let (changes, contacts) = (node.raft().server_metrics(), node.inner.contacts.subscribe());
        Self { node: node.clone(), changes, contacts, told: None }
    }

    /// The status now.
    pub fn current(&self) -> RaftStatus {
        self.node.status()
    }

    /// Waits for the next such change and returns the status then. Cancel safe.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn changed(&mut self) -> Result<RaftStatus, Closed> {
        let clock = Arc::clone(&self.node.context().clock);
        loop {
            let silent_at = self.node.silent_at().filter(|at| Some(*at) != self.told);
            // Cancel safety: `changed` loses nothing when dropped, and a timer holds nothing.
            tokio::select! {
                biased;
                changed = self.changes.changed() => changed?,
                changed = self.contacts.changed() => changed?,
                () = clock.sleep_until(silent_at.unwrap_or_default()), if silent_at.is_some() => {
                    if self.node.silent_at() != silent_at {
                        continue;
                    }
                    self.told = silent_at;
                }
            }
            return Ok(self.current());
        }
    }
}

impl RaftNode {
    /// What this member knows of Raft now.
    pub fn status(&self) -> RaftStatus {
        let (metrics, server) = (self.raft().metrics(), self.raft().server_metrics());
        let (metrics, server) = (metrics.borrow(), server.borrow());
        // Of the two, openraft changes `server` first, and the other within the same moment. Who watches
        // `server` would read there what was before, and would be told of it no more.
        let membership = server.membership_config.membership();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let set = |voters: &BTreeSet<u64>| voters.iter().copied().map(NodeId).collect();
        let configurations: Vec<BTreeSet<NodeId>> = membership.get_joint_config().iter().map(set).collect();
        // Nobody else is asked by whom a quorum is one member.
        let alone = configurations == [BTreeSet::from([self.id()])];
        RaftStatus {
            leader: leader(&server).filter(|leader| self.hears(*leader)),
            term: server.vote.leader_id.term,
            configurations,
            learners: membership.learner_ids().map(NodeId).collect(),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            quorum_ack_ms_ago: metrics.last_quorum_acked.map(|acked| match alone {
                true => 0,
                false => u64::try_from(acked.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Whether `leader`, as openraft names it, is more than a memory: with pre-vote, openraft goes on
    /// naming a leader that is gone until another is elected.
    pub(super) fn hears(&self, leader: NodeId) -> bool {
        leader == self.id()
            || self.last_leader_contact().is_some_and(|(heard, at)| {
                heard == leader && self.context().clock.now() < at + self.silence()
            })
    }

    /// From when on the leader last heard counts as silent, if it says nothing more.
    fn silent_at(&self) -> Option<Mono> {
        self.last_leader_contact().map(|(_, at)| at + self.silence())
    }

    fn silence(&self) -> Duration {
        self.config().election_max * 2
    }

    /// Notes that `leader` has just been heard.
    pub(super) fn note_leader(&self, leader: NodeId) {
        let now = self.context().clock.now();
        let before = self.leader_contact().replace((leader, now));
        // openraft's own notice of a new leader comes before this one, and of one that was only
        // silent for a while there is none.
        if before.is_none_or(|(known, at)| known != leader || at + self.silence() <= now) {
            self.inner.contacts.send(());
        }
    }
}

/// Who leads in the term of the vote that this member's disk has: the term that is told.
///
/// openraft names a leader as soon as it hears one, and has the vote for it written then, which may
/// take a second: until it is, the leader it names is one of a later term than is told.
fn leader(server: &RaftServerMetrics<Types>) -> Option<NodeId> {
    let kept = server.vote.committed.then_some(server.vote.leader_id.voted_for);
    // Another than the kept one, or none, is named when the kept term is over.
    server.current_leader.filter(|named| Some(*named) == kept).map(NodeId)
}

/// Members that have not answered this leader for `silence`; none when it does not lead.
pub(super) fn silent(metrics: &RaftMetrics<Types>, silence: Duration) -> Vec<NodeId> {
    let heard = metrics.heartbeat.iter().flatten().filter(|(id, _)| **id != metrics.id);
    let silent = heard.filter(|(_, heard)| heard.is_none_or(|heard| heard.elapsed() > silence));
    silent.map(|(id, _)| NodeId(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{StoredMembership, Vote};

    #[test]
    fn a_leader_is_told_with_its_own_term() {
        let told = |vote: Vote, named: Option<u64>| {
            let membership = Arc::new(StoredMembership::default());
            leader(&RaftServerMetrics {
                id: 5,
                vote,
                state: openraft::ServerState::Follower,
                current_leader: named,
                membership_config: Arc::clone(&membership),
                committed_membership_config: membership,
            })
        };
        assert_eq!(told(Vote::new_committed(5, 4), Some(4)), Some(NodeId(4)));
        // The disk has not written yet that node 3 leads, in a later term.
        assert_eq!(told(Vote::new_committed(5, 4), Some(3)), None);
        assert_eq!(told(Vote::new(6, 3), Some(3)), None);
        // The term is over: this member stands for election, or votes for another.
        assert_eq!(told(Vote::new_committed(5, 4), None), None);
        assert_eq!(told(Vote::new(6, 5), None), None);
    }
}

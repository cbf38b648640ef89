//! What this member knows of Raft, and waiting for it to change.

use std::time::Duration;

use blixard_core::id::NodeId;
use blixard_core::time::Mono;
use openraft::metrics::RaftServerMetrics;
use openraft::{Instant as _, RaftMetrics};

use super::RaftNode;
use super::types::{LogId, Types};
use crate::handle::RaftStatus;
use crate::watch::{Closed, Receiver};

/// Tells when leader, term or membership change, or a leader is heard again. A leader that merely falls silent is no change: it
/// leaves [`RaftStatus::leader`] without notice, until an election makes another.
pub struct StatusWatch {
    node: RaftNode,
    changes: Receiver<RaftServerMetrics<Types>>,
    /// Changes when a leader is heard anew: to openraft that is no change when its term is known,
    /// as to a member that restarted.
    contacts: Receiver<Option<(NodeId, Mono)>>,
}

impl StatusWatch {
    pub(super) fn new(node: &RaftNode) -> Self {
        let contacts = node.inner.leader_contact.subscribe();
        Self { node: node.clone(), changes: node.raft().server_metrics(), contacts }
    }

    /// The status now.
    pub fn current(&self) -> RaftStatus {
        self.node.status()
    }

    /// Waits until leader, term or membership change and returns the status then. Cancel safe.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn changed(&mut self) -> Result<RaftStatus, Closed> {
        // Cancel safety: both lose nothing when dropped.
        tokio::select! {
            biased;
            changed = self.changes.changed() => changed?,
            heard = self.contacts.changed() => heard?,
        }
        Ok(self.current())
    }
}

impl RaftNode {
    /// What this member knows of Raft now.
    pub fn status(&self) -> RaftStatus {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        RaftStatus {
            leader: metrics.current_leader.map(NodeId).filter(|leader| self.hears(*leader)),
            term: metrics.current_term,
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            quorum_ack_ms_ago: metrics
                .last_quorum_acked
                .map(|acked| u64::try_from(acked.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Whether `leader`, as openraft names it, is more than a memory: with pre-vote, openraft goes on
    /// naming a leader that is gone until another is elected.
    pub(super) fn hears(&self, leader: NodeId) -> bool {
        leader == self.id()
            || self.last_leader_contact().is_some_and(|(heard, at)| {
                heard == leader && self.context().clock.now().since(at) <= self.config().election_max * 2
            })
    }
}

/// Members that have not answered this leader for `silence`; none when it does not lead.
pub(super) fn silent(metrics: &RaftMetrics<Types>, silence: Duration) -> Vec<NodeId> {
    let heard = metrics.heartbeat.iter().flatten().filter(|(id, _)| **id != metrics.id);
    let silent = heard.filter(|(_, heard)| heard.is_none_or(|heard| heard.elapsed() > silence));
    silent.map(|(id, _)| NodeId(*id)).collect()
}

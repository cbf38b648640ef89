//! What this member knows of Raft, and waiting for it to change.

use std::time::Duration;

use blixard_core::id::NodeId;
use openraft::metrics::RaftServerMetrics;
use openraft::{Instant as _, RaftMetrics};

use super::types::{Raft, Types};
use crate::handle::RaftStatus;
use crate::watch::{Closed, Receiver};

/// Tells when leader, term or membership change.
pub struct StatusWatch {
    raft: Raft,
    changes: Receiver<RaftServerMetrics<Types>>,
}

impl StatusWatch {
    pub(super) fn new(raft: &Raft) -> Self {
        Self { raft: raft.clone(), changes: raft.server_metrics() }
    }

    /// The status now.
    pub fn current(&self) -> RaftStatus {
        current(&self.raft)
    }

    /// Waits until leader, term or membership change and returns the status then. Cancel safe.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn changed(&mut self) -> Result<RaftStatus, Closed> {
        self.changes.changed().await?;
        Ok(self.current())
    }
}

/// The status now.
pub(super) fn current(raft: &Raft) -> RaftStatus {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let membership = metrics.membership_config.membership();
    let index = |id: &Option<super::types::LogId>| id.map_or(0, |id| id.index);
    RaftStatus {
        leader: metrics.current_leader.map(NodeId),
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

/// Members that have not answered this leader for `silence`; none when it does not lead.
pub(super) fn silent(metrics: &RaftMetrics<Types>, silence: Duration) -> Vec<NodeId> {
    let heard = metrics.heartbeat.iter().flatten().filter(|(id, _)| **id != metrics.id);
    let silent = heard.filter(|(_, heard)| heard.is_none_or(|heard| heard.elapsed() > silence));
    silent.map(|(id, _)| NodeId(*id)).collect()
}

//! What the HTTP API and the drivers know of their node: its state, and how to change it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::{ClusterState, Outcome, Write};
use blixard_core::id::{ClusterId, NodeId, ReplicaId, RequestId};

use crate::platform::{Duplex, LinkError, Platform, PullProgress};

/// Why a write was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The cluster could not commit it in time. Whether it was applied is unknown: repeat it with
    /// the same request id.
    #[error("{0}")]
    Unavailable(String),
}

/// What this node knows of Raft, for `cluster status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// Who leads, as far as this node knows; absent when it has not heard from a leader lately.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that follow without a vote.
    pub learners: Vec<NodeId>,
    /// The last index in this node's log.
    pub last_log: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The last index covered by a snapshot here.
    pub snapshot: u64,
    /// For how long a quorum has acknowledged this node as leader, in milliseconds ago; absent
    /// when it does not lead.
    pub quorum_ack_ms_ago: Option<u64>,
}

/// A running node, shared by whoever serves it. Cloning is cheap.
#[derive(Clone)]
pub struct NodeHandle {
    /// This member's id.
    pub id: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The seams.
    pub platform: Platform,
}

impl NodeHandle {
    /// The state as this node has applied it: perhaps old.
    pub fn state(&self) -> Arc<ClusterState> {
        unimplemented!()
    }

    /// The state, at least as new as anything acknowledged before the call. Without a quorum the
    /// error says which members are missing.
    ///
    /// # Errors
    /// When no quorum confirms within `deadline`.
    pub async fn state_latest(&self, deadline: Duration) -> Result<Arc<ClusterState>, WriteError> {
        unimplemented!("{deadline:?}")
    }

    /// Waits until this node has applied more than `applied`, at most `deadline`, and returns the
    /// state then. Cancel safe.
    pub async fn state_after(&self, applied: u64, deadline: Duration) -> Arc<ClusterState> {
        unimplemented!("{applied} {deadline:?}")
    }

    /// Has the cluster apply `write` once, forwarding it to the leader when that is another
    /// member, and waits until this node has applied it too. Returns its log index.
    ///
    /// # Errors
    /// When it could not be committed within [`blixard_core::limits::WRITE_DEADLINE`].
    pub async fn write(&self, request: RequestId, write: Write) -> Result<(u64, Outcome), WriteError> {
        unimplemented!("{request} {write:?}")
    }

    /// What this node knows of Raft.
    pub fn raft(&self) -> RaftStatus {
        unimplemented!()
    }

    /// Pulls going on at this node's agent.
    pub fn pulls(&self) -> BTreeMap<ReplicaId, PullProgress> {
        unimplemented!()
    }

    /// Opens a stream that speaks HTTP/1.1 to another member's API.
    ///
    /// # Errors
    /// When the member cannot be reached.
    pub async fn open_api(&self, node: NodeId) -> Result<Box<dyn Duplex>, LinkError> {
        unimplemented!("{node}")
    }
}

//! Members and the cluster as a whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::{Availability, NodeStatus};
use crate::id::{ClusterId, ContainerId, NodeId, NodeKey, ReplicaId};
use crate::time::UtcMs;

/// What part a member has in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It holds the full state and does not vote.
    Learner,
    /// It is admitted and not yet part of Raft.
    Joining,
}

/// A member as anybody may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerRow {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens for links.
    pub addresses: Vec<String>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its part in Raft, as the answering node knows.
    pub role: Role,
    /// What the leader believes of its health.
    pub status: NodeStatus,
    /// When that last changed.
    pub status_since: UtcMs,
    /// Whether it takes new replicas.
    pub availability: Availability,
    /// Until when its silence replaces nothing.
    pub hold_until: Option<UtcMs>,
    /// Its public key.
    #[schema(value_type = String)]
    pub key: NodeKey,
    /// Where it listens for links.
    pub addresses: Vec<String>,
    /// The network its containers get addresses from.
    pub subnet: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many of its replicas are not lost and have not ended.
    pub replicas: u32,
    /// CPU that replicas may reserve, in thousandths.
    pub cpu_millis: u64,
    /// CPU that replicas reserve, in thousandths.
    pub cpu_millis_reserved: u64,
    /// Memory that replicas may reserve, in bytes.
    pub memory_bytes: u64,
    /// Memory that replicas reserve, in bytes.
    pub memory_bytes_reserved: u64,
    /// Its architecture: `amd64`, `arm64`.
    pub arch: String,
    /// Its operating system: `linux`.
    pub os: String,
    /// Its version of blixard.
    pub version: String,
    /// When it joined.
    pub joined_at: UtcMs,
    /// What is wrong with it, in sentences: that it runs twice, or that its state differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether this is what one node last knew, for want of a quorum.
    #[serde(default)]
    pub stale: bool,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: ClusterId,
    /// The member that answers.
    pub node: NodeId,
    /// Who leads; absent when nobody does.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that hold the full state and do not vote.
    pub learners: Vec<NodeId>,
    /// How many more voters may fail at the same time before writes stop.
    pub failures_survived: u32,
    /// What that means, in a sentence.
    pub survives: String,
    /// The feature level every member knows.
    pub level: u16,
    /// The last index in the answering member's log.
    pub last_log: u64,
    /// The last index it applied.
    pub applied: u64,
    /// The last index its newest snapshot covers.
    pub snapshot: u64,
    /// How many members there are.
    pub nodes: u32,
    /// How many of them are up.
    pub nodes_up: u32,
    /// How many services there are.
    pub services: u32,
    /// How many replicas run, on nodes that are there.
    pub replicas_running: u32,
    /// How many are away with their nodes.
    #[serde(default)]
    pub replicas_lost: u32,
    /// What is wrong with members, in sentences: that one runs twice, or that its state differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether this is what one node last knew, for want of a quorum.
    #[serde(default)]
    pub stale: bool,
}

/// A container that would be better off on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveRow {
    /// The replica's number.
    pub replica: ReplicaId,
    /// The service's name and the slot: `web-0`.
    pub name: String,
    /// The container.
    pub container_id: ContainerId,
    /// Where it is.
    pub from: NodeId,
    /// Where its replacement would go.
    pub to: NodeId,
}

/// Containers told to stop by `POST /v1/node/down`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DownAnswer {
    /// The node.
    pub node: NodeId,
    /// Its containers that were told to stop.
    pub stopping: Vec<ContainerId>,
}

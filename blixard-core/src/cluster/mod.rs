//! The replicated state: what every member agrees on.
//!
//! [`ClusterState::apply`] is a function of the state and one log entry. It reads no clock, draws
//! no random number and knows nothing of the node it runs on, so every member that has applied
//! the same prefix of the log holds an equal state. It decides nothing about placement: plans
//! arrive as commands, and `apply` re-checks each of their steps by itself.
//!
//! Tables are [`imbl`] maps: a copy costs nothing, so readers hold a state for as long as they
//! like and the leader tries a plan out on a copy before it proposes it.

mod apply;
pub mod command;
pub mod event;
pub mod invariants;
pub mod node;
pub mod replica;
pub mod service;
pub mod snapshot;

use std::net::Ipv4Addr;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

pub use self::command::{Command, Entry, Outcome, Plan, PlanStep, Refusal, Write};
pub use self::event::{Event, EventId, EventKind};
pub use self::node::{Availability, Node, NodeStatus, Token};
pub use self::replica::{Desired, Phase, Replica, ReplicaStatus};
pub use self::service::{Service, ServiceVersion};
use crate::id::{ClusterId, NodeId, NodeKey, ReplicaId, RequestId, ServiceName, TokenId};
use crate::time::UtcMs;

/// Everything the members agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The index of the last applied log entry.
    pub applied: u64,
    /// Log time: the largest stamp applied so far.
    pub time: UtcMs,
    /// The cluster's identity; absent until the bootstrap entry is applied.
    pub cluster: Option<ClusterId>,
    /// The feature level every member has reported; commands above it are not proposed.
    pub level: u16,
    /// From which /24 networks are given to nodes.
    pub subnets: SubnetRange,
    /// The members.
    pub nodes: OrdMap<NodeId, Node>,
    /// Removed members' keys, so that neither id nor key comes back by accident.
    pub removed_nodes: OrdMap<NodeId, NodeKey>,
    /// The join tokens.
    pub tokens: OrdMap<TokenId, Token>,
    /// The services.
    pub services: OrdMap<ServiceName, Service>,
    /// The replicas, of all services.
    pub replicas: OrdMap<ReplicaId, Replica>,
    /// The id the next placed replica gets.
    pub next_replica: ReplicaId,
    /// What each remembered request was answered, with the log time of the answer.
    pub requests: OrdMap<RequestId, (UtcMs, Outcome)>,
    /// Remembered requests in the order of their times, for expiry.
    pub requests_by_time: OrdMap<(UtcMs, RequestId), ()>,
    /// The latest events, oldest first, at most [`crate::limits::EVENTS_MAX`].
    pub events: Vector<Event>,
}

/// The range that nodes' container networks are cut from: one /24 a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRange {
    /// The first address of the range.
    pub base: Ipv4Addr,
    /// The range's prefix length, 8 to 24.
    pub prefix: u8,
}

impl Default for SubnetRange {
    fn default() -> Self {
        Self { base: Ipv4Addr::new(10, 210, 0, 0), prefix: 16 }
    }
}

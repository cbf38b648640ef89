//! The replicated state: what every member agrees on.
//!
//! [`ClusterState::apply`] is a function of the state and one log entry. It reads no clock, draws
//! no random number and knows nothing of the node it runs on, so every member that has applied
//! the same prefix of the log holds an equal state. It decides nothing about placement: plans
//! arrive as commands, and `apply` re-checks each of their steps by itself.
//!
//! Tables are [`imbl`] maps: a copy costs nothing, so readers hold a state for as long as they
//! like and the leader tries a plan out on a copy before it proposes it.

pub mod actor;
mod apply;
pub mod command;
pub mod digests;
pub mod event;
#[cfg(test)]
mod golden;
pub mod index;
pub mod invariants;
pub mod level;
pub mod node;
#[cfg(test)]
mod properties;
pub mod replica;
pub mod service;
pub mod snapshot;
mod subnet;
mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod volume;

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

pub use self::actor::{Actor, AuditRecord, Right};
pub use self::command::{Command, Entry, Outcome, Plan, PlanStep, Refusal, Write};
pub use self::event::{Event, EventId, EventKind};
pub use self::index::Index;
pub use self::node::{Availability, Node, NodeStatus, Token};
pub use self::replica::{Desired, Phase, Replica, ReplicaStatus};
pub use self::service::{Service, ServiceVersion};
pub use self::subnet::SubnetRange;
pub use self::volume::Volume;
use crate::id::{
    ClusterId, NodeId, NodeKey, ReplicaId, RequestId, ServiceName, TokenId, VolumeId, VolumeName,
};
use crate::limits;
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
    #[serde(deserialize_with = "table::map")]
    pub nodes: OrdMap<NodeId, Node>,
    /// Removed members' keys, so that neither id nor key comes back by accident.
    #[serde(deserialize_with = "table::map")]
    pub removed_nodes: OrdMap<NodeId, NodeKey>,
    /// The join tokens.
    #[serde(deserialize_with = "table::map")]
    pub tokens: OrdMap<TokenId, Token>,
    /// The services.
    #[serde(deserialize_with = "table::map")]
    pub services: OrdMap<ServiceName, Service>,
    /// The replicas, of all services.
    #[serde(deserialize_with = "table::map")]
    pub replicas: OrdMap<ReplicaId, Replica>,
    /// The id the next placed replica gets.
    pub next_replica: ReplicaId,
    /// What each remembered request was answered, and the time it is remembered under: the later
    /// of the log time of the answer and of when the request was made.
    #[serde(deserialize_with = "table::map")]
    pub requests: OrdMap<RequestId, (UtcMs, Outcome)>,
    /// Remembered requests in the order of their times, for expiry. Rebuilt when decoded.
    #[serde(skip)]
    pub requests_by_time: OrdMap<(UtcMs, RequestId), ()>,
    /// A write made before this may have been applied and forgotten: it is refused.
    #[serde(default)]
    pub requests_from: UtcMs,
    /// The latest events, oldest first, at most [`crate::limits::EVENTS_MAX`]. Shared, as the audit's records
    /// are: the vector copies its last 64 whenever somebody holds an earlier state.
    #[serde(deserialize_with = "table::list")]
    pub events: Vector<Arc<Event>>,
    /// The latest writes and who made them, oldest first, at most [`crate::limits::AUDIT_MAX`]. Of the
    /// second feature level.
    #[serde(default, skip_serializing_if = "Vector::is_empty", deserialize_with = "table::list")]
    pub audit: Vector<Arc<AuditRecord>>,
    /// The volumes. Of the second feature level.
    #[serde(default, skip_serializing_if = "OrdMap::is_empty", deserialize_with = "table::map")]
    pub volumes: OrdMap<VolumeName, Volume>,
    /// The number the next volume gets. Of the second feature level.
    #[serde(default = "first_volume", skip_serializing_if = "is_first_volume")]
    pub next_volume: VolumeId,
    /// What the tables above say, by other keys. Rebuilt when decoded.
    #[serde(skip)]
    pub index: Index,
}

impl ClusterState {
    /// The state before the first entry: no cluster, no members.
    pub fn new() -> Self {
        Self {
            applied: 0,
            time: UtcMs(0),
            cluster: None,
            level: level::FIRST_LEVEL,
            subnets: SubnetRange::default(),
            nodes: OrdMap::new(),
            removed_nodes: OrdMap::new(),
            tokens: OrdMap::new(),
            services: OrdMap::new(),
            replicas: OrdMap::new(),
            next_replica: ReplicaId(1),
            requests: OrdMap::new(),
            requests_by_time: OrdMap::new(),
            requests_from: UtcMs(0),
            events: Vector::new(),
            audit: Vector::new(),
            volumes: OrdMap::new(),
            next_volume: first_volume(),
            index: Index::default(),
        }
    }

    /// Checks that a write may make the state larger, which takes about so many bytes encoded: one
    /// that is larger than a snapshot may be reaches no member any more that needs one.
    ///
    /// # Errors
    /// The bound, and what makes room.
    pub fn check_room(state_bytes: u64) -> Result<(), Refusal> {
        if state_bytes.saturating_add(limits::ENTRY_BYTES_MAX as u64) <= limits::SNAPSHOT_BYTES_MAX {
            return Ok(());
        }
        Err(Refusal::out_of_bounds(format!(
            "the cluster's state takes about {} MiB, at most {} MiB are held: remove services that are not needed",
            state_bytes >> 20,
            limits::SNAPSHOT_BYTES_MAX >> 20
        )))
    }

    /// What a node whose clock says `now` stamps an entry or a write with: never before log time,
    /// so that a slow clock makes no write too old.
    pub fn stamp(&self, now: UtcMs) -> UtcMs {
        now.max(self.time)
    }
}

fn first_volume() -> VolumeId {
    VolumeId(1)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_first_volume(id: &VolumeId) -> bool {
    *id == first_volume()
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new()
    }
}

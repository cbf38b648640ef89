//! Events: what happened, as `apply` saw it, for people and for `events -f`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::actor::Actor;
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::time::UtcMs;

/// Where an event stands in the cluster's history: the same on every node, so a stream that
/// breaks resumes anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct EventId {
    /// The log index of the entry that caused it.
    pub index: u64,
    /// Its number among that entry's events, from 0.
    pub n: u32,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place.
    #[schema(inline)]
    pub id: EventId,
    /// Its log time.
    pub at: UtcMs,
    /// What it was.
    pub kind: EventKind,
    /// The service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The replica it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// The node it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// One sentence for people.
    pub message: String,
    /// Who made the write that it came of. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A node was admitted.
    NodeJoined,
    /// A node's status or availability changed.
    NodeChanged,
    /// A node was removed.
    NodeRemoved,
    /// A service was created or got a new version.
    ServiceSubmitted,
    /// A service was scaled, stopped or started.
    ServiceChanged,
    /// A service was removed.
    ServiceRemoved,
    /// A replica was placed.
    ReplicaPlaced,
    /// A replica's phase, attempt or desired state changed.
    ReplicaChanged,
    /// A replica's node is down.
    ReplicaLost,
    /// A replica is gone.
    ReplicaRemoved,
    /// A slot cannot be filled, and why.
    SlotPending,
    /// A volume was made or removed, or where it is has changed. Of the second feature level.
    VolumeChanged,
}

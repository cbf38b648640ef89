//! What the HTTP API under `/v1` says: its JSON types, headers and the frames of `exec`.
//!
//! The node's handlers produce these and the command line reads them; `blixard -o json` prints
//! them as they are, so a field is never renamed or removed within `/v1`, only added. Times are
//! milliseconds since 1970-01-01T00:00:00Z, sizes are bytes. Nothing here decides anything.

pub mod discovery;
pub mod exec;
pub mod image;
pub mod node;
pub mod replica;
pub mod service;
pub mod token;
pub mod volume;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::NodeId;
use crate::time::UtcMs;

/// Names a write, 32 hexadecimal digits: a retry with the same value applies once.
pub const REQUEST_ID_HEADER: &str = "blixard-request-id";
/// When a write was first sent, as [`Health::time`] said before: log time in milliseconds. With it, a
/// retry after log time jumped ahead is refused instead of being applied a second time.
pub const MADE_AT_HEADER: &str = "blixard-made-at";
/// Says why an answer may be old; absent when it is not.
pub const STALE_HEADER: &str = "blixard-stale";
/// Says `true` when events between the position asked for and the first one sent are forgotten.
pub const GAP_HEADER: &str = "blixard-gap";
/// Which attempt's log is answered.
pub const ATTEMPT_HEADER: &str = "blixard-attempt";
/// Of which attempts of the same replica there are logs: `0,1,4`.
pub const ATTEMPTS_HEADER: &str = "blixard-attempts";
/// The protocol an `exec` connection is upgraded to: see [`exec`].
pub const EXEC_PROTOCOL: &str = "blixard-exec-1";

/// A list of things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The things, in a stable order.
    pub items: Vec<T>,
    /// Whether this is what one node last knew, for want of a quorum.
    #[serde(default)]
    pub stale: bool,
}

/// What went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What happened, to what.
    pub error: String,
    /// What to try; empty when there is nothing.
    #[serde(default, rename = "try", skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Facts behind it, one a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// The answer to a write that changed, or already had changed, the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteAnswer {
    /// The log index at which it was applied.
    pub index: u64,
    /// What the client should know although the write succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Whether a node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The node that answers.
    pub node: NodeId,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The last log index it applied.
    pub applied: u64,
    /// Its version of blixard.
    pub version: String,
    /// What it would stamp a write with now.
    #[serde(default)]
    pub time: UtcMs,
}

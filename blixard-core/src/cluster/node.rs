//! Members and the tokens that admit them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::snapshot::encoded_len;
use crate::id::NodeKey;
use crate::limits::FACTS_BYTES_MAX;
use crate::time::UtcMs;

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What a link to it authenticates.
    pub key: NodeKey,
    /// What it told of itself when it last started.
    pub facts: NodeFacts,
    /// The third octets of its container network: `a.b.c` of `a.b.c.0/24`.
    pub subnet: Ipv4Addr,
    /// What the leader believes of its health.
    pub status: NodeStatus,
    /// Whether it takes new replicas.
    pub availability: Availability,
    /// Until when, in log time, its silence replaces nothing.
    pub hold_until: Option<UtcMs>,
    /// When it joined.
    pub joined_at: UtcMs,
    /// When `status` last changed.
    pub status_since: UtcMs,
}

/// What a node tells of itself at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its name, the host's by default.
    pub name: String,
    /// Where it listens for links, most reachable first.
    pub addresses: Vec<SocketAddr>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// CPU that replicas may reserve, in thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory that replicas may reserve, in bytes.
    pub memory_bytes: u64,
    /// Go's name of the architecture: `amd64`, `arm64`.
    pub arch: String,
    /// Go's name of the operating system: `linux`.
    pub os: String,
    /// blixard's version.
    pub version: String,
    /// The highest feature level its software knows.
    pub level: u16,
    /// Ports it cannot publish because something else on the machine holds them.
    #[serde(default)]
    pub reserved_ports: Vec<u16>,
}

impl NodeFacts {
    /// Checks that this is not more than the state keeps of a node.
    ///
    /// # Errors
    /// How large it is, for people.
    pub fn check_size(&self) -> Result<(), String> {
        let bytes = encoded_len(self);
        if bytes <= FACTS_BYTES_MAX {
            return Ok(());
        }
        Err(format!(
            "what the node tells of itself takes {bytes} bytes, at most {FACTS_BYTES_MAX} are kept: give it fewer or shorter labels (--label) and addresses (--advertise)"
        ))
    }
}

/// What the leader believes of a node's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Heartbeats arrive.
    Up,
    /// Heartbeats stopped a moment ago: no new work, nothing moves yet.
    Unknown,
    /// Heartbeats stopped for long: its replicas are replaced.
    Down,
}

/// Whether a node takes new replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It does.
    Active,
    /// It does not, and those it has move elsewhere.
    Draining,
    /// It does not, those it has move elsewhere, and then it is removed.
    Leaving,
}

/// A join token: only a hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// What it admits to.
    pub scope: TokenScope,
    /// Refused from this log time on; absent means never.
    pub expires_at: Option<UtcMs>,
    /// How many more times it can be used; absent means without end.
    pub uses_left: Option<u32>,
    /// With what the names of the services begin that it is for; absent means all. Of the second feature
    /// level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

/// What a token admits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// Joining the cluster as a member.
    Join,
    /// Everything over the HTTP API's TCP listener, as [`TokenScope::Admin`]: what the first feature level
    /// has.
    Api,
    /// Seeing everything but tokens. Of the second feature level.
    Read,
    /// That, and changing services. Of the second feature level.
    Write,
    /// That, and changing members and tokens. Of the second feature level.
    Admin,
}

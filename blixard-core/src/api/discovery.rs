//! What a node knows of others: its sources and what they said, and its links.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{ClusterId, NodeId, NodeKey};
use crate::time::UtcMs;

/// Somebody a source names or led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContactView {
    /// The key.
    #[schema(value_type = String)]
    pub key: NodeKey,
    /// The number, as the source says.
    pub node: Option<NodeId>,
    /// The cluster, as the source says.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterId>,
    /// Where it may be.
    pub addresses: Vec<String>,
    /// Whether a person set up the key; else it was only found, and is believed nothing.
    pub named: bool,
    /// Which member of this cluster has the key.
    pub member: Option<NodeId>,
}

/// A source of members, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceView {
    /// The source, without what may be secret in it.
    pub name: String,
    /// When it was looked at last, by the node's clock.
    pub looked_at: Option<UtcMs>,
    /// Why it could not be used then.
    pub problem: Option<String>,
    /// How often it failed since it last answered.
    pub failures: u32,
    /// Whom it names.
    pub contacts: Vec<ContactView>,
}

/// What a node knows by its sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscoveryView {
    /// The node that answers.
    pub node: NodeId,
    /// Its cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Its sources.
    pub sources: Vec<SourceView>,
}

/// How a link to a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// It is up.
    Connected,
    /// It is being made: the circuit is closed.
    Connecting,
    /// Dialling failed several times: whoever asks is told so at once, until the next dial.
    Open,
    /// A dial is due that decides whether the circuit closes again.
    HalfOpen,
}

/// The link to another member, as the answering node has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkView {
    /// The member's number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its key.
    #[schema(value_type = String)]
    pub key: NodeKey,
    /// How the link is.
    pub state: LinkState,
    /// Where the other end is.
    pub address: Option<String>,
    /// The round trip, in microseconds.
    pub rtt_us: Option<u64>,
    /// Failed dials in a row.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Where it may be, the newest first.
    pub addresses: Vec<String>,
    /// Sources that name it.
    pub sources: Vec<String>,
}

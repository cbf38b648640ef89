//! What members say to each other. Messages are encoded like log entries: MessagePack with named
//! fields (docs/adr), so a field that one side does not know is skipped or defaulted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::digests::{Agreed, Difference, StateDigest};
use crate::cluster::node::NodeFacts;
use crate::cluster::snapshot;
use crate::cluster::volume::{VolumeStatus, VolumeVersion};
use crate::cluster::{Actor, Outcome, ReplicaStatus, Write};
use crate::discovery::copies::Twice;
use crate::id::{ClusterId, NodeId, NodeKey, ReplicaId, RequestId, TokenId, VolumeId, VolumeRoot};
use crate::time::UtcMs;

/// The version of this protocol; part of the link's ALPN, so different ones never meet.
pub const PROTOCOL_VERSION: u16 = 1;

/// What a message is about; the receiver dispatches on it. One byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Raft's vote, pre-vote, append and transfer messages.
    Raft = 1,
    /// A snapshot, as a stream.
    Snapshot = 2,
    /// An agent's heartbeat to the leader.
    Heartbeat = 3,
    /// A write forwarded to the leader.
    Forward = 4,
    /// An HTTP request for another node's API: logs, exec, inspect. A stream of HTTP/1.1.
    Api = 5,
    /// An image, as a stream of an OCI archive.
    Image = 6,
    /// A question of someone who is not a member: join. The only one a stranger may send.
    Join = 7,
    /// Addresses of members, exchanged when a link is made.
    Addresses = 8,
    /// A member's notice to the leader that its daemon stops for a while.
    Hold = 9,
    /// A version of a volume, as a stream. Of the second feature level.
    Volume = 10,
    /// A connection to a published port, as a stream of its bytes.
    Route = 11,
    /// The state at an index, as a stream, for a member whose own differs.
    State = 12,
}

impl Channel {
    /// Every channel, in the order of their bytes.
    pub const ALL: [Self; 12] = [
        Self::Raft,
        Self::Snapshot,
        Self::Heartbeat,
        Self::Forward,
        Self::Api,
        Self::Image,
        Self::Join,
        Self::Addresses,
        Self::Hold,
        Self::Volume,
        Self::Route,
        Self::State,
    ];

    /// The channel a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| *channel as u8 == byte)
    }
}

/// Someone to link to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its key.
    pub key: NodeKey,
    /// Where it may be reached, most likely first.
    pub addresses: Vec<SocketAddr>,
    /// Its relay, when it has one.
    #[serde(default)]
    pub relay_url: Option<String>,
}

/// Which container a connection is for. The answer is one byte, 1 when it took it; then follow the bytes of
/// the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRequest {
    /// The replica.
    pub replica: ReplicaId,
    /// A published port of it, inside the container.
    pub container_port: u16,
}

/// A stranger's wish to become a member, or a member's to be told its id again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The cluster the ticket or registry file named; absent when it named none.
    pub cluster: Option<ClusterId>,
    /// The id asked for.
    pub node: Option<NodeId>,
    /// The token's public half.
    pub token: TokenId,
    /// The token's secret half, in hexadecimal; empty with a proof.
    pub secret: String,
    /// To a member that was only found: that the token is known, in hexadecimal
    /// ([`crate::discovery::proof`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// What the joiner tells of itself.
    pub facts: NodeFacts,
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum JoinResponse {
    /// Admitted: Raft will reach out to it.
    Admitted {
        /// Its id.
        node: NodeId,
        /// The cluster.
        cluster: ClusterId,
        /// The members to link to.
        peers: BTreeMap<NodeId, Peer>,
        /// To who showed a proof: that this member knows the token as well, in hexadecimal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
    },
    /// Ask this member instead: it leads.
    Redirect {
        /// The leader.
        leader: Peer,
    },
    /// No leader now; ask again.
    Unavailable {
        /// Why, for people.
        message: String,
    },
    /// Refused for good: this key was a member's that was removed.
    Removed {
        /// Which, for people.
        message: String,
    },
    /// Refused for good.
    Refused {
        /// Why, for people.
        message: String,
    },
}

/// An agent's sign of life to the leader; the answer is [`HeartbeatAck`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Drawn anew at each start of the daemon; the facts below are of that start.
    pub boot: u64,
    /// What it tells of itself.
    pub facts: NodeFacts,
    /// Statuses the leader has not acknowledged, or all of them after a leader change.
    #[serde(default)]
    pub statuses: BTreeMap<ReplicaId, ReplicaStatus>,
    /// Counts the sender's reports; the ack names the one it covers.
    pub generation: u64,
    /// What the sender holds of volumes, where that is to be told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<VolumeId, VolumeStatus>,
    /// Nodes that run twice, as the sender sees itself. Heeded where there are no statuses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub twice: BTreeMap<NodeId, Twice>,
    /// The newest digests of the sender's state. Heeded where there are no statuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<StateDigest>,
}

/// The leader's answer to a [`Heartbeat`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The leader's term: a sender that sees a new one reports in full.
    pub term: u64,
    /// The generation whose statuses are now in the log.
    pub generation: u64,
    /// Nodes that run twice, as the leader sees and as members told it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub twice: BTreeMap<NodeId, Twice>,
    /// The newest digest of the state that a majority agrees on, as far as the leader was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Agreed>,
    /// Members whose states differ.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub differing: BTreeMap<NodeId, Difference>,
}

/// A question for the state that has this digest, on [`Channel::State`]. The answer is one byte 1, eight
/// of length, big-endian, and the encoded state; or one byte 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRequest {
    /// Which.
    pub digest: StateDigest,
}

/// A write forwarded to the leader, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// The client's name for it.
    pub request: RequestId,
    /// When it was made.
    pub made_at: UtcMs,
    /// What it asks for.
    pub write: Write,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
}

/// The leader's answer to a [`ForwardRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ForwardResponse {
    /// Applied at this index, with this outcome.
    Applied {
        /// The log index: the forwarder waits for its own apply to reach it.
        index: u64,
        /// The outcome.
        outcome: Outcome,
    },
    /// This member does not lead; perhaps that one does.
    NotLeader {
        /// Who is thought to lead.
        leader: Option<NodeId>,
    },
    /// It leads but could not commit in time.
    Unavailable {
        /// Why, for people.
        message: String,
    },
}

/// A member's notice that its daemon stops for a while: nothing of it is to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// Until when, in log time; 0 when it is back already.
    pub until: UtcMs,
}

/// An image one member asks another for, or asks another to fetch from itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// The reference.
    pub reference: String,
    /// The digest it must have, when known.
    #[serde(default)]
    pub digest: Option<String>,
}

/// What a member that follows a volume asks its primary for: the newest version. The stream begins with it;
/// the primary answers a [`VolumeAnswer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Which.
    pub volume: VolumeId,
    /// Its epoch, as the asker knows it.
    pub epoch: u64,
    /// What the asker holds: the root of its tree.
    pub base: VolumeRoot,
}

/// The answer to a [`VolumeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeAnswer {
    /// That tree is not known: the index of it is to follow.
    NeedsIndex,
    /// Steps follow that make this version of it.
    Version(VolumeVersion),
    /// Not now, and why.
    Refused(String),
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message this version understands: {0}")]
pub struct WireError(String);

/// Encodes a peer message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("messages hold only what MessagePack can")
}

/// Decodes a peer message.
///
/// # Errors
/// When the bytes are cut short, of another shape, followed by others, or nest deeper than any message
/// does: what a stranger sends must not exhaust the stack, which ends the whole process.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    snapshot::decode_exactly(bytes).map_err(WireError)
}

#[cfg(test)]
mod tests {
    use super::{HoldRequest, JoinResponse, decode, encode};
    use crate::time::UtcMs;

    #[test]
    fn a_message_ends_where_its_bytes_do() {
        let hold = HoldRequest { until: UtcMs(7) };
        let bytes = encode(&hold);
        assert_eq!(decode::<HoldRequest>(&bytes), Ok(hold));
        for more in [&b"\0"[..], b"\xc0", &bytes] {
            let error = decode::<HoldRequest>(&[&bytes, more].concat()).expect_err("something follows");
            assert!(error.to_string().contains("something follows its end"), "{error}");
        }
        let error = decode::<HoldRequest>(&bytes[..bytes.len() - 1]).expect_err("it is cut short");
        assert!(!error.to_string().contains("follows"), "{error}");
    }

    #[test]
    fn a_message_is_refused_in_one_short_line_whatever_it_says() {
        let variant = format!("\u{1b}[31m\n{}", "x".repeat(100_000));
        let error =
            decode::<JoinResponse>(&encode(&variant)).expect_err("there is no such answer").to_string();
        assert!(error.contains("`\\x1b[31m\\nxxx") && error.len() < 2_000, "{error}");
    }
}

//! What the log holds: entries of commands, and what applying them answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::SubnetRange;
use super::actor::Actor;
use super::level::FIRST_LEVEL;
use super::node::{Availability, NodeFacts, NodeStatus, Token};
use super::replica::{Desired, ReplicaStatus};
use super::volume::VolumeStatus;
use crate::id::{
    ClusterId, NodeId, NodeKey, ReplicaId, RequestId, ServiceName, TokenId, VolumeId, VolumeName,
};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// The format of encoded entries and snapshots. A reader refuses another.
pub const FORMAT: u16 = 1;

/// One log entry: commands applied together, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// How it is encoded: [`FORMAT`].
    pub format: u16,
    /// The feature level a member must know to apply it; a lower one halts.
    pub level: u16,
    /// The leader's clock when it proposed it.
    pub at: UtcMs,
    /// What to do.
    pub commands: Vec<Command>,
}

impl Entry {
    /// An entry of `commands`, at the lowest feature level that knows them all.
    pub fn new(at: UtcMs, commands: Vec<Command>) -> Self {
        let level = commands.iter().map(Command::level).max().unwrap_or(FIRST_LEVEL);
        Self { format: FORMAT, level, at, commands }
    }
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Makes the cluster: its identity, its first member and that member's join token.
    Bootstrap {
        /// The cluster's identity.
        cluster: ClusterId,
        /// Where container networks are cut from.
        subnets: SubnetRange,
        /// The first member's id.
        node: NodeId,
        /// The first member's key.
        key: NodeKey,
        /// The first member's facts.
        facts: NodeFacts,
        /// The first join token.
        token: (TokenId, Token),
    },
    /// Admits a member, or answers again for one admitted before with the same key.
    Join {
        /// The id it asks for; absent: the lowest never used.
        node: Option<NodeId>,
        /// Its key.
        key: NodeKey,
        /// Its facts.
        facts: NodeFacts,
        /// The token it presented.
        token: TokenId,
        /// SHA-256 of the secret it presented.
        secret_sha256: [u8; 32],
    },
    /// Records what a member tells of itself at a start.
    Facts {
        /// The member.
        node: NodeId,
        /// What it tells.
        facts: NodeFacts,
    },
    /// Records a member's changed addresses.
    Addresses {
        /// The member.
        node: NodeId,
        /// Where it listens now.
        addresses: Vec<SocketAddr>,
    },
    /// Records what the leader believes of a member's health.
    Health {
        /// The member.
        node: NodeId,
        /// The belief.
        status: NodeStatus,
    },
    /// Announces a planned stop: until then the member's silence replaces nothing.
    Hold {
        /// The member.
        node: NodeId,
        /// Until when, in log time; absent lifts the hold.
        until: Option<UtcMs>,
    },
    /// A client's write, applied once for each request id.
    Write {
        /// The client's name for it.
        request: RequestId,
        /// When the client made it, by the clock of the node that took it.
        made_at: UtcMs,
        /// What it asks for.
        write: Write,
        /// Who made it; absent: the leader by itself, or software of the first feature level.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Actor>,
    },
    /// What an agent saw of its own replicas.
    Report {
        /// The agent's node.
        node: NodeId,
        /// Their statuses.
        statuses: BTreeMap<ReplicaId, ReplicaStatus>,
    },
    /// What the leader plans.
    Plan(Plan),
    /// What a node holds of volumes. Of the second feature level.
    Volumes {
        /// The node.
        node: NodeId,
        /// Of each that it tells of.
        statuses: BTreeMap<VolumeId, VolumeStatus>,
    },
    /// Raises the feature level, once every member knows it.
    Level {
        /// The new level.
        level: u16,
    },
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// Creates a service or gives it a new version.
    Submit {
        /// What is asked for.
        spec: Arc<ServiceSpec>,
        /// Where it was submitted: the node its host volumes are on.
        origin: NodeId,
    },
    /// Sets how many replicas are desired.
    Scale {
        /// The service.
        service: ServiceName,
        /// The number, within the bounds.
        replicas: u32,
    },
    /// Stops every replica and keeps the service.
    Stop {
        /// The service.
        service: ServiceName,
        /// How long each may take to end, in seconds, also where it stops already; absent: its
        /// version's `stop_timeout`. Of the second feature level.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u32>,
    },
    /// Runs a stopped service again.
    Start {
        /// The service.
        service: ServiceName,
    },
    /// Removes a service and its replicas.
    Remove {
        /// The service.
        service: ServiceName,
    },
    /// Gives a service a new version that asks for what an earlier one did, but for the bounds of
    /// replicas, which stay as they are.
    Rollback {
        /// The service.
        service: ServiceName,
        /// The version whose specification is taken up again; absent: the newest before the current
        /// one that was proven ([`super::Service::previous`]).
        version: Option<u64>,
    },
    /// Replaces one replica: it stops, and the leader fills its slot anew.
    StopReplica {
        /// The replica.
        replica: ReplicaId,
        /// As [`Write::Stop`]'s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u32>,
    },
    /// Replaces one replica while it runs on: it is superseded, and stops once the leader has filled
    /// its slot anew and that one runs. Of the second feature level.
    Replace {
        /// The replica.
        replica: ReplicaId,
    },
    /// Changes whether a node takes replicas.
    SetAvailability {
        /// The node.
        node: NodeId,
        /// The new setting.
        availability: Availability,
    },
    /// Has a node take no replicas, and stops those it has without waiting for their replacements. Of the
    /// second feature level.
    StopNode {
        /// The node.
        node: NodeId,
    },
    /// Removes a member for good; its replicas are gone with it.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Also when it is up or still holds replicas.
        force: bool,
    },
    /// Adds a token.
    AddToken {
        /// Its public half.
        id: TokenId,
        /// Its hash, scope and bounds.
        token: Token,
    },
    /// Revokes a token.
    RemoveToken {
        /// Its public half.
        id: TokenId,
    },
    /// Removes a volume and every copy of it. Of the second feature level.
    RemoveVolume {
        /// Which.
        volume: VolumeName,
    },
}

/// What the leader wants changed, made from the state at one index.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The changes, in order. Each is re-checked when applied and dropped when it no longer holds.
    pub steps: Vec<PlanStep>,
}

/// One planned change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PlanStep {
    /// Makes a replica in a slot. Refused when the slot already holds a counting replica, the
    /// version is not current, the node is not active and up, the resources do not fit, or the
    /// port is another service's.
    Place {
        /// Whose replica.
        service: ServiceName,
        /// Which slot.
        slot: u32,
        /// Which version.
        version: u64,
        /// Where.
        node: NodeId,
        /// Which replica must be gone before it starts.
        after: Option<ReplicaId>,
    },
    /// Makes a replica of a version older than the current one, as [`PlanStep::Place`] does of the
    /// current one: what is lost while the current version is not proven is replaced by what was.
    PlaceOlder {
        /// Whose replica.
        service: ServiceName,
        /// Which slot.
        slot: u32,
        /// Which version.
        version: u64,
        /// Where.
        node: NodeId,
        /// Which replica must be gone before it starts.
        after: Option<ReplicaId>,
    },
    /// Changes whether a replica should run; only downwards.
    SetDesired {
        /// The replica.
        replica: ReplicaId,
        /// The new setting.
        desired: Desired,
    },
    /// Records that a replica's node is Down, or (`false`) that it returned in time.
    SetLost {
        /// The replica.
        replica: ReplicaId,
        /// Whether it is lost.
        lost: bool,
    },
    /// Forgets a replica whose row needs no agent any more.
    Forget {
        /// The replica.
        replica: ReplicaId,
    },
    /// Records a failure of a slot, or (`failures` 0) forgives it.
    Backoff {
        /// Whose slot.
        service: ServiceName,
        /// Which slot.
        slot: u32,
        /// Failures in a row.
        failures: u32,
        /// Not placed again before this log time.
        not_before: UtcMs,
    },
    /// Records why a slot is empty or its replica cannot be replaced, or (absent) that it is as it
    /// should be.
    Pending {
        /// Whose slot.
        service: ServiceName,
        /// Which slot.
        slot: u32,
        /// Why, for people.
        reason: Option<String>,
    },
    /// Forgets a service that was removed and has no replica left.
    ForgetService {
        /// The service.
        service: ServiceName,
    },
    /// Has a node hold a copy of a volume.
    AddVolumeCopy {
        /// Which.
        volume: VolumeName,
        /// Where.
        node: NodeId,
    },
    /// Makes a node's copy the primary one, where the primary is lost. Refused when another holds more.
    PromoteVolume {
        /// Which.
        volume: VolumeName,
        /// Where.
        node: NodeId,
    },
}

/// What one command answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; nothing more to say.
    Done,
    /// A service now has this version. `changed` is false when the submission equalled it.
    Service {
        /// The current version.
        version: u64,
        /// Whether it is new.
        changed: bool,
    },
    /// A member is admitted under this id.
    Joined {
        /// Its id.
        node: NodeId,
        /// The cluster it belongs to.
        cluster: ClusterId,
    },
    /// A plan was applied, but for these steps (by position), which no longer held.
    Planned {
        /// Positions of dropped steps and why each was.
        dropped: Vec<(u32, String)>,
    },
    /// Refused; nothing changed.
    Refused(Refusal),
}

/// Why a command was refused. Each says what, where and what to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is no such service, replica, node or token.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// `service`, `replica`, `node`, `token`.
        what: String,
        /// What was asked for.
        name: String,
    },
    /// The request conflicts with the state as it is.
    #[error("{message}")]
    Conflict {
        /// What conflicts, with what, and what to try.
        message: String,
    },
    /// The request is out of bounds.
    #[error("{message}")]
    OutOfBounds {
        /// Which bound, and what it is.
        message: String,
    },
    /// A token, key or id does not admit.
    #[error("{message}")]
    Denied {
        /// Why.
        message: String,
    },
    /// The request is older than the memory of requests: whether it was applied is unknown.
    #[error(
        "the request is too old to be told from one already applied: check its effect, then make a new one"
    )]
    TooOld,
}

impl Refusal {
    /// Its texts, which may quote what was asked for.
    pub(super) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let texts = match self {
            Self::NotFound { what, name } => [Some(what), Some(name)],
            Self::Conflict { message } | Self::OutOfBounds { message } | Self::Denied { message } => {
                [Some(message), None]
            }
            Self::TooOld => [None, None],
        };
        texts.into_iter().flatten()
    }

    pub(super) fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::NotFound { what: what.to_owned(), name: name.to_string() }
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }

    pub(super) fn out_of_bounds(message: impl Into<String>) -> Self {
        Self::OutOfBounds { message: message.into() }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::Denied { message: message.into() }
    }
}

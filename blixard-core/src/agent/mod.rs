//! What one node does about the replicas that are its own.
//!
//! [`Agent::step`] takes what happened and says what to do next. It acts on nothing itself: the
//! driver in `blixard-node` runs the actions against containers, images and networks and feeds
//! their results back as events. Events are hints; [`Event::Assigned`] and [`Event::Listed`] are
//! the truth, and either alone is enough to converge.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::ReplicaStatus;
use crate::cluster::replica::Desired;
use crate::id::{ContainerId, ReplicaId};
use crate::spec::ServiceSpec;
use crate::time::{Mono, UtcMs};

/// A replica of this node, as the replicated state has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// What it runs.
    pub spec: Arc<ServiceSpec>,
    /// Its slot.
    pub slot: u32,
    /// The service's version it runs.
    pub version: u64,
    /// Whether it should run.
    pub desired: Desired,
    /// Whether a replica that must be gone first still is not.
    pub blocked: Option<String>,
    /// What the state has of its status: where a restarted agent goes on from.
    pub status: ReplicaStatus,
}

/// A container of this node, as its runtime has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Whose container.
    pub replica: ReplicaId,
    /// Which attempt.
    pub attempt: u32,
    /// Whether its process runs, or with which code it ended.
    pub state: ObservedState,
    /// Its address on the container network, when it has one.
    pub address: Option<Ipv4Addr>,
}

/// Whether a container's process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObservedState {
    /// It runs.
    Running,
    /// It ended with this code; 137 when nothing of the process is left to ask.
    Exited(u32),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The whole set of this node's replicas, by the replicated state.
    Assigned(BTreeMap<ReplicaId, Assignment>),
    /// The whole set of this node's containers, by the runtime: after a start, or after the
    /// runtime was away.
    Listed(Vec<Observed>),
    /// An image is here.
    ImageReady {
        /// For which replica.
        replica: ReplicaId,
    },
    /// An image could not be fetched.
    ImageFailed {
        /// For which replica.
        replica: ReplicaId,
        /// Why, for people.
        error: String,
    },
    /// A container runs.
    Started {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Its address.
        address: Option<Ipv4Addr>,
    },
    /// A container could not be created or started; nothing of it is left.
    StartFailed {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Why, for people.
        error: String,
    },
    /// A container's process ended.
    Exited {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// With which code.
        code: u32,
    },
    /// Everything of a container was removed.
    Removed {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
    },
    /// A stop or removal failed; it is tried again after a back-off.
    RemoveFailed {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Why, for people.
        error: String,
    },
    /// A probe's result.
    Probed {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Whether it passed.
        healthy: bool,
    },
    /// Time passed: the deadline of the last [`Action::WakeAt`], or earlier.
    Tick,
}

/// Something to do. The driver runs each to its end and reports it as an [`Event`].
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Fetch an image. Answers `ImageReady` or `ImageFailed`.
    Pull {
        /// For which replica.
        replica: ReplicaId,
        /// What it runs.
        spec: Arc<ServiceSpec>,
    },
    /// Create and start a container. Answers `Started` or `StartFailed`, later `Exited`.
    Start {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Its slot.
        slot: u32,
        /// What it runs.
        spec: Arc<ServiceSpec>,
    },
    /// Stop a container gracefully and remove everything of it. Answers `Removed` or
    /// `RemoveFailed`.
    Remove {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// How long it has before SIGKILL.
        timeout: Duration,
    },
    /// Probe a container once. Answers `Probed`.
    Probe {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Where.
        address: Ipv4Addr,
        /// What it runs: its health check and ports.
        spec: Arc<ServiceSpec>,
    },
    /// Tell the cluster of a replica's status.
    Report {
        /// Whose.
        replica: ReplicaId,
        /// What to tell.
        status: ReplicaStatus,
    },
    /// Send [`Event::Tick`] at this time; replaces an earlier wish.
    WakeAt(Mono),
}

/// The container of a replica's attempt.
pub fn container_id(cluster: crate::id::ClusterId, replica: ReplicaId, attempt: u32) -> ContainerId {
    ContainerId::new(cluster, replica, attempt)
}

/// One node's agent: what it knows of its replicas, and what it waits for.
#[derive(Debug, Default)]
pub struct Agent {}

impl Agent {
    /// Takes in `event` and appends what to do about it to `actions`.
    ///
    /// `now` is the node's monotonic clock and drives every back-off; `utc` is only shown.
    pub fn step(&mut self, now: Mono, utc: UtcMs, event: Event, actions: &mut Vec<Action>) {
        unimplemented!("{now:?} {utc:?} {event:?} {actions:?}")
    }
}

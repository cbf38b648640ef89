//! What one node does about the replicas that are its own.
//!
//! [`Agent::step`] takes what happened and says what to do next. It acts on nothing itself: the
//! driver in `blixard-node` runs the actions against containers, images and networks and feeds
//! their results back as events. Events are hints; [`Event::Assigned`] and [`Event::Listed`] are
//! the truth, and either alone is enough to converge.
//!
//! The agent is inert until it has seen both once: without the list it would start what already
//! runs, without the assignments it would remove what should run. It never starts a replica while
//! a container of the replica's earlier attempts is left, never has two actions on containers of
//! one replica under way, and repeats nothing that failed without a back-off.

mod assignments;
mod backoff;
mod health;
mod ready;
mod replica;
mod step;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

pub use self::assignments::assignments;
pub use self::health::probe_port;
pub use self::ready::Ready;
use self::replica::Replica;
use crate::cluster::ReplicaStatus;
use crate::cluster::replica::Desired;
use crate::id::{ContainerId, ReplicaId, VolumeId, VolumeName};
use crate::spec::ServiceSpec;
use crate::time::Mono;

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
    /// How long its process may take to end once it was asked to, in seconds.
    pub stop_timeout_s: u32,
    /// Whether a replica that must be gone first still is not, or a volume is elsewhere.
    pub blocked: Option<String>,
    /// The volumes that it mounts.
    pub volumes: BTreeMap<VolumeName, MountedVolume>,
    /// What the state has of its status: where a restarted agent goes on from.
    pub status: ReplicaStatus,
}

/// A volume that a replica mounts, whose primary copy is on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountedVolume {
    /// Which.
    pub id: VolumeId,
    /// The epoch since which its primary copy is here.
    pub epoch: u64,
    /// Whether nothing of it was published yet: only then does it begin empty.
    pub fresh: bool,
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
    /// Whether it ended after the kernel killed its process, or another one in it, for want of memory.
    pub oom_killed: bool,
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
    /// The whole set of this node's replicas, by the replicated state. Never from a state older
    /// than what was committed when the node started: containers without a row are removed.
    Assigned(BTreeMap<ReplicaId, Assignment>),
    /// The whole set of this node's containers, by the runtime: after a start, or after the
    /// runtime was away. Answers that arrived after the list was asked for must be fed after it.
    Listed(Vec<Observed>),
    /// What was to be prepared is here.
    Prepared {
        /// For which replica.
        replica: ReplicaId,
    },
    /// It could not be had.
    PrepareFailed {
        /// For which replica.
        replica: ReplicaId,
        /// Why, for people.
        error: String,
    },
    /// An image got a name on this node, from wherever.
    ImageNamed,
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
        /// Whether the kernel killed it, or another process in the container, for want of memory before.
        oom_killed: bool,
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
        /// Why it failed, for people; absent when it passed.
        failed: Option<String>,
    },
    /// The statuses of all replicas are wanted again, as after a leader change.
    ReportAll,
    /// Time passed: the deadline of the last [`Action::WakeAt`], or earlier.
    Tick,
}

/// Something to do. The driver runs each to its end and reports it as an [`Event`].
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make sure that what a container needs is here, fetching it when it is not. Answers `Prepared` or
    /// `PrepareFailed`, for every replica that waits for the same.
    Prepare {
        /// For which replica.
        replica: ReplicaId,
        /// What.
        need: Prerequisite,
    },
    /// Create and start a container. Answers `Started` or `StartFailed`, later `Exited`.
    Start {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// Its slot.
        slot: u32,
        /// The service's version it runs.
        version: u64,
        /// What it runs.
        spec: Arc<ServiceSpec>,
        /// The volumes that it mounts.
        volumes: BTreeMap<VolumeName, VolumeId>,
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
    /// Kill the process of a container that is being removed: its time was cut short. Answers nothing,
    /// since the removal does.
    Kill {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
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
    /// Make published ports lead to these and to nobody else; replaces an earlier wish. To be done
    /// before the reports and removals that follow it begin, and again while it fails: what a report
    /// says of a replica, and what its removal takes away, clients are to have noticed by then.
    Publish(Ready),
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

/// Something that must be here before a replica's container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prerequisite {
    /// An image.
    Image {
        /// Its reference.
        reference: String,
        /// Its digest, when resolved.
        digest: Option<String>,
    },
    /// The primary copy of a volume, to be written to.
    Volume {
        /// Its name, for people.
        name: VolumeName,
        /// Which, and since when.
        volume: MountedVolume,
    },
}

/// One node's agent: what it knows of its replicas, and what it waits for.
#[derive(Debug, Default)]
pub struct Agent {
    replicas: BTreeMap<ReplicaId, Replica>,
    /// What is being prepared, by the replica whose [`Action::Prepare`] does it.
    preparing: BTreeMap<ReplicaId, Prerequisite>,
    /// The last [`Action::Publish`].
    published: Option<Ready>,
    assigned: bool,
    listed: bool,
    /// The last [`Action::WakeAt`], until it has passed.
    wake: Option<Mono>,
}

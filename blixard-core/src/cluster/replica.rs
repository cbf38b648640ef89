//! Replicas: instances of services on nodes.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::time::UtcMs;

/// One instance of a service. Its node never changes; `(attempt, phase)` never goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// Whose instance it is.
    pub service: ServiceName,
    /// Its stable number within the service, from 0.
    pub slot: u32,
    /// Which version of the service it runs.
    pub version: u64,
    /// Where it runs.
    pub node: NodeId,
    /// Whether it should run.
    pub desired: Desired,
    /// How long its process may take to end, in seconds, where that is not its version's
    /// `stop_timeout`. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_s: Option<u32>,
    /// Since when, in log time, its node has been Down; a replacement may exist.
    pub lost_since: Option<UtcMs>,
    /// The replica that must be gone before this one starts: the same slot's last writer.
    pub after: Option<ReplicaId>,
    /// What its agent last reported.
    pub status: ReplicaStatus,
    /// When it was placed.
    pub created_at: UtcMs,
}

impl Replica {
    /// Whether it ended for good, well or not, and nothing starts it again by itself.
    pub fn is_over(&self) -> bool {
        match self.status.phase {
            Phase::Completed => true,
            Phase::Failed => self.status.left,
            _ => false,
        }
    }

    /// Whether it counts against its service's bounds: it should run and is not lost.
    pub fn counts(&self) -> bool {
        self.desired == Desired::Run && self.lost_since.is_none()
    }
}

/// Whether a replica should run. Only moves down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// It should.
    Run,
    /// It is superseded: it runs on until its replacement does, and counts for nothing.
    Retire,
    /// It should stop and disappear.
    Stop,
}

/// What an agent knows of a replica of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaStatus {
    /// How often its container was started again in place; names the container.
    pub attempt: u32,
    /// How far the attempt is.
    pub phase: Phase,
    /// Whether its probe passes; absent without a probe or before the first result.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// Its address on the container network.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// The code the container's process ended with.
    #[serde(default)]
    pub exit_code: Option<u32>,
    /// Whether the kernel killed the container's process for want of memory. Kept from feature level 2 on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// What is being waited for, or what went wrong, for people.
    #[serde(default)]
    pub message: String,
    /// When the phase began, by the node's own UTC clock: for display.
    #[serde(default)]
    pub since: UtcMs,
    /// Whether it has been ready for its `min_healthy_time` at a stretch since it was placed. Once
    /// it is, it stays so. Of the second feature level.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proven: bool,
    /// Whether its restart policy leaves it as it ended: its slot is not filled anew. Of the second
    /// feature level.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

impl ReplicaStatus {
    /// The status of a replica just placed.
    pub fn assigned() -> Self {
        Self {
            attempt: 0,
            phase: Phase::Assigned,
            healthy: None,
            address: None,
            exit_code: None,
            oom_killed: false,
            message: String::new(),
            since: UtcMs(0),
            proven: false,
            left: false,
        }
    }
}

/// How the message of a replica begins whose image could not be fetched.
pub const PULL_FAILED: &str = "pull failed: ";
/// How the message of a replica begins whose container could not be started.
pub const START_FAILED: &str = "start failed";

/// The code of a process that SIGKILL ended.
const KILLED: u32 = 137;

/// Whether a container's own process, which ended with `code`, was killed for want of memory; `in_it`
/// says whether any process in the container was.
pub fn is_oom_killed(code: Option<u32>, in_it: bool) -> bool {
    in_it && code == Some(KILLED)
}

/// How a container's process ended that ended with `code` after the kernel killed it, or another process
/// in the container, for want of memory, under a limit of `limit_bytes`.
pub fn out_of_memory(code: u32, limit_bytes: Option<u64>) -> String {
    let limit = limit_bytes.map(|bytes| match bytes % (1 << 20) {
        0 => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} bytes"),
    });
    match (is_oom_killed(Some(code), true), limit) {
        (true, Some(limit)) => format!("out of memory: killed at its memory limit of {limit}"),
        (true, None) => "out of memory: killed by the kernel, without a memory limit of its own".to_owned(),
        (false, limit) => {
            let limit =
                limit.map_or_else(|| "no limit of its own".to_owned(), |limit| format!("limit {limit}"));
            format!("exited with code {code} after a process in it was killed for memory ({limit})")
        }
    }
}

/// How far a replica's attempt is. Within an attempt it only moves down this list; a new attempt
/// starts again at `Starting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Placed; its agent has not begun.
    Assigned,
    /// Its image is being fetched.
    Pulling,
    /// Its container is being created and started.
    Starting,
    /// Its container's process runs.
    Running,
    /// Its process was told to end.
    Stopping,
    /// Its process ended and will be started again after a back-off.
    Waiting,
    /// Its process ended with code 0 under a policy that does not start it again.
    Completed,
    /// It ended or could not start, and its agent will not try again: the slot is replaced.
    Failed,
    /// Nothing of it is left on its node: the row goes.
    Gone,
}

impl Phase {
    /// Whether the agent is done with it for good.
    pub fn is_final(self) -> bool {
        self >= Self::Completed
    }
}

//! Services.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::replica::ReplicaRow;
use crate::cluster::Actor;
use crate::cluster::service::VersionFailure;
use crate::id::{NodeId, ServiceName};
use crate::spec::{PortSpec, ServiceSpec};
use crate::time::UtcMs;

/// A service to create, or a new version of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubmitRequest {
    /// Names the write, as the request id header does; the header wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What is asked for.
    pub spec: ServiceSpec,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubmitAnswer {
    /// The service's name.
    pub name: ServiceName,
    /// Its current version.
    pub version: u64,
    /// Whether that version is new; false when the submission equalled it.
    pub changed: bool,
    /// The digest its image was resolved to.
    pub digest: Option<String>,
    /// The log index at which it was applied.
    pub index: u64,
    /// What the client should know although the submission succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How many replicas to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScaleRequest {
    /// The number, within the service's bounds.
    pub replicas: u32,
}

/// How a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Every desired replica runs the current version and is ready, or has completed.
    Running,
    /// Replicas are missing or starting.
    Pending,
    /// Replicas of an older version are being replaced.
    Updating,
    /// Every replica ran to its successful end, and nothing starts it again.
    Completed,
    /// A replica failed, and its restart policy leaves it as it ended.
    Failed,
    /// A user stopped it.
    Stopped,
    /// A user removed it; its replicas are stopping.
    Removing,
}

/// A service in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceRow {
    /// Its name.
    pub name: ServiceName,
    /// How it is doing.
    pub state: ServiceState,
    /// How many replicas are ready, whatever their version: they run and are healthy where that is
    /// checked, or completed.
    pub ready: u32,
    /// How many of the current version are ready.
    #[serde(default)]
    pub updated: u32,
    /// How many of the current version are proven: ready for `min_healthy_time` at a stretch.
    #[serde(default)]
    pub proven: u32,
    /// How many are away with their nodes and not replaced by one that is ready.
    #[serde(default)]
    pub lost: u32,
    /// How many replicas are desired.
    pub desired: u32,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Its image as the bundle names it.
    pub image: String,
    /// Its published ports.
    pub ports: Vec<PortSpec>,
    /// Its current version.
    pub version: u64,
    /// When it was first submitted.
    pub created_at: UtcMs,
}

/// A service in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDetail {
    /// The service in short.
    #[serde(flatten)]
    pub row: ServiceRow,
    /// The versions kept, oldest first; the last is the desired one.
    pub versions: Vec<VersionView>,
    /// The node it was submitted on, where its host volumes are.
    pub origin: NodeId,
    /// Its slots that hold no counting replica, and why.
    pub pending: Vec<PendingSlot>,
    /// Its replicas, by slot, those being replaced among them.
    pub replicas: Vec<ReplicaRow>,
    /// Whether this is what one node last knew, for want of a quorum.
    #[serde(default)]
    pub stale: bool,
}

/// One version of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Counts from 1 within the service.
    pub version: u64,
    /// When it was submitted.
    pub submitted_at: UtcMs,
    /// What it asks for.
    pub spec: ServiceSpec,
    /// What has become of it.
    #[serde(default)]
    pub state: VersionState,
    /// The version it took up again, when it is a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u64>,
    /// Who submitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// How a replica of it failed last that was not proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<VersionFailure>,
}

/// What has become of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// It is the desired one, and a replica of it is proven.
    Current,
    /// It is the desired one, and no replica of it is proven yet.
    Starting,
    /// It is the desired one, and a replica of it failed before it was proven.
    Failing,
    /// Another took its place.
    #[default]
    Superseded,
    /// Another took its place, and no replica of it was ever proven.
    Failed,
}

/// Which version to go back to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackRequest {
    /// The version; absent: the newest before the current one that was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// A slot without a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingSlot {
    /// Which slot.
    pub slot: u32,
    /// Why it is empty: the exact bound, port, label or failure.
    pub reason: String,
    /// How often in a row its replicas failed.
    pub failures: u32,
    /// Not filled before this log time, after failures.
    pub not_before: Option<UtcMs>,
}

//! Services: what users asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::Vector;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::actor::Actor;
use crate::id::NodeId;
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// A service: its specifications, newest last, and how many replicas of it are desired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// The versions kept, oldest first; never empty. The last is the desired one.
    #[serde(deserialize_with = "super::table::list")]
    pub versions: Vector<ServiceVersion>,
    /// How many replicas are desired: within the current version's bounds.
    pub desired: u32,
    /// Whether a user stopped it: no replica runs, the service stays.
    pub suspended: bool,
    /// Whether a user removed it: it goes once its last replica is gone.
    pub removing: bool,
    /// Which node the service's host volumes are on: where it was submitted.
    pub origin: NodeId,
    /// Slots whose replicas failed, and when they may be placed again.
    pub backoff: BTreeMap<u32, SlotBackoff>,
    /// Why slots are empty, or keep a replica that should be replaced, as the leader last found.
    pub pending: BTreeMap<u32, String>,
    /// When it was first submitted.
    pub created_at: UtcMs,
}

impl Service {
    /// The desired version.
    pub fn current(&self) -> &ServiceVersion {
        self.versions.last().expect("a service is created with a version and keeps its newest")
    }

    /// The desired specification.
    pub fn spec(&self) -> &ServiceSpec {
        &self.current().spec
    }

    /// The specification of `version`, while it is kept.
    pub fn spec_of(&self, version: u64) -> Option<&Arc<ServiceSpec>> {
        self.versions.iter().find(|kept| kept.version == version).map(|kept| &kept.spec)
    }

    /// Whether a version that is kept asks for what `spec` does, but for how many replicas there are.
    pub fn has_had(&self, spec: &ServiceSpec) -> bool {
        self.versions.iter().any(|kept| *kept.spec == *spec || kept.spec.differs_in_replicas_only(spec))
    }

    /// Whether a replica of `version` runs what the current version asks for: a version that only
    /// says again what an earlier one said replaces no container.
    pub fn runs_current(&self, version: u64) -> bool {
        self.same_containers(version, self.current().version)
    }

    /// Whether two versions ask for the same containers. One that is no longer kept is like no other.
    pub fn same_containers(&self, a: u64, b: u64) -> bool {
        let alike = || Some(self.spec_of(a)?.same_containers(self.spec_of(b)?));
        a == b || alike().unwrap_or(false)
    }

    /// What a rollback in the log that names no version goes back to: the newest that runs something else and
    /// was proven, or else the newest that does. Members agree on it; the API names a version, by
    /// [`Service::rollback_target`].
    pub fn previous(&self) -> Option<&ServiceVersion> {
        let other = |kept: &&ServiceVersion| !self.runs_current(kept.version);
        let others = || self.versions.iter().rev().filter(other);
        others().find(|kept| kept.proven_at.is_some()).or_else(|| others().next())
    }

    /// The version that somebody goes back to who names none: the newest that runs something else and was
    /// proven, or else the newest that does and of which no failure is known.
    pub fn rollback_target(&self) -> Option<&ServiceVersion> {
        let others = || self.versions.iter().rev().filter(|kept| !self.runs_current(kept.version));
        let proven = others().find(|kept| kept.proven_at.is_some());
        proven.or_else(|| others().find(|kept| kept.failure.is_none()))
    }

    /// How many replicas should run now: none while stopped or being removed.
    pub fn wanted(&self) -> u32 {
        if self.suspended || self.removing { 0 } else { self.desired }
    }
}

/// One version of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceVersion {
    /// Counts from 1 within the service.
    pub version: u64,
    /// What it asks for.
    pub spec: Arc<ServiceSpec>,
    /// When it was submitted.
    pub submitted_at: UtcMs,
    /// When a replica of it was first proven. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<UtcMs>,
    /// How a replica of it failed last that was not proven; forgotten once one is proven. Of the
    /// second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<VersionFailure>,
    /// The version whose specification it took up again, when it is a rollback. Of the second
    /// feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u64>,
    /// Who submitted it. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
}

impl ServiceVersion {
    /// A version just submitted.
    pub fn new(version: u64, spec: Arc<ServiceSpec>, submitted_at: UtcMs) -> Self {
        Self { version, spec, submitted_at, proven_at: None, failure: None, rollback_of: None, by: None }
    }
}

/// How a replica of a version failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionFailure {
    /// When, in log time.
    pub at: UtcMs,
    /// Which replica, where and how, for people.
    pub message: String,
}

/// How long a slot waits after its replicas failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotBackoff {
    /// Failures in a row.
    pub failures: u32,
    /// Not placed before this log time.
    pub not_before: UtcMs,
    /// Which version failed: another does not wait for it. Absent: any. Of the second feature level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

//! Services: what users asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::Vector;
use serde::{Deserialize, Serialize};

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
}

/// How long a slot waits after its replicas failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotBackoff {
    /// Failures in a row.
    pub failures: u32,
    /// Not placed before this log time.
    pub not_before: UtcMs,
}

//! `acknowledged_writes_stay`: at the end the state is what the acknowledged writes made it.
//!
//! Each service has one client, which waits for each write's answer before the next, so what it
//! was told determines what must be there. Shows a write acknowledged before it was durable, one
//! applied twice, and one undone by a new leader.

use std::collections::BTreeMap;

use blixard_core::cluster::ClusterState;
use blixard_core::id::ServiceName;

use crate::clients::shared;

/// What a service's client was told last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The version of the last submission.
    pub version: u64,
    /// What tells that submission from others: an environment variable's value.
    pub mark: String,
    /// How many replicas are desired.
    pub desired: u32,
    /// Whether it is stopped.
    pub suspended: bool,
}

/// Checks that a state has exactly the services expected, as expected, besides those that clients share.
///
/// # Errors
/// The first difference.
pub fn acknowledged(state: &ClusterState, expected: &BTreeMap<ServiceName, Expected>) -> Result<(), String> {
    for (name, wanted) in expected {
        let Some(service) = state.services.get(name) else {
            return Err(format!("service `{name}` was acknowledged as {wanted:?} and is not there"));
        };
        let found = Expected {
            version: service.current().version,
            mark: service.spec().environment.get("MARK").cloned().unwrap_or_default(),
            desired: service.desired,
            suspended: service.suspended,
        };
        if found != *wanted || service.removing {
            return Err(format!("service `{name}` is {found:?}, acknowledged was {wanted:?}"));
        }
    }
    let own = |name: &ServiceName| !shared::names().any(|shared| shared == *name);
    match state.services.keys().find(|name| own(name) && !expected.contains_key(*name)) {
        Some(name) => Err(format!("service `{name}` was removed, and that was acknowledged; it is there")),
        None => Ok(()),
    }
}

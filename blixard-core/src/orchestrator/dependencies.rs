//! Whether the services that one depends on run.
//!
//! A slot that holds no replica at all waits until each dependency has its minimum of replicas
//! running, and healthy where it is probed. A replica that ran to its successful end counts, so
//! that a service may depend on one that prepares something and ends. A slot that was placed is
//! not held back again: a dependency that goes away later, or a node that does, stops nothing.

use crate::cluster::{ClusterState, Service};
use crate::id::ServiceName;
use crate::readiness::{Readiness, readiness};

/// The first dependency of `service` that is not there yet, and what is said of it.
pub(super) fn missing(state: &ClusterState, service: &Service) -> Option<(ServiceName, String)> {
    service.spec().depends_on.iter().find_map(|name| Some((name.clone(), wait_for(state, name)?)))
}

/// Why whoever depends on a service waits for it, for people; absent when it is there.
pub(super) fn wait_for(state: &ClusterState, name: &ServiceName) -> Option<String> {
    let Some(dependency) = state.services.get(name) else {
        return Some(format!("waits for service {name}, which does not exist"));
    };
    let running = state
        .replicas_of(name)
        .filter(|(_, replica)| replica.counts())
        .filter(|(_, replica)| matches!(readiness(state, replica), Readiness::Ready | Readiness::Ended))
        .count();
    let needed = dependency.spec().replicas.min as usize;
    if running >= needed {
        None
    } else if dependency.removing || dependency.suspended {
        let state = if dependency.removing { "being removed" } else { "stopped" };
        Some(format!("waits for service {name}, which is {state}"))
    } else {
        Some(format!("waits for service {name}: {running} of {needed} replicas run"))
    }
}

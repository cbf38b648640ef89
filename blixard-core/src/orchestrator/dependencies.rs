//! Whether the services that one depends on run.
//!
//! A slot that holds no replica at all waits until each dependency has its minimum of replicas
//! running, and healthy where it is probed. A replica that ran to its successful end counts, so
//! that a service may depend on one that prepares something and ends. A slot that was placed is
//! not held back again: a dependency that goes away later, or a node that does, stops nothing.

use super::draft::Draft;
use crate::cluster::Service;
use crate::id::ServiceName;
use crate::readiness::{Readiness, readiness};

/// The first dependency of `service` that is not there yet, for people.
pub(super) fn missing(draft: &Draft<'_>, service: &Service) -> Option<String> {
    service.spec().depends_on.iter().find_map(|name| wait_for(draft, name))
}

fn wait_for(draft: &Draft<'_>, name: &ServiceName) -> Option<String> {
    let Some(dependency) = draft.service(name) else {
        return Some(format!("waits for service {name}, which does not exist"));
    };
    let running = draft
        .state()
        .replicas_of(name)
        .filter(|(_, replica)| replica.counts())
        .filter(|(_, replica)| {
            matches!(readiness(draft.state(), replica), Readiness::Ready | Readiness::Ended)
        })
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

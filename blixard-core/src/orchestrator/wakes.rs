//! When services are due though nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::ServiceName;
use crate::time::UtcMs;

/// When services are due, by service and by time.
#[derive(Debug, Clone, Default)]
pub(super) struct Wakes {
    by_service: BTreeMap<ServiceName, UtcMs>,
    by_time: BTreeSet<(UtcMs, ServiceName)>,
}

impl Wakes {
    /// Sets when a service is due, in place of when it was.
    pub(super) fn set(&mut self, service: &ServiceName, at: Option<UtcMs>) {
        if let Some(before) = self.by_service.remove(service) {
            self.by_time.remove(&(before, service.clone()));
        }
        if let Some(at) = at {
            self.by_service.insert(service.clone(), at);
            self.by_time.insert((at, service.clone()));
        }
    }

    /// The services that are due at `now`, the first first.
    pub(super) fn due(&self, now: UtcMs) -> impl Iterator<Item = &ServiceName> {
        self.by_time.iter().take_while(move |(at, _)| *at <= now).map(|(_, service)| service)
    }

    /// When the first service is due.
    pub(super) fn first(&self) -> Option<UtcMs> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

//! Services that wait, by what they wait for.
//!
//! A slot waits for time ([`super::wakes`]), for a service that its own depends on, or for a node. Whoever
//! changes one of these asks here who waits for it; all others are left alone, however many they are.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use super::dependencies;
use crate::cluster::ClusterState;
use crate::id::ServiceName;
use crate::scheduler::Ask;

/// What a slot waits for, besides time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Blocker {
    /// A service that its own depends on, of which this was told.
    Dependency(ServiceName, String),
    /// A node that takes who asks for this.
    Node(Ask),
}

/// Services that wait, by what they wait for.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    blockers: BTreeMap<ServiceName, BTreeSet<Blocker>>,
    /// By the service depended on, then by what was told of it.
    dependents: BTreeMap<ServiceName, BTreeMap<String, BTreeSet<ServiceName>>>,
    asking: BTreeMap<Ask, BTreeSet<ServiceName>>,
}

impl Waiting {
    /// Sets what a service waits for, in place of what it did.
    pub(super) fn set(&mut self, service: &ServiceName, blockers: &BTreeSet<Blocker>) {
        if self.blockers.get(service).is_some_and(|before| before == blockers) {
            return;
        }
        for blocker in self.blockers.remove(service).into_iter().flatten() {
            self.remove(service, blocker);
        }
        for blocker in blockers {
            self.insert(service, blocker.clone());
        }
        if !blockers.is_empty() {
            self.blockers.insert(service.clone(), blockers.clone());
        }
    }

    fn insert(&mut self, service: &ServiceName, blocker: Blocker) {
        let services = match blocker {
            Blocker::Dependency(on, told) => self.dependents.entry(on).or_default().entry(told).or_default(),
            Blocker::Node(ask) => self.asking.entry(ask).or_default(),
        };
        services.insert(service.clone());
    }

    fn remove(&mut self, service: &ServiceName, blocker: Blocker) {
        match blocker {
            Blocker::Dependency(on, told) => {
                let Some(by_text) = self.dependents.get_mut(&on) else { return };
                take_out(by_text, told, service);
                if by_text.is_empty() {
                    self.dependents.remove(&on);
                }
            }
            Blocker::Node(ask) => take_out(&mut self.asking, ask, service),
        }
    }

    /// Every service that waits for something besides time.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.blockers.keys()
    }

    /// The services that wait for `service` and were told something else of it than holds in `state`.
    pub(super) fn dependents_of(&self, state: &ClusterState, service: &ServiceName) -> Vec<ServiceName> {
        let Some(by_text) = self.dependents.get(service) else { return Vec::new() };
        let holds = dependencies::wait_for(state, service);
        let changed = by_text.iter().filter(|(told, _)| holds.as_ref() != Some(told));
        changed.flat_map(|(_, services)| services).cloned().collect()
    }

    /// What is asked of nodes, and the services that ask for it.
    pub(super) fn asking(&self) -> &BTreeMap<Ask, BTreeSet<ServiceName>> {
        &self.asking
    }

    /// The first service after `after`, by name, of those that ask nodes for `ask`.
    pub(super) fn next_asking(&self, ask: &Ask, after: Option<&ServiceName>) -> Option<&ServiceName> {
        let services = self.asking.get(ask)?;
        services.range((after.map_or(Unbounded, Excluded), Unbounded)).next()
    }
}

fn take_out<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<ServiceName>>, key: K, service: &ServiceName) {
    if let Entry::Occupied(mut set) = sets.entry(key) {
        set.get_mut().remove(service);
        if set.get().is_empty() {
            set.remove();
        }
    }
}

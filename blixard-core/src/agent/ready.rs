//! Whom a node's published ports lead to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Action, Agent};
use crate::id::ReplicaId;
use crate::spec::ServiceSpec;

/// The replicas of a node that take connections, each with the attempt that does and what it runs:
/// those that run, are healthy where that is probed, and are not told to stop. One that retires is
/// among them until its replacement has made it stop.
pub type Ready = BTreeMap<(ReplicaId, u32), Arc<ServiceSpec>>;

impl Agent {
    /// Publishes whoever is ready when others were before: as the first of the step's actions, whose
    /// begin is at `first`, so that nobody is told to stop, or said to run, before ports lead
    /// elsewhere, or to it.
    pub(super) fn publish(&mut self, first: usize, actions: &mut Vec<Action>) {
        let ready: Ready = self
            .replicas
            .iter()
            .filter_map(|(id, replica)| replica.ready().map(|(attempt, spec)| ((*id, attempt), spec)))
            .collect();
        if self.published.as_ref() != Some(&ready) {
            self.published = Some(ready.clone());
            actions.insert(first, Action::Publish(ready));
        }
    }
}

//! The state's own invariants, of every state that any node publishes and between neighbours.
//!
//! They are [`blixard_core::cluster::invariants`]: bounds, slots, ports, capacity, and what never
//! goes back. Each shows the fault that its own text names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::invariants::{check, check_step};
use blixard_core::id::ReplicaId;

use super::{holds, placements, plans, updates};

/// How many states are kept to find neighbours among.
const KEPT: usize = 2_048;

/// States by index.
#[derive(Default)]
pub(super) struct States {
    kept: BTreeMap<u64, Arc<ClusterState>>,
}

impl States {
    /// The first state seen at an index, while it is kept.
    pub(super) fn at(&self, index: u64) -> Option<Arc<ClusterState>> {
        self.kept.get(&index).cloned()
    }

    /// The newest state seen.
    pub(super) fn newest(&self) -> Option<Arc<ClusterState>> {
        self.kept.last_key_value().map(|(_, state)| state.clone())
    }

    /// How long a replica was given to stop, in seconds, where that was said: by any state kept, since a
    /// node acts on what it knows.
    pub(super) fn stop_timeouts(&self, replica: ReplicaId) -> BTreeSet<u32> {
        let rows = self.kept.values().filter_map(|state| state.replicas.get(&replica));
        rows.filter_map(|row| row.stop_timeout_s).collect()
    }

    pub(super) fn seen(&mut self, state: &Arc<ClusterState>) -> Result<(), (String, String)> {
        let index = state.applied;
        if self.kept.contains_key(&index) {
            return Ok(());
        }
        let named = |violation: blixard_core::cluster::invariants::Violation| {
            (violation.invariant.to_owned(), format!("at index {index}: {}", violation.detail))
        };
        check(state).map_err(named)?;
        if let Some(before) = index.checked_sub(1).and_then(|before| self.kept.get(&before)) {
            step(before, state)?;
        }
        if let Some(after) = self.kept.get(&(index + 1)) {
            step(state, after)?;
        }
        self.kept.insert(index, state.clone());
        if self.kept.len() > KEPT {
            self.kept.pop_first();
        }
        Ok(())
    }
}

/// What must hold between neighbours.
fn step(before: &ClusterState, after: &ClusterState) -> Result<(), (String, String)> {
    let named =
        |name: &str, detail: String| (name.to_owned(), format!("at index {}: {detail}", after.applied));
    check_step(before, after).map_err(|violation| named(violation.invariant, violation.detail))?;
    holds::check(before, after).map_err(|detail| named("holds_are_kept", detail))?;
    plans::check(before, after).map_err(|detail| named("slots_are_filled_once", detail))?;
    updates::check(before, after).map_err(|detail| named("updates_keep_what_runs", detail))?;
    placements::check(before, after).map_err(|detail| named("placements_are_allowed", detail))
}

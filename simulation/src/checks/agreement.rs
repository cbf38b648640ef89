//! `states_agree`: whoever has applied the same index has the same state.
//!
//! State machine safety (Ongaro, "Consensus", figure 3.2). Shows an apply that depends on more
//! than the log, an entry lost or changed after it was committed, and a log that parted. What
//! differs once differs from then on, so the tables are compared at every index, and all of the
//! state, by its digest, at some.

use std::collections::BTreeMap;

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::snapshot::digest;

/// At which indices the whole state is compared: encoding it costs more than the history itself.
const DIGEST_EVERY: u64 = 32;

/// The digest of the state at some indices, and who showed it first.
#[derive(Default)]
pub(super) struct Agreement {
    digests: BTreeMap<u64, (u64, [u8; 32])>,
    highest: u64,
}

impl Agreement {
    /// A machine shows a state; `first` is the first one seen at that index. Returns what the
    /// record is to hold of it.
    pub(super) fn seen(
        &mut self,
        machine: u64,
        state: &ClusterState,
        first: Option<&ClusterState>,
    ) -> Result<Vec<u8>, String> {
        let index = state.applied;
        self.highest = self.highest.max(index);
        let other =
            |first: u64| format!("machines {first} and {machine} have different states at index {index}");
        if first.is_some_and(|first| !same_tables(first, state)) {
            return Err(format!(
                "machine {machine} has another state at index {index} than who was there first"
            ));
        }
        if !index.is_multiple_of(DIGEST_EVERY) {
            return Ok(Vec::new());
        }
        let digest = digest(state);
        let (first, known) = *self.digests.entry(index).or_insert((machine, digest));
        if known == digest { Ok(digest.to_vec()) } else { Err(other(first)) }
    }

    pub(super) fn highest(&self) -> u64 {
        self.highest
    }
}

/// Whether everything but the long tables, of requests and events, is the same.
fn same_tables(a: &ClusterState, b: &ClusterState) -> bool {
    let numbers = |state: &ClusterState| {
        (state.time, state.cluster, state.level, state.next_replica, state.requests.len(), state.events.len())
    };
    numbers(a) == numbers(b)
        && a.services == b.services
        && a.replicas == b.replicas
        && a.nodes == b.nodes
        && a.removed_nodes == b.removed_nodes
        && a.tokens == b.tokens
        && a.events.back() == b.events.back()
}

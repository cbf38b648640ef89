//! `slots_are_filled_once`: an entry places at most one replica in a slot.
//!
//! A plan is made and applied as a whole, and a slot that it fills is full. hashicorp/nomad issue
//! 3971 is of allocations that were replaced over and over. Shows a planner that does not see what it
//! has placed itself: each round it places, and stops, another.

use blixard_core::cluster::ClusterState;

/// Checks that no more replicas were placed by an entry than there are slots.
pub(super) fn check(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    let wanted = |state: &ClusterState, name| {
        state.services.get(name).map_or(0, |service| u64::from(service.wanted()))
    };
    let gone = before.services.iter().filter(|(name, _)| !after.services.contains_key(*name));
    let names = after.services.keys().chain(gone.map(|(name, _)| name));
    let slots: u64 = names.map(|name| wanted(before, name).max(wanted(after, name))).sum();
    let placed = after.next_replica.0 - before.next_replica.0;
    if placed <= slots { Ok(()) } else { Err(format!("{placed} replicas were placed in {slots} slots")) }
}

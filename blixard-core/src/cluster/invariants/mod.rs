//! What must hold in every state, and between any two that follow each other.
//!
//! [`check`] and [`check_step`] run after every entry in tests and in the simulator. Each
//! invariant is one small function that says what it states and which fault it would show. None
//! of them changes or repairs anything.

mod state;
mod step;

use super::ClusterState;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {detail}")]
pub struct Violation {
    /// The invariant's name: that of the function that checks it.
    pub invariant: &'static str,
    /// What is wrong, with the ids it is wrong with.
    pub detail: String,
}

/// Fails with what `detail` says unless `holds`.
fn ensure(holds: bool, detail: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(detail()) }
}

/// Runs the named checks of a module, in order, and names the first that fails.
macro_rules! check_all {
    ($module:ident $arguments:tt: $($invariant:ident),+ $(,)?) => {
        $(check_all!(@one $module $invariant $arguments)?;)+
    };
    (@one $module:ident $invariant:ident ($($argument:expr),+)) => {
        $module::$invariant($($argument),+)
            .map_err(|detail| Violation { invariant: stringify!($invariant), detail })
    };
}

/// Checks every invariant of one state.
///
/// # Errors
/// The first that does not hold.
pub fn check(state: &ClusterState) -> Result<(), Violation> {
    check_all!(state(state):
        versions_ascend,
        desired_is_within_bounds,
        counting_replicas_hold_wanted_slots,
        slots_hold_one_counting_replica,
        replicas_refer_to_what_exists,
        replica_ids_are_below_the_next,
        ports_have_one_owner,
        subnets_differ,
        keys_differ,
        removed_ids_are_not_members,
        requests_agree,
        events_are_bounded_and_ordered,
        kept_slots_are_wanted,
        volumes_are_where_members_are,
        copies_hold_what_was_published,
        index_agrees,
    );
    Ok(())
}

/// Checks what must hold between a state and the one an entry made of it.
///
/// # Errors
/// The first that does not hold.
pub fn check_step(before: &ClusterState, after: &ClusterState) -> Result<(), Violation> {
    check_all!(step(before, after):
        counters_only_rise,
        replicas_keep_what_they_are,
        statuses_only_move_forward,
        new_replicas_fit,
        members_keep_their_keys,
        versions_only_rise,
        events_go_on,
        volumes_go_forward,
    );
    Ok(())
}

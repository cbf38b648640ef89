//! How long a slot waits after its replicas failed: 1, 2, 4 s and so on up to 5 min.

use std::time::Duration;

use super::slot::Slot;
use crate::cluster::{PlanStep, Service};
use crate::limits::{RESTART_BACKOFF_MAX, RESTART_BACKOFF_MIN};
use crate::time::UtcMs;

/// How long to wait after this many failures in a row.
pub(super) fn delay(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    RESTART_BACKOFF_MIN.saturating_mul(doubled).min(RESTART_BACKOFF_MAX)
}

/// The failures in a row of a slot of which one more replica failed at `now`, and until when it waits. A new version begins without:
/// `apply` clears what earlier ones left.
fn after_failure(service: &Service, slot: u32, now: UtcMs) -> (u32, UtcMs) {
    let failures = service.backoff.get(&slot).map_or(0, |backoff| backoff.failures).saturating_add(1);
    (failures, now.after(delay(failures)))
}

/// Records that the replica which counts in a slot failed. Where it is told to stop before, what is recorded
/// is of no version, and holds up any.
pub(super) fn failure(slot: &Slot<'_>) -> PlanStep {
    let (failures, not_before) = after_failure(slot.service, slot.number, slot.draft.now());
    PlanStep::Backoff { service: slot.name.clone(), slot: slot.number, failures, not_before }
}

/// Until when `slot` waits before it is given a replica of `version`: what failed of another
/// version holds up none.
pub(super) fn holds_until(service: &Service, slot: u32, version: u64) -> Option<UtcMs> {
    let backoff = service.backoff.get(&slot)?;
    let its = backoff.version.is_none_or(|failed| service.same_containers(failed, version));
    its.then_some(backoff.not_before)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::delay;

    #[test]
    fn delays_double_up_to_five_minutes() {
        let check = |failures: u32, seconds: u64| {
            assert_eq!(delay(failures), Duration::from_secs(seconds), "after {failures} failures");
        };
        check(1, 1);
        check(2, 2);
        check(3, 4);
        check(9, 256);
        check(10, 300);
        check(u32::MAX, 300);
    }
}

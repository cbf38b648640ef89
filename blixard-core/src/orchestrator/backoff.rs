//! How long a slot waits after its replicas failed: 1, 2, 4 s and so on up to 5 min.

use std::time::Duration;

use crate::cluster::Service;
use crate::cluster::service::SlotBackoff;
use crate::limits::{RESTART_BACKOFF_MAX, RESTART_BACKOFF_MIN};
use crate::time::UtcMs;

/// How long to wait after this many failures in a row.
pub(super) fn delay(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    RESTART_BACKOFF_MIN.saturating_mul(doubled).min(RESTART_BACKOFF_MAX)
}

/// The back-off of a slot of which one more replica failed at `now`. A new version begins without:
/// `apply` clears what earlier ones left.
pub(super) fn after_failure(service: &Service, slot: u32, now: UtcMs) -> SlotBackoff {
    let failures = service.backoff.get(&slot).map_or(0, |backoff| backoff.failures).saturating_add(1);
    SlotBackoff { failures, not_before: now.after(delay(failures)) }
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

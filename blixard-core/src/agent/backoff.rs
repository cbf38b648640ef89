//! How long to wait after a failure: twice as long after each, within bounds.
//!
//! Without jitter: the agent draws no random numbers, and replicas that fail together share a node
//! whose pulls and starts are bounded anyway.

use std::time::Duration;

use crate::limits::{RESTART_BACKOFF_MAX, RESTART_BACKOFF_MIN};
use crate::time::Mono;

/// The longest wait once what is waited for may be there. Not none: what changed may be what failed.
const HURRIED: Duration = Duration::from_secs(2);

/// Failures in a row of one thing, and when it may be tried again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Mono,
}

impl Backoff {
    /// Counts a failure and returns how long to wait now: 1, 2, 4 s and so on to 300 s.
    pub(super) fn fail(&mut self, now: Mono) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let delay = RESTART_BACKOFF_MIN.saturating_mul(factor).min(RESTART_BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = now + delay;
        delay
    }

    /// Has the next try made soon, whatever failed before: something that it waits for has changed.
    /// Returns how long it waits now.
    pub(super) fn hurry(&mut self, now: Mono) -> Duration {
        self.until = self.until.min(now + HURRIED);
        self.until.since(now)
    }

    /// There were so many failures in a row before it is counted here.
    pub(super) fn remember(&mut self, failures: u32) {
        self.failures = self.failures.max(failures);
    }

    /// Forgives all failures.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Failures in a row so far.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next try may be made.
    pub(super) fn until(&self) -> Mono {
        self.until
    }

    /// Whether the next try may be made now.
    pub(super) fn is_over(&self, now: Mono) -> bool {
        self.until <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes_and_never_shrink() {
        let mut backoff = Backoff::default();
        let now = Mono(Duration::from_secs(7));
        assert!(backoff.is_over(now));
        let delays: Vec<u64> = (0..11).map(|_| backoff.fail(now).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        for _ in 0..100 {
            assert_eq!(backoff.fail(now), RESTART_BACKOFF_MAX);
        }
        assert!(!backoff.is_over(now));
        assert!(backoff.is_over(now + RESTART_BACKOFF_MAX));
        assert_eq!((backoff.hurry(now), backoff.is_over(now)), (HURRIED, false));
        assert!(backoff.is_over(now + HURRIED));
        assert_eq!(backoff.hurry(now + HURRIED * 2), Duration::ZERO);
        assert_eq!(backoff.fail(now), RESTART_BACKOFF_MAX, "no failure is forgiven");
        backoff.reset();
        assert_eq!(backoff.fail(now), RESTART_BACKOFF_MIN);
        backoff.remember(3);
        backoff.remember(0);
        assert_eq!(backoff.fail(now), RESTART_BACKOFF_MIN * 8);
    }
}

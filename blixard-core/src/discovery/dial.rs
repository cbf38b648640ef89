//! When to dial a member that does not answer: exponential back-off with jitter, and a circuit
//! breaker that answers callers at once while nobody is expected to be there.
//!
//! The transport asks before each dial and tells what came of it.

use std::time::Duration;

use crate::time::Mono;

/// The longest wait after the first failure.
pub const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait between dials. A member that returns links by itself, so this bounds only how
/// late the other direction is; shorter costs packets to machines that are off.
pub const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Failures in a row from which on callers are not made to wait for a dial. The first may be a
/// member that is just starting.
pub const FAILURES_OPEN: u32 = 2;

/// How dialling one member has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dial {
    failures: u32,
    not_before: Mono,
}

impl Dial {
    /// How long to wait before the next dial.
    pub fn wait(&self, now: Mono) -> Duration {
        self.not_before.since(now)
    }

    /// Whether the circuit is open: callers get the last failure instead of a wait.
    pub fn is_open(&self, now: Mono) -> bool {
        self.failures >= FAILURES_OPEN && now < self.not_before
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Records a failure and returns how long to wait: between half of the back-off and all of
    /// it, by `random`, so that members that failed together do not return together.
    pub fn failed(&mut self, now: Mono, random: u64) -> Duration {
        let doublings = self.failures.min(16);
        let ceiling = DIAL_BACKOFF_MIN.saturating_mul(1 << doublings).min(DIAL_BACKOFF_MAX);
        let floor = ceiling / 2;
        let spread = u64::try_from((ceiling - floor).as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let wait = floor + Duration::from_micros(random % spread);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
        wait
    }

    /// Records a success.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A new address came up: the next dial need not wait.
    pub fn hinted(&mut self) {
        self.not_before = Mono::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, Dial, FAILURES_OPEN};
    use crate::time::Mono;
    use std::time::Duration;

    const NOW: Mono = Mono(Duration::from_secs(100));

    #[test]
    fn waits_double_up_to_the_bound() {
        let check = |random: u64, expect: [u64; 8]| {
            let mut dial = Dial::default();
            let waits: Vec<u64> =
                expect.iter().map(|_| dial.failed(NOW, random).as_millis().try_into().unwrap()).collect();
            assert_eq!(waits, expect);
        };
        check(0, [25, 50, 100, 200, 400, 800, 1000, 1000]);
        check(25_000, [50, 75, 125, 225, 425, 825, 1025, 1025]);
    }

    #[test]
    fn no_wait_leaves_the_bounds() {
        let mut dial = Dial::default();
        for random in [u64::MAX, 1, 999_983, u64::MAX / 3, 7] {
            let wait = dial.failed(NOW, random);
            assert!((DIAL_BACKOFF_MIN / 2..=DIAL_BACKOFF_MAX).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn the_circuit_opens_after_failures_and_closes_with_time_success_or_a_hint() {
        let mut dial = Dial::default();
        for failure in 1..=FAILURES_OPEN {
            assert!(!dial.is_open(NOW), "after {} failures", failure - 1);
            dial.failed(NOW, 0);
        }
        assert!(dial.is_open(NOW));
        assert!(!dial.is_open(NOW + dial.wait(NOW)));

        let mut hinted = dial;
        hinted.hinted();
        assert!(!hinted.is_open(NOW));
        assert_eq!(hinted.wait(NOW), Duration::ZERO);
        assert_eq!(hinted.failures(), FAILURES_OPEN);

        dial.succeeded();
        assert_eq!(dial, Dial::default());
    }
}

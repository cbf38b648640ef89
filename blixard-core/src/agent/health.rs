//! What a running container's probes say of it.
//!
//! Failures do not count before the first success, but for at most `retries` intervals: a
//! container has that long to come up.

use std::time::Duration;

use crate::limits::{PROBE_FIRST_MAX, PROBE_INTERVAL_MIN};
use crate::spec::{HealthSpec, Protocol, ServiceSpec};
use crate::time::Mono;

/// The port that is probed: the first TCP port of the specification. Without one nothing is.
pub fn probe_port(spec: &ServiceSpec) -> Option<u16> {
    spec.ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.container_port)
}

/// What a probe's result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The container is well.
    Healthy,
    /// Nothing is decided yet.
    Undecided,
    /// So many probes in a row failed that the container is unhealthy.
    Unhealthy {
        /// How many.
        failures: u32,
    },
}

/// The probes of one run of a container.
#[derive(Debug)]
pub(super) struct Health {
    interval: Duration,
    retries: u32,
    grace_until: Mono,
    passed: bool,
    failures: u32,
    /// When the next probe is due; absent while one is under way.
    due: Option<Mono>,
}

impl Health {
    /// Starts probing a container that runs since, or was found running, `now`.
    pub(super) fn new(spec: &HealthSpec, now: Mono) -> Self {
        let interval = Duration::from_millis(spec.interval_ms).max(PROBE_INTERVAL_MIN);
        let retries = spec.retries.max(1);
        Self {
            interval,
            retries,
            grace_until: now + interval.saturating_mul(retries),
            passed: false,
            failures: 0,
            due: Some(now + interval.min(PROBE_FIRST_MAX)),
        }
    }

    /// When the next probe is due; absent while one is under way.
    pub(super) fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Whether any probe has passed.
    pub(super) fn has_passed(&self) -> bool {
        self.passed
    }

    /// Whether to probe now; if so, a probe is under way from here on.
    pub(super) fn begin(&mut self, now: Mono) -> bool {
        let begin = self.due.is_some_and(|due| due <= now);
        if begin {
            self.due = None;
        }
        begin
    }

    /// Takes in a probe's result.
    pub(super) fn record(&mut self, now: Mono, passed: bool) -> Verdict {
        self.due = Some(now + self.interval);
        if passed {
            self.passed = true;
            self.failures = 0;
            return Verdict::Healthy;
        }
        if !self.passed && now < self.grace_until {
            return Verdict::Undecided;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.retries {
            Verdict::Unhealthy { failures: self.failures }
        } else {
            Verdict::Undecided
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: HealthSpec =
        HealthSpec { path: String::new(), interval_ms: 10_000, timeout_ms: 1_000, retries: 3 };

    /// Feeds results (`+` passed, `-` failed), one each ten seconds, and compares the verdicts:
    /// `h`ealthy, `.` undecided, `u`nhealthy.
    #[track_caller]
    fn check(results: &str, expect: &str) {
        let mut health = Health::new(&SPEC, Mono::default());
        let mut now = Mono::default();
        let verdicts: String = results
            .chars()
            .map(|result| {
                now = now + Duration::from_secs(10);
                assert!(health.begin(now), "a probe is due each interval");
                assert!(!health.begin(now), "one probe at a time");
                match health.record(now, result == '+') {
                    Verdict::Healthy => 'h',
                    Verdict::Undecided => '.',
                    Verdict::Unhealthy { .. } => 'u',
                }
            })
            .collect();
        assert_eq!(verdicts, expect, "of {results}");
    }

    #[test]
    fn retries_consecutive_failures_are_unhealthy() {
        check("+---", "h..u");
        check("+--+--+", "h..h..h");
        check("+----+", "h..uuh");
    }

    #[test]
    fn failures_before_the_first_success_count_only_after_the_grace() {
        check("--+", "..h");
        check("----", "....");
        check("-----", "....u");
        check("-+---", ".h..u");
    }

    #[test]
    fn the_first_probe_comes_within_a_second_and_no_interval_is_too_short() {
        let check = |interval_ms: u64, expect_ms: u64| {
            let health = Health::new(&HealthSpec { interval_ms, ..SPEC }, Mono::default());
            assert_eq!(health.due(), Some(Mono(Duration::from_millis(expect_ms))));
        };
        check(30_000, 1_000);
        check(500, 500);
        check(0, 100);
    }
}

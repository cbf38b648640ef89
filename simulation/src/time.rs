//! Simulated clocks, over tokio's paused one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::time::{Mono, UtcMs};
use blixard_node::platform::Clock;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// When every world begins, by a clock without skew: 2026-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_767_225_600_000;
/// Parts of one.
const PARTS: f64 = 1e6;

/// One machine's clocks: the monotonic one may run fast or slow, the wall clock follows it and may
/// be off besides. Cloning shares them.
#[derive(Debug, Clone)]
pub struct SimClock(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// When the rate was last set, by the world's clock and by this one.
    since: (Instant, Duration),
    /// How many parts in a million it gains.
    drift_ppm: i32,
    /// How far ahead of the monotonic clock the wall clock is, in milliseconds.
    skew_ms: i64,
}

impl Inner {
    fn now(&self) -> Duration {
        let (at, read) = self.since;
        read + scaled(at.elapsed(), f64::from(self.drift_ppm))
    }

    /// How long the world must wait until this clock reads `deadline`.
    fn until(&self, deadline: Duration) -> Duration {
        let left = deadline.saturating_sub(self.now());
        let ppm = f64::from(self.drift_ppm);
        scaled(left, (PARTS * PARTS / (PARTS + ppm)) - PARTS)
    }
}

/// `duration` and so many parts in a million of it.
fn scaled(duration: Duration, ppm: f64) -> Duration {
    if ppm == 0.0 { duration } else { duration.mul_f64((PARTS + ppm) / PARTS) }
}

impl SimClock {
    /// The clocks of a machine that are right. `start` is the world's.
    pub fn new(start: Instant) -> Self {
        Self(Arc::new(Mutex::new(Inner { since: (start, Duration::ZERO), drift_ppm: 0, skew_ms: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how far ahead of the right time the wall clock is, in milliseconds.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.lock().skew_ms = skew_ms;
    }

    /// Sets how many parts in a million both clocks gain from now on.
    pub fn set_drift_ppm(&self, drift_ppm: i32) {
        let mut inner = self.lock();
        inner.since = (Instant::now(), inner.now());
        inner.drift_ppm = drift_ppm;
    }
}

impl Clock for SimClock {
    fn now(&self) -> Mono {
        Mono(self.lock().now())
    }

    fn utc(&self) -> UtcMs {
        let inner = self.lock();
        let elapsed = i64::try_from(inner.now().as_millis()).unwrap_or(i64::MAX);
        let now = EPOCH_MS.saturating_add(elapsed).saturating_add(inner.skew_ms);
        UtcMs(u64::try_from(now).unwrap_or_default())
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            loop {
                let left = clock.lock().until(deadline.0);
                if left.is_zero() {
                    return tokio::task::consume_budget().await;
                }
                tokio::time::sleep(left).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blixard_core::time::Mono;
    use blixard_node::platform::Clock;
    use tokio::time::Instant;

    use super::SimClock;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_drifts_gains_and_loses_and_never_goes_back() {
        let start = Instant::now();
        let clock = SimClock::new(start);
        let (mut world, mut expect) = (Duration::ZERO, Duration::ZERO);
        for (drift_ppm, gained) in [(0, 0), (10_000, 100), (-20_000, -200)] {
            clock.set_drift_ppm(drift_ppm);
            tokio::time::sleep(Duration::from_secs(10)).await;
            world += Duration::from_secs(10);
            expect += Duration::from_millis(u64::try_from(10_000 + gained).expect("positive"));
            let off = clock.now().0.abs_diff(expect);
            assert!(off < Duration::from_micros(10), "{:?} instead of {expect:?}", clock.now());
            assert_eq!(start.elapsed(), world);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_lasts_as_long_as_its_clock_says() {
        let start = Instant::now();
        let clock = SimClock::new(start);
        clock.set_drift_ppm(100_000);
        clock.sleep_until(Mono(Duration::from_secs(11))).await;
        assert!(clock.now().0 >= Duration::from_secs(11));
        assert!(
            start.elapsed().abs_diff(Duration::from_secs(10)) < Duration::from_millis(3),
            "{:?}",
            start.elapsed()
        );
        let sleep = clock.sleep_until(Mono(Duration::from_secs(21)));
        clock.set_drift_ppm(-500_000);
        sleep.await;
        assert!(clock.now().0 >= Duration::from_secs(21));
    }
}

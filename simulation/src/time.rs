//! Simulated clocks, over tokio's paused one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use blixard_core::time::{Mono, UtcMs};
use blixard_node::platform::Clock;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// When every world begins, by a clock without skew: 2026-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// One machine's clocks. Cloning shares them.
#[derive(Debug, Clone)]
pub struct SimClock {
    start: Instant,
    /// How far ahead the wall clock is, in milliseconds.
    skew_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// The clocks of a machine whose wall clock is right. `start` is the world's.
    pub fn new(start: Instant) -> Self {
        Self { start, skew_ms: Arc::default() }
    }

    /// Sets how far ahead of the right time the wall clock is, in milliseconds.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    fn utc(&self) -> UtcMs {
        let elapsed = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        let now = EPOCH_MS.saturating_add(elapsed).saturating_add(self.skew_ms.load(Ordering::Relaxed));
        UtcMs(u64::try_from(now).unwrap_or_default())
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(self.start + deadline.0))
    }
}

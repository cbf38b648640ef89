//! Simulated clocks, over tokio's paused one.

use std::time::Duration;

use blixard_core::time::{Mono, UtcMs};
use blixard_node::platform::Clock;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// When every world begins, by a clock without skew: 2026-01-01T00:00:00Z.
const EPOCH: UtcMs = UtcMs(1_767_225_600_000);

/// One node's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SimClock {
    start: Instant,
    /// How far ahead the wall clock is.
    skew: Duration,
}

impl SimClock {
    /// The clocks of a node whose wall clock is ahead by `skew`. `start` is the world's.
    pub fn new(start: Instant, skew: Duration) -> Self {
        Self { start, skew }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    fn utc(&self) -> UtcMs {
        EPOCH.after(self.start.elapsed() + self.skew)
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(self.start + deadline.0))
    }
}

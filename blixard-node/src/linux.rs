//! Clocks, randomness and tasks on Linux. The other seams' Linux sides are [`crate::disk`],
//! [`crate::transport`] and [`crate::runtime`].

use std::time::Duration;

use blixard_core::time::{Mono, UtcMs};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use crate::platform::{Clock, RandomSource, Spawner};

/// The longest sleep at a time. The timer under it stands still while the machine is suspended;
/// the clock does not, so each sleep looks at the clock again.
const NAP: Duration = Duration::from_secs(5);

/// The kernel's clocks.
#[derive(Debug, Clone, Copy)]
pub struct LinuxClock;

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Neither clock is ever negative, and nanoseconds are below a billion.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Clock for LinuxClock {
    fn now(&self) -> Mono {
        Mono(read(ClockId::Boottime))
    }

    fn utc(&self) -> UtcMs {
        UtcMs(u64::try_from(read(ClockId::Realtime).as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        let clock = *self;
        Box::pin(async move {
            loop {
                let left = deadline.since(clock.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(NAP)).await;
            }
        })
    }
}

/// The kernel's randomness.
#[derive(Debug, Clone, Copy)]
pub struct LinuxRandom;

impl RandomSource for LinuxRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut filled = 0;
        while filled < bytes.len() {
            // It fails only when a signal arrives first, or on kernels before 3.17.
            filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
        }
    }
}

/// Tasks on the current tokio runtime, and what serves others on one of its own.
///
/// A task that panics ends the process: half a node would hold its place in the cluster without
/// doing its work. Containers go on, and whoever supervises the daemon starts it again.
#[derive(Debug, Clone)]
pub struct LinuxSpawner {
    apart: Handle,
}

impl LinuxSpawner {
    /// One that has what serves others run on `apart`.
    pub fn new(apart: Handle) -> Self {
        Self { apart }
    }
}

/// Runs a task that must not panic.
async fn guard(name: &'static str, task: BoxFuture<'static, ()>) {
    if std::panic::AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task of the node panicked: the daemon ends; its containers go on");
        std::process::exit(101);
    }
}

impl Spawner for LinuxSpawner {
    #[expect(clippy::disallowed_methods, reason = "this is the Linux implementation of the seam")]
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        tokio::spawn(guard(name, task));
    }

    fn spawn_apart(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.apart.spawn(guard(name, task));
    }

    #[expect(clippy::disallowed_methods, reason = "this is the Linux implementation of the seam")]
    fn run_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<'static, ()> {
        let work = tokio::task::spawn_blocking(work);
        Box::pin(async move {
            if work.await.is_err() {
                tracing::error!("blocking work panicked: the daemon ends; its containers go on");
                std::process::exit(101);
            }
        })
    }
}

//! Reads the sources again and again, and hints the transport with what they say: a member whose
//! addresses changed while this node was down is found through them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::time::Mono;
use tokio::sync::Notify;

use super::Seams;
use super::sources::{Reading, Sources};
use crate::platform::Platform;

/// How often sources that were read are read again.
pub const REFRESH: Duration = Duration::from_secs(60);
/// The first wait after a source could not be read; doubled up to [`REFRESH`].
pub const RETRY_MIN: Duration = Duration::from_secs(1);

/// Keeps the transport hinted. Shared by whoever demands a reading and whoever shows the last one.
pub struct Refresher {
    sources: Sources,
    demand: Notify,
    last: Mutex<Arc<Reading>>,
}

impl Refresher {
    /// Begins with nothing read.
    pub fn new(sources: Sources) -> Arc<Self> {
        Arc::new(Self { sources, demand: Notify::new(), last: Mutex::default() })
    }

    /// Has the sources read at once, as when no member can be reached.
    pub fn demand(&self) {
        self.demand.notify_one();
    }

    /// What was read last.
    pub fn last(&self) -> Arc<Reading> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the sources once and hints the transport.
    pub async fn read<'a>(&self, seams: impl Into<Seams<'a>>) -> Arc<Reading> {
        let seams = seams.into();
        let reading = Arc::new(self.sources.read(seams.transport.key(), seams.spawner).await);
        for contact in &reading.contacts {
            seams.transport.hint(contact.key, &contact.addresses);
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = reading.clone();
        reading
    }

    /// Reads the sources now, every [`REFRESH`], and on demand; sooner after a fault. Never ends.
    pub async fn run(self: Arc<Self>, platform: Platform) {
        let mut retry = RETRY_MIN;
        let mut told = Vec::new();
        loop {
            let reading = self.read(&platform).await;
            let problems: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
            let wait = if problems.is_empty() { REFRESH } else { retry.min(REFRESH) };
            retry = if problems.is_empty() { RETRY_MIN } else { wait.saturating_mul(2) };
            if problems != told {
                for problem in &problems {
                    tracing::warn!(err = problem, "a source of members cannot be used; trying on");
                }
                told = problems;
            }
            let deadline: Mono = platform.clock.now() + wait;
            // Both are cancel safe.
            tokio::select! {
                biased;
                () = self.demand.notified() => {}
                () = platform.clock.sleep_until(deadline) => {}
            }
        }
    }
}

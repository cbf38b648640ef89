//! `restarts_wait`: a container that ended is not started again before the shortest back-off.
//!
//! The restart policy (docs/reference): 1 s after the first end, then longer. A daemon that was
//! restarted itself begins anew. Shows a back-off that is computed and not waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::id::ReplicaId;
use blixard_core::limits::RESTART_BACKOFF_MIN;
use tokio::time::Instant;

/// When containers of one machine ended, as far as its running daemon was there to see it.
#[derive(Default)]
pub(crate) struct Restarts {
    ended: BTreeMap<ReplicaId, Instant>,
}

impl Restarts {
    /// A container ended by itself.
    pub(crate) fn ended(&mut self, replica: ReplicaId) {
        self.ended.insert(replica, Instant::now());
    }

    /// A container of the replica is made.
    pub(crate) fn started(&mut self, replica: ReplicaId, attempt: u32) -> Result<(), String> {
        let Some(waited) = self.ended.remove(&replica).map(|at| at.elapsed()) else { return Ok(()) };
        // Clocks tick in whole milliseconds and drift by up to 2 %.
        if waited + Duration::from_millis(30) >= RESTART_BACKOFF_MIN {
            return Ok(());
        }
        Err(format!("attempt {attempt} of replica {replica} started {waited:?} after an end"))
    }

    /// The daemon ended.
    pub(crate) fn forget(&mut self) {
        self.ended.clear();
    }
}

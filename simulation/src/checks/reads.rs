//! `reads_are_not_old`: an answer that is not marked stale holds every write acknowledged before
//! it was asked for.
//!
//! Linearizability of a service's version, which only rises while the service is there (Herlihy
//! and Wing, 1990). Shows a leader that answers after it was deposed, and a read that skips the
//! quorum.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use blixard_core::id::ServiceName;

/// The acknowledged version of each service, by how often its name was created.
#[derive(Default)]
pub struct Reads {
    acknowledged: Mutex<BTreeMap<ServiceName, (u64, u64)>>,
}

impl Reads {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, (u64, u64)>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A submission was acknowledged.
    pub fn submitted(&self, name: &ServiceName, version: u64) {
        let mut known = self.lock();
        let entry = known.entry(name.clone()).or_default();
        entry.1 = version;
    }

    /// A removal is about to be asked for: answers may lack the service from here on.
    pub fn removing(&self, name: &ServiceName) {
        let mut known = self.lock();
        let entry = known.entry(name.clone()).or_default();
        *entry = (entry.0 + 1, 0);
    }

    /// What a read that begins now must at least show.
    pub fn begin(&self, name: &ServiceName) -> (u64, u64) {
        self.lock().get(name).copied().unwrap_or_default()
    }

    /// Checks an answer to a read that began at `begun`; `None` is that there is no such service.
    ///
    /// # Errors
    /// When it is older than what was acknowledged before.
    pub fn ended(&self, name: &ServiceName, begun: (u64, u64), answer: Option<u64>) -> Result<(), String> {
        let now = self.begin(name);
        if begun.1 == 0 || begun.0 != now.0 {
            return Ok(());
        }
        if answer.is_none_or(|version| version < begun.1) {
            return Err(format!("version {} of `{name}` was acknowledged, a read shows {answer:?}", begun.1));
        }
        Ok(())
    }
}

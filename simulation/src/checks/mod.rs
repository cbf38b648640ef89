//! What must hold in every world. Each invariant has a file: what it states, where it is from and
//! which fault it shows. [`Checks`] shows them what happens and keeps the first that failed.

mod acknowledged;
mod agreement;
mod election;
pub mod linearizable;
mod reads;
mod settled;
mod states;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_node::handle::RaftStatus;

pub use self::acknowledged::{Expected, acknowledged};
use self::agreement::Agreement;
use self::election::Election;
pub use self::reads::Reads;
pub use self::settled::settled;
use self::states::States;
use crate::trace::Trace;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What was seen.
    pub detail: String,
    /// When, in simulated time.
    pub at: Duration,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.detail)
    }
}

/// The checks of one world.
pub struct Checks {
    trace: Trace,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    agreement: Agreement,
    election: Election,
    states: States,
    first: Option<Violation>,
}

impl Checks {
    /// The checks of a world that begins.
    pub fn new(trace: Trace) -> Self {
        Self { trace, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has published a state.
    pub fn state(&self, machine: u64, state: &Arc<ClusterState>) {
        let mut inner = self.lock();
        let first = inner.states.at(state.applied);
        let checked = inner.agreement.seen(machine, state, first.as_deref());
        let checked = checked.map_err(|detail| ("states_agree".to_owned(), detail));
        self.trace.record_at("apply", machine, state.applied, checked.as_deref().unwrap_or_default());
        let checked = checked.and_then(|_| inner.states.seen(state));
        drop(inner);
        if let Err((invariant, detail)) = checked {
            self.violated(&invariant, detail);
        }
    }

    /// A node knows this of Raft.
    pub fn status(&self, machine: u64, status: &RaftStatus) {
        let mut inner = self.lock();
        let news = inner.election.seen(machine, status);
        drop(inner);
        match news {
            Ok(Some(words)) => self.trace.say(machine, &words),
            Ok(None) => {}
            Err(detail) => self.violated("one_leader_a_term", detail),
        }
    }

    /// An invariant did not hold. The first counts.
    pub fn violated(&self, invariant: &str, detail: String) {
        let at = self.trace.elapsed();
        let mut inner = self.lock();
        if inner.first.is_some() {
            return;
        }
        inner.first = Some(Violation { invariant: invariant.to_owned(), detail: detail.clone(), at });
        drop(inner);
        self.trace.say(0, &format!("VIOLATED {invariant}: {detail}"));
    }

    /// The first violation.
    pub fn first(&self) -> Option<Violation> {
        self.lock().first.clone()
    }

    /// The highest index that any node has applied, and the highest term in which one led.
    pub fn reached(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.agreement.highest(), inner.election.highest())
    }
}

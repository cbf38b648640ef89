//! How a replica's containers end: those that have no use any more, and all of them once it is to stop.

use std::time::Duration;

use super::{At, Busy, Container, Replica, Shared};
use crate::agent::Action;
use crate::cluster::Phase;
use crate::id::ReplicaId;
use crate::limits::{STOP_TIMEOUT_S, STOP_TIMEOUT_S_MAX};
use crate::time::Mono;

/// A removal under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// When it was asked for.
    pub(super) began: Mono,
    /// How long the process was given.
    pub(super) timeout: Duration,
}

impl Replica {
    /// Nothing is left of a container.
    pub(in crate::agent) fn removed(&mut self, attempt: u32) {
        if self.busy == Some(Busy::Removing(attempt)) {
            (self.busy, self.removal) = (None, None);
            self.removals.reset();
            self.containers.remove(&attempt);
            self.oom_killed.remove(&attempt);
        }
    }

    /// A container could not be removed.
    pub(in crate::agent) fn remove_failed(&mut self, at: At, attempt: u32, error: &str) {
        if self.busy != Some(Busy::Removing(attempt)) {
            return;
        }
        (self.busy, self.removal) = (None, None);
        let again = at.utc.after(self.removals.fail(at.now));
        if matches!(self.status.phase, Phase::Starting | Phase::Stopping) {
            self.status.message = format!("removal failed: {error}; trying again at {again}");
        }
    }

    /// The earliest attempt whose container has no use any more. An attempt that ended for good
    /// keeps its container until the state has its end: the container is what a restarted agent
    /// would learn the exit code from.
    pub(super) fn superfluous(&self) -> Option<u32> {
        let own = self.assignment.as_ref()?;
        let current = match self.status.phase {
            Phase::Running => Some(self.status.attempt),
            Phase::Completed | Phase::Failed
                if (own.status.attempt, own.status.phase) < (self.status.attempt, self.status.phase)
                    && matches!(self.containers.get(&self.status.attempt), Some(Container::Ended(_))) =>
            {
                Some(self.status.attempt)
            }
            _ => None,
        };
        self.containers.keys().copied().find(|attempt| Some(*attempt) != current)
    }

    pub(super) fn tear_down(&mut self, id: ReplicaId, at: At, shared: &mut Shared<'_>) {
        let left = self.busy.is_some() || !self.containers.is_empty();
        if !left {
            if self.status.phase != Phase::Gone {
                self.enter(Phase::Gone, at, String::new());
            }
            return;
        }
        if self.status.phase < Phase::Stopping {
            self.enter(Phase::Stopping, at, String::new());
        }
        if self.busy.is_none()
            && let Some((&attempt, _)) = self.containers.first_key_value()
        {
            self.remove(id, attempt, at, shared);
        }
    }

    pub(super) fn remove(&mut self, id: ReplicaId, attempt: u32, at: At, shared: &mut Shared<'_>) {
        if !self.removals.is_over(at.now) {
            return;
        }
        let timeout = self.stop_timeout();
        self.busy = Some(Busy::Removing(attempt));
        self.removal = Some(Removal { began: at.now, timeout });
        shared.actions.push(Action::Remove { replica: id, attempt, timeout });
    }

    fn stop_timeout(&self) -> Duration {
        let seconds = self.assignment.as_ref().map_or(STOP_TIMEOUT_S, |own| own.stop_timeout_s);
        // What was stored before it was checked may say for ever.
        Duration::from_secs(seconds.min(STOP_TIMEOUT_S_MAX).into())
    }

    /// When a process that was told to end is to be killed, where it was given longer at first.
    pub(super) fn kill_due(&self) -> Option<Mono> {
        let timeout = self.assignment.as_ref().map(|_| self.stop_timeout())?;
        let removal = self.removal.filter(|removal| timeout < removal.timeout)?;
        Some(removal.began + timeout)
    }

    /// Has a process killed whose time was cut short while it was ending.
    pub(super) fn kill_overdue(&mut self, id: ReplicaId, now: Mono, shared: &mut Shared<'_>) {
        let (Some(due), Some(Busy::Removing(attempt))) = (self.kill_due(), self.busy) else { return };
        if due <= now {
            self.removal = None;
            shared.actions.push(Action::Kill { replica: id, attempt });
        }
    }
}

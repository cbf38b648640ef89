//! Publishes ports before what follows from it: reports and removals wait until it is done.

use std::collections::VecDeque;
use std::time::Duration;

use blixard_core::agent::{Action, Ready};
use blixard_core::limits::RESTART_BACKOFF_MIN;
use blixard_core::time::Mono;
use futures_util::future::BoxFuture;

use super::actions::answer;
use crate::platform::{Platform, RuntimeError};

/// The longest time between two tries.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The one publishing that is under way at a time, and the actions that wait for it: as many as the
/// agent decides on in the time that the runtime has for an answer.
pub(super) struct Publishing {
    platform: Platform,
    waiting: VecDeque<Action>,
    under_way: Option<(Ready, BoxFuture<'static, Result<(), RuntimeError>>)>,
    /// What could not be published, until something else is.
    failed: Option<Ready>,
    failures: u32,
    retry_at: Option<Mono>,
}

impl Publishing {
    pub(super) fn new(platform: Platform) -> Self {
        Self {
            platform,
            waiting: VecDeque::new(),
            under_way: None,
            failed: None,
            failures: 0,
            retry_at: None,
        }
    }

    /// Takes an action in, behind those that wait.
    pub(super) fn push(&mut self, action: Action) {
        self.waiting.push_back(action);
    }

    /// The next action that need not wait any longer. Of several publishings the last one counts.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        if self.under_way.is_some() {
            return None;
        }
        let mut last = None;
        self.waiting.retain(|action| match action {
            Action::Publish(ready) => {
                last = Some(ready.clone());
                false
            }
            _ => true,
        });
        match last {
            Some(ready) => {
                self.begin(ready);
                None
            }
            None => self.waiting.pop_front(),
        }
    }

    fn begin(&mut self, ready: Ready) {
        (self.failed, self.retry_at) = (None, None);
        let (clock, containers) = (self.platform.clock.clone(), self.platform.containers.clone());
        let published = ready.clone();
        let publishing = async move { answer(&*clock, containers.publish(&published)).await };
        self.under_way = Some((ready, Box::pin(publishing)));
    }

    /// Waits until the publishing under way is done, if there is one. Cancel safe.
    pub(super) async fn done(&mut self) {
        let Some((_, publishing)) = &mut self.under_way else { return std::future::pending().await };
        let result = publishing.await;
        let ready = self.under_way.take().map(|(ready, _)| ready);
        match result {
            Ok(()) => self.failures = 0,
            Err(error) => {
                tracing::warn!(err = %error, "published ports are as they were; trying again");
                self.failed = ready;
                let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
                self.failures = self.failures.saturating_add(1);
                let pause = RESTART_BACKOFF_MIN.saturating_mul(factor).min(RETRY_MAX);
                self.retry_at = Some(self.platform.clock.now() + pause);
            }
        }
    }

    /// When it tries again after a failure.
    pub(super) fn retry_at(&self) -> Option<Mono> {
        self.retry_at
    }

    /// Tries again when it is time to.
    pub(super) fn woken(&mut self) {
        if self.retry_at.is_some_and(|at| at <= self.platform.clock.now())
            && let Some(ready) = self.failed.take()
        {
            self.begin(ready);
        }
    }
}

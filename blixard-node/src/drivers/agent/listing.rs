//! The container runtime as a source of truth: its list, then its events, then its list again
//! whenever events may have been missed.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::time::Duration;

use blixard_core::agent::Observed;
use blixard_core::id::{ClusterId, NodeId};
use blixard_core::limits::RESTART_BACKOFF_MIN;
use blixard_core::time::Mono;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};

use super::actions::answer;
use crate::platform::{Platform, RuntimeError, RuntimeEvent};

/// The longest time between two questions to a runtime that does not answer.
const RETRY_MAX: Duration = Duration::from_secs(10);

type Events = Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;
/// The events, when they were subscribed to anew, and the list taken after that.
type Answer = (Option<Events>, Result<Vec<Observed>, RuntimeError>);

/// Something the runtime showed.
pub(super) enum Seen {
    /// All containers.
    Listed(Vec<Observed>),
    /// Something happened.
    Event(RuntimeEvent),
    /// It could not be asked; it will be again.
    Nothing,
}

/// Asks the runtime, attaching it to the cluster before the first question.
pub(super) struct Listing {
    platform: Platform,
    cluster: ClusterId,
    node: NodeId,
    subnet: Ipv4Addr,
    attached: bool,
    events: Option<Events>,
    asked: Option<BoxFuture<'static, Answer>>,
    failures: u32,
    retry_at: Option<Mono>,
}

impl Listing {
    /// Asks at once.
    pub(super) fn new(platform: Platform, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Self {
        let mut listing = Self {
            platform,
            cluster,
            node,
            subnet,
            attached: false,
            events: None,
            asked: None,
            failures: 0,
            retry_at: None,
        };
        listing.ask();
        listing
    }

    /// Whether the list was asked for and has not arrived.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// When it asks again after a failure.
    pub(super) fn retry_at(&self) -> Option<Mono> {
        self.retry_at
    }

    /// Asks again when it is time to.
    pub(super) fn woken(&mut self) {
        if self.retry_at.is_some_and(|at| at <= self.platform.clock.now()) {
            self.ask();
        }
    }

    /// Asks for the list, subscribing to the events before it where that is still to be done, so
    /// that nothing falls between the two.
    pub(super) fn ask(&mut self) {
        self.retry_at = None;
        let (clock, containers) = (self.platform.clock.clone(), self.platform.containers.clone());
        let attach = (!self.attached).then_some((self.cluster, self.node, self.subnet));
        let subscribe = self.events.is_none();
        self.asked = Some(Box::pin(async move {
            if let Some((cluster, node, subnet)) = attach
                && let Err(error) = answer(&*clock, containers.attach(cluster, node, subnet)).await
            {
                return (None, Err(error));
            }
            let events = subscribe.then(|| containers.events());
            (events, answer(&*clock, containers.list()).await)
        }));
    }

    /// Waits for the list when it was asked for, else for an event. Cancel safe.
    pub(super) async fn next(&mut self) -> Seen {
        if let Some(asked) = &mut self.asked {
            let (events, list) = asked.await;
            self.asked = None;
            return self.answered(events, list);
        }
        let Some(events) = &mut self.events else { return std::future::pending().await };
        if let Some(event) = events.next().await {
            return Seen::Event(event);
        }
        self.events = None;
        self.retry();
        Seen::Nothing
    }

    fn answered(&mut self, events: Option<Events>, list: Result<Vec<Observed>, RuntimeError>) -> Seen {
        if events.is_some() {
            self.attached = true;
            self.events = events;
        }
        match list {
            Ok(list) => {
                self.failures = 0;
                Seen::Listed(list)
            }
            Err(error) => {
                tracing::warn!(node.id = self.node.0, err = %error, "cannot list containers; trying again");
                self.retry();
                Seen::Nothing
            }
        }
    }

    /// Waits for half of the back-off and a random part of the other half.
    fn retry(&mut self) {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let half = RESTART_BACKOFF_MIN.saturating_mul(factor).min(RETRY_MAX) / 2;
        self.failures = self.failures.saturating_add(1);
        let jitter_ms = self.platform.rng.next_u64() % half.as_millis().try_into().unwrap_or(u64::MAX).max(1);
        self.retry_at = Some(self.platform.clock.now() + half + Duration::from_millis(jitter_ms));
    }
}

//! Leads connections to published ports from nodes that run no ready replica to nodes that do.
//!
//! Which ports, and to whom, is [`blixard_core::route`]'s to say. Where a node has a ready replica the
//! kernel translates, and nothing comes here. The node that is led to dials its own containers only, and
//! only those that its agent has published: what is about to stop is refused before it is told to, and
//! the connection goes to the next endpoint. Nothing was sent by then.
//!
//! A node whose state is known not to be the majority's leads nobody and is led to by nobody until it has
//! theirs; what was led before goes on. What its kernel translates to its own containers stays: the agent
//! published it by what the cluster agreed on, and is told nothing meanwhile.

mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::id::{NodeId, ServiceName};
use blixard_core::limits::ROUTE_TRIES;
use blixard_core::route;
use blixard_core::time::Mono;

pub(crate) use self::relay::{Relays, serve};
use crate::context::NodeContext;
use crate::platform::Listener;
use crate::seldom::Seldom;
use crate::shared::Shared;

/// The shortest time between two looks at the state, which may change thousands of times a second.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a port that cannot be listened on is left alone.
const RETRY: Duration = Duration::from_secs(2);
/// How long at first: the container network may not be there yet when the node starts.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// How long it is tried so often, and nothing is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing is accepted after it failed, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port that is listened on.
struct Port {
    service: ServiceName,
    /// Ends the task that listens, when dropped.
    _listening: tokio::sync::oneshot::Sender<()>,
}

/// The task: listens on the ports that are led on, for as long as the node runs.
pub(crate) async fn run(shared: Shared) {
    let mut routes = Routes::default();
    let (mut states, mut comparisons) = (shared.watch_state(), shared.digests.watch());
    loop {
        drop(comparisons.borrow_and_update());
        let wanted = route::ports(&states.borrow_and_update().clone(), shared.id, &wrong(&shared));
        let retry = routes.become_what_is(wanted, &shared).await;
        shared.wait(PAUSE).await;
        // Cancel safe: all only watch.
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            changed = comparisons.changed() => if changed.is_err() { return },
            () = shared.wait(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

/// The nodes whose states are known not to be the majority's.
fn wrong(shared: &Shared) -> BTreeSet<NodeId> {
    let mut wrong = shared.digests.replaced_members(shared.platform.clock.now());
    wrong.extend(shared.digests.is_wrong().then_some(shared.id));
    wrong
}

/// A port that cannot be listened on, as when another program has it.
struct Taken {
    since: Mono,
    /// Until when it is left alone.
    until: Mono,
    /// What was said of it.
    said: Seldom,
}

impl Taken {
    fn new(since: Mono) -> Self {
        Self { since, until: since, said: Seldom::default() }
    }
}

#[derive(Default)]
struct Routes {
    open: BTreeMap<u16, Port>,
    taken: BTreeMap<u16, Taken>,
    relays: Relays,
}

impl Routes {
    /// Opens and closes ports; when those that could not be opened are to be tried again, if there are any.
    async fn become_what_is(
        &mut self,
        wanted: BTreeMap<u16, ServiceName>,
        shared: &Shared,
    ) -> Option<Duration> {
        let is_wanted = |(number, port): &(&u16, &Port)| wanted.get(number) == Some(&port.service);
        let gone = self.open.iter().filter(|open| !is_wanted(open)).map(|(number, _)| *number);
        for number in gone.collect::<Vec<_>>() {
            // Its task ends by the drop; the socket closes when both have let go of it.
            self.open.remove(&number);
            shared.platform.containers.unlisten(number).await;
        }
        self.taken.retain(|number, _| wanted.contains_key(number));
        for (number, service) in wanted {
            if !self.open.contains_key(&number) {
                self.open(number, service, shared).await;
            }
        }
        let now = shared.platform.clock.now();
        self.taken.values().map(|taken| taken.until.since(now)).min()
    }

    async fn open(&mut self, number: u16, service: ServiceName, shared: &Shared) {
        let now = shared.platform.clock.now();
        if self.taken.get(&number).is_some_and(|taken| now < taken.until) {
            return;
        }
        match shared.platform.containers.listen(number).await {
            Ok(listener) => {
                self.taken.remove(&number);
                let (listening, ended) = tokio::sync::oneshot::channel();
                let task = accept(shared.clone(), listener, number, service.clone(), self.relays.clone());
                let task = async move {
                    // Cancel safety: connections that were accepted have tasks of their own.
                    tokio::select! {
                        biased;
                        _ = ended => {}
                        () = task => {}
                    }
                };
                NodeContext::new(&shared.platform).spawn_apart("route", task);
                self.open.insert(number, Port { service, _listening: listening });
            }
            Err(error) => {
                let taken = self.taken.entry(number).or_insert_with(|| Taken::new(now));
                if now.since(taken.since) < PATIENCE {
                    taken.until = now + RETRY_SOON;
                    return;
                }
                taken.until = now + RETRY;
                if let Some(left_out) = taken.said.due(now) {
                    tracing::warn!(port = number, err = %error, left_out, "this node does not answer on a published port; the others do");
                }
            }
        }
    }
}

/// Takes connections and gives each to a task of its own.
async fn accept(
    shared: Shared,
    mut listener: Box<dyn Listener>,
    port: u16,
    service: ServiceName,
    relays: Relays,
) {
    let mut turn: usize = 0;
    let mut failing = Seldom::default();
    loop {
        match listener.accept().await {
            Ok(client) => {
                // As the state is now: translation may have ended by the entry that made another ready.
                let endpoints = route::endpoints(&shared.state(), shared.id, &wrong(&shared), &service, port);
                turn = turn.wrapping_add(1);
                let tried = route::in_turn(&endpoints, turn, ROUTE_TRIES).collect();
                let relay = relay::relay(shared.clone(), client, tried, relays.clone());
                NodeContext::new(&shared.platform).spawn_apart("routed connection", relay);
            }
            Err(error) => {
                if let Some(left_out) = failing.due(shared.platform.clock.now()) {
                    tracing::warn!(err = %error, left_out, "a connection to a published port was not taken");
                }
                shared.wait(ACCEPT_PAUSE).await;
            }
        }
    }
}

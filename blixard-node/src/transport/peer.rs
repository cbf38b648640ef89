//! The link to one member: kept up by a supervisor, redialled when it falls, whichever side made
//! it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::api::discovery::LinkState;
use blixard_core::discovery::dial::{Dial, FAILURES_OPEN};
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::time::Mono;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::endpoint::{ALPN_MEMBER, remote_address, round_trip};
use super::hello;
use super::link::{CloseCode, Link};
use super::shared::{REMOVED, Shared};
use super::starts::refused_for_running_twice;

/// How long one dial may take, hello included.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// How long the side with the higher key leaves the first dial to the other, so that two members
/// that start together rarely make two links.
const PATIENCE: Duration = Duration::from_millis(200);
/// Superseded links of one member that live on for what is under way on them. Two sides that dial
/// at once make one; a member that makes more of them loses its oldest.
pub(super) const SUPERSEDED_MAX: usize = 4;

/// A member, as this node links to it.
pub(super) struct Slot {
    pub(super) node: NodeId,
    pub(super) key: NodeKey,
    relay: Mutex<Option<String>>,
    state: watch::Sender<State>,
    /// Someone waits for a link.
    wanted: Notify,
    /// An address came up that a dial under way does not try.
    moved: Notify,
    removed: CancellationToken,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    /// Those that it, or one before it, took over from and that live on for a while; oldest first.
    superseded: Vec<Arc<Link>>,
    dial: Dial,
    /// Counts failed dials, so that a caller sees the end of the one it waited for.
    failures: u64,
    /// Why the last one failed.
    error: String,
}

impl Slot {
    pub(super) fn new(node: NodeId, key: NodeKey) -> Self {
        Self {
            node,
            key,
            relay: Mutex::default(),
            state: watch::Sender::new(State::default()),
            wanted: Notify::new(),
            moved: Notify::new(),
            removed: CancellationToken::new(),
        }
    }

    pub(super) fn set_relay(&self, url: Option<String>) {
        *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    /// The link, when it is up.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.state.borrow().link.clone()
    }

    /// The link, when it is up, and those that live on though another took over.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        let state = self.state.borrow();
        state.link.iter().chain(&state.superseded).cloned().collect()
    }

    /// How the link is, for people.
    pub(super) fn describe(&self, now: Mono) -> crate::platform::Link {
        let state = self.state.borrow();
        let failures = state.dial.failures();
        let circuit = match &state.link {
            Some(_) => LinkState::Connected,
            None if state.dial.is_open(now) => LinkState::Open,
            None if failures >= FAILURES_OPEN => LinkState::HalfOpen,
            None => LinkState::Connecting,
        };
        let connection = state.link.as_ref().map(|link| link.connection());
        crate::platform::Link {
            state: Some(circuit),
            address: connection.and_then(remote_address),
            rtt: connection.and_then(round_trip),
            failures,
            error: (failures > 0).then(|| state.error.clone()),
            addresses: Vec::new(),
        }
    }

    /// The link, or, once a dial that was under way or is now made has failed, why there is none.
    /// Does not wait while the circuit is open. Cancel safe.
    pub(super) async fn link_or_dial(&self, shared: &Shared) -> Result<Arc<Link>, String> {
        let mut state = self.state.subscribe();
        let failures = state.borrow().failures;
        loop {
            {
                let state = state.borrow_and_update();
                if let Some(link) = &state.link {
                    return Ok(link.clone());
                }
                if state.failures != failures || state.dial.is_open(shared.now()) {
                    return Err(state.error.clone());
                }
            }
            self.wanted.notify_one();
            tokio::select! {
                biased;
                () = self.removed.cancelled() => return Err("this node links to it no more".to_owned()),
                changed = state.changed() => changed.expect("the slot outlives its watchers"),
            }
        }
    }

    /// A new address came up: dial at once if there is no link.
    pub(super) fn hinted(&self) {
        self.state.send_modify(|state| state.dial.hinted());
        self.moved.notify_one();
    }

    /// Takes in a new link. Of two from the same endpoint of the other side the one dialled by the
    /// lower key stays, which both sides judge alike; otherwise the newer one does, because every
    /// older one leads to an endpoint that is gone: what is under way there gets no answer.
    pub(super) fn adopt(self: &Arc<Self>, shared: &Shared, link: Arc<Link>) {
        let by_lower = |link: &Link| link.dialled == (shared.key < link.key);
        let mut removed = false;
        let mut superseded = None;
        let mut gone = Vec::new();
        self.state.send_modify(|state| {
            removed = self.removed.is_cancelled();
            if removed {
                return;
            }
            state.dial.succeeded();
            match state.link.take() {
                Some(old) if old.boot == link.boot && by_lower(&old) && !by_lower(&link) => {
                    superseded = Some(link.clone());
                    state.link = Some(old);
                }
                old => {
                    superseded = old;
                    state.link = Some(link.clone());
                }
            }
            state.superseded.extend(superseded.clone());
            let anew = |old: &mut Arc<Link>| old.boot != link.boot;
            gone.extend(state.superseded.extract_if(.., anew).map(|old| (old, "it has started anew")));
            let too_many = state.superseded.len().saturating_sub(SUPERSEDED_MAX);
            gone.extend(state.superseded.drain(..too_many).map(|old| (old, "too many links took over")));
        });
        if removed {
            return link.close(CloseCode::NotMember, REMOVED);
        }
        for (old, reason) in gone {
            old.close(CloseCode::Superseded, reason);
        }
        if let Some(old) = superseded {
            shared.tasks.spawn(old.retire());
        }
        shared.tasks.spawn(self.clone().watch(link));
    }

    /// Ends the links and their supervisor.
    pub(super) fn remove(&self, code: CloseCode, reason: &str) {
        self.removed.cancel();
        let state = self.state.send_replace(State::default());
        for link in state.link.iter().chain(&state.superseded) {
            link.close(code, reason);
        }
    }

    async fn watch(self: Arc<Self>, link: Arc<Link>) {
        let reason = link.ended_for().await;
        let was_current = self.state.send_if_modified(|state| {
            let current = state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, &link));
            if current {
                state.link = None;
            }
            state.superseded.retain(|old| !Arc::ptr_eq(old, &link));
            current
        });
        tracing::info!(peer.id = %self.node, reason, was_current, "link down");
    }

    fn failed(&self, shared: &Shared, error: String) {
        let mut failures = 0;
        self.state.send_if_modified(|state| {
            let down = state.link.is_none();
            if down {
                state.dial.failed(shared.now(), shared.rng.next_u64());
                state.failures += 1;
                state.error.clone_from(&error);
                failures = state.dial.failures();
            }
            down
        });
        if failures == FAILURES_OPEN {
            tracing::warn!(peer.id = %self.node, err = error, "cannot reach a member; dialling on");
        } else {
            tracing::debug!(peer.id = %self.node, err = error, failures, "dial failed");
        }
    }
}

/// Keeps a link to a member up until the member is removed.
pub(super) async fn supervise(shared: Arc<Shared>, slot: Arc<Slot>) {
    shared.handler.wait().await;
    let removed = slot.removed.clone();
    let _removed = removed.run_until_cancelled(keep_linked(&shared, &slot)).await;
}

async fn keep_linked(shared: &Arc<Shared>, slot: &Slot) {
    let mut state = slot.state.subscribe();
    loop {
        let wait = {
            let down = state.wait_for(|state| state.link.is_none()).await;
            let dial = down.expect("the slot outlives its supervisor").dial;
            let first = dial.failures() == 0 && shared.key > slot.key;
            if first { PATIENCE } else { dial.wait(shared.now()) }
        };
        // All are cancel safe; a link that came up meanwhile goes first.
        tokio::select! {
            biased;
            _up = state.wait_for(|state| state.link.is_some()) => continue,
            () = slot.moved.notified() => {}
            () = slot.wanted.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let dialled = tokio::time::timeout(DIAL_DEADLINE, dial(shared, slot));
        let dialled = tokio::select! {
            biased;
            // The next dial tries the new address too.
            () = slot.moved.notified() => continue,
            dialled = dialled => dialled,
        };
        let dialled = dialled.unwrap_or_else(|_| {
            let addresses = shared.addresses_of(slot.key);
            Err(format!("no answer within {DIAL_DEADLINE:?} at {addresses:?}"))
        });
        if let Err(error) = dialled {
            slot.failed(shared, error);
        }
    }
}

async fn dial(shared: &Arc<Shared>, slot: &Slot) -> Result<(), String> {
    let relay = slot.relay.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let target = hello::dial_target(slot.key, &shared.addresses_of(slot.key), relay.as_deref())?;
    let connection = shared.listener.connect(target, ALPN_MEMBER).await?;
    let own = shared.hello();
    let said = hello::say(&connection, &own).await;
    if let Some(start) = own.start.filter(|_| said.is_err() && refused_for_running_twice(&connection)) {
        shared.handler.wait().await.is_refused(start);
    }
    let hello = said?;
    shared.admit(&connection, &hello).await?;
    shared.linked(connection, true, hello).await
}

//! What a node's drivers and its handle share: the state and status last seen, Raft while it is
//! open, and the way to the leader's task. It decides nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::cluster::{ClusterState, Command, NodeStatus, Outcome};
use blixard_core::id::{ClusterId, NodeId, ReplicaId, RequestId};
use blixard_core::limits;
use blixard_core::time::UtcMs;
use blixard_core::wire::{Channel, ForwardRequest, ForwardResponse};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::copies::Copies;
use crate::digests::Digests;
use crate::discovery::finder::Finder;
use crate::drivers::batch::Input;
use crate::drivers::beats::{Beat, Beats};
use crate::drivers::leader;
use crate::handle::RaftStatus;
use crate::platform::{Platform, PullProgress};
use crate::raft::{OpenError, ProposeError, RaftNode};
use crate::watch;

/// How long a member has to show that it is there when a failed write looks for who is missing.
pub(crate) const PROBE: Duration = Duration::from_millis(500);

/// What the drivers and the handle share. Raft may be away for a while: when its store fails, the
/// root drops and reopens it while containers go on.
pub(crate) struct SharedInner {
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) platform: Platform,
    raft: ArcSwapOption<RaftNode>,
    /// Whether Raft was open since this process began.
    opened: AtomicBool,
    /// Whether the node is being stopped: then Raft is not reopened.
    stopping: AtomicBool,
    /// The newest state seen, which stays readable while Raft is away.
    state: watch::Sender<Arc<ClusterState>>,
    status: watch::Sender<RaftStatus>,
    inputs: mpsc::Sender<Input>,
    pub(crate) beats: Beats,
    /// Nodes that run twice.
    pub(crate) copies: Copies,
    /// How members' states compare.
    pub(crate) digests: Digests,
    /// Whether a member said that this node was removed.
    removed: watch::Sender<bool>,
    /// Why Raft's stores are not opened again, if they are not.
    unusable: watch::Sender<Option<Arc<OpenError>>>,
    pub(crate) pulls: Arc<Mutex<BTreeMap<ReplicaId, PullProgress>>>,
    /// By what this node finds others; set once it serves.
    pub(crate) finder: OnceLock<Arc<Finder>>,
    /// Room for clients that follow the events.
    pub(crate) followers: Arc<Semaphore>,
}

/// A cheap copy of what the drivers share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<SharedInner>);

impl std::ops::Deref for Shared {
    type Target = SharedInner;

    fn deref(&self) -> &SharedInner {
        &self.0
    }
}

impl Shared {
    /// Shares one node's state; the receiver is the leader task's queue.
    pub(crate) fn new(id: NodeId, cluster: ClusterId, platform: Platform) -> (Self, mpsc::Receiver<Input>) {
        let (inputs, queue) = mpsc::channel(leader::QUEUE);
        let (state, _) = watch::channel(Arc::new(ClusterState::default()));
        let (status, _) = watch::channel(RaftStatus::default());
        let (removed, _) = watch::channel(false);
        let (unusable, _) = watch::channel(None);
        let inner = SharedInner {
            id,
            cluster,
            platform,
            raft: ArcSwapOption::empty(),
            opened: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            state,
            status,
            inputs,
            beats: Beats::default(),
            copies: Copies::default(),
            digests: Digests::default(),
            removed,
            unusable,
            pulls: Arc::default(),
            finder: OnceLock::new(),
            followers: Arc::new(Semaphore::new(limits::FOLLOWERS_MAX)),
        };
        (Self(Arc::new(inner)), queue)
    }

    /// Raft, unless its store is being opened: as the node starts, or after it failed.
    pub(crate) fn raft(&self) -> Option<Arc<RaftNode>> {
        self.raft.load_full()
    }

    /// Why there is no Raft here for the moment: a sentence without a full stop.
    pub(crate) fn why_no_raft(&self) -> &'static str {
        match self.opened.load(Ordering::Relaxed) {
            false => "this node is starting: its store is not open yet",
            true => "this node's store failed and is being reopened: see its log",
        }
    }

    pub(crate) fn set_raft(&self, raft: Option<Arc<RaftNode>>) {
        if raft.is_none() {
            self.status.send(RaftStatus::default());
        } else {
            self.opened.store(true, Ordering::Relaxed);
        }
        self.raft.store(raft);
    }

    /// Raft's stores cannot be used any more: this member agrees to nothing from now on.
    pub(crate) fn set_unusable(&self, why: OpenError) {
        self.unusable.send(Some(Arc::new(why)));
    }

    /// Waits until Raft's stores cannot be used any more, and says why. Cancel safe.
    pub(crate) async fn wait_unusable(&self) -> Arc<OpenError> {
        let mut watched = self.unusable.subscribe();
        loop {
            if let Some(why) = &*watched.borrow_and_update() {
                return Arc::clone(why);
            }
            // The sender lives as long as `self`.
            watched.changed().await.ok();
        }
    }

    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Publishes a state. What is published never goes back: a store that was reopened begins
    /// before what it had applied, and who is a member must not be forgotten meanwhile. A state that was
    /// found to be wrong goes once the right one has come as far.
    pub(crate) fn set_state(&self, state: Arc<ClusterState>) {
        let replaces = self.digests.is_replaced();
        let taken = self.state.send_if_modified(|known| {
            let newer = state.applied > known.applied || (replaces && state.applied == known.applied);
            if newer {
                *known = state;
            }
            newer
        });
        if taken && replaces {
            self.digests.set_right();
        }
    }

    pub(crate) fn set_status(&self, status: RaftStatus) {
        self.status.send(status);
    }

    pub(crate) fn state(&self) -> Arc<ClusterState> {
        self.state.subscribe().borrow().clone()
    }

    pub(crate) fn watch_state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    pub(crate) fn status(&self) -> RaftStatus {
        self.status.subscribe().borrow().clone()
    }

    pub(crate) fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.status.subscribe()
    }

    /// Whether this node leads and may act on what its state says.
    pub(crate) fn leads(&self) -> bool {
        self.status().is_leader(self.id) && !self.digests.is_wrong()
    }

    /// Waits until this node leads and may act on what its state says. Cancel safe.
    pub(crate) async fn wait_leading(&self) {
        while !self.leads() {
            self.wait_status(|status| status.is_leader(self.id)).await;
            self.digests.wait_right().await;
        }
    }

    /// Waits until this node no longer leads in `term`, or may not act on what its state says. Cancel safe.
    pub(crate) async fn wait_not_leading(&self, term: u64) {
        // Cancel safety: both only watch.
        tokio::select! {
            biased;
            () = self.wait_status(|status| !status.is_leader(self.id) || status.term != term) => {}
            _ = self.digests.wait_wrong() => {}
        }
    }

    /// Waits until another than `leader` leads: a leader that died answers nothing until its link
    /// falls, its successor may at once. Cancel safe.
    pub(crate) async fn wait_deposed(&self, leader: NodeId) {
        self.wait_status(|status| status.leader.is_some_and(|now| now != leader)).await;
    }

    pub(crate) async fn wait_status(&self, holds: impl Fn(&RaftStatus) -> bool) {
        let mut statuses = self.watch_status();
        while !holds(&statuses.borrow()) {
            // The sender lives as long as `self`.
            statuses.changed().await.ok();
        }
    }

    /// Waits until no leader has been heard for `silence`, from this call on. Cancel safe.
    pub(crate) async fn wait_leaderless(&self, silence: Duration) {
        while self.within(silence, self.wait_status(|status| status.leader.is_some())).await.is_some() {
            self.wait_status(|status| status.leader.is_none()).await;
        }
    }

    pub(crate) fn set_removed(&self) {
        self.removed.send(true);
    }

    /// Waits until this node knows that it was removed: by its own state, or because a member said
    /// so. Cancel safe.
    pub(crate) async fn wait_removed(&self) {
        let mut told = self.removed.subscribe();
        let mut states = self.watch_state();
        let applied = async {
            while !states.borrow_and_update().removed_nodes.contains_key(&self.id) {
                // The sender lives as long as `self`.
                states.changed().await.ok();
            }
        };
        // Cancel safety: both only watch.
        tokio::select! {
            biased;
            _ = told.wait_for(|told| *told) => {}
            () = applied => {}
        }
    }

    pub(crate) async fn wait(&self, duration: Duration) {
        let clock = &self.platform.clock;
        clock.sleep_until(clock.now() + duration).await;
    }

    /// Runs `work` for at most `duration`.
    pub(crate) async fn within<T>(&self, duration: Duration, work: impl Future<Output = T>) -> Option<T> {
        // Cancel safety: the caller of `within` states it for `work`.
        tokio::select! {
            biased;
            value = work => Some(value),
            () = self.wait(duration) => None,
        }
    }

    pub(crate) fn random_request(&self) -> RequestId {
        let mut bytes = [0; 16];
        self.platform.rng.fill(&mut bytes);
        RequestId(bytes)
    }

    /// Hands `input` to this node's leader task.
    pub(crate) async fn input(&self, input: Input) {
        // The queue closes only when the node stops; the reply's sender is dropped with it.
        self.inputs.send(input).await.ok();
    }

    /// Takes in a member's sign of life, on this node as leader.
    pub(crate) fn beat(&self, node: NodeId, boot: u64, facts: NodeFacts) {
        let state = self.state();
        let known = state.nodes.get(&node);
        let as_known = known.is_some_and(|known| {
            known.status == NodeStatus::Up && known.hold_until.is_none() && known.facts == facts
        });
        let at = self.platform.clock.now();
        self.beats.put(node, Beat { boot, facts, at }, !as_known);
    }

    /// Has this node, as leader, apply `command`. Waits for at most [`limits::WRITE_DEADLINE`]: the
    /// queue stands still while the fate of the entry in flight is unknown.
    pub(crate) async fn propose_here(&self, command: Command) -> Result<(u64, Outcome), ProposeError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.input(Input::Propose { command: Box::new(command), reply }).await;
            answer.await
        };
        let unavailable = |words: &str| Err(ProposeError::Unavailable(words.to_owned()));
        match self.within(limits::WRITE_DEADLINE, answered).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => unavailable("the node is stopping"),
            None => unavailable("the leader waits for what was proposed before: no quorum has agreed on it"),
        }
    }

    /// Answers a forwarded write.
    pub(crate) async fn serve_forward(&self, forwarded: ForwardRequest) -> ForwardResponse {
        let ForwardRequest { request, made_at, write, by } = forwarded;
        // Software of the first feature level does not know of it.
        let by = by.filter(|_| self.state().knows(SECOND_LEVEL));
        match self.propose_here(leader::write_command(request, made_at, write, by)).await {
            Ok((index, outcome)) => ForwardResponse::Applied { index, outcome },
            Err(ProposeError::NotLeader { leader }) => ForwardResponse::NotLeader { leader },
            Err(error) => ForwardResponse::Unavailable { message: error.to_string() },
        }
    }

    /// Which members show no sign of life to this node.
    pub(crate) async fn missing_members(&self) -> Vec<NodeId> {
        let state = self.state();
        let others = state.nodes.keys().filter(|id| **id != self.id);
        // All at once: several that are missing take no longer than one.
        let probes = others.map(|id| async move {
            let answer = self.platform.transport.call(*id, Channel::Addresses, Bytes::new(), PROBE).await;
            answer.is_err().then_some(*id)
        });
        join_all(probes).await.into_iter().flatten().collect()
    }
}

/// A member's notice as a command.
pub(crate) fn hold_command(node: NodeId, until: UtcMs) -> Command {
    Command::Hold { node, until: (until > UtcMs(0)).then_some(until) }
}

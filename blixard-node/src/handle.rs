//! What the HTTP API and the drivers know of their node: its state, and how to change it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use blixard_core::cluster::{ClusterState, Command, Outcome, Write};
use blixard_core::id::{ClusterId, NodeId, ReplicaId, RequestId};
use blixard_core::limits;
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{self, Channel, ForwardRequest, ForwardResponse, HoldRequest};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::drivers::leader::{self, Input};
use crate::platform::{Duplex, LinkError, Platform, PullProgress};
use crate::raft::{ProposeError, RaftNode};
use crate::watch;

/// How long a write waits before it asks again who leads.
const RETRY: Duration = Duration::from_millis(20);
/// How long a member has to show that it is there when a failed write looks for who is missing.
const PROBE: Duration = Duration::from_millis(500);

/// Why a write was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The cluster could not commit it in time. Whether it was applied is unknown: repeat it with
    /// the same request id.
    #[error("{0}")]
    Unavailable(String),
}

/// What this node knows of Raft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// Who leads, as far as this node knows; absent when it has not heard from a leader lately.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that follow without a vote.
    pub learners: Vec<NodeId>,
    /// The last index in this node's log.
    pub last_log: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The last index covered by a snapshot here.
    pub snapshot: u64,
    /// For how long a quorum has not acknowledged this node as leader, in milliseconds; absent
    /// when it does not lead.
    pub quorum_ack_ms_ago: Option<u64>,
}

impl RaftStatus {
    /// Whether `node` leads, as far as this node knows.
    pub fn is_leader(&self, node: NodeId) -> bool {
        self.leader == Some(node)
    }

    /// Voters and learners.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// What the drivers and the handle share. Raft may be away for a while: when its store fails, the
/// root drops and reopens it while containers go on.
pub(crate) struct SharedInner {
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) platform: Platform,
    raft: ArcSwapOption<RaftNode>,
    /// Whether the node is being stopped: then Raft is not reopened.
    stopping: AtomicBool,
    /// The newest state seen, which stays readable while Raft is away.
    state: watch::Sender<Arc<ClusterState>>,
    status: watch::Sender<RaftStatus>,
    inputs: mpsc::Sender<Input>,
    pub(crate) pulls: Arc<Mutex<BTreeMap<ReplicaId, PullProgress>>>,
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
        let inner = SharedInner {
            id,
            cluster,
            platform,
            raft: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
            state,
            status,
            inputs,
            pulls: Arc::default(),
        };
        (Self(Arc::new(inner)), queue)
    }

    /// Raft, unless its store has failed and it is being reopened.
    pub(crate) fn raft(&self) -> Option<Arc<RaftNode>> {
        self.raft.load_full()
    }

    pub(crate) fn set_raft(&self, raft: Option<Arc<RaftNode>>) {
        if raft.is_none() {
            self.status.send(RaftStatus::default());
        }
        self.raft.store(raft);
    }

    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn set_state(&self, state: Arc<ClusterState>) {
        self.state.send(state);
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

    /// Waits until this node leads. Cancel safe.
    pub(crate) async fn wait_leading(&self) {
        self.wait_status(|status| status.is_leader(self.id)).await;
    }

    /// Waits until this node no longer leads in `term`. Cancel safe.
    pub(crate) async fn wait_not_leading(&self, term: u64) {
        self.wait_status(|status| !status.is_leader(self.id) || status.term != term).await;
    }

    async fn wait_status(&self, holds: impl Fn(&RaftStatus) -> bool) {
        let mut statuses = self.watch_status();
        while !holds(&statuses.borrow()) {
            // The sender lives as long as `self`.
            statuses.changed().await.ok();
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

    /// Has this node, as leader, apply `command`.
    pub(crate) async fn propose_here(&self, command: Command) -> Result<(u64, Outcome), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.input(Input::Propose { command: Box::new(command), reply }).await;
        answer.await.unwrap_or_else(|_| Err(ProposeError::Unavailable("the node is stopping".to_owned())))
    }

    /// Answers a forwarded write.
    pub(crate) async fn serve_forward(&self, forwarded: ForwardRequest) -> ForwardResponse {
        let ForwardRequest { request, made_at, write } = forwarded;
        match self.propose_here(leader::write_command(request, made_at, write)).await {
            Ok((index, outcome)) => ForwardResponse::Applied { index, outcome },
            Err(ProposeError::NotLeader { leader }) => ForwardResponse::NotLeader { leader },
            Err(error) => ForwardResponse::Unavailable { message: error.to_string() },
        }
    }

    /// Which members, by name, show no sign of life to this node.
    pub(crate) async fn missing_members(&self) -> Vec<String> {
        let state = self.state();
        let mut missing = Vec::new();
        for (id, node) in &state.nodes {
            if *id == self.id {
                continue;
            }
            let answer = self.platform.transport.call(*id, Channel::Addresses, Bytes::new(), PROBE).await;
            if answer.is_err() {
                missing.push(format!("node {id} ({})", node.facts.name));
            }
        }
        missing
    }
}

/// A running node, shared by whoever serves it. Cloning is cheap.
#[derive(Clone)]
pub struct NodeHandle {
    /// This member's id.
    pub id: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The seams.
    pub platform: Platform,
    pub(crate) shared: Shared,
}

impl NodeHandle {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { id: shared.id, cluster: shared.cluster, platform: shared.platform.clone(), shared }
    }

    /// The state as this node has applied it: perhaps old.
    pub fn state(&self) -> Arc<ClusterState> {
        self.shared.state()
    }

    /// The state, at least as new as anything acknowledged before the call. Without a quorum the
    /// error says which members are missing.
    ///
    /// # Errors
    /// When no quorum confirms within `deadline`.
    pub async fn state_latest(&self, deadline: Duration) -> Result<Arc<ClusterState>, WriteError> {
        let Some(raft) = self.shared.raft() else {
            return Err(WriteError::Unavailable(
                "this node's store failed and is being reopened: see its log".to_owned(),
            ));
        };
        match raft.read_barrier(deadline).await {
            Ok(_) => Ok(raft.state()),
            Err(_) => Err(self.no_quorum("no quorum confirmed the answer").await),
        }
    }

    /// Waits until this node has applied more than `applied`, at most `deadline`, and returns the
    /// state then. Cancel safe.
    pub async fn state_after(&self, applied: u64, deadline: Duration) -> Arc<ClusterState> {
        let mut states = self.shared.watch_state();
        let newer = async { while states.borrow().applied <= applied && states.changed().await.is_ok() {} };
        self.shared.within(deadline, newer).await;
        self.state()
    }

    /// Has the cluster apply `write` once, forwarding it to the leader when that is another
    /// member, and waits until this node has applied it too. Returns its log index.
    ///
    /// # Errors
    /// When it could not be committed within [`limits::WRITE_DEADLINE`].
    pub async fn write(&self, request: RequestId, write: Write) -> Result<(u64, Outcome), WriteError> {
        // A clock behind the cluster's must not make the write look old.
        let made_at = self.state().stamp(self.platform.clock.utc());
        let forward = ForwardRequest { request, made_at, write };
        let deadline = self.platform.clock.now() + limits::WRITE_DEADLINE;
        let mut reason = "no leader is known".to_owned();
        while self.platform.clock.now() < deadline {
            match self.try_write(&forward, deadline).await {
                Ok((index, outcome)) => {
                    let left = deadline.since(self.platform.clock.now());
                    self.state_after(index.saturating_sub(1), left).await;
                    return Ok((index, outcome));
                }
                Err(why) => reason = why,
            }
            self.shared.wait(RETRY).await;
        }
        Err(self.no_quorum(&reason).await)
    }

    async fn try_write(&self, forward: &ForwardRequest, deadline: Mono) -> Result<(u64, Outcome), String> {
        let leader = self.shared.status().leader.ok_or("no leader is known")?;
        let left = deadline.since(self.platform.clock.now());
        let asking = async {
            if leader == self.id {
                return Ok(self.shared.serve_forward(forward.clone()).await);
            }
            let request = Bytes::from(wire::encode(forward));
            let answer = self.platform.transport.call(leader, Channel::Forward, request, left).await;
            let bytes = answer.map_err(|error| error.to_string())?;
            wire::decode(&bytes).map_err(|error| error.to_string())
        };
        // A leader that died answers nothing until the deadline; its successor may at once. Asking
        // twice is safe: the request applies once.
        let deposed = self.shared.wait_status(|status| status.leader.is_some_and(|now| now != leader));
        let response = tokio::select! {
            biased;
            response = asking => response?,
            () = deposed => return Err("the leader has just changed".to_owned()),
            () = self.shared.wait(left) => return Err("the leader could not commit in time".to_owned()),
        };
        match response {
            ForwardResponse::Applied { index, outcome } => Ok((index, outcome)),
            ForwardResponse::NotLeader { .. } => Err("the leader has just changed".to_owned()),
            ForwardResponse::Unavailable { message } => Err(message),
        }
    }

    async fn no_quorum(&self, reason: &str) -> WriteError {
        let missing = self.shared.missing_members().await;
        let mut message = reason.to_owned();
        if !missing.is_empty() {
            message.push_str(&format!("; cannot reach {}", missing.join(", ")));
        }
        WriteError::Unavailable(message)
    }

    /// Asks the cluster to replace nothing of this node until `until`, as before a planned stop.
    pub(crate) async fn hold(&self, until: UtcMs) -> Result<(), WriteError> {
        let command = Command::Hold { node: self.id, until: Some(until) };
        match self.shared.status().leader {
            Some(leader) if leader == self.id => {
                let held = self.shared.propose_here(command).await;
                held.map(drop).map_err(|error| WriteError::Unavailable(error.to_string()))
            }
            Some(leader) => {
                let hold = Bytes::from(wire::encode(&HoldRequest { until }));
                let asked = self.platform.transport.call(leader, Channel::Hold, hold, limits::WRITE_DEADLINE);
                asked.await.map(drop).map_err(|error| WriteError::Unavailable(error.to_string()))
            }
            None => Err(WriteError::Unavailable("no leader is known".to_owned())),
        }
    }

    /// What this node knows of Raft.
    pub fn raft(&self) -> RaftStatus {
        self.shared.status()
    }

    /// Pulls going on at this node's agent.
    pub fn pulls(&self) -> BTreeMap<ReplicaId, PullProgress> {
        self.shared.pulls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens a stream that speaks HTTP/1.1 to another member's API.
    ///
    /// # Errors
    /// When the member cannot be reached.
    pub async fn open_api(&self, node: NodeId) -> Result<Box<dyn Duplex>, LinkError> {
        self.platform.transport.open_stream(node, Channel::Api, Bytes::new(), limits::WRITE_DEADLINE).await
    }
}

//! What the HTTP API and the drivers know of their node: its state, and how to change it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use blixard_core::cluster::digests::Difference;
use blixard_core::cluster::{Actor, ClusterState, Outcome, Refusal, Write};
use blixard_core::discovery::copies::Twice;
use blixard_core::id::{ClusterId, NodeId, ReplicaId, RequestId};
use blixard_core::limits;
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{self, Channel, ForwardRequest, ForwardResponse, HoldRequest};
use bytes::Bytes;

use crate::discovery::finder::{Finder, Report};
use crate::platform::{Duplex, LinkError, Platform, PullProgress};
use crate::raft::OpenError;
use crate::shared::{PROBE, Shared, hold_command};

/// How long a write that came to nothing waits before it is tried again with the same leader;
/// doubled up to the last.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_millis(320);

/// Why a write was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The cluster could not commit it in time. Whether it was applied is unknown: repeat it with
    /// the same request id.
    #[error("{0}")]
    Unavailable(String),
}

/// Why one try at a write came to nothing.
enum Missed {
    /// Nothing happened.
    Nothing(String),
    /// It may have been applied, or may yet be.
    Unknown(String),
}

/// What this node knows of Raft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// Who leads, as far as this node knows; absent when it has not heard from a leader lately.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The sets of voters of which each has to agree: one, and two from the middle of a change of voters
    /// to its end. None while Raft does not run.
    pub configurations: Vec<BTreeSet<NodeId>>,
    /// Members that follow without a vote.
    pub learners: Vec<NodeId>,
    /// The last index in this node's log.
    pub last_log: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The last index covered by a snapshot here.
    pub snapshot: u64,
    /// For how long a quorum has not acknowledged this node as leader, in milliseconds: never, when it is
    /// one by itself. Absent when it does not lead.
    pub quorum_ack_ms_ago: Option<u64>,
}

impl RaftStatus {
    /// Whether `node` leads, as far as this node knows.
    pub fn is_leader(&self, node: NodeId) -> bool {
        self.leader == Some(node)
    }

    /// Members that vote, in any configuration.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.configurations.iter().flatten().copied().collect()
    }

    /// Voters and learners.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters().into_iter().chain(self.learners.iter().copied())
    }

    /// Whether a change of voters is half done: the voters before it have to agree as well.
    pub fn is_changing_voters(&self) -> bool {
        self.configurations.len() > 1
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

/// No quorum answers.
pub(crate) struct Unconfirmed {
    /// Why, for people.
    pub(crate) why: String,
    /// The members that show no sign of life.
    pub(crate) missing: Vec<NodeId>,
}

impl NodeHandle {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { id: shared.id, cluster: shared.cluster, platform: shared.platform.clone(), shared }
    }

    /// The state as this node has applied it: perhaps old.
    pub fn state(&self) -> Arc<ClusterState> {
        self.shared.state()
    }

    /// Says by what this node finds others, for who asks it. Once.
    pub fn set_finder(&self, finder: Arc<Finder>) {
        // A second one would be a mistake of the composition root, and only shows.
        drop(self.shared.finder.set(finder));
    }

    /// What each source of this node said last.
    pub(crate) fn sources(&self) -> Vec<Report> {
        self.shared.finder.get().map(|finder| finder.reports()).unwrap_or_default()
    }

    /// Whether a member runs twice, as far as this node sees or was told.
    pub fn runs_twice(&self, node: NodeId) -> Option<Twice> {
        self.shared.copies.all(self.platform.clock.now()).remove(&node)
    }

    /// Why this node answers nobody, if it does not: its state differs from the majority's.
    pub fn differs(&self) -> Option<String> {
        self.shared.digests.refusal()
    }

    /// Whether the state of a member differs from others', as this node found as leader or was told.
    pub fn difference_of(&self, node: NodeId) -> Option<Difference> {
        self.shared.digests.differing(self.platform.clock.now()).remove(&node)
    }

    /// The state, at least as new as anything acknowledged before the call. Without a quorum the
    /// error says which members are missing.
    ///
    /// # Errors
    /// When no quorum confirms within `deadline`.
    pub async fn state_latest(&self, deadline: Duration) -> Result<Arc<ClusterState>, WriteError> {
        self.state_confirmed(deadline).await.map_err(|unconfirmed| WriteError::Unavailable(unconfirmed.why))
    }

    /// As [`NodeHandle::state_latest`]; without a quorum, also which members are missing.
    ///
    /// # Errors
    /// When no quorum confirms within `deadline`.
    pub(crate) async fn state_confirmed(&self, deadline: Duration) -> Result<Arc<ClusterState>, Unconfirmed> {
        let here = |why: String| Err(Unconfirmed { why, missing: Vec::new() });
        if let Some(why) = self.differs() {
            return here(why);
        }
        let Some(raft) = self.shared.raft() else { return here(self.shared.why_no_raft().to_owned()) };
        match (raft.read_barrier(deadline).await, self.differs()) {
            // It may have been found meanwhile.
            (_, Some(why)) => here(why),
            (Ok(_), None) => Ok(raft.state()),
            (Err(_), None) => Err(self.unconfirmed("no quorum confirmed the answer").await),
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
        let by = Actor::Node { node: self.id };
        self.write_within(request, None, write, by, limits::WRITE_DEADLINE).await
    }

    /// As [`NodeHandle::write`], for whoever knows when the request was first made, in log time, or
    /// has waited for something else before.
    ///
    /// # Errors
    /// When it could not be committed within `limit`.
    pub(crate) async fn write_within(
        &self,
        request: RequestId,
        made_at: Option<UtcMs>,
        write: Write,
        by: Actor,
        limit: Duration,
    ) -> Result<(u64, Outcome), WriteError> {
        if let Some(why) = self.differs() {
            return Err(WriteError::Unavailable(why));
        }
        // What this node knows of the level may be old, and the level is only ever raised.
        if self.state().check_level(&write).is_err() {
            let state = self.state_latest(limit).await?;
            if let Err(refusal) = state.check_level(&write) {
                return Ok((state.applied, Outcome::Refused(refusal)));
            }
        }
        let now = self.stamp();
        let made_first = made_at.map_or(now, |at| at.min(now));
        let mut forward = ForwardRequest { request, made_at: made_first, write, by: Some(by) };
        // The rest is for finding out who is missing.
        let deadline = self.platform.clock.now() + limit.saturating_sub(PROBE);
        let mut reason = "no leader is known".to_owned();
        // Whoever says when it was made may have sent it before.
        let mut may_be_applied = made_at.is_some();
        let mut wait = RETRY_MIN;
        while let Some(leader) = self.leader(deadline).await {
            match self.try_write(leader, &forward, deadline).await {
                // The cluster's clock was far ahead of what this node knew of it, and nothing of
                // the write can have been applied and forgotten: it was made now.
                Ok((index, Outcome::Refused(Refusal::TooOld))) if !may_be_applied => {
                    self.wait_applied(index, deadline).await;
                    forward.made_at = self.stamp();
                    may_be_applied = true;
                    continue;
                }
                Ok((index, outcome)) => {
                    self.wait_applied(index, deadline).await;
                    return Ok((index, outcome));
                }
                Err(Missed::Nothing(why)) => reason = why,
                Err(Missed::Unknown(why)) => {
                    may_be_applied = true;
                    reason = why;
                }
            }
            let changed = self.shared.wait_status(|status| status.leader != Some(leader));
            self.shared.within(wait, changed).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        if self.shared.raft().is_none() {
            self.shared.why_no_raft().clone_into(&mut reason);
        }
        Err(self.no_quorum(&reason).await)
    }

    /// This node's clock, but never behind the cluster's: that must not make a write look old.
    pub(crate) fn stamp(&self) -> UtcMs {
        self.state().stamp(self.platform.clock.utc())
    }

    /// Waits until a leader is known; `None` when none is by `deadline`.
    async fn leader(&self, deadline: Mono) -> Option<NodeId> {
        let left = deadline.since(self.platform.clock.now());
        if left.is_zero() {
            return None;
        }
        self.shared.within(left, self.shared.wait_status(|status| status.leader.is_some())).await?;
        self.shared.status().leader
    }

    async fn wait_applied(&self, index: u64, deadline: Mono) {
        let left = deadline.since(self.platform.clock.now());
        self.state_after(index.saturating_sub(1), left).await;
    }

    async fn try_write(
        &self,
        leader: NodeId,
        forward: &ForwardRequest,
        deadline: Mono,
    ) -> Result<(u64, Outcome), Missed> {
        let left = deadline.since(self.platform.clock.now());
        let asking = async {
            if leader == self.id {
                return Ok(self.shared.serve_forward(forward.clone()).await);
            }
            let request = Bytes::from(wire::encode(forward));
            let answer = self.platform.transport.call(leader, Channel::Forward, request, left).await;
            let bytes = answer.map_err(|error| match error {
                LinkError::Unreachable { .. } => Missed::Nothing(error.to_string()),
                LinkError::Timeout { .. } | LinkError::Refused { .. } => Missed::Unknown(error.to_string()),
            })?;
            wire::decode(&bytes).map_err(|error| Missed::Unknown(error.to_string()))
        };
        let unknown = |why: &str| Err(Missed::Unknown(why.to_owned()));
        let response = tokio::select! {
            biased;
            response = asking => response?,
            // Asking twice is safe: the request applies once.
            () = self.shared.wait_deposed(leader) => return unknown("the leader has just changed"),
            () = self.shared.wait(left) => return unknown("the leader could not commit in time"),
        };
        match response {
            ForwardResponse::Applied { index, outcome } => Ok((index, outcome)),
            ForwardResponse::NotLeader { .. } => {
                Err(Missed::Nothing("the leader has just changed".to_owned()))
            }
            ForwardResponse::Unavailable { message } => Err(Missed::Unknown(message)),
        }
    }

    async fn no_quorum(&self, reason: &str) -> WriteError {
        WriteError::Unavailable(self.unconfirmed(reason).await.why)
    }

    async fn unconfirmed(&self, reason: &str) -> Unconfirmed {
        let missing = self.shared.missing_members().await;
        let state = self.state();
        let names = missing.iter().filter_map(|id| {
            let node = state.nodes.get(id)?;
            Some(format!("node {id} ({})", node.facts.name))
        });
        let names: Vec<String> = names.collect();
        let mut why = reason.to_owned();
        if !names.is_empty() {
            why.push_str(&format!("; cannot reach {}", names.join(", ")));
        }
        Unconfirmed { why, missing }
    }

    /// Waits until this node knows that it was removed from its cluster. Cancel safe.
    pub async fn removed(&self) {
        self.shared.wait_removed().await;
    }

    /// Waits until this node's stores cannot be used any more, and says why. Cancel safe.
    pub async fn unusable(&self) -> Arc<OpenError> {
        self.shared.wait_unusable().await
    }

    /// Asks the cluster to replace nothing of this node until `until`, as before a planned stop; 0
    /// when it is back.
    pub(crate) async fn hold(&self, until: UtcMs) -> Result<(), WriteError> {
        while let Some(leader) = self.shared.status().leader {
            if leader == self.id {
                let held = self.shared.propose_here(hold_command(self.id, until)).await;
                return held.map(drop).map_err(|error| WriteError::Unavailable(error.to_string()));
            }
            let hold = Bytes::from(wire::encode(&HoldRequest { until }));
            let asked = self.platform.transport.call(leader, Channel::Hold, hold, limits::WRITE_DEADLINE);
            tokio::select! {
                biased;
                answer = asked => {
                    return answer.map(drop).map_err(|error| WriteError::Unavailable(error.to_string()));
                }
                // Asking twice is safe: it covers the same time.
                () = self.shared.wait_deposed(leader) => {}
            }
        }
        Err(WriteError::Unavailable("no leader is known".to_owned()))
    }

    /// What this node knows of Raft.
    pub fn raft(&self) -> RaftStatus {
        self.shared.raft().map_or_else(RaftStatus::default, |raft| raft.status())
    }

    /// Waits until no leader has been heard for `silence`, from this call on. Cancel safe.
    pub async fn leaderless(&self, silence: Duration) {
        self.shared.wait_leaderless(silence).await;
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

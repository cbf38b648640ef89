//! Writing to the log, and reading what is certainly the latest.

use std::time::Duration;

use blixard_core::cluster::snapshot::encode_entry;
use blixard_core::cluster::{Command, Entry, Outcome};
use blixard_core::id::NodeId;
use blixard_core::limits::ENTRY_BYTES_MAX;
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::Channel;
use futures_util::future::BoxFuture;
use openraft::error::{ClientWriteError, RaftError};

use super::message::{ReadIndex, Request, Response};
use super::types::Proposal;
use super::{RaftNode, status};

/// How long to wait before asking Raft again after it had no answer for the moment.
const RETRY: Duration = Duration::from_millis(10);

/// How long one leader has to answer a read before it is asked again, or the next one is.
const ASK: Duration = Duration::from_millis(500);

/// Why something was not agreed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead. Nothing happened.
    #[error("this member does not lead; {}", leader.map_or("nobody is known to".to_owned(), |id| format!("node {id} does")))]
    NotLeader {
        /// Who is thought to; never this member.
        leader: Option<NodeId>,
    },
    /// No quorum agreed in time. Whether it will yet be applied is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// It can never be agreed on as it is. Nothing happened.
    #[error("{0}")]
    Invalid(String),
    /// Raft has stopped: see [`RaftNode::failed`].
    #[error("{0}")]
    Fatal(String),
}

/// What openraft said to a write, as far as its caller acts differently.
pub(super) enum Refused {
    /// Ask again in a moment: nothing happened.
    NotNow,
    /// The final word.
    Final(ProposeError),
}

/// One try at something, boxed: the compiler cannot see that an async closure's future is `Send`
/// for every lifetime.
pub(super) type Attempt<'a, T> = BoxFuture<'a, Result<T, Refused>>;

impl RaftNode {
    /// Has the cluster apply `commands` as one entry, stamped with this leader's clock. Returns
    /// the entry's index and an outcome for each command, once [`RaftNode::state`] shows them.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::Unavailable`] after `deadline`.
    pub async fn propose(
        &self,
        commands: Vec<Command>,
        deadline: Duration,
    ) -> Result<(u64, Vec<Outcome>), ProposeError> {
        match tokio::time::timeout(deadline, self.agree(commands)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.no_quorum(deadline)),
        }
    }

    /// Does what [`RaftNode::propose`] does and waits for as long as it takes: until the entry is
    /// applied, or certain not to be by this leader. Who gives up before that cannot know.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn agree(&self, commands: Vec<Command>) -> Result<(u64, Vec<Outcome>), ProposeError> {
        let at = self.log_time();
        let bytes = encode_entry(&Entry::new(at, commands));
        if bytes.len() > ENTRY_BYTES_MAX {
            let words = format!("an entry of {} bytes is larger than {ENTRY_BYTES_MAX}", bytes.len());
            return Err(ProposeError::Invalid(words));
        }
        let proposal = Proposal(bytes.into());
        let proposal = &proposal;
        let attempt = move || -> Attempt<'_, (u64, Vec<Outcome>)> {
            Box::pin(async move {
                let written = self.raft().client_write(proposal.clone()).await;
                let done = written.map(|response| (response.log_id.index, response.data));
                done.map_err(|error| self.refused(error))
            })
        };
        self.repeat(attempt).await
    }

    /// Log time now: what this member would stamp an entry with.
    pub fn log_time(&self) -> UtcMs {
        let (clock, log) = (&self.context().clock, self.state().time);
        self.log_clock().read(clock.now(), clock.utc(), log)
    }

    /// Repeats `attempt` until it has a final answer, at most until `deadline`.
    pub(super) async fn until<'a, T: Send>(
        &'a self,
        deadline: Duration,
        attempt: impl Fn() -> Attempt<'a, T> + Send + Sync,
    ) -> Result<T, ProposeError> {
        match tokio::time::timeout(deadline, self.repeat(attempt)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.no_quorum(deadline)),
        }
    }

    /// Repeats `attempt` until it has a final answer.
    async fn repeat<'a, T: Send>(
        &'a self,
        attempt: impl Fn() -> Attempt<'a, T> + Send + Sync,
    ) -> Result<T, ProposeError> {
        let attempts = self.context().run(async {
            loop {
                match attempt().await {
                    Ok(done) => return Ok(done),
                    Err(Refused::Final(error)) => return Err(error),
                    Err(Refused::NotNow) => tokio::time::sleep(RETRY).await,
                }
            }
        });
        attempts.await
    }

    pub(super) fn refused(
        &self,
        error: RaftError<super::types::Types, ClientWriteError<super::types::Types>>,
    ) -> Refused {
        Refused::Final(match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                let leader = forward.leader_id.map(NodeId).filter(|leader| *leader != self.id());
                // A leader without a quorum's fresh acknowledgement names nobody and may have it
                // in a moment; so may one that tried to hand leadership over.
                if leader.is_none() && self.leads() {
                    return Refused::NotNow;
                }
                ProposeError::NotLeader { leader: leader.filter(|leader| self.hears(*leader)) }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ProposeError::Unavailable(
                "leadership was lost while the write was on its way: it may or may not be applied".to_owned(),
            ),
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
                openraft::error::ChangeMembershipError::InProgress(_)
                | openraft::error::ChangeMembershipError::UncommittedLeaderLog(_) => return Refused::NotNow,
                other => ProposeError::Invalid(other.to_string()),
            },
            RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => {
                ProposeError::Invalid(error.to_string())
            }
            RaftError::Fatal(fatal) => ProposeError::Fatal(self.words(&fatal)),
        })
    }

    /// Waits until this member has applied everything that was acknowledged before the call, and
    /// returns the index up to which it has. Works on every member: one that does not lead asks
    /// the leader.
    ///
    /// # Errors
    /// [`ProposeError::Unavailable`] when no leader confirms within `deadline`;
    /// [`ProposeError::Fatal`] when Raft has stopped.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<u64, ProposeError> {
        let give_up = self.context().clock.now() + deadline;
        let attempt = move || -> Attempt<'_, u64> { Box::pin(self.try_read(give_up)) };
        self.until(deadline, attempt).await
    }

    async fn try_read(&self, give_up: Mono) -> Result<u64, Refused> {
        let index = match self.ask_leader(give_up).await {
            ReadIndex::At(index) => index,
            ReadIndex::NotLeader(_) => return Err(self.stopped_or_not_now()),
            ReadIndex::Unavailable(words) => {
                return Err(match self.stopped_or_not_now() {
                    Refused::NotNow if self.remaining(give_up).is_zero() => {
                        Refused::Final(ProposeError::Unavailable(words))
                    }
                    other => other,
                });
            }
        };
        let mut state = self.watch_state();
        let applied = state.wait_for(|state| state.applied >= index).await;
        applied.map(|state| state.applied).map_err(|_| self.stopped_or_not_now())
    }

    /// The leader's word on what a read must wait for.
    async fn ask_leader(&self, give_up: Mono) -> ReadIndex {
        let leader = self.status().leader;
        // A leader that died does not answer; by then there may be another to ask.
        let within = self.remaining(give_up).min(ASK);
        match leader {
            None => ReadIndex::NotLeader(None),
            Some(leader) if leader == self.id() => self.read_index(within).await,
            Some(leader) => {
                let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                let request = Request::ReadIndex { within_ms }.encode();
                let answer = self.inner.platform.transport.call(leader, Channel::Raft, request, within).await;
                match answer.map(|bytes| Response::decode(&bytes)) {
                    Ok(Ok(Response::ReadIndex(answer))) => answer,
                    Ok(Ok(_)) => ReadIndex::Unavailable(format!("node {leader} answered another question")),
                    Ok(Err(error)) => ReadIndex::Unavailable(error.to_string()),
                    Err(error) => ReadIndex::Unavailable(error.to_string()),
                }
            }
        }
    }

    fn stopped_or_not_now(&self) -> Refused {
        match &self.raft().metrics().borrow().running_state {
            Ok(()) => Refused::NotNow,
            Err(fatal) => Refused::Final(ProposeError::Fatal(self.words(fatal))),
        }
    }

    fn remaining(&self, give_up: Mono) -> Duration {
        give_up.since(self.context().clock.now())
    }

    pub(super) fn leads(&self) -> bool {
        self.status().leader == Some(self.id())
    }

    /// That nothing was agreed on within `waited`, and what is missing.
    pub(crate) fn no_quorum(&self, waited: Duration) -> ProposeError {
        ProposeError::Unavailable(self.missing(waited))
    }

    /// What is missing when nothing was agreed on within `waited`.
    pub(super) fn missing(&self, waited: Duration) -> String {
        let waited = format!("{:.0} s", waited.as_secs_f32().max(1.0));
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        if metrics.current_leader != Some(metrics.id) {
            return format!("no leader answered within {waited}");
        }
        let silent = status::silent(&metrics, self.config().election_max);
        if silent.is_empty() {
            return format!("no quorum agreed within {waited}");
        }
        let names: Vec<_> = silent.iter().map(ToString::to_string).collect();
        format!("no quorum agreed within {waited}: no answer from node {}", names.join(", node "))
    }
}

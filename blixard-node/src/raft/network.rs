//! What openraft sends to other members, over the platform's transport.
//!
//! Every message has a deadline. What fails is told to openraft as unreachable (it backs off),
//! timed out or broken (it tries again).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::NodeId;
use blixard_core::wire::Channel;
use bytes::Bytes;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};

use super::message::{Request, Response};
use super::transfer;
use super::types::{Snapshot, Types, Vote};
use crate::platform::{LinkError, Transport};

/// How long a message with entries has at least. Shorter than this, a slow disk's flush would be
/// answered by sending the same entries again.
const APPEND_DEADLINE_MIN: Duration = Duration::from_secs(1);
/// The first wait after a member could not be reached; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait before a member that cannot be reached is tried again: what a member that
/// returns waits for at most before the leader notices.
const BACKOFF_MAX: Duration = Duration::from_millis(400);

/// Makes the senders to other members.
pub(super) struct Network {
    /// This member.
    pub(super) id: u64,
    /// The links.
    pub(super) transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, _: &openraft::EmptyNode) -> PeerNetwork {
        PeerNetwork { id: self.id, target, transport: Arc::clone(&self.transport) }
    }
}

/// Sends to one member.
pub(super) struct PeerNetwork {
    id: u64,
    target: u64,
    transport: Arc<dyn Transport>,
}

impl PeerNetwork {
    async fn call(
        &self,
        action: RPCTypes,
        request: &Request,
        deadline: Duration,
    ) -> Result<Response, RPCError<Types>> {
        let target = NodeId(self.target);
        let answer = self.transport.call(target, Channel::Raft, request.encode(), deadline).await;
        let answer = answer.map_err(|error| self.failed(action, deadline, &error))?;
        Response::decode(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    fn failed(&self, action: RPCTypes, deadline: Duration, error: &LinkError) -> RPCError<Types> {
        match error {
            LinkError::Timeout { .. } => {
                RPCError::Timeout(Timeout { action, id: self.id, target: self.target, timeout: deadline })
            }
            LinkError::Unreachable { .. } | LinkError::Refused { .. } => {
                RPCError::Unreachable(Unreachable::new(error))
            }
        }
    }

    fn unexpected(&self) -> RPCError<Types> {
        RPCError::Network(NetworkError::from_string(format!(
            "node {} answered another question than was asked",
            self.target
        )))
    }
}

impl RaftNetworkV2<Types> for PeerNetwork {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let deadline = if request.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(APPEND_DEADLINE_MIN)
        };
        let at_start = request.prev_log_id.is_none();
        match self.call(RPCTypes::AppendEntries, &Request::Append(request), deadline).await? {
            // Nothing precedes the first entry, so nothing can be in conflict with it.
            Response::Append(AppendEntriesResponse::Conflict) if at_start => Err(self.unexpected()),
            Response::Append(response) => Ok(response),
            _ => Err(self.unexpected()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(RPCTypes::Vote, &Request::Vote(request), option.hard_ttl()).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(self.unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(RPCTypes::Vote, &Request::PreVote(request), option.hard_ttl()).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(self.unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sending =
            transfer::send(&*self.transport, NodeId(self.target), vote, &snapshot, option.hard_ttl());
        tokio::select! {
            biased;
            // Cancel safe: what was sent of an abandoned snapshot is dropped by the receiver.
            closed = cancel => Err(closed.into()),
            sent = sending => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(self.failed(RPCTypes::InstallSnapshot, option.hard_ttl(), &error).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<Result<(), TransferLeaderError<Types>>, RPCError<Types>> {
        match self.call(RPCTypes::TransferLeader, &Request::Transfer(request), option.hard_ttl()).await? {
            Response::Transfer(outcome) => Ok(outcome),
            _ => Err(self.unexpected()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let waits = std::iter::successors(Some(BACKOFF_MIN), |wait| Some((*wait * 2).min(BACKOFF_MAX)));
        Some(Backoff::new(waits))
    }
}

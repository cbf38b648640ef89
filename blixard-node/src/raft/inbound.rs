//! What other members' Rafts ask of this one.

use std::time::Duration;

use blixard_core::id::NodeId;
use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::error::{LinearizableReadError, RaftError};
use openraft::raft::AppendEntriesResponse;

use super::message::{ReadIndex, Request, Response};
use super::types::Vote;
use super::{RaftNode, transfer};
use crate::platform::Duplex;

impl RaftNode {
    /// Answers a member's message on [`blixard_core::wire::Channel::Raft`]; `from` is proven.
    ///
    /// # Errors
    /// When the message cannot be understood, speaks for another member, or Raft has stopped.
    pub async fn handle_rpc(&self, from: NodeId, request: Bytes) -> Result<Bytes, String> {
        let request = Request::decode(&request).map_err(|error| error.to_string())?;
        let answer = self.context().clone().run(self.answer(from, request)).await?;
        Ok(answer.encode())
    }

    /// Takes a snapshot that a leader sends on [`blixard_core::wire::Channel::Snapshot`].
    pub async fn handle_snapshot_stream(&self, from: NodeId, header: Bytes, stream: Box<dyn Duplex>) {
        self.context().clone().run(transfer::receive(self.raft(), from, &header, stream)).await;
    }

    async fn answer(&self, from: NodeId, request: Request) -> Result<Response, String> {
        let raft = self.raft();
        Ok(match request {
            Request::Append(append) => {
                speaks_for_itself(from, &append.vote)?;
                let response = raft.append_entries(append).await.map_err(|error| error.to_string())?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.note_leader(from);
                }
                Response::Append(response)
            }
            Request::Vote(vote) => {
                speaks_for_itself(from, &vote.vote)?;
                Response::Vote(raft.vote(vote).await.map_err(|error| error.to_string())?)
            }
            Request::PreVote(vote) => {
                speaks_for_itself(from, &vote.vote)?;
                Response::Vote(raft.pre_vote(vote).await.map_err(|error| error.to_string())?)
            }
            Request::Transfer(transfer) => {
                speaks_for_itself(from, transfer.from_leader())?;
                Response::Transfer(
                    raft.handle_transfer_leader(transfer).await.map_err(|error| error.to_string())?,
                )
            }
            Request::ReadIndex { within_ms } => {
                Response::ReadIndex(self.read_index(Duration::from_millis(within_ms)).await)
            }
        })
    }

    /// Which index a read must wait for, when this member leads and a quorum confirms it.
    pub(super) async fn read_index(&self, within: Duration) -> ReadIndex {
        let confirmed = self.raft().get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(within, confirmed).await {
            Ok(Ok(linearizer)) => ReadIndex::At(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                ReadIndex::NotLeader(forward.leader_id.filter(|leader| *leader != self.id().0))
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                ReadIndex::Unavailable(self.missing(within))
            }
            Ok(Err(RaftError::Fatal(fatal))) => ReadIndex::Unavailable(fatal.to_string()),
        }
    }
}

/// Nobody asks in another's name.
fn speaks_for_itself(from: NodeId, vote: &Vote) -> Result<(), String> {
    let claimed = vote.leader_id.voted_for;
    if claimed == from.0 {
        return Ok(());
    }
    Err(format!("node {from} speaks in the name of node {claimed}"))
}

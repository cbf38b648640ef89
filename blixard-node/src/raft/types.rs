//! The names that openraft's generic types have here.

use std::fmt;

use bytes::Bytes;
use openraft::alias;

use super::runtime::NodeRuntime;

openraft::declare_raft_types!(
    /// What openraft is made of here. One leader a term (`leader_id_std`), so a log id is a term
    /// and an index, as in the Raft paper.
    pub(super) Types:
        D = Proposal,
        R = Outcomes,
        NodeId = u64,
        Node = openraft::impls::EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = NodeRuntime,
);

pub(super) type Raft = openraft::Raft<Types, super::state_machine::StateMachine>;
pub(super) type LogId = alias::LogIdOf<Types>;
pub(super) type Vote = alias::VoteOf<Types>;
pub(super) type LogEntry = alias::EntryOf<Types>;
pub(super) type Membership = openraft::Membership<u64, openraft::impls::EmptyNode>;
pub(super) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
/// A snapshot: what it covers, and the encoded state.
pub(super) type Snapshot = alias::SnapshotOf<Types, Bytes>;

/// An encoded [`blixard_core::cluster::Entry`]. The leader encodes it once; the log, the wire and
/// every follower's log hold these same bytes, and each member decodes them when it applies them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proposal(pub(super) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying one log entry answered: an outcome for each of its commands.
pub(super) type Outcomes = Vec<blixard_core::cluster::Outcome>;

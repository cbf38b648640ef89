//! Brings Raft's configuration to what the members call for, while this node leads. What to
//! change next is [`membership::next_change`]'s decision; this task makes one change at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_core::id::NodeId;
use blixard_core::limits;
use blixard_core::orchestrator::membership::{self, MembershipChange, RaftMembers};

use crate::raft::{ProposeError, RaftNode};
use crate::shared::Shared;

/// How often the configuration is looked at while nothing changes: a learner that catches up
/// shows in no event.
const LOOK: Duration = Duration::from_millis(250);
/// How long a change may take before it is tried again.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// The task: acts only while this node leads.
pub(crate) async fn run(shared: Shared) {
    loop {
        shared.wait_leading().await;
        let Some(raft) = shared.raft() else {
            shared.wait(limits::RAFT_HEARTBEAT).await;
            continue;
        };
        let mut states = shared.watch_state();
        let state = Arc::clone(&states.borrow_and_update());
        let next = membership::next_change(&state.nodes, &members(&shared, &raft, &state));
        if next == MembershipChange::Nothing {
            // Cancel safety: `changed` loses nothing when dropped.
            shared.within(LOOK, states.changed()).await;
            continue;
        }
        tracing::info!(node.id = %shared.id, change = ?next, "changing Raft's members");
        if let Err(error) = make(&raft, next).await {
            tracing::warn!(node.id = %shared.id, err = %error, "could not change Raft's members");
            shared.wait(LOOK).await;
        }
    }
}

fn members(shared: &Shared, raft: &RaftNode, state: &ClusterState) -> RaftMembers {
    // What Raft has now: the last change may not have been told of yet.
    let status = raft.status();
    let lag = |id: NodeId| if id == shared.id { Some(0) } else { raft.replication_lag(id) };
    let lag: BTreeMap<_, _> = state.nodes.keys().filter_map(|id| Some((*id, lag(*id)?))).collect();
    RaftMembers {
        leader: shared.id,
        configurations: status.configurations,
        learners: status.learners.iter().copied().collect(),
        lag,
    }
}

async fn make(raft: &RaftNode, change: MembershipChange) -> Result<(), ProposeError> {
    match change {
        MembershipChange::Nothing => Ok(()),
        MembershipChange::AddLearner(ids) => {
            for id in ids {
                raft.add_learner(id, CHANGE_DEADLINE).await?;
            }
            Ok(())
        }
        MembershipChange::ChangeVoters(voters) => raft.change_voters(voters, CHANGE_DEADLINE).await,
        MembershipChange::RemoveFromRaft(ids) => raft.remove(ids, CHANGE_DEADLINE).await,
        MembershipChange::TransferLeader(to) => raft.transfer_leader(to, CHANGE_DEADLINE).await,
    }
}

//! Tells the agent which replicas are its own, whenever that changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::agent::assignments;
use blixard_core::cluster::ClusterState;
use blixard_core::limits::WRITE_DEADLINE;
use tokio::sync::mpsc;

use super::AgentInput;
use crate::handle::NodeHandle;

/// How long to wait before asking again for a state that no quorum confirmed.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait for the state to change at a time.
const WAIT: Duration = Duration::from_secs(60);

/// Feeds the agent from the replicated state until it is gone.
///
/// Begins only with a state that a quorum confirmed: an older one, as an isolated node restarts
/// with, lacks replicas whose containers run here.
///
/// While the node's state is known to be wrong the agent is told nothing: what runs runs on.
///
/// A node that was removed from its cluster has none, whatever its state says.
pub async fn feed(node: NodeHandle, agent: mpsc::Sender<AgentInput>) {
    // Cancel safety: a set that was not handed over is followed by the empty one.
    tokio::select! {
        biased;
        () = node.removed() => {}
        () = follow(&node, &agent) => return,
    }
    // An error: the agent is gone.
    agent.send(AgentInput::Assigned(BTreeMap::new())).await.ok();
}

async fn follow(node: &NodeHandle, agent: &mpsc::Sender<AgentInput>) {
    let mut state = confirmed(node).await;
    let mut told = None;
    let mut comparisons = node.shared.digests.watch();
    loop {
        if node.differs().is_some() {
            state = confirmed(node).await;
        }
        let own = assignments(&state, node.id);
        if told.as_ref() != Some(&own) {
            if agent.send(AgentInput::Assigned(own.clone())).await.is_err() {
                return;
            }
            told = Some(own);
        }
        // Cancel safety: both only watch.
        state = tokio::select! {
            biased;
            _ = comparisons.changed() => confirmed(node).await,
            state = changed(node, state.clone()) => state,
        };
        if agent.is_closed() {
            return;
        }
    }
}

async fn confirmed(node: &NodeHandle) -> Arc<ClusterState> {
    loop {
        match node.state_latest(WRITE_DEADLINE).await {
            Ok(state) => return state,
            Err(error) => {
                tracing::warn!(node.id = node.id.0, err = %error, "containers are left as they are until the cluster answers");
            }
        }
        let clock = &node.platform.clock;
        clock.sleep_until(clock.now() + RETRY).await;
    }
}

/// Waits for a state whose replicas or services are not `old`'s, at most [`WAIT`].
async fn changed(node: &NodeHandle, old: Arc<ClusterState>) -> Arc<ClusterState> {
    let mut applied = old.applied;
    let end = node.platform.clock.now() + WAIT;
    loop {
        let left = end.since(node.platform.clock.now());
        let new = node.state_after(applied, left).await;
        let same = new.replicas.ptr_eq(&old.replicas) && new.services.ptr_eq(&old.services);
        if !same || node.platform.clock.now() >= end {
            return new;
        }
        applied = new.applied;
    }
}

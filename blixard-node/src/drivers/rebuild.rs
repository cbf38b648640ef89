//! Gets the majority's state for a node whose own differs. The composition root opens the store on it.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::digests::Agreed;
use blixard_core::limits::REBUILD_PAUSE;
use blixard_core::time::Mono;

use crate::raft::{RaftNode, Replacement};
use crate::seldom::Seldom;
use crate::shared::Shared;

/// How long another member has to take over leadership.
const HANDOVER: Duration = Duration::from_secs(3);
/// How long to wait before members are asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Waits until this node's state is found to differ from the majority's, and returns theirs: after it has
/// handed leadership over, if it leads, and [`REBUILD_PAUSE`] after the `last` time. Cancel safe: what
/// was fetched is dropped.
pub(crate) async fn replacement(shared: &Shared, raft: &RaftNode, last: Option<Mono>) -> Replacement {
    let mut warnings = Seldom::default();
    shared.digests.wait_wrong().await;
    if let Some(last) = last {
        shared.platform.clock.sleep_until(last + REBUILD_PAUSE).await;
    }
    loop {
        // What the majority agrees on goes on, and with it what members keep.
        let agreed = shared.digests.wait_wrong().await;
        hand_over(shared, raft, &agreed).await;
        match fetch(shared, raft, &agreed).await {
            Ok(replacement) => return replacement,
            Err(why) => {
                if let Some(before) = warnings.due(shared.platform.clock.now()) {
                    tracing::warn!(node.id = %shared.id, err = why, before, "no member gave this node the majority's state yet");
                }
                shared.wait(RETRY).await;
            }
        }
    }
}

/// Has a voter lead whose state is right.
async fn hand_over(shared: &Shared, raft: &RaftNode, agreed: &Agreed) {
    let status = raft.status();
    if !status.is_leader(shared.id) {
        return;
    }
    let heir =
        status.voters().into_iter().find(|voter| *voter != shared.id && agreed.holders.contains(voter));
    let Some(heir) = heir else { return };
    match raft.transfer_leader(heir, HANDOVER).await {
        Ok(()) => tracing::info!(node.id = %shared.id, peer.id = %heir, "leadership handed over"),
        // It leads no more once its store is closed.
        Err(error) => {
            tracing::warn!(node.id = %shared.id, peer.id = %heir, err = %error, "leadership could not be handed over");
        }
    }
}

async fn fetch(shared: &Shared, raft: &RaftNode, agreed: &Arc<Agreed>) -> Result<Replacement, String> {
    let mut why = "no other member has it".to_owned();
    for holder in agreed.holders.iter().filter(|holder| **holder != shared.id) {
        match raft.fetch_state(*holder, agreed).await {
            Ok(replacement) => return Ok(replacement),
            Err(error) => why = format!("node {holder}: {error}"),
        }
    }
    Err(why)
}

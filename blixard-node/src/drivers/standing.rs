//! Learns from members what no log entry tells this node: that it was removed, or who else joined.
//!
//! Members stop talking to whom they removed, often before the removal reaches it, and a machine
//! that was removed while it was dead returns to closed links. So a node that hears no leader asks
//! members, as a stranger may, whether it still is one. Who was removed stops its containers and
//! ends; who was not learns who the members are now. It may know none that leads: those that joined
//! after the last state it has are strangers to it, whose links it refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::cluster::node::NodeFacts;
use blixard_core::id::{NodeId, TokenId};
use blixard_core::wire::{self, JoinRequest, JoinResponse, Peer};
use futures_util::future::join_all;

use super::peers::peers_of;
use crate::shared::Shared;
use crate::watch;

/// How long a node hears no leader before it asks, and how long it waits before it asks again.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a member has to answer.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// How many members are asked at a time: in a large cluster without a quorum everyone asks.
const ASKED_MAX: usize = 3;

/// The task: ends once the node knows that it was removed.
pub(crate) async fn run(
    shared: Shared,
    hints: BTreeMap<NodeId, Peer>,
    told: watch::Sender<BTreeMap<NodeId, Peer>>,
    facts: NodeFacts,
) {
    let request = JoinRequest {
        cluster: Some(shared.cluster),
        node: Some(shared.id),
        // A member is known by its key; what this token admits to, it has.
        token: TokenId([0; 8]),
        secret: String::new(),
        proof: None,
        facts,
    };
    let mut turn = 0;
    loop {
        shared.wait_leaderless(SILENCE).await;
        let members: Vec<Peer> = peers_of(&shared.state(), shared.id, &hints).into_values().collect();
        let asked =
            members.iter().cycle().skip(turn % members.len().max(1)).take(members.len().min(ASKED_MAX));
        turn += ASKED_MAX;
        let answers = join_all(asked.map(|peer| ask(&shared, peer, &request))).await;
        for answer in answers.into_iter().flatten() {
            match answer {
                JoinResponse::Removed { message } => {
                    tracing::warn!(node.id = %shared.id, reason = message, "this node was removed from its cluster");
                    shared.set_removed();
                    return;
                }
                JoinResponse::Admitted { peers, .. } => {
                    told.send_if_modified(|told| {
                        let before = told.clone();
                        told.extend(peers);
                        *told != before
                    });
                }
                _ => {}
            }
        }
    }
}

/// What `peer` says of this node.
async fn ask(shared: &Shared, peer: &Peer, request: &JoinRequest) -> Option<JoinResponse> {
    let question = wire::encode(request).into();
    match shared.platform.transport.call_stranger(peer, question, ASK_DEADLINE).await {
        Ok(answer) => wire::decode(&answer).ok(),
        Err(error) => {
            tracing::debug!(node.id = %shared.id, peer.key = %peer.key, err = %error, "could not ask a member");
            None
        }
    }
}

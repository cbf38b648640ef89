//! Keeps the transport's list of members what the replicated state says.

use std::collections::BTreeMap;

use blixard_core::cluster::ClusterState;
use blixard_core::id::NodeId;
use blixard_core::wire::Peer;

use crate::shared::Shared;
use crate::watch;

/// The members other than `own`, with `hints` for those whose rows this node does not have yet.
pub(crate) fn peers_of(
    state: &ClusterState,
    own: NodeId,
    hints: &BTreeMap<NodeId, Peer>,
) -> BTreeMap<NodeId, Peer> {
    let mut peers = hints.clone();
    for (id, node) in &state.nodes {
        let mut addresses = node.facts.addresses.clone();
        if let Some(hint) = hints.get(id) {
            addresses.extend(hint.addresses.iter().filter(|known| !node.facts.addresses.contains(known)));
        }
        peers.insert(*id, Peer { key: node.key, addresses, relay_url: None });
    }
    peers.retain(|id, _| *id != own && !state.removed_nodes.contains_key(id));
    peers
}

/// The task: follows the state, and what other members tell, for as long as the node runs.
pub(crate) async fn run(shared: Shared, mut hints: watch::Receiver<BTreeMap<NodeId, Peer>>) {
    let mut states = shared.watch_state();
    let mut last = None;
    loop {
        let state = states.borrow_and_update().clone();
        let known = hints.borrow_and_update().clone();
        let peers = peers_of(&state, shared.id, &known);
        if last.as_ref() != Some(&peers) {
            shared.platform.transport.set_peers(peers.clone());
            last = Some(peers);
        }
        // Cancel safety: `changed` loses nothing when dropped.
        let changed = tokio::select! {
            biased;
            changed = states.changed() => changed,
            changed = hints.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

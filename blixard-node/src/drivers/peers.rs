//! Keeps the transport's list of members what the replicated state says.

use std::collections::BTreeMap;

use blixard_core::cluster::ClusterState;
use blixard_core::id::NodeId;
use blixard_core::wire::Peer;

use crate::handle::RaftStatus;
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

/// Nodes that were removed and that Raft's configuration still has: until it is changed, which may
/// take their votes, or even that they lead until another does, they must be heard.
fn departing(
    state: &ClusterState,
    status: &RaftStatus,
    known: &BTreeMap<NodeId, Peer>,
) -> BTreeMap<NodeId, Peer> {
    let members = status.members();
    let keys = members.filter_map(|id| Some((id, *state.removed_nodes.get(&id)?)));
    let peer = |(id, key)| {
        let addresses = known.get(&id).map(|peer| peer.addresses.clone()).unwrap_or_default();
        (id, Peer { key, addresses, relay_url: None })
    };
    keys.map(peer).collect()
}

/// The task: follows the state, Raft's configuration, and what other members tell, for as long as
/// the node runs.
pub(crate) async fn run(shared: Shared, mut hints: watch::Receiver<BTreeMap<NodeId, Peer>>) {
    let mut states = shared.watch_state();
    let mut statuses = shared.watch_status();
    let mut last = BTreeMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        let status = statuses.borrow_and_update().clone();
        let known = hints.borrow_and_update().clone();
        let mut peers = peers_of(&state, shared.id, &known);
        peers.extend(departing(&state, &status, &last).into_iter().filter(|(id, _)| *id != shared.id));
        if last != peers {
            shared.platform.transport.set_peers(peers.clone());
            last = peers;
        }
        // Cancel safety: `changed` loses nothing when dropped.
        let changed = tokio::select! {
            biased;
            changed = states.changed() => changed,
            changed = statuses.changed() => changed,
            changed = hints.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blixard_core::cluster::ClusterState;
    use blixard_core::id::{NodeId, NodeKey};
    use blixard_core::wire::Peer;

    use super::{departing, peers_of};
    use crate::handle::RaftStatus;

    fn peer(key: u8) -> Peer {
        Peer { key: NodeKey([key; 32]), addresses: vec![([10, 0, 0, key], 7001).into()], relay_url: None }
    }

    #[test]
    fn a_removed_node_is_heard_until_raft_lets_it_go() {
        let mut state = ClusterState::new();
        state.removed_nodes.insert(NodeId(2), NodeKey([2; 32]));
        state.removed_nodes.insert(NodeId(3), NodeKey([3; 32]));
        let known = BTreeMap::from([(NodeId(2), peer(2)), (NodeId(3), peer(3))]);
        assert!(peers_of(&state, NodeId(1), &known).is_empty());
        let status =
            RaftStatus { voters: vec![NodeId(1)], learners: vec![NodeId(2)], ..RaftStatus::default() };
        assert_eq!(departing(&state, &status, &known), BTreeMap::from([(NodeId(2), peer(2))]));
        assert!(departing(&state, &RaftStatus::default(), &known).is_empty());
    }

    #[test]
    fn a_hint_is_a_member_whose_row_is_not_here_yet() {
        let known = BTreeMap::from([(NodeId(1), peer(1)), (NodeId(2), peer(2))]);
        let peers = peers_of(&ClusterState::new(), NodeId(1), &known);
        assert_eq!(peers, BTreeMap::from([(NodeId(2), peer(2))]));
    }
}

//! Keeps the transport's list of members what the replicated state says, and what members told since.

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
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    if !state.nodes.contains_key(&own) {
        peers.extend(hints.iter().map(|(id, peer)| (*id, peer.clone())));
    }
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

/// Adds to `peers` what a member told of others: some may have joined after the state that this node
/// has, and lead by now.
fn add_told(peers: &mut BTreeMap<NodeId, Peer>, told: &BTreeMap<NodeId, Peer>, state: &ClusterState) {
    for (id, peer) in told.iter().filter(|(id, _)| !state.removed_nodes.contains_key(*id)) {
        let known = peers.entry(*id).or_insert_with(|| peer.clone());
        if known.key == peer.key {
            let new = peer.addresses.iter().filter(|address| !known.addresses.contains(address));
            let new: Vec<_> = new.copied().collect();
            known.addresses.extend(new);
        }
    }
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

/// The task: follows the state, Raft's configuration, and what members tell, for as long as the
/// node runs.
pub(crate) async fn run(
    shared: Shared,
    hints: BTreeMap<NodeId, Peer>,
    mut told: watch::Receiver<BTreeMap<NodeId, Peer>>,
) {
    let mut states = shared.watch_state();
    let mut statuses = shared.watch_status();
    let mut last = None;
    loop {
        let state = states.borrow_and_update().clone();
        let status = statuses.borrow_and_update().clone();
        let mut peers = peers_of(&state, shared.id, &hints);
        add_told(&mut peers, &told.borrow_and_update(), &state);
        if let Some(raft) = shared.raft() {
            add_told(&mut peers, raft.joining().unknown_to(&state), &state);
        }
        peers.extend(departing(&state, &status, last.as_ref().unwrap_or(&hints)));
        peers.remove(&shared.id);
        if last.as_ref() != Some(&peers) {
            shared.platform.transport.set_peers(peers.clone());
            last = Some(peers);
        }
        // Cancel safety: `changed` loses nothing when dropped. Who tells may end; the state never does.
        let ended = tokio::select! {
            biased;
            changed = states.changed() => changed.is_err(),
            changed = statuses.changed() => changed.is_err(),
            Ok(()) = told.changed() => false,
        };
        if ended {
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

    use super::{add_told, departing, peers_of};
    use crate::handle::RaftStatus;

    #[test]
    fn a_removed_node_is_heard_until_raft_lets_it_go() {
        let peer = |key: u8| Peer {
            key: NodeKey([key; 32]),
            addresses: vec![([10, 0, 0, key], 7001).into()],
            relay_url: None,
        };
        let mut state = ClusterState::new();
        state.removed_nodes.insert(NodeId(2), NodeKey([2; 32]));
        state.removed_nodes.insert(NodeId(3), NodeKey([3; 32]));
        let known = BTreeMap::from([(NodeId(2), peer(2)), (NodeId(3), peer(3))]);
        assert!(peers_of(&state, NodeId(1), &known).is_empty());
        let status = RaftStatus {
            configurations: vec![[NodeId(1)].into()],
            learners: vec![NodeId(2)],
            ..RaftStatus::default()
        };
        assert_eq!(departing(&state, &status, &known), BTreeMap::from([(NodeId(2), peer(2))]));
        assert!(departing(&state, &RaftStatus::default(), &known).is_empty());
    }

    #[test]
    fn what_members_tell_adds_members_and_addresses_but_never_keys_or_removed_ones() {
        let peer = |key: u8, ports: &[u16]| Peer {
            key: NodeKey([key; 32]),
            addresses: ports.iter().map(|port| ([10, 0, 0, 1], *port).into()).collect(),
            relay_url: None,
        };
        let mut state = ClusterState::new();
        state.removed_nodes.insert(NodeId(4), NodeKey([4; 32]));
        let mut peers = BTreeMap::from([(NodeId(1), peer(1, &[1])), (NodeId(2), peer(2, &[2]))]);
        let told = BTreeMap::from([
            (NodeId(1), peer(1, &[1, 9])),
            (NodeId(2), peer(7, &[8])),
            (NodeId(3), peer(3, &[3])),
            (NodeId(4), peer(4, &[4])),
        ]);
        add_told(&mut peers, &told, &state);
        let expect = [(NodeId(1), peer(1, &[1, 9])), (NodeId(2), peer(2, &[2])), (NodeId(3), peer(3, &[3]))];
        assert_eq!(peers, BTreeMap::from(expect));
    }
}

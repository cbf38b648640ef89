//! Members that the log names and the state does not have yet.
//!
//! How far the log is committed is written with the next write: a loss of power may forget it, and with
//! it that a node joined, although its joining is in the log. By then that node may lead, and who does not
//! know it does not hear it, so would never learn how far the log is committed.

use std::collections::BTreeMap;

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::snapshot::decode_entry;
use blixard_core::id::NodeId;
use blixard_core::wire::Peer;
use openraft::EntryPayload;

use super::types::LogEntry;

/// Nodes whose joining is in the log, and not known to be committed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Joining {
    /// The log's last entry when it was opened: a state that has it knows better.
    last: u64,
    peers: BTreeMap<NodeId, Peer>,
}

impl Joining {
    /// Those in `entries`, which follow what `state` has applied.
    pub(super) fn read(state: &ClusterState, entries: &[LogEntry]) -> Self {
        let mut after = state.clone();
        for entry in entries.iter().filter(|entry| entry.log_id.index > state.applied) {
            let index = entry.log_id.index;
            match &entry.payload {
                EntryPayload::Blank | EntryPayload::Membership(_) => after.apply_blank(index),
                EntryPayload::Normal(proposal) => match decode_entry(&proposal.0) {
                    Ok(entry) => drop(after.apply(index, &entry)),
                    // Whoever applies it says what is wrong.
                    Err(_) => break,
                },
            }
        }
        let new = after.nodes.iter().filter(|(id, _)| !state.nodes.contains_key(*id));
        let peer = |node: &blixard_core::cluster::Node| Peer {
            key: node.key,
            addresses: node.facts.addresses.clone(),
            relay_url: None,
        };
        Self { last: after.applied, peers: new.map(|(id, node)| (*id, peer(node))).collect() }
    }

    /// Those of whom `state` does not know better.
    pub(crate) fn unknown_to(&self, state: &ClusterState) -> &BTreeMap<NodeId, Peer> {
        static NOBODY: BTreeMap<NodeId, Peer> = BTreeMap::new();
        if state.applied < self.last { &self.peers } else { &NOBODY }
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::node::{NodeFacts, Token, TokenScope};
    use blixard_core::cluster::snapshot::encode_entry;
    use blixard_core::cluster::{Command, Entry, SubnetRange};
    use blixard_core::id::{ClusterId, NodeKey, TokenId};
    use blixard_core::time::UtcMs;
    use bytes::Bytes;

    use super::*;
    use crate::raft::types::{LogId, Proposal};

    const TOKEN: TokenId = TokenId([1; 8]);
    const SHA256: [u8; 32] = [9; 32];

    fn facts(node: u8) -> NodeFacts {
        NodeFacts {
            name: format!("machine-{node}"),
            addresses: vec![([10, 77, 0, node], 7001).into()],
            labels: BTreeMap::new(),
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            arch: "amd64".to_owned(),
            os: "linux".to_owned(),
            version: "0.1.0".to_owned(),
            level: 1,
            reserved_ports: Vec::new(),
        }
    }

    fn entry(index: u64, command: Command) -> LogEntry {
        let bytes = encode_entry(&Entry::new(UtcMs(1), vec![command]));
        normal(index, bytes)
    }

    fn normal(index: u64, bytes: Vec<u8>) -> LogEntry {
        let payload = EntryPayload::Normal(Proposal(Bytes::from(bytes)));
        LogEntry { log_id: LogId::new_term_index(1, index), payload }
    }

    #[test]
    fn who_joins_by_the_log_is_known_until_the_state_says_more() {
        let token = Token {
            secret_sha256: SHA256,
            scope: TokenScope::Join,
            expires_at: None,
            uses_left: None,
            services: None,
        };
        let bootstrap = Command::Bootstrap {
            cluster: ClusterId([7; 16]),
            subnets: SubnetRange::default(),
            node: NodeId(1),
            key: NodeKey([1; 32]),
            facts: facts(1),
            token: (TOKEN, token),
        };
        let join = |node: u8| Command::Join {
            node: Some(NodeId(node.into())),
            key: NodeKey([node; 32]),
            facts: facts(node),
            token: TOKEN,
            secret_sha256: SHA256,
        };
        let mut state = ClusterState::new();
        state.apply(1, &Entry::new(UtcMs(1), vec![bootstrap]));
        let entries = [entry(1, join(9)), entry(2, join(3)), normal(3, b"?".to_vec()), entry(4, join(4))];
        let joining = Joining::read(&state, &entries);
        let peer =
            Peer { key: NodeKey([3; 32]), addresses: vec![([10, 77, 0, 3], 7001).into()], relay_url: None };
        assert_eq!(*joining.unknown_to(&state), BTreeMap::from([(NodeId(3), peer)]));
        state.apply_blank(2);
        assert!(joining.unknown_to(&state).is_empty(), "it did not come to be");
        assert!(Joining::read(&state, &[]).unknown_to(&state).is_empty());
    }
}

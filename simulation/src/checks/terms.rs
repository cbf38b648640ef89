//! `terms_only_rise`: a member's term never falls, also not by a restart.
//!
//! The term and the vote are on disk before they are acted on (Ongaro, "Consensus", figure 3.1).
//! Shows a vote that a restart forgets, with which a member could vote twice.

use std::collections::BTreeMap;

use blixard_core::id::NodeId;
use blixard_node::handle::RaftStatus;

/// The highest term of each member.
#[derive(Default)]
pub(super) struct Terms {
    highest: BTreeMap<NodeId, u64>,
}

impl Terms {
    pub(super) fn seen(&mut self, node: NodeId, status: &RaftStatus) -> Result<(), String> {
        // Without voters nothing is known: Raft is closed, or never heard of anyone.
        if status.configurations.is_empty() {
            return Ok(());
        }
        let highest = self.highest.entry(node).or_default();
        if status.term < *highest {
            return Err(format!("node {node} is at term {} after {highest}", status.term));
        }
        *highest = status.term;
        Ok(())
    }
}

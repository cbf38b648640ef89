//! `one_leader_a_term`: a term has at most one leader, and everyone who names it names the same.
//!
//! Election safety (Ongaro, "Consensus", section 3.4). Shows a vote given twice, as by a member
//! that forgot its vote in a crash, and a quorum that is none.

use std::collections::BTreeMap;

use blixard_core::id::NodeId;
use blixard_node::handle::RaftStatus;

/// Who was named leader of each term.
#[derive(Default)]
pub(super) struct Election {
    leaders: BTreeMap<u64, NodeId>,
}

impl Election {
    /// Words for the record when a term's leader is new.
    pub(super) fn seen(&mut self, machine: u64, status: &RaftStatus) -> Result<Option<String>, String> {
        let Some(leader) = status.leader else { return Ok(None) };
        let term = status.term;
        match self.leaders.get(&term) {
            Some(known) if *known == leader => Ok(None),
            Some(known) => Err(format!(
                "machine {machine} takes node {leader} for the leader of term {term}, others {known}"
            )),
            None => {
                self.leaders.insert(term, leader);
                Ok(Some(format!("node {leader} leads in term {term}")))
            }
        }
    }

    pub(super) fn highest(&self) -> u64 {
        self.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }
}

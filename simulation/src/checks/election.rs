//! `one_leader_a_term`: a term has at most one leader, and everyone who names it names the same.
//!
//! Election safety (Ongaro, "Consensus", section 3.4). Shows a vote given twice, as by a member
//! that forgot its vote in a crash, and a quorum that is none.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::id::NodeId;
use blixard_node::handle::RaftStatus;

/// Who was named leader of each term.
#[derive(Default)]
pub(super) struct Election {
    leaders: BTreeMap<u64, NodeId>,
    /// When it was first named.
    began: BTreeMap<u64, Duration>,
}

impl Election {
    /// Words for the record when a term's leader is new.
    pub(super) fn seen(
        &mut self,
        machine: u64,
        status: &RaftStatus,
        now: Duration,
    ) -> Result<Option<String>, String> {
        let Some(leader) = status.leader else { return Ok(None) };
        let term = status.term;
        match self.leaders.get(&term) {
            Some(known) if *known == leader => Ok(None),
            Some(known) => Err(format!(
                "machine {machine} takes node {leader} for the leader of term {term}, others {known}"
            )),
            None => {
                self.leaders.insert(term, leader);
                self.began.insert(term, now);
                Ok(Some(format!("node {leader} leads in term {term}")))
            }
        }
    }

    /// When the leader of a term was first named.
    pub(super) fn began(&self, term: u64) -> Option<Duration> {
        self.began.get(&term).copied()
    }

    /// Who led before a term, the last first.
    pub(super) fn before(&self, term: u64) -> impl Iterator<Item = NodeId> + '_ {
        self.leaders.range(..term).rev().map(|(_, leader)| *leader)
    }

    pub(super) fn highest(&self) -> u64 {
        self.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }
}

//! `one_vote_a_term`: a member votes for one candidate a term, whatever happens to it in between.
//!
//! Ongaro, "Consensus", section 3.4 and figure 3.2: the vote is kept before it is given. Seen in
//! the messages: a candidate's request is its vote for itself. Shows a vote that was answered
//! before it was durable and forgotten in a crash, and one granted to everybody.

use std::collections::BTreeMap;

use blixard_core::id::NodeId;

/// For whom each member voted in each term.
#[derive(Default)]
pub(super) struct Votes {
    given: BTreeMap<(NodeId, u64), u64>,
}

impl Votes {
    pub(super) fn given(&mut self, voter: NodeId, term: u64, candidate: u64) -> Result<(), String> {
        let first = *self.given.entry((voter, term)).or_insert(candidate);
        if first == candidate {
            return Ok(());
        }
        Err(format!("node {voter} voted for node {first} and for node {candidate} in term {term}"))
    }
}

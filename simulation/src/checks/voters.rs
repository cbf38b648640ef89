//! `members_agree_who_votes`: at the end every member has the same voters and learners, as many of
//! the one as there should be.
//!
//! Raft's safety rests on one configuration (Ongaro, "Consensus", chapter 4). Shows a configuration
//! that is read back other than it was written, and a quorum that counts a learner.

use std::collections::BTreeSet;

use blixard_core::id::NodeId;
use blixard_core::limits::VOTERS_TARGET;

use crate::world::World;

/// Checks the configurations of a settled world.
///
/// # Errors
/// What differs.
pub fn members_agree_who_votes(world: &World) -> Result<(), String> {
    let mut known: BTreeSet<(BTreeSet<NodeId>, BTreeSet<NodeId>)> = BTreeSet::new();
    for node in world.running() {
        let status = node.handle.raft();
        if status.is_changing_voters() {
            let sets = status.configurations;
            return Err(format!("node {}: a change of voters is half done: {sets:?}", node.handle.id));
        }
        known.insert((status.voters(), status.learners.iter().copied().collect()));
    }
    let Some((voters, learners)) = known.first().filter(|_| known.len() == 1) else {
        return Err(format!("members have the voters and learners {known:?}"));
    };
    let members = (voters.len() + learners.len()).min(VOTERS_TARGET);
    let target = members - usize::from(members.is_multiple_of(2));
    if voters.len() != target {
        return Err(format!("{voters:?} vote and {learners:?} learn"));
    }
    Ok(())
}

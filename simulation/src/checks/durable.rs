//! `committed_entries_are_durable`: an entry that a node applies is on the disks of a quorum.
//!
//! Ongaro, "Consensus", section 3.8: a member answers for an entry once it is durable. Looked at
//! for every entry, when it is first applied anywhere, whether that state is published or a later one
//! is: in what a loss of power would leave of each log, or covered by a snapshot that it would leave.
//! Shows an acknowledgement before the flush, without waiting for a power loss to hit the moment in
//! between, and a quorum that is none.
//!
//! `votes_are_durable`: a vote is on the disk of the member that answers with it, by the same rule.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use blixard_core::id::NodeId;
use blixard_node::handle::RaftStatus;
use blixard_node::raft::inspect::{self, Configuration, KeptVote, LOG_FILE, STATE_FILE};

use crate::disk::SimDisk;
use crate::held::Image;
use crate::world::World;

/// Who votes, by what leaders told.
#[derive(Default)]
pub(super) struct Voters {
    from: BTreeMap<u64, Configuration>,
    /// The term of the newest leader, and whom it last counted, be it that nobody has answered it yet
    /// or that it has ended since.
    led: Option<(u64, Configuration)>,
}

impl Voters {
    /// A leader told of configurations, each with the index of its entry.
    pub(super) fn told(&mut self, configurations: Vec<(u64, Configuration)>) {
        self.from.extend(configurations);
    }

    /// A node knows this of Raft.
    pub(super) fn seen(&mut self, node: NodeId, status: &RaftStatus) {
        let newest = self.led.as_ref().is_none_or(|(term, _)| *term <= status.term);
        if status.is_leader(node) && newest && !status.configurations.is_empty() {
            let numbers = |voters: &BTreeSet<NodeId>| voters.iter().map(|voter| voter.0).collect();
            self.led = Some((status.term, status.configurations.iter().map(numbers).collect()));
        }
    }

    /// The configurations of which one committed the entry of an index: the one that holds from
    /// there on, and those after it, as a leader counts by its newest; after a joint one that is the
    /// newest known comes that of its last set. None while it is not known.
    fn of(&self, index: u64) -> Vec<Configuration> {
        let Some((&first, _)) = self.from.range(..=index).next_back() else { return Vec::new() };
        let mut found: Vec<Configuration> = self.from.range(first..).map(|(_, told)| told.clone()).collect();
        let after = found.last().filter(|newest| newest.len() > 1).and_then(|joint| joint.last().cloned());
        found.extend(after.map(|voters| vec![voters]));
        found.extend(self.led.iter().map(|(_, counted)| counted.clone()));
        found
    }
}

/// Whether so many members are a quorum.
fn is_quorum(configuration: &Configuration, holders: &BTreeSet<u64>) -> bool {
    configuration.iter().all(|voters| voters.intersection(holders).count() > voters.len() / 2)
}

/// Checks that entries just applied for the first time are durable where they must be.
///
/// # Errors
/// The first that is not, and who holds it.
pub(super) fn durable(world: &World, voters: &Voters, indexes: RangeInclusive<u64>) -> Result<(), String> {
    indexes.into_iter().try_for_each(|index| check(world, voters, index))
}

fn check(world: &World, voters: &Voters, index: u64) -> Result<(), String> {
    let configurations = voters.of(index);
    if configurations.is_empty() {
        return Ok(());
    }
    // Members that hold one entry, by its hash: at an index there may be another on some disk.
    let mut holders: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for machine in &world.machines {
        if let Some(hash) = machine.disk.holds(index) {
            holders.entry(hash).or_default().insert(machine.member().0);
        }
    }
    let durable = |holders: &BTreeMap<u64, BTreeSet<u64>>| {
        configurations.iter().any(|voters| holders.values().any(|held| is_quorum(voters, held)))
    };
    if durable(&holders) {
        return Ok(());
    }
    let covers = |disk: &SimDisk| covered(disk).is_some_and(|last| last >= index);
    let covering = world.machines.iter().filter(|machine| covers(&machine.disk));
    let covering: BTreeSet<u64> = covering.map(|machine| machine.member().0).collect();
    holders.entry(0).or_default();
    holders.values_mut().for_each(|held| held.extend(&covering));
    if durable(&holders) {
        return Ok(());
    }
    let held: Vec<_> = holders.values().collect();
    Err(format!(
        "entry {index} was applied, and is on disk of the members {held:?} only; voters are {configurations:?}"
    ))
}

/// The index up to which a disk's durable snapshot covers the log.
fn covered(disk: &SimDisk) -> Option<u64> {
    // One whose first commit is not durable yet covers nothing.
    inspect::covered(Image::of(&disk.durable(STATE_FILE)?)).unwrap_or_default()
}

/// `votes_are_durable`: checks that a member's disk has a vote that it gives, or what binds it as much.
///
/// # Errors
/// What it has.
pub(super) fn vote(disk: &SimDisk, voter: NodeId, term: u64, candidate: u64) -> Result<(), String> {
    let kept = disk.durable(LOG_FILE).and_then(|log| inspect::vote(&*Image::of(&log)).ok().flatten());
    if kept.is_some_and(|kept| binds(kept, term, candidate)) {
        return Ok(());
    }
    Err(format!("node {voter} voted for node {candidate} in term {term}, and its disk has {kept:?}"))
}

/// Whether a member that keeps a vote can give none in a term but to this candidate: it keeps that one,
/// or one of a later term, or knows who has won this one, which takes the place of whom it voted for.
fn binds(kept: KeptVote, term: u64, candidate: u64) -> bool {
    kept.term > term || kept.term == term && (kept.candidate == candidate || kept.won)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_winner_of_a_term_takes_the_place_of_whom_a_member_voted_for() {
        let kept = |term, candidate, won| KeptVote { term, candidate, won };
        assert!(binds(kept(7, 1, false), 7, 1));
        assert!(binds(kept(8, 2, false), 7, 1), "of a later term");
        assert!(binds(kept(7, 2, true), 7, 1), "the two came in one batch");
        assert!(!binds(kept(7, 2, false), 7, 1), "two votes in one term");
        assert!(!binds(kept(6, 1, true), 7, 1), "not on disk yet");
    }

    #[test]
    fn a_leader_counts_by_what_it_told_nobody_yet() {
        let voters = |numbers: &[u64]| vec![numbers.iter().copied().collect::<BTreeSet<u64>>()];
        let voters_of = |numbers: &[u64]| {
            let voters: BTreeSet<NodeId> = numbers.iter().copied().map(NodeId).collect();
            Some(voters).filter(|voters| !voters.is_empty()).into_iter().collect()
        };
        let status = |term, leader, numbers: &[u64]| RaftStatus {
            term,
            leader: Some(NodeId(leader)),
            configurations: voters_of(numbers),
            ..RaftStatus::default()
        };
        let mut known = Voters::default();
        known.seen(NodeId(1), &status(1, 1, &[1]));
        assert_eq!(known.of(5), Vec::<Configuration>::new(), "nobody has told of any");
        known.told(vec![(3, voters(&[1, 2, 3])), (9, voters(&[1, 2]))]);
        known.seen(NodeId(2), &status(2, 2, &[2]));
        assert_eq!(known.of(5), [voters(&[1, 2, 3]), voters(&[1, 2]), voters(&[2])]);
        assert_eq!(known.of(9), [voters(&[1, 2]), voters(&[2])]);
        // Neither a follower, nor a leader of before, nor one whose Raft has ended is believed.
        known.seen(NodeId(3), &status(3, 1, &[3]));
        known.seen(NodeId(1), &status(1, 1, &[1]));
        known.seen(NodeId(2), &status(2, 2, &[]));
        assert_eq!(known.of(9), [voters(&[1, 2]), voters(&[2])]);
        // What a joint configuration leads to.
        let joint = [voters(&[1, 2]), voters(&[1])].concat();
        known.told(vec![(12, joint.clone())]);
        assert_eq!(known.of(12), [joint, voters(&[1]), voters(&[2])]);
    }
}

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
use blixard_node::raft::inspect::{self, Configuration, LOG_FILE, STATE_FILE};

use crate::disk::SimDisk;
use crate::held::Image;
use crate::world::World;

/// Who votes, by what leaders told.
#[derive(Default)]
pub(super) struct Voters {
    from: BTreeMap<u64, Configuration>,
}

impl Voters {
    /// A leader told of configurations, each with the index of its entry.
    pub(super) fn told(&mut self, configurations: Vec<(u64, Configuration)>) {
        self.from.extend(configurations);
    }

    /// The configurations of which one committed the entry of an index: the one that holds from
    /// there on, and those after it, as a leader counts by its newest. None while it is not known.
    fn of(&self, index: u64) -> impl Iterator<Item = &Configuration> {
        let first = self.from.range(..=index).next_back().map(|(at, _)| *at);
        self.from.range(first.unwrap_or(u64::MAX)..).map(|(_, configuration)| configuration)
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
    let mut configurations: Vec<Configuration> = voters.of(index).cloned().collect();
    if configurations.is_empty() {
        return Ok(());
    }
    // A leader counts by a configuration that it has told nobody yet, too.
    let applied = world.running().into_iter().map(|node| node.handle.raft());
    let applied = applied.filter(|raft| raft.applied >= index && !raft.voters.is_empty());
    configurations.extend(applied.map(|raft| vec![raft.voters.iter().map(|voter| voter.0).collect()]));
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

/// `votes_are_durable`: checks that a member's disk has a vote that it gives, or a later one.
///
/// # Errors
/// What it has.
pub(super) fn vote(disk: &SimDisk, voter: NodeId, term: u64, candidate: u64) -> Result<(), String> {
    let kept = disk.durable(LOG_FILE).and_then(|log| inspect::vote(Image::of(&log)).ok().flatten());
    if kept.is_some_and(|kept| kept == (term, candidate) || kept.0 > term) {
        return Ok(());
    }
    Err(format!("node {voter} voted for node {candidate} in term {term}, and its disk has {kept:?}"))
}

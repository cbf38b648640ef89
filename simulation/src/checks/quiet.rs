//! Since when machines and the ways between them have been left alone.
//!
//! Not a check: what [`super::leaders`] and [`super::downs`] take for the cause of what they see.
//! Looked at every tenth of a second, which is short beside every timeout of the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::id::NodeId;

use crate::machine::Running;
use crate::world::World;

/// A longer time between two looks hides what went wrong in it.
const LOOKS_WITHIN: Duration = Duration::from_millis(250);

/// When something last went wrong, in simulated time.
#[derive(Default)]
pub(super) struct Quiet {
    looked: Duration,
    machines: BTreeMap<u64, Duration>,
    lives: BTreeMap<u64, u64>,
    /// Pairs, the lower number first.
    ways: BTreeMap<(u64, u64), Duration>,
    /// When a member last led, by anyone's word.
    led: BTreeMap<NodeId, Duration>,
    /// Which machine a member is on now.
    members: BTreeMap<NodeId, u64>,
}

fn way(a: u64, b: u64) -> (u64, u64) {
    (a.min(b), a.max(b))
}

impl Quiet {
    /// Looks around.
    pub(super) fn look(&mut self, world: &World, now: Duration) {
        let missed = now.saturating_sub(std::mem::replace(&mut self.looked, now)) > LOOKS_WITHIN;
        let numbers: BTreeSet<u64> = world.machines.iter().map(|machine| machine.number).collect();
        self.members = world.machines.iter().map(|machine| (machine.member(), machine.number)).collect();
        for machine in &world.machines {
            let life = machine.lives();
            let same_life = self.lives.insert(machine.number, life) == Some(life);
            let running = machine.running();
            // Also one that only others say leads, as it is being stopped.
            let leader = running.as_ref().and_then(|node| node.handle.raft().leader);
            self.led.extend(leader.map(|leader| (leader, now)));
            // A node whose store failed knows no voters until it has reopened it, for a while after
            // its disk is well again.
            let away = |node: &Running| node.is_paused() || node.handle.raft().configurations.is_empty();
            if missed || !same_life || running.is_none_or(|node| away(&node)) || !machine.disk.is_well() {
                self.machines.insert(machine.number, now);
            }
        }
        for &a in &numbers {
            for &b in numbers.range(a + 1..) {
                if missed || !(world.net.is_calm() && world.net.reaches(a, b) && world.net.reaches(b, a)) {
                    self.ways.insert((a, b), now);
                }
            }
        }
    }

    /// Whether a member's daemon and its Raft have run, and its disk has been well, since `since`.
    pub(super) fn member(&self, node: NodeId, since: Duration) -> bool {
        let disturbed = self.members.get(&node).and_then(|number| self.machines.get(number));
        disturbed.is_some_and(|at| *at < since)
    }

    /// Whether messages have passed between two members as they should since `since`.
    pub(super) fn way(&self, a: NodeId, b: NodeId, since: Duration) -> bool {
        let (Some(&a), Some(&b)) = (self.members.get(&a), self.members.get(&b)) else { return false };
        a == b || self.ways.get(&way(a, b)).is_none_or(|disturbed| *disturbed < since)
    }

    /// The members that led at any time since `since`.
    pub(super) fn leaders(&self, since: Duration) -> impl Iterator<Item = NodeId> + '_ {
        self.led.iter().filter(move |(_, at)| **at >= since).map(|(node, _)| *node)
    }
}

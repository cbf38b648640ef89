//! `nodes_go_down_for_a_reason`: no node is recorded as Down that was there to be heard.
//!
//! The rule of grace (docs/architecture.md): silence counts only where a heartbeat could have been
//! heard, and anew for a new leader. Shows a leader that begins its term with everyone's silence,
//! and one that counts its own absence.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use blixard_core::cluster::{ClusterState, NodeStatus};
use blixard_core::id::NodeId;
use blixard_core::limits::NODE_DOWN_AFTER;

use super::election::Election;
use super::logs::Logs;
use super::quiet::Quiet;

/// How far back a cause may be: the silence, and the longest that recording it may take.
const CAUSE_WITHIN: Duration = Duration::from_secs(20);

/// For how long a node is not up before it goes Down, at most: one that is not heard for longer may
/// have lost those whom it knew.
const UP_WITHIN: Duration = Duration::from_secs(5);

/// A leader that leads for less has taken nobody for down, but for those who led before it: by so
/// much shorter than [`NODE_DOWN_AFTER`] a leader may be known to lead, by clocks that differ.
const GRACE: Duration = NODE_DOWN_AFTER.saturating_sub(Duration::from_secs(1));
/// So many leaders back a deposed one may be.
const DEPOSED: usize = 3;

/// Who is down, by the newest state seen.
#[derive(Default)]
pub(super) struct Downs {
    applied: u64,
    up: BTreeSet<NodeId>,
    down: BTreeSet<NodeId>,
    /// When a node was last seen to be up.
    up_at: BTreeMap<NodeId, Duration>,
    /// Recorded since the last look, each by an entry of these indexes.
    new: Vec<(NodeId, RangeInclusive<u64>)>,
}

impl Downs {
    /// A state was published.
    pub(super) fn seen(&mut self, state: &ClusterState) {
        if state.applied <= self.applied {
            return;
        }
        let indexes = self.applied + 1..=state.applied;
        self.applied = state.applied;
        let of = |status: NodeStatus| {
            let nodes = state.nodes.iter().filter(move |(_, node)| node.status == status);
            nodes.map(|(id, _)| *id).collect::<BTreeSet<NodeId>>()
        };
        let down = of(NodeStatus::Down);
        self.up = of(NodeStatus::Up);
        self.new.extend(down.difference(&self.down).map(|id| (*id, indexes.clone())));
        self.down = down;
    }

    /// Looks for the causes of what was recorded.
    pub(super) fn look(
        &mut self,
        quiet: &Quiet,
        logs: &Logs,
        election: &Election,
        now: Duration,
    ) -> Result<(), String> {
        let since = now.saturating_sub(CAUSE_WITHIN);
        for (node, indexes) in self.new.drain(..) {
            let index = *indexes.end();
            // What a leader began to record another may commit.
            let term = logs.lowest_term(indexes);
            let term = term.filter(|term| !election.before(*term).take(DEPOSED).any(|led| led == node));
            let led = term.and_then(|term| election.began(term)).map(|began| now.saturating_sub(began));
            if let Some(led) = led.filter(|led| *led < GRACE) {
                return Err(format!(
                    "node {node} is Down at index {index}, by a leader that led for {led:?}"
                ));
            }
            let heard = quiet.leaders(since).all(|leader| quiet.way(node, leader, since));
            let was_up = self.up_at.get(&node).is_some_and(|at| *at + UP_WITHIN > now);
            if heard && was_up && quiet.member(node, since) && now > CAUSE_WITHIN {
                return Err(format!(
                    "node {node} is Down at index {index}; for {CAUSE_WITHIN:?} it ran and nothing was between it and a leader"
                ));
            }
        }
        self.up_at.extend(self.up.iter().map(|node| (*node, now)));
        Ok(())
    }
}

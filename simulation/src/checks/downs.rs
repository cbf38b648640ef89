//! `nodes_go_down_for_a_reason`: no node is recorded as Down that was there to be heard.
//!
//! The rule of grace (docs/architecture.md): silence counts only where a heartbeat could have been
//! heard, and anew for a new leader. Shows a leader that begins its term with everyone's silence,
//! and one that counts its own absence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::cluster::{ClusterState, NodeStatus};
use blixard_core::id::NodeId;

use super::quiet::Quiet;

/// How far back a cause may be: the silence, and the longest that recording it may take.
const CAUSE_WITHIN: Duration = Duration::from_secs(20);

/// For how long a node is not up before it goes Down, at most: one that is not heard for longer may
/// have lost those whom it knew.
const UP_WITHIN: Duration = Duration::from_secs(5);

/// Who is down, by the newest state seen.
#[derive(Default)]
pub(super) struct Downs {
    applied: u64,
    up: BTreeSet<NodeId>,
    down: BTreeSet<NodeId>,
    /// When a node was last seen to be up.
    up_at: BTreeMap<NodeId, Duration>,
    /// Recorded since the last look.
    new: Vec<(NodeId, u64)>,
}

impl Downs {
    /// A state was published.
    pub(super) fn seen(&mut self, state: &ClusterState) {
        if state.applied <= self.applied {
            return;
        }
        self.applied = state.applied;
        let of = |status: NodeStatus| {
            let nodes = state.nodes.iter().filter(move |(_, node)| node.status == status);
            nodes.map(|(id, _)| *id).collect::<BTreeSet<NodeId>>()
        };
        let down = of(NodeStatus::Down);
        self.up = of(NodeStatus::Up);
        self.new.extend(down.difference(&self.down).map(|id| (*id, state.applied)));
        self.down = down;
    }

    /// Looks for the causes of what was recorded.
    pub(super) fn look(&mut self, quiet: &Quiet, now: Duration) -> Result<(), String> {
        let since = now.saturating_sub(CAUSE_WITHIN);
        for (node, index) in self.new.drain(..) {
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

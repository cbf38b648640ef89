//! Which nodes the leader believes to be up.
//!
//! [`Liveness`] knows when each node was last heard, by the leader's own monotonic clock, and
//! answers the commands that record a changed belief. It never looks at what nodes run and moves
//! nothing. The leader's driver tells it of heartbeats, steps it when one arrives and when
//! [`Liveness::wake_at`] has come, and makes a new one when it begins to lead.
//!
//! Silence shorter than [`NODE_UNKNOWN_AFTER`] means nothing; then the node is Unknown; from
//! [`NODE_DOWN_AFTER`] on it is Down. A node that announced its absence stays Unknown until its
//! hold ends. A heartbeat makes it Up at once. A new leader has heard nobody yet: silence counts
//! from when it began, except the deposed leader's, which counts from its last append. One that was
//! deposed for its silence is Unknown from the start, so that nothing new is placed on the very node
//! that is most likely dead.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{ClusterState, Command, Node, NodeStatus};
use crate::id::NodeId;
use crate::limits::{NODE_DOWN_AFTER, NODE_UNKNOWN_AFTER, RAFT_ELECTION_MAX};
use crate::time::{Mono, UtcMs};

/// How often the leader looks around at least.
pub const LOOK: Duration = Duration::from_secs(1);
/// Shorter absences of the leader itself are not made up for: the nodes' silence outlasts them.
const AWAY_MIN: Duration = Duration::from_millis(750);

/// What one leader has heard of the nodes during its term.
#[derive(Debug, Clone)]
pub struct Liveness {
    leader: NodeId,
    nodes: BTreeMap<NodeId, Heard>,
    /// When the leader last looked around.
    looked: Mono,
    /// Up to when its absence was made up for.
    excused: Mono,
}

/// When a node was last heard.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The last heartbeat, or when the silence began to count.
    at: Mono,
    /// Which start of its daemon sent it; absent before the first heartbeat of this term.
    boot: Option<u64>,
    /// Whether the daemon was seen to have started anew: what it announced is over.
    restarted: bool,
    /// Whether it led until it fell silent, and has sent nothing since.
    deposed: bool,
}

impl Heard {
    /// Silence that counts from `at`.
    fn from(at: Mono) -> Self {
        Self { at, boot: None, restarted: false, deposed: false }
    }
}

impl Liveness {
    /// What `leader`, elected at `elected`, knows when it begins to lead at `now`. `deposed` is the
    /// leader before it, if that was another node, and when its last append arrived.
    pub fn new(
        leader: NodeId,
        elected: Mono,
        now: Mono,
        state: &ClusterState,
        deposed: Option<(NodeId, Mono)>,
    ) -> Self {
        let mut nodes: BTreeMap<NodeId, Heard> =
            state.nodes.keys().map(|&node| (node, Heard::from(now))).collect();
        if let Some((node, at)) = deposed
            && let Some(heard) = nodes.get_mut(&node)
        {
            heard.at = at.min(now);
            // One that handed over sent its last append just before.
            heard.deposed = elected.since(at) >= RAFT_ELECTION_MAX;
        }
        Self { leader, nodes, looked: now, excused: now }
    }

    /// The leader looks around, as it does every [`LOOK`]; no quorum has confirmed it for
    /// `unconfirmed`. Time in which its own process stood still, or in which it was cut off, is no
    /// node's silence: it could have heard nobody, and recorded nothing.
    pub fn look(&mut self, now: Mono, unconfirmed: Duration) {
        let away_from = (now - unconfirmed).min(self.looked + LOOK).max(self.excused);
        self.looked = now;
        let away = now.since(away_from);
        if away < AWAY_MIN {
            return;
        }
        self.excused = now;
        for heard in self.nodes.values_mut() {
            heard.at = (heard.at + away).min(now);
        }
    }

    /// Takes in a heartbeat. `boot` names the start of the daemon that sent it.
    pub fn heard(&mut self, node: NodeId, boot: u64, now: Mono) {
        let heard = self.nodes.entry(node).or_insert_with(|| Heard::from(now));
        heard.restarted |= heard.boot.is_some_and(|before| before != boot);
        heard.at = heard.at.max(now);
        heard.boot = Some(boot);
        heard.deposed = false;
    }

    /// The commands that record what the leader now believes, in the order of node ids. Empty
    /// when nothing changed; repeated until `state` shows them applied. `utc` is log time as the
    /// leader would stamp it: holds are in log time.
    pub fn step(&mut self, now: Mono, utc: UtcMs, state: &ClusterState) -> Vec<Command> {
        self.nodes.retain(|node, _| state.nodes.contains_key(node));
        let mut commands = Vec::new();
        for (&id, node) in &state.nodes {
            let heard = self.nodes.entry(id).or_insert_with(|| Heard::from(now));
            let status = if id == self.leader { NodeStatus::Up } else { believe(heard, node, now, utc) };
            if node.hold_until.is_none() {
                heard.restarted = false;
            } else if heard.restarted {
                commands.push(Command::Hold { node: id, until: None });
            }
            if status != node.status {
                commands.push(Command::Health { node: id, status });
            }
        }
        commands
    }

    /// When a belief changes next if nothing is heard; absent when silence changes nothing more.
    pub fn wake_at(&self, now: Mono, utc: UtcMs, state: &ClusterState) -> Option<Mono> {
        let due = |(&id, node): (&NodeId, &Node)| {
            let heard = self.nodes.get(&id).filter(|_| id != self.leader)?;
            match node.status {
                NodeStatus::Up if heard.deposed && !is_held(node, utc) => Some(now),
                NodeStatus::Up => Some(heard.at + NODE_UNKNOWN_AFTER),
                NodeStatus::Unknown => {
                    let held = node.hold_until.map(|until| now + until.since(utc)).unwrap_or_default();
                    Some((heard.at + NODE_DOWN_AFTER).max(held))
                }
                NodeStatus::Down => None,
            }
        };
        state.nodes.iter().filter_map(due).min()
    }
}

/// What silence says of a node. Before its first heartbeat it can only get worse: what the last
/// leader believed stands until there is evidence.
fn believe(heard: &Heard, node: &Node, now: Mono, utc: UtcMs) -> NodeStatus {
    let silence = now.since(heard.at);
    let held = is_held(node, utc);
    // What a daemon that stops still sends must not make its node Up, which would end the hold.
    let by_silence = if silence < NODE_UNKNOWN_AFTER && (held || !heard.deposed) {
        NodeStatus::Up
    } else if silence < NODE_DOWN_AFTER || held {
        NodeStatus::Unknown
    } else {
        NodeStatus::Down
    };
    if heard.boot.is_some() && by_silence == NodeStatus::Up {
        NodeStatus::Up
    } else {
        by_silence.max(node.status)
    }
}

/// Whether the node announced its absence and is not expected yet.
fn is_held(node: &Node, utc: UtcMs) -> bool {
    node.hold_until.is_some_and(|until| until > utc)
}

#[cfg(test)]
#[path = "tests/health.rs"]
mod tests;

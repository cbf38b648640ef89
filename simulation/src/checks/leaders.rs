//! `leaders_are_left_alone`: a leader that hears a quorum, and is heard by it, goes on leading.
//!
//! What pre-vote is for (Ongaro, "Consensus", section 9.6): members that were cut off, restarted or
//! hear nobody do not raise the term of those who hear each other. Shows a pre-vote granted to
//! whoever asks, and a member that stands for election without asking.

use std::collections::BTreeSet;
use std::time::Duration;

use blixard_core::cluster::{Availability, ClusterState};
use blixard_core::id::NodeId;

use super::quiet::Quiet;
use crate::machine::Running;

/// For how long a quorum must have been left alone before the leader counts as established.
const SETTLED: Duration = Duration::from_secs(3);

/// The leader that has to stay.
#[derive(Default)]
pub(super) struct Leaders {
    established: Option<Established>,
}

struct Established {
    leader: NodeId,
    term: u64,
    configurations: Vec<BTreeSet<NodeId>>,
}

/// Whether a quorum of voters has heard the leader, and it them, since `since`.
fn quorum_is_quiet(
    quiet: &Quiet,
    leader: NodeId,
    configurations: &[BTreeSet<NodeId>],
    since: Duration,
) -> bool {
    let hears = |voter: &&NodeId| quiet.member(**voter, since) && quiet.way(leader, **voter, since);
    let agrees = |voters: &BTreeSet<NodeId>| voters.iter().filter(hears).count() > voters.len() / 2;
    quiet.member(leader, since) && configurations.iter().all(agrees)
}

impl Leaders {
    /// A node has published a state. What asks a leader to make way may be taken back before it is
    /// looked at the world again, and the leader has made way.
    pub(super) fn seen(&mut self, state: &ClusterState) {
        self.established = self.established.take().filter(|known| is_to_stay(state, known.leader));
    }

    /// Takes in how things are now, of `machines` machines.
    pub(super) fn look(
        &mut self,
        quiet: &Quiet,
        running: &[Running],
        machines: usize,
        now: Duration,
    ) -> Result<(), String> {
        let since = now.saturating_sub(SETTLED);
        self.established = self.established.take().filter(|known| known.stays(quiet, running, since));
        if let Some(Established { leader, term, .. }) = &self.established {
            let highest = running.iter().max_by_key(|node| node.handle.raft().term);
            if let Some(node) = highest.filter(|node| node.handle.raft().term > *term) {
                return Err(format!(
                    "a quorum heard node {leader}, the leader of term {term}, and node {} is at term {}",
                    node.handle.id,
                    node.handle.raft().term
                ));
            }
            return Ok(());
        }
        // Nobody may have raised its term before, and it is known of all: a member whose disk is
        // slow has a higher one before it says so.
        let well = |node: &Running| quiet.member(node.handle.id, since);
        let leader = running.iter().find(|node| node.handle.raft().is_leader(node.handle.id));
        let Some(leader) = leader.filter(|_| running.len() == machines && running.iter().all(well)) else {
            return Ok(());
        };
        let status = leader.handle.raft();
        if running.iter().all(|node| node.handle.raft().term <= status.term) {
            let configurations = status.configurations;
            let new = Established { leader: leader.handle.id, term: status.term, configurations };
            self.established = Some(new).filter(|new| new.stays(quiet, running, since));
        }
        Ok(())
    }
}

impl Established {
    /// Whether a quorum still hears it, of the same voters, and it has no reason to hand over.
    fn stays(&self, quiet: &Quiet, running: &[Running], since: Duration) -> bool {
        let leader = running.iter().find(|node| node.handle.id == self.leader);
        quorum_is_quiet(quiet, self.leader, &self.configurations, since)
            && leader.is_some_and(|leader| {
                leader.handle.raft().configurations == self.configurations && stays(leader)
            })
    }
}

/// Whether a leader has no reason of its own to hand over.
fn stays(leader: &Running) -> bool {
    // Who hears no quorum by its own account makes way, whatever keeps it from hearing.
    let heard = leader.handle.raft().quorum_ack_ms_ago.is_none_or(|ago| ago < 500);
    heard && is_to_stay(&leader.handle.state(), leader.handle.id)
}

/// Whether a state has no reason for a leader to hand over.
fn is_to_stay(state: &ClusterState, leader: NodeId) -> bool {
    let row = state.nodes.get(&leader);
    row.is_some_and(|node| node.availability != Availability::Leaving && node.hold_until.is_none())
}

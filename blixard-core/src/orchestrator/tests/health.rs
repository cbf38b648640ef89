use std::time::Duration;

use super::Liveness;
use crate::cluster::{ClusterState, Command, NodeStatus};
use crate::id::NodeId;
use crate::limits::{NODE_DOWN_AFTER, NODE_HEARTBEAT, NODE_UNKNOWN_AFTER, RAFT_ELECTION_MAX};
use crate::orchestrator::tests::world::World;
use crate::time::{Mono, UtcMs};

const LEADER: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
const BEGIN: Mono = Mono(Duration::from_secs(100));

/// A leader, node 1, of three nodes, which began at [`BEGIN`].
struct Term {
    state: ClusterState,
    liveness: Liveness,
    utc: UtcMs,
}

impl Term {
    fn new(deposed: Option<(NodeId, Mono)>) -> Self {
        let world = World::new(3);
        let liveness = Liveness::new(LEADER, BEGIN, BEGIN, &world.state, deposed);
        Self { state: world.state, liveness, utc: world.now }
    }

    /// Steps so long after the beginning, applies the commands and answers them.
    fn step(&mut self, after: Duration) -> Vec<Command> {
        let commands = self.liveness.step(BEGIN + after, self.utc.after(after), &self.state);
        for command in &commands {
            match command {
                Command::Health { node, status } => {
                    self.state.nodes.get_mut(node).expect("a member").status = *status;
                }
                Command::Hold { node, until } => {
                    self.state.nodes.get_mut(node).expect("a member").hold_until = *until;
                }
                other => panic!("{other:?} is not about health"),
            }
        }
        assert_eq!(self.liveness.step(BEGIN + after, self.utc.after(after), &self.state), Vec::new());
        commands
    }

    /// Both other nodes send heartbeats until so long after the beginning.
    fn beat(&mut self, until: Duration) {
        let mut at = Duration::ZERO;
        while at <= until {
            self.liveness.heard(OTHER, 1, BEGIN + at);
            self.liveness.heard(NodeId(3), 1, BEGIN + at);
            at += NODE_HEARTBEAT;
        }
    }

    fn wake_after(&self, after: Duration) -> Option<Duration> {
        let wake = self.liveness.wake_at(BEGIN + after, self.utc.after(after), &self.state);
        wake.map(|at| at.since(BEGIN))
    }

    fn node(&mut self, node: NodeId) -> &mut crate::cluster::Node {
        self.state.nodes.get_mut(&node).expect("a member")
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn health(node: NodeId, status: NodeStatus) -> Command {
    Command::Health { node, status }
}

#[test]
fn silence_makes_a_node_unknown_then_down_and_a_heartbeat_up_at_once() {
    let mut term = Term::new(None);
    term.beat(ms(1000));
    let quiet = ms(1000);
    for later in 0..100 {
        term.liveness.heard(NodeId(3), 1, BEGIN + ms(1000 + later * 100));
    }
    assert_eq!(term.wake_after(quiet), Some(quiet + NODE_UNKNOWN_AFTER));
    assert_eq!(term.step(quiet + NODE_UNKNOWN_AFTER - ms(1)), []);
    assert_eq!(term.step(quiet + NODE_UNKNOWN_AFTER), [health(OTHER, NodeStatus::Unknown)]);
    assert_eq!(term.wake_after(quiet + NODE_UNKNOWN_AFTER), Some(quiet + NODE_DOWN_AFTER));
    assert_eq!(term.step(quiet + NODE_DOWN_AFTER - ms(1)), []);
    assert_eq!(term.step(quiet + NODE_DOWN_AFTER), [health(OTHER, NodeStatus::Down)]);
    term.liveness.heard(OTHER, 1, BEGIN + ms(5000));
    assert_eq!(term.step(ms(5000)), [health(OTHER, NodeStatus::Up)]);
}

#[test]
fn new_leader_grants_grace_to_all_but_the_deposed() {
    let mut term = Term::new(Some((OTHER, BEGIN - ms(3000))));
    assert_eq!(term.step(ms(0)), [health(OTHER, NodeStatus::Unknown)]);
    assert_eq!(term.step(ms(500)), [health(OTHER, NodeStatus::Down)]);
    assert_eq!(term.step(NODE_UNKNOWN_AFTER), [health(NodeId(3), NodeStatus::Unknown)]);
}

#[test]
fn leader_deposed_for_its_silence_is_unknown_until_it_is_heard() {
    let mut term = Term::new(Some((OTHER, BEGIN - RAFT_ELECTION_MAX)));
    assert_eq!(term.wake_after(ms(0)), Some(ms(0)));
    assert_eq!(term.step(ms(0)), [health(OTHER, NodeStatus::Unknown)]);
    term.liveness.heard(OTHER, 1, BEGIN + ms(10));
    assert_eq!(term.step(ms(10)), [health(OTHER, NodeStatus::Up)]);
    assert_eq!(term.step(NODE_UNKNOWN_AFTER), [health(NodeId(3), NodeStatus::Unknown)]);

    let mut handed_over = Term::new(Some((OTHER, BEGIN - RAFT_ELECTION_MAX + ms(1))));
    assert_eq!(handed_over.step(ms(1000)), []);

    // It takes the new leader a while to begin: that is not the other's silence.
    let state = &handed_over.state;
    let elected = BEGIN - ms(900);
    let late = Liveness::new(LEADER, elected, BEGIN, state, Some((OTHER, elected - ms(50))));
    assert_eq!({ late }.step(BEGIN, handed_over.utc, state), []);

    let mut stopping = Term::new(Some((OTHER, BEGIN - RAFT_ELECTION_MAX)));
    let until = stopping.utc.after(ms(60_000));
    stopping.node(OTHER).hold_until = Some(until);
    assert_eq!(stopping.step(ms(0)), [], "to be Up again would end its hold");
    assert_eq!(stopping.step(NODE_UNKNOWN_AFTER).first(), Some(&health(OTHER, NodeStatus::Unknown)));
}

#[test]
fn leader_is_up_without_heartbeats() {
    let mut term = Term::new(None);
    term.node(LEADER).status = NodeStatus::Down;
    assert_eq!(term.step(ms(0)), [health(LEADER, NodeStatus::Up)]);
    assert!(!term.step(ms(60_000)).contains(&health(LEADER, NodeStatus::Down)));
}

#[test]
fn node_believed_down_stays_down_until_it_is_heard() {
    let mut term = Term::new(None);
    term.node(OTHER).status = NodeStatus::Down;
    assert_eq!(term.step(ms(0)), []);
    term.liveness.heard(OTHER, 1, BEGIN + ms(10));
    assert_eq!(term.step(ms(10)), [health(OTHER, NodeStatus::Up)]);
}

#[test]
fn announced_absence_ends_in_down_only_when_the_hold_does() {
    let mut term = Term::new(None);
    term.beat(ms(60_000));
    term.liveness = Liveness::new(LEADER, BEGIN, BEGIN, &term.state, None);
    let until = term.utc.after(ms(10_000));
    term.node(OTHER).hold_until = Some(until);
    term.node(NodeId(3)).status = NodeStatus::Down;
    assert_eq!(term.step(ms(9_999)), [health(OTHER, NodeStatus::Unknown)]);
    assert_eq!(term.wake_after(ms(9_999)), Some(ms(10_000)));
    assert_eq!(term.step(ms(10_000)), [health(OTHER, NodeStatus::Down)]);
    assert_eq!(term.wake_after(ms(10_000)), None);
}

#[test]
fn restart_of_the_daemon_ends_its_hold() {
    let mut term = Term::new(None);
    let until = term.utc.after(ms(60_000));
    term.beat(ms(0));
    term.node(OTHER).hold_until = Some(until);
    term.liveness.heard(OTHER, 1, BEGIN + ms(100));
    assert_eq!(term.step(ms(100)), [], "the heartbeats of the daemon that stops go on for a moment");
    term.liveness.heard(OTHER, 2, BEGIN + ms(900));
    assert_eq!(term.step(ms(900)), [Command::Hold { node: OTHER, until: None }]);
}

#[test]
fn new_member_gets_grace_and_a_removed_one_is_forgotten() {
    let mut term = Term::new(None);
    term.beat(ms(10_000));
    let joined = World::new(4).state.nodes[&NodeId(4)].clone();
    term.state.nodes.insert(NodeId(4), joined);
    assert_eq!(term.step(ms(10_000)), []);
    term.state.nodes.remove(&OTHER);
    term.state.nodes.remove(&NodeId(3));
    assert_eq!(term.step(ms(10_000) + NODE_UNKNOWN_AFTER), [health(NodeId(4), NodeStatus::Unknown)]);
}

#[test]
fn time_in_which_the_leader_itself_stood_still_is_no_nodes_silence() {
    let mut term = Term::new(None);
    term.beat(ms(1000));
    term.liveness.look(BEGIN + ms(1000), ms(50));
    term.liveness.look(BEGIN + ms(61_000), ms(50));
    assert_eq!(term.step(ms(61_000)), []);
    term.liveness.look(BEGIN + ms(62_000), ms(50));
    assert_eq!(term.step(ms(62_000)).len(), 2, "silence from then on counts");
}

#[test]
fn time_without_a_quorum_is_no_nodes_silence() {
    let mut term = Term::new(None);
    term.beat(ms(1000));
    for away in 1..=20 {
        term.liveness.look(BEGIN + ms(1000 + away * 500), ms(away * 500));
        let down = |command: &Command| matches!(command, Command::Health { status: NodeStatus::Down, .. });
        assert!(!term.step(ms(1000 + away * 500)).iter().any(down), "after {away}");
    }
    let back = 11_000;
    for quiet in 1..=10 {
        term.liveness.look(BEGIN + ms(back + quiet * 500), ms(50));
    }
    let down = health(OTHER, NodeStatus::Down);
    assert!(term.step(ms(back + 5_000)).contains(&down), "a node that stays silent is down");
}

#[test]
fn slow_commits_excuse_nobody() {
    let mut term = Term::new(None);
    term.beat(ms(1000));
    for later in 1..=5 {
        term.liveness.look(BEGIN + ms(1000 + later * 1000), ms(300));
    }
    assert!(term.step(ms(6000)).contains(&health(OTHER, NodeStatus::Down)));
}

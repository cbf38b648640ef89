//! What is known of members: facts, addresses, health, holds, availability, feature level.

use std::net::SocketAddr;

use super::{About, Answer, submission};
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::node::NodeFacts;
use crate::cluster::{
    Availability, ClusterState, EventKind, Node, NodeStatus, Outcome, Phase, Refusal, Replica,
};
use crate::id::NodeId;
use crate::time::UtcMs;

/// The most services that are told of as invalid: events are few, and some are needed for the rest.
const INVALID_TOLD_MAX: usize = 100;

impl ClusterState {
    /// Changes a member by `change`, which answers what to tell when it changed something.
    fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> Option<String>) -> Answer {
        let node = self.nodes.get_mut(&id).ok_or_else(|| Refusal::not_found("node", id))?;
        let told = change(node).map(|what| format!("node {id} ({}) {what}", node.facts.name));
        if let Some(message) = told {
            self.emit(EventKind::NodeChanged, About::node(id), message);
        }
        Ok(Outcome::Done)
    }

    /// Checks what a node tells of itself, as of the second feature level.
    pub(super) fn check_facts(&self, facts: &NodeFacts) -> Result<(), Refusal> {
        let bounded = if self.knows(SECOND_LEVEL) { facts.check_size() } else { Ok(()) };
        bounded.map_err(Refusal::out_of_bounds)
    }

    pub(super) fn facts(&mut self, id: NodeId, facts: &NodeFacts) -> Answer {
        self.check_facts(facts)?;
        self.change_node(id, |node| {
            let changed = node.facts != *facts;
            node.facts.clone_from(facts);
            changed.then(|| format!("started with changed facts, version {}", facts.version))
        })
    }

    pub(super) fn addresses(&mut self, id: NodeId, addresses: &[SocketAddr]) -> Answer {
        self.change_node(id, |node| {
            let changed = node.facts.addresses != addresses;
            node.facts.addresses = addresses.to_vec();
            let listed: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            changed.then(|| format!("now listens on {}", listed.join(", ")))
        })
    }

    /// A node that comes up has ended its planned stop.
    pub(super) fn health(&mut self, id: NodeId, status: NodeStatus) -> Answer {
        let now = self.time;
        self.change_node(id, |node| {
            if node.status == status {
                return None;
            }
            node.status = status;
            node.status_since = now;
            if status == NodeStatus::Up {
                node.hold_until = None;
            }
            Some(match status {
                NodeStatus::Up => "is up".to_owned(),
                NodeStatus::Unknown => "stopped answering".to_owned(),
                NodeStatus::Down => "is down".to_owned(),
            })
        })
    }

    pub(super) fn hold(&mut self, id: NodeId, until: Option<UtcMs>) -> Answer {
        self.change_node(id, |node| {
            if node.hold_until == until {
                return None;
            }
            node.hold_until = until;
            Some(match until {
                Some(until) => format!("stops for a while: nothing moves until {until}"),
                None => "is no longer expected to be away".to_owned(),
            })
        })
    }

    /// The last member that stays cannot leave: nobody would be left to take its replicas and vote.
    pub(super) fn set_availability(&mut self, id: NodeId, availability: Availability) -> Answer {
        let others = self.nodes.iter().filter(|(other, _)| **other != id);
        let stay = others.filter(|(_, node)| node.availability != Availability::Leaving).count();
        if availability == Availability::Leaving && self.nodes.contains_key(&id) && stay == 0 {
            return Err(Refusal::conflict(format!(
                "node {id} is the only member that stays: a cluster keeps at least one"
            )));
        }
        self.change_node(id, |node| {
            if node.availability == availability {
                return None;
            }
            node.availability = availability;
            Some(match availability {
                Availability::Active => "takes replicas".to_owned(),
                Availability::Draining => "is draining: its replicas move elsewhere".to_owned(),
                Availability::Leaving => "is leaving: its replicas move elsewhere".to_owned(),
            })
        })
    }

    /// Drains a node and stops all that is on it. What it has is what is there when this is applied: none is
    /// placed in between.
    pub(super) fn stop_node(&mut self, id: NodeId) -> Answer {
        self.set_availability(id, Availability::Draining)?;
        for replica in self.replicas_on(id).map(|(replica, _)| replica).collect::<Vec<_>>() {
            self.stop_row(replica);
        }
        Ok(Outcome::Done)
    }

    /// The software of each member must know the level: what decides is what members told, never
    /// what this software knows.
    pub(super) fn raise_level(&mut self, level: u16) -> Answer {
        if level <= self.level {
            return Err(Refusal::conflict(format!("the feature level is {} and is only raised", self.level)));
        }
        if let Some((id, node)) = self.nodes.iter().find(|(_, node)| node.facts.level < level) {
            return Err(Refusal::conflict(format!(
                "node {id} ({}) knows feature level {}, not {level}: upgrade it first",
                node.facts.name, node.facts.level
            )));
        }
        let second = !self.knows(SECOND_LEVEL) && level >= SECOND_LEVEL;
        self.level = level;
        if second {
            self.trust_what_runs();
            self.warn_of_invalid();
        }
        Ok(Outcome::Done)
    }

    /// Tells of the services that would be refused now. They run on.
    fn warn_of_invalid(&mut self) {
        let invalid = self
            .services
            .iter()
            .filter_map(|(name, service)| Some((name.clone(), submission::invalid(service.spec())?)));
        for (name, reason) in invalid.take(INVALID_TOLD_MAX).collect::<Vec<_>>() {
            let told = format!("runs on, but would be refused now: {reason}");
            self.tell_service(EventKind::ServiceChanged, &name, &told);
        }
    }

    /// What ran before proofs were told counts as proven: an upgrade holds no update up.
    fn trust_what_runs(&mut self) {
        let runs = |row: &Replica| row.status.phase == Phase::Running && row.status.healthy != Some(false);
        let running = self.replicas.iter().filter(|(_, row)| runs(row)).map(|(id, _)| *id);
        for id in running.collect::<Vec<_>>() {
            if let Some(row) = self.replicas.get_mut(&id) {
                row.status.proven = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::level::FIRST_LEVEL;
    use crate::cluster::testing::{Cluster, START, assert_refused, facts, place, spec};
    use crate::cluster::{Command, Desired, Write};

    const TWO: NodeId = NodeId(2);

    #[test]
    fn what_changes_is_told_once() {
        let mut cluster = Cluster::of(2);
        let mut check = |command: Command, expect: &[&str]| {
            for expect in [expect, &[]] {
                assert_eq!(cluster.command(command.clone()), Outcome::Done, "{command:?}");
                assert_eq!(cluster.events(), expect, "{command:?}");
            }
        };
        let until = UtcMs(1_795_219_260_000);
        check(
            Command::Hold { node: TWO, until: Some(until) },
            &["node 2 (joiner) stops for a while: nothing moves until 2026-11-21T00:01:00.000Z"],
        );
        check(
            Command::Hold { node: TWO, until: None },
            &["node 2 (joiner) is no longer expected to be away"],
        );
        check(
            Command::Health { node: TWO, status: NodeStatus::Unknown },
            &["node 2 (joiner) stopped answering"],
        );
        check(Command::Health { node: TWO, status: NodeStatus::Down }, &["node 2 (joiner) is down"]);
        check(Command::Health { node: TWO, status: NodeStatus::Up }, &["node 2 (joiner) is up"]);
        check(
            Command::Facts { node: TWO, facts: facts("two") },
            &["node 2 (two) started with changed facts, version 0.1.0"],
        );
        let address = "10.77.0.9:7001".parse().expect("an address");
        check(
            Command::Addresses { node: TWO, addresses: vec![address] },
            &["node 2 (two) now listens on 10.77.0.9:7001"],
        );
    }

    #[test]
    fn what_is_said_of_a_stranger_changes_nothing() {
        let mut cluster = Cluster::of(1);
        let before = cluster.state.nodes.clone();
        assert_refused(cluster.command(Command::Health { node: TWO, status: NodeStatus::Up }), "no node `2`");
        assert_refused(cluster.command(Command::Facts { node: TWO, facts: facts("two") }), "no node `2`");
        assert_refused(cluster.command(Command::Hold { node: TWO, until: None }), "no node `2`");
        assert_eq!(cluster.state.nodes, before);
    }

    #[test]
    fn coming_up_ends_a_hold() {
        let mut cluster = Cluster::of(2);
        let until = Some(START.after(Duration::from_secs(60)));
        cluster.command(Command::Hold { node: TWO, until });
        cluster.health(2, NodeStatus::Unknown);
        assert_eq!(cluster.state.nodes[&TWO].hold_until, until);
        cluster.now = START.after(Duration::from_secs(5));
        cluster.health(2, NodeStatus::Up);
        assert_eq!(cluster.state.nodes[&TWO].hold_until, None);
        assert_eq!(cluster.state.nodes[&TWO].status_since, cluster.now);
    }

    #[test]
    fn the_feature_level_rises_once_every_member_knows_it() {
        let mut cluster = Cluster::of_level(2, FIRST_LEVEL);
        let raise = || Command::Level { level: SECOND_LEVEL };
        let with_level = |node, level| Command::Facts { node, facts: NodeFacts { level, ..facts("n") } };
        cluster.command(with_level(NodeId(1), 2));
        assert_refused(cluster.command(raise()), "node 2 (joiner) knows feature level 1");
        cluster.command(with_level(TWO, 4));
        assert!(!cluster.state.knows(SECOND_LEVEL));
        assert_eq!(cluster.command(raise()), Outcome::Done);
        assert_refused(cluster.command(raise()), "only raised");
        assert_eq!(cluster.state.level, 2);
        assert!(cluster.state.knows(FIRST_LEVEL) && cluster.state.knows(SECOND_LEVEL));
    }

    #[test]
    fn the_last_member_that_stays_does_not_leave() {
        let leave = |node| Write::SetAvailability { node, availability: Availability::Leaving };
        assert_refused(Cluster::of(1).write(leave(NodeId(1))), "only member that stays");
        let mut cluster = Cluster::of(2);
        assert_eq!(cluster.write(leave(TWO)), Outcome::Done);
        assert_eq!(cluster.write(leave(TWO)), Outcome::Done);
        assert_refused(cluster.write(leave(NodeId(1))), "only member that stays");
        assert_refused(cluster.write(leave(NodeId(9))), "no node");
    }

    #[test]
    fn a_node_is_emptied_by_one_write() {
        let mut cluster = Cluster::of(2);
        cluster.submit(spec("web", 3, 3));
        cluster.planned(vec![place("web", 0, 1, 2), place("web", 1, 1, 1), place("web", 2, 1, 2)]);
        let stop = |node| Write::StopNode { node };
        assert_refused(cluster.write(stop(NodeId(9))), "no node `9`");
        assert_eq!(cluster.write(stop(TWO)), Outcome::Done);
        let told = ["node 2 (joiner) is draining: its replicas move elsewhere", "web-0 on node 2 is to stop"];
        assert_eq!(cluster.events(), [told[0], told[1], "web-2 on node 2 is to stop"]);
        assert_eq!(
            [1, 2, 3].map(|replica| cluster.desired(replica)),
            [Some(Desired::Stop), Some(Desired::Run), Some(Desired::Stop)]
        );
        assert_eq!(cluster.plan(vec![place("web", 0, 1, 2)]), ["node 2 takes no replicas"]);
        assert_eq!(cluster.write(stop(TWO)), Outcome::Done);
        assert_eq!(cluster.events(), Vec::<&str>::new());
        assert_eq!(stop(TWO).level(), SECOND_LEVEL);
    }

    #[test]
    fn a_drain_can_be_taken_back() {
        let mut cluster = Cluster::of(2);
        for availability in [Availability::Draining, Availability::Leaving, Availability::Active] {
            cluster.write(Write::SetAvailability { node: TWO, availability });
            assert_eq!(cluster.state.nodes[&TWO].availability, availability);
        }
    }
}

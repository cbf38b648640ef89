//! Applies entries: the one way the state changes.
//!
//! Each command is checked against the state as it is, then either changes it as a whole or is
//! refused and changes nothing; either way it is answered. What it means for nodes, services,
//! replicas and plans is in the module of that name. Called by the Raft adapter with committed
//! entries, and by the leader on a copy to try a plan out. Never proposes, never chooses.

mod audit;
mod member;
mod node;
mod placement;
mod plan;
mod replica;
mod request;
mod service;
mod submission;
mod token;
mod volume;

use std::sync::Arc;

use super::level::SECOND_LEVEL;
use super::{Actor, ClusterState, Command, Entry, Event, EventId, EventKind, Outcome, Refusal, Write};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::{limits, text};

/// What a command that may be refused answers.
type Answer = Result<Outcome, Refusal>;

/// Whom an event is about.
#[derive(Default)]
struct About {
    service: Option<ServiceName>,
    replica: Option<ReplicaId>,
    node: Option<NodeId>,
}

impl About {
    fn node(node: NodeId) -> Self {
        Self { node: Some(node), ..Self::default() }
    }

    fn service(service: &ServiceName) -> Self {
        Self { service: Some(service.clone()), ..Self::default() }
    }
}

impl ClusterState {
    /// Applies the entry at log index `index` and answers each of its commands, in order.
    ///
    /// # Panics
    /// When `index` is not above [`ClusterState::applied`]: the log never applies an entry twice.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Outcome> {
        self.apply_blank(index);
        self.time = self.time.max(entry.at);
        self.expire_requests();
        entry.commands.iter().map(|command| self.command(command)).collect()
    }

    /// Takes note of an entry that is Raft's own: blank, or a change of its membership.
    ///
    /// # Panics
    /// When `index` is not above [`ClusterState::applied`].
    pub fn apply_blank(&mut self, index: u64) {
        assert!(index > self.applied, "entry {index} applied after {}", self.applied);
        self.applied = index;
    }

    fn command(&mut self, command: &Command) -> Outcome {
        let answer = match command {
            Command::Bootstrap { cluster, subnets, node, key, facts, token } => {
                self.bootstrap(*cluster, *subnets, *node, *key, facts, token)
            }
            Command::Join { node, key, facts, token, secret_sha256 } => {
                let admitted = self.join(*node, *key, facts, *token, secret_sha256);
                if let Ok(Outcome::Joined { node, .. }) = admitted {
                    self.record(Some(&Actor::Token { id: *token }), format!("admit node {node}"), None);
                }
                admitted
            }
            Command::Facts { node, facts } => self.facts(*node, facts),
            Command::Addresses { node, addresses } => self.addresses(*node, addresses),
            Command::Health { node, status } => self.health(*node, *status),
            Command::Hold { node, until } => self.hold(*node, *until),
            Command::Write { request, made_at, write, by } => {
                Ok(self.write_once(*request, *made_at, write, by.as_ref()))
            }
            Command::Report { node, statuses } => self.report(*node, statuses),
            Command::Plan(plan) => Ok(self.plan(plan)),
            Command::Volumes { node, statuses } => self.report_volumes(*node, statuses),
            Command::Level { level } => self.raise_level(*level),
        };
        answer.unwrap_or_else(Outcome::Refused)
    }

    fn write(&mut self, write: &Write) -> Answer {
        match write {
            Write::Submit { spec, origin } => self.submit(spec, *origin),
            Write::Scale { service, replicas } => self.scale(service, *replicas),
            Write::Stop { service, timeout_s } => self.stop_service(service, *timeout_s),
            Write::Start { service } => self.start_service(service),
            Write::Remove { service } => self.remove_service(service),
            Write::Rollback { service, version } => self.roll_back(service, *version),
            Write::StopReplica { replica, timeout_s } => self.stop_replica(*replica, *timeout_s),
            Write::Replace { replica } => self.replace(*replica),
            Write::SetAvailability { node, availability } => self.set_availability(*node, *availability),
            Write::StopNode { node } => self.stop_node(*node),
            Write::RemoveNode { node, force } => self.remove_node(*node, *force),
            Write::AddToken { id, token } => self.add_token(*id, token),
            Write::RemoveToken { id } => self.remove_token(*id),
            Write::RemoveVolume { volume } => self.remove_volume(volume),
        }
    }

    /// Cuts a text that is to be kept, as of the second feature level.
    fn bound(&self, text: &mut String) {
        if self.knows(SECOND_LEVEL) {
            text::cut(text);
        }
    }

    /// Appends an event, numbered within the entry being applied; the oldest makes room.
    fn emit(&mut self, kind: EventKind, about: About, mut message: String) {
        self.bound(&mut message);
        let n = match self.events.last() {
            Some(last) if last.id.index == self.applied => last.id.n + 1,
            _ => 0,
        };
        let About { service, replica, node } = about;
        let id = EventId { index: self.applied, n };
        let event = Event { id, at: self.time, kind, service, replica, node, message, by: None };
        self.events.push_back(Arc::new(event));
        while self.events.len() > limits::EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::testing::{Cluster, join};
    use crate::cluster::{Command, EventId};
    use crate::id::NodeId;
    use crate::limits::EVENTS_MAX;
    use crate::time::UtcMs;

    #[test]
    fn events_are_numbered_within_their_entry_and_the_oldest_make_room() {
        let mut cluster = Cluster::of(1);
        let index = cluster.state.applied + 1;
        cluster.apply(vec![join(None, 2), join(None, 3)]);
        let ids: Vec<_> = cluster.state.events.iter().map(|event| event.id).collect();
        assert_eq!(ids, [EventId { index: 1, n: 0 }, EventId { index, n: 0 }, EventId { index, n: 1 }]);

        let hold = |ms: u64| Command::Hold { node: NodeId(1), until: Some(UtcMs(ms)) };
        cluster.apply((0..EVENTS_MAX as u64 + 5).map(hold).collect());
        assert_eq!(cluster.state.events.len(), EVENTS_MAX);
        assert_eq!(cluster.state.events.front().map(|event| event.id.n), Some(5));
    }

    #[test]
    #[should_panic(expected = "entry 1 applied after 1")]
    fn no_entry_is_applied_twice() {
        Cluster::of(1).state.apply_blank(1);
    }
}

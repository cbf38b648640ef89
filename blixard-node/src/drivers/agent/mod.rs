//! Makes this machine match what the replicated state wants of it.
//!
//! One task owns the [`Agent`], feeds it what happened and runs what it decides, each action as a
//! task of its own. It decides nothing about replicas. Whoever composes the node starts it, feeds
//! it with [`feed`] and hands on what it reports.
//!
//! Reports and removals wait for the publishing of ports that was decided on before them.
//!
//! While the runtime is asked for its list, answers of actions and the runtime's own events wait:
//! the agent takes them to be newer than the list. A runtime that does not answer is asked again,
//! with back-off, for as long as it takes.

mod actions;
mod feed;
mod images;
mod listing;
mod publishing;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use blixard_core::agent::{Action, Agent, Assignment, Event};
use blixard_core::cluster::ReplicaStatus;
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_core::time::Mono;
use tokio::sync::mpsc;

use self::actions::{Actions, Answer};
pub use self::feed::feed;
pub use self::images::ImageSource;
use self::listing::{Listing, Seen};
use self::publishing::Publishing;
use crate::platform::{Platform, PullProgress, RuntimeEvent};

/// Answers that wait for the agent; tasks with more to say wait with them.
const ANSWERS_MAX: usize = 256;

/// What the rest of the node tells the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentInput {
    /// The node's own replicas. Only ever from a state that holds everything that was committed
    /// when the node started, as [`feed`] sees to: containers without a row are removed.
    Assigned(BTreeMap<ReplicaId, Assignment>),
    /// The leader wants all statuses again.
    ReportAll,
}

/// Told of each status, in the order of a replica's `(attempt, phase)`. Must not block.
pub type OnReport = Arc<dyn Fn(ReplicaId, ReplicaStatus) + Send + Sync>;

/// Downloads that are going on, by the replica that asked first.
pub type Pulls = Arc<Mutex<BTreeMap<ReplicaId, PullProgress>>>;

/// The driver of one node's agent.
pub struct AgentDriver {
    /// The seams.
    pub platform: Platform,
    /// The cluster whose containers these are.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// The /24 its containers get addresses from.
    pub subnet: Ipv4Addr,
    /// What it is told. The driver ends when this closes; containers run on.
    pub inputs: mpsc::Receiver<AgentInput>,
    /// Whom it tells.
    pub on_report: OnReport,
    /// Where images come from that no registry gives.
    pub images: Arc<dyn ImageSource>,
    /// Where it shows its downloads.
    pub pulls: Pulls,
}

impl AgentDriver {
    /// Runs until the inputs close. Attaches the runtime to the cluster first: nobody else does.
    pub async fn run(self) {
        let (answers_in, mut answers) = mpsc::channel(ANSWERS_MAX);
        let mut inputs = self.inputs;
        let mut listing = Listing::new(self.platform.clone(), self.cluster, self.node, self.subnet);
        let clock = self.platform.clock.clone();
        let mut driving = Driving {
            node: self.node,
            agent: Agent::default(),
            actions: Actions::new(self.platform.clone(), self.images, self.pulls, answers_in),
            publishing: Publishing::new(self.platform.clone()),
            platform: self.platform,
            on_report: self.on_report,
            wake: None,
        };
        loop {
            let deadlines = [driving.wake, listing.retry_at(), driving.publishing.retry_at()];
            let deadline = deadlines.into_iter().flatten().min();
            let listed = !listing.is_asked();
            // Every arm is cancel safe: channels and streams lose nothing, and a question to the
            // runtime that is under way is kept and polled on.
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    None => return,
                    Some(AgentInput::Assigned(assignments)) => driving.step(Event::Assigned(assignments)),
                    Some(AgentInput::ReportAll) => driving.step(Event::ReportAll),
                },
                seen = listing.next() => match seen {
                    Seen::Listed(list) => driving.step(Event::Listed(list)),
                    Seen::Event(RuntimeEvent::ImageNamed) => driving.step(Event::ImageNamed),
                    Seen::Event(RuntimeEvent::Exited { replica, attempt, code, oom_killed }) => {
                        driving.step(Event::Exited { replica, attempt, code, oom_killed });
                    }
                    Seen::Event(RuntimeEvent::Resync) => listing.ask(),
                    Seen::Nothing => {}
                },
                Some(answer) = answers.recv(), if listed => match answer {
                    Answer::Event(event) => driving.step(event),
                    Answer::Unsure(event) => {
                        driving.step(event);
                        listing.ask();
                    }
                },
                () = driving.publishing.done() => driving.go_on(),
                () = clock.sleep_until(deadline.unwrap_or_default()), if deadline.is_some() => {
                    listing.woken();
                    driving.publishing.woken();
                    driving.woken();
                }
            }
        }
    }
}

/// The agent and what it acts with.
struct Driving {
    node: NodeId,
    platform: Platform,
    agent: Agent,
    actions: Actions,
    publishing: Publishing,
    on_report: OnReport,
    wake: Option<Mono>,
}

impl Driving {
    fn woken(&mut self) {
        if self.wake.is_some_and(|at| at <= self.platform.clock.now()) {
            self.wake = None;
            self.step(Event::Tick);
        }
    }

    fn step(&mut self, event: Event) {
        let clock = &self.platform.clock;
        let mut decided = Vec::new();
        self.agent.step(clock.now(), clock.utc(), event, &mut decided);
        for action in decided {
            match action {
                Action::Publish(_) | Action::Report { .. } | Action::Remove { .. } => {
                    self.publishing.push(action);
                }
                Action::WakeAt(at) => self.wake = Some(at),
                action => self.actions.begin(action),
            }
        }
        self.go_on();
    }

    /// Does what need not wait for a publishing any longer.
    fn go_on(&mut self) {
        while let Some(action) = self.publishing.next_action() {
            match action {
                Action::Report { replica, status } => self.report(replica, status),
                action => self.actions.begin(action),
            }
        }
    }

    fn report(&self, replica: ReplicaId, status: ReplicaStatus) {
        tracing::info!(
            node.id = self.node.0,
            replica.id = replica.0,
            attempt = status.attempt,
            phase = ?status.phase,
            message = status.message,
            "replica status"
        );
        (self.on_report)(replica, status);
    }
}

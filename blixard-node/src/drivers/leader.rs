//! The leader's planning task: the only proposer of writes, reports, health changes and plans.
//!
//! Every node runs it; it acts only while its node leads. At most one entry is in flight: what
//! arrives meanwhile shares the next one. An entry holds the writes and the plan made from the
//! state as those writes will leave it, so that a submission is placed in the same Raft round
//! that records it. The decisions are [`blixard_core::orchestrator`]'s; this task feeds and proposes them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::cluster::node::NodeFacts;
use blixard_core::cluster::replica::ReplicaStatus;
use blixard_core::cluster::{Availability, ClusterState, Command, Entry, Outcome, Write, command};
use blixard_core::id::{NodeId, ReplicaId, RequestId};
use blixard_core::limits;
use blixard_core::orchestrator::health::Liveness;
use blixard_core::orchestrator::{Planner, membership};
use blixard_core::time::UtcMs;
use tokio::sync::{mpsc, oneshot};

use crate::handle::Shared;
use crate::raft::ProposeError;

/// How many inputs wait at most; senders wait beyond that.
pub const QUEUE: usize = 8 * limits::WRITES_PER_ENTRY_MAX;
/// The leader looks around at least this often, whatever happens.
const IDLE: Duration = Duration::from_secs(1);

/// What the leader answers to an input: the log index it was applied at and the outcome.
pub type Reply = oneshot::Sender<Result<(u64, Outcome), ProposeError>>;

/// Something for the leader to take into account.
pub enum Input {
    /// A command to propose: a client's write, a join, a hold.
    Propose {
        /// What to propose.
        command: Box<Command>,
        /// Where the outcome goes.
        reply: Reply,
    },
    /// What an agent saw; acknowledged once it is in the log.
    Report {
        /// The agent's node.
        node: NodeId,
        /// What it saw.
        statuses: BTreeMap<ReplicaId, ReplicaStatus>,
        /// Where the acknowledgement goes.
        reply: Reply,
    },
    /// An agent's sign of life.
    Beat {
        /// The agent's node.
        node: NodeId,
        /// Which start of its daemon sent it.
        boot: u64,
        /// What it tells of itself.
        facts: Box<NodeFacts>,
    },
}

/// A client's write as a command.
pub fn write_command(request: RequestId, made_at: UtcMs, write: Write) -> Command {
    Command::Write { request, made_at, write }
}

/// What waits for the next entry.
#[derive(Default)]
struct Batch {
    commands: Vec<Command>,
    replies: Vec<(usize, Reply)>,
    reports: BTreeMap<NodeId, (BTreeMap<ReplicaId, ReplicaStatus>, Vec<Reply>)>,
    beats: BTreeMap<NodeId, (u64, Box<NodeFacts>)>,
}

impl Batch {
    fn add(&mut self, input: Input) {
        match input {
            Input::Propose { command, reply } => {
                self.replies.push((self.commands.len(), reply));
                self.commands.push(*command);
            }
            Input::Report { node, statuses, reply } => {
                let (known, replies) = self.reports.entry(node).or_default();
                known.extend(statuses);
                replies.push(reply);
            }
            Input::Beat { node, boot, facts } => {
                self.beats.insert(node, (boot, facts));
            }
        }
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= limits::WRITES_PER_ENTRY_MAX
    }
}

/// The task. Runs until its queue closes.
pub(crate) async fn run(shared: Shared, mut inputs: mpsc::Receiver<Input>) {
    loop {
        // Cancel safety: `recv` and `wait_leading` lose nothing when dropped.
        tokio::select! {
            biased;
            () = shared.wait_leading() => {
                if lead(&shared, &mut inputs).await.is_none() {
                    return;
                }
            }
            input = inputs.recv() => match input {
                Some(input) => refuse(&shared, input),
                None => return,
            },
        }
    }
}

/// Answers an input on a node that does not lead.
fn refuse(shared: &Shared, input: Input) {
    let error = ProposeError::NotLeader { leader: shared.status().leader };
    match input {
        Input::Propose { reply, .. } | Input::Report { reply, .. } => {
            // A requester that went away needs no answer.
            reply.send(Err(error)).ok();
        }
        Input::Beat { .. } => {}
    }
}

/// One term of leading. Returns `None` when the queue has closed.
async fn lead(shared: &Shared, inputs: &mut mpsc::Receiver<Input>) -> Option<()> {
    let clock = shared.platform.clock.clone();
    // Everything the former leader committed is applied before the first plan is made.
    let Some(raft) = shared.raft() else { return Some(()) };
    if raft.read_barrier(limits::WRITE_DEADLINE).await.is_err() {
        shared.platform.clock.sleep_until(clock.now() + limits::RAFT_HEARTBEAT).await;
        return Some(());
    }
    let term = shared.status().term;
    tracing::info!(node.id = %shared.id, raft.term = term, "leading");
    let state = raft.state();
    let mut liveness = Liveness::new(shared.id, clock.now(), &state, raft.last_leader_contact());
    let mut planner = Planner::new(&state, clock.utc().max(state.time));
    let mut wake = clock.now();
    let mut dirty = true;

    while shared.status().is_leader(shared.id) && shared.status().term == term {
        let mut batch = Batch::default();
        if !dirty {
            // Cancel safety: `recv` loses nothing; the others hold no data.
            tokio::select! {
                biased;
                input = inputs.recv() => batch.add(input?),
                () = clock.sleep_until(wake.min(clock.now() + IDLE)) => {}
                () = shared.wait_not_leading(term) => break,
            }
        }
        while !batch.is_full() {
            match inputs.try_recv() {
                Ok(input) => batch.add(input),
                Err(_) => break,
            }
        }
        dirty = false;

        let now = clock.now();
        let utc = clock.utc();
        let state = raft.state();
        for (node, (boot, facts)) in std::mem::take(&mut batch.beats) {
            liveness.heard(node, boot, now);
            if state.nodes.get(&node).is_some_and(|known| known.facts != *facts) {
                batch.commands.push(Command::Facts { node, facts: *facts });
            }
        }
        let log_time = utc.max(state.time);
        batch.commands.extend(liveness.step(now, log_time, &state));
        wake = liveness.wake_at(now, log_time, &state).unwrap_or(now + IDLE);
        housekeeping(shared, &state, &mut batch.commands);
        let first_report = batch.commands.len();
        let mut report_replies = Vec::new();
        for (node, (statuses, replies)) in std::mem::take(&mut batch.reports) {
            batch.commands.push(Command::Report { node, statuses });
            report_replies.push(replies);
        }

        let plan = plan_after(&mut planner, &state, &batch.commands, utc);
        if let Some(next) = planner.wake_at() {
            wake = wake.min(now + next.since(log_time) + Duration::from_millis(1));
        }
        if !plan.steps.is_empty() {
            batch.commands.push(Command::Plan(plan));
        }
        if batch.commands.is_empty() {
            continue;
        }
        match raft.propose(batch.commands, limits::WRITE_DEADLINE).await {
            Ok((index, outcomes)) => {
                for (position, reply) in batch.replies {
                    reply.send(Ok((index, outcomes[position].clone()))).ok();
                }
                for (offset, replies) in report_replies.into_iter().enumerate() {
                    for reply in replies {
                        reply.send(Ok((index, outcomes[first_report + offset].clone()))).ok();
                    }
                }
                // A step that no longer held means the plan was made from another state than it
                // was applied to: look again at once.
                dirty = matches!(outcomes.last(), Some(Outcome::Planned { dropped }) if !dropped.is_empty());
            }
            Err(error) => {
                tracing::warn!(node.id = %shared.id, err = %error, "could not commit");
                let replies = batch.replies.into_iter().map(|(_, reply)| reply);
                for reply in replies.chain(report_replies.into_iter().flatten()) {
                    reply.send(Err(error.clone())).ok();
                }
                if matches!(error, ProposeError::Fatal(_)) {
                    break;
                }
            }
        }
    }
    tracing::info!(node.id = %shared.id, raft.term = term, "no longer leading");
    Some(())
}

/// The plan for the state as `commands` will leave it.
fn plan_after(
    planner: &mut Planner,
    state: &ClusterState,
    commands: &[Command],
    utc: UtcMs,
) -> command::Plan {
    let now = utc.max(state.time);
    if commands.is_empty() {
        return planner.plan(state, now).0;
    }
    let entry = Entry::new(state.stamp(utc), commands.to_vec());
    let mut after = state.clone();
    after.apply(state.applied + 1, &entry);
    planner.plan(&after, now).0
}

/// What the leader does for the cluster itself: raises the feature level once every member knows
/// it, and removes members that have left.
fn housekeeping(shared: &Shared, state: &ClusterState, commands: &mut Vec<Command>) {
    let known = state.nodes.values().map(|node| node.facts.level).min();
    if let Some(level) = known.map(|level| level.min(command::LEVEL))
        && level > state.level
    {
        commands.push(Command::Level { level });
    }
    let voters: BTreeSet<NodeId> = shared.status().voters.into_iter().collect();
    for (id, node) in &state.nodes {
        let leaving = node.availability == Availability::Leaving;
        if leaving && membership::leave_blocker(state, &voters, *id).is_none() {
            commands.push(Command::Write {
                request: shared.random_request(),
                made_at: state.stamp(shared.platform.clock.utc()),
                write: Write::RemoveNode { node: *id, force: false },
            });
        }
    }
}

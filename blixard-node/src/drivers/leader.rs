//! The leader's planning task: the only proposer of writes, reports, health changes and plans.
//!
//! Every node runs it; it acts only while its node leads. At most one entry is in flight: what
//! arrives meanwhile shares the next one. An entry holds the writes and the plan made from the
//! state as those writes will leave it, so that a submission is placed in the same Raft round
//! that records it. The decisions are [`blixard_core::orchestrator`]'s; this task feeds and proposes them.

use std::pin::pin;
use std::time::Duration;

use blixard_core::cluster::{
    Actor, Availability, ClusterState, Command, Entry, Outcome, ReplicaStatus, Write, command, level,
};
use blixard_core::id::RequestId;
use blixard_core::limits;
use blixard_core::orchestrator::health::{LOOK, Liveness};
use blixard_core::orchestrator::{Planner, membership};
use blixard_core::time::UtcMs;
use tokio::sync::mpsc;

use super::batch::{Batch, Input, Newest, Replies};
use crate::raft::{ProposeError, RaftNode};
use crate::seldom::Seldom;
use crate::shared::Shared;

/// How many inputs wait at most; senders wait beyond that.
pub const QUEUE: usize = 8 * limits::WRITES_PER_ENTRY_MAX;
/// How often in a row a plan is made anew at once because a step of the last one no longer held.
const REPLAN_MAX: u32 = 3;
/// How long the next plan waits after that.
const REPLAN_PAUSE: Duration = Duration::from_millis(200);

/// A client's write as a command.
pub fn write_command(request: RequestId, made_at: UtcMs, write: Write, by: Option<Actor>) -> Command {
    Command::Write { request, made_at, write, by }
}

/// The task. Runs until its queue closes.
pub(crate) async fn run(shared: Shared, mut inputs: mpsc::Receiver<Input>) {
    let mut newest = Newest::default();
    loop {
        // Cancel safety: `recv` and `wait_leading` lose nothing when dropped.
        tokio::select! {
            biased;
            () = shared.wait_leading() => {
                if lead(&shared, &mut inputs, &mut newest).await.is_none() {
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
    let (Input::Propose { reply, .. } | Input::Report { reply, .. }) = input;
    // A requester that went away needs no answer.
    reply.send(Err(error)).ok();
}

/// One term of leading. Returns `None` when the queue has closed.
async fn lead(shared: &Shared, inputs: &mut mpsc::Receiver<Input>, newest: &mut Newest) -> Option<()> {
    let clock = shared.platform.clock.clone();
    let began = clock.now();
    let Some(raft) = shared.raft() else { return Some(()) };
    let deposed = raft.take_leader_contact();
    // Everything the former leader committed is applied before the first plan is made.
    if raft.read_barrier(limits::WRITE_DEADLINE).await.is_err() {
        shared.platform.clock.sleep_until(clock.now() + limits::RAFT_HEARTBEAT).await;
        return Some(());
    }
    let (term, leads) = (shared.status().term, shared.leads());
    if !leads {
        return Some(());
    }
    tracing::info!(node.id = %shared.id, raft.term = term, "leading");
    let state = raft.state();
    let mut liveness = Liveness::new(shared.id, began, clock.now(), &state, deposed);
    let mut planner = Planner::new(&state, raft.log_time());
    let mut wake = clock.now();
    let mut dirty = true;
    let mut replans = 0;
    let mut warnings = Seldom::default();

    while shared.leads() && shared.status().term == term {
        let mut batch = Batch::default();
        if !dirty {
            // Cancel safety: `recv` loses nothing; the others hold no data.
            tokio::select! {
                biased;
                input = inputs.recv() => take(&mut batch, newest, &raft, input?),
                () = shared.beats.news() => {}
                () = clock.sleep_until(wake.min(clock.now() + LOOK)) => {}
                () = shared.wait_not_leading(term) => break,
            }
        }
        while !batch.is_full() {
            match inputs.try_recv() {
                Ok(input) => take(&mut batch, newest, &raft, input),
                Err(_) => break,
            }
        }
        dirty = false;

        let now = clock.now();
        let log_time = raft.log_time();
        let state = raft.state();
        // Those before this term were another's to hear.
        for (node, beat) in shared.beats.take().into_iter().filter(|(_, beat)| beat.at >= began) {
            liveness.heard(node, beat.boot, beat.at);
            if state.nodes.get(&node).is_some_and(|known| known.facts != beat.facts) {
                batch.commands.push(Command::Facts { node, facts: beat.facts });
            }
        }
        liveness.look(now, unconfirmed(&raft));
        batch.commands.extend(liveness.step(now, log_time, &state));
        wake = liveness.wake_at(now, log_time, &state).unwrap_or(now + LOOK);
        housekeeping(shared, &state, log_time, &mut batch.commands);
        let mut replies = Replies { writes: batch.replies, reports: Vec::new(), first: batch.commands.len() };
        for (node, (statuses, waiting)) in std::mem::take(&mut batch.reports) {
            let known = |(id, status): (_, ReplicaStatus)| (id, status.at_level(state.level));
            let statuses = statuses.into_iter().map(known).collect();
            batch.commands.push(Command::Report { node, statuses });
            replies.reports.push(waiting);
        }

        let plan = plan_after(&mut planner, &state, &batch.commands, log_time);
        if let Some(next) = planner.wake_at() {
            wake = wake.min(now + next.since(log_time) + Duration::from_millis(1));
        }
        let unfinished = plan.steps.len() >= limits::PLAN_STEPS_MAX;
        if !plan.steps.is_empty() {
            batch.commands.push(Command::Plan(plan));
        }
        if batch.commands.is_empty() {
            continue;
        }
        let proposing = looking(shared, &raft, &mut liveness, raft.agree(batch.commands));
        let late = async {
            shared.wait(limits::WRITE_DEADLINE).await;
            raft.no_quorum(limits::WRITE_DEADLINE)
        };
        match settled(proposing, late, shared.wait_not_leading(term), &mut replies).await {
            Ok((index, outcomes)) => {
                // A step that no longer held means the plan was made from another state than it
                // was applied to: look again at once.
                dirty = matches!(outcomes.last(), Some(Outcome::Planned { dropped }) if !dropped.is_empty());
                replans = if dirty { replans + 1 } else { 0 };
                if replans > REPLAN_MAX {
                    (dirty, replans) = (false, 0);
                    wake = wake.min(clock.now() + REPLAN_PAUSE);
                }
                dirty |= unfinished;
                replies.answer(index, &outcomes);
            }
            Err(error) => {
                if let Some(before) = warnings.due(clock.now()) {
                    tracing::warn!(node.id = %shared.id, err = %error, before, "could not commit");
                }
                replies.fail(&error);
                if matches!(error, ProposeError::Fatal(_)) {
                    break;
                }
                shared.within(limits::RAFT_HEARTBEAT, shared.wait_not_leading(term)).await;
            }
        }
    }
    tracing::info!(node.id = %shared.id, raft.term = term, "no longer leading");
    Some(())
}

/// Adds an input to what is proposed next, unless the state has no room for what it adds.
fn take(batch: &mut Batch, newest: &mut Newest, raft: &RaftNode, input: Input) {
    match input {
        Input::Propose { command, reply } if adds(&command) => {
            match ClusterState::check_room(raft.state_bytes()) {
                Ok(()) => batch.add(newest, Input::Propose { command, reply }),
                // A requester that went away needs no answer.
                Err(refusal) => drop(reply.send(Ok((raft.state().applied, Outcome::Refused(refusal))))),
            }
        }
        input => batch.add(newest, input),
    }
}

/// Whether a command makes the state larger by as much as a client likes.
fn adds(command: &Command) -> bool {
    matches!(command, Command::Write { write: Write::Submit { .. } | Write::AddToken { .. }, .. })
}

/// For how long no quorum has confirmed this leader.
fn unconfirmed(raft: &RaftNode) -> Duration {
    raft.status().quorum_ack_ms_ago.map_or(Duration::ZERO, Duration::from_millis)
}

/// What became of the entry in flight, `proposing`. Those who wait for it are answered when it is
/// `late`; the leader goes on waiting until it is known, or until it is `deposed`: a plan made
/// meanwhile would be made from a state that the entry, applied after all, has left behind.
async fn settled<T>(
    proposing: impl Future<Output = Result<T, ProposeError>>,
    late: impl Future<Output = ProposeError>,
    deposed: impl Future<Output = ()>,
    replies: &mut Replies,
) -> Result<T, ProposeError> {
    let mut proposing = pin!(proposing);
    // Cancel safety: what is dropped is waited for by nobody any more.
    let unknown = tokio::select! {
        biased;
        known = &mut proposing => return known,
        unknown = late => unknown,
    };
    replies.fail(&unknown);
    tokio::select! {
        biased;
        known = proposing => known,
        () = deposed => Err(unknown),
    }
}

/// Does `work`, which may wait for a quorum, while the leader goes on looking around.
async fn looking<T>(
    shared: &Shared,
    raft: &RaftNode,
    liveness: &mut Liveness,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    loop {
        let done = shared.within(LOOK, &mut work).await;
        liveness.look(shared.platform.clock.now(), unconfirmed(raft));
        if let Some(done) = done {
            return done;
        }
    }
}

/// The plan for the state as `commands` will leave it.
fn plan_after(
    planner: &mut Planner,
    state: &ClusterState,
    commands: &[Command],
    now: UtcMs,
) -> command::Plan {
    if commands.is_empty() {
        return planner.plan(state, now).0;
    }
    let entry = Entry::new(now, commands.to_vec());
    let mut after = state.clone();
    after.apply(state.applied + 1, &entry);
    planner.plan(&after, now).0
}

/// What the leader does for the cluster itself: raises the feature level once every member knows
/// it, and removes members that have left.
fn housekeeping(shared: &Shared, state: &ClusterState, now: UtcMs, commands: &mut Vec<Command>) {
    let known = state.nodes.values().map(|node| node.facts.level).min();
    if let Some(level) = known.map(|level| level.min(level::LEVEL))
        && level > state.level
    {
        commands.push(Command::Level { level });
    }
    let voters = shared.status().voters();
    for (id, node) in &state.nodes {
        let leaving = node.availability == Availability::Leaving;
        if leaving && membership::leave_blocker(state, &voters, *id).is_none() {
            commands.push(Command::Write {
                request: shared.random_request(),
                made_at: now,
                write: Write::RemoveNode { node: *id, force: false },
                by: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use blixard_core::cluster::Outcome;
    use futures_util::poll;
    use tokio::sync::oneshot;

    use super::{Replies, settled};
    use crate::raft::ProposeError;

    #[tokio::test]
    async fn an_entry_whose_fate_is_unknown_is_waited_for_though_nobody_asks_any_more() {
        let (known, proposing) = oneshot::channel::<u64>();
        let (late, is_late) = oneshot::channel();
        let (reply, mut answer) = oneshot::channel();
        let mut replies = Replies { writes: vec![(0, reply)], ..Replies::default() };
        let proposing = async { Ok(proposing.await.expect("it is sent")) };
        let is_late = async { is_late.await.expect("it is sent") };
        {
            let mut settled = pin!(settled(proposing, is_late, std::future::pending(), &mut replies));
            assert!(
                poll!(&mut settled).is_pending() && answer.try_recv().is_err(),
                "it is answered too soon"
            );
            let unknown = ProposeError::Unavailable("nobody agreed in time".to_owned());
            late.send(unknown.clone()).expect("it is awaited");
            assert!(
                poll!(&mut settled).is_pending(),
                "the next entry is made beside one that may yet be applied"
            );
            assert_eq!(answer.try_recv(), Ok(Err(unknown)));
            known.send(7).expect("it is awaited");
            assert_eq!(settled.await, Ok(7));
        }
        replies.answer(7, &[Outcome::Done]);
    }

    #[tokio::test]
    async fn a_leader_that_was_deposed_waits_for_nothing() {
        let unknown = ProposeError::Unavailable("nobody agreed in time".to_owned());
        let late = std::future::ready(unknown.clone());
        let never = std::future::pending::<Result<u64, ProposeError>>();
        let ended = settled(never, late, std::future::ready(()), &mut Replies::default()).await;
        assert_eq!(ended, Err(unknown));
    }
}

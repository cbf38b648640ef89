//! The life of one replica on its node.
//!
//! What is known of its containers, what is under way, and what its status is; [`Replica::advance`]
//! compares them and takes the next step. The status only moves forward on `(attempt, phase)`.

mod naming;
mod probing;
mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use self::removal::Removal;
use super::backoff::Backoff;
use super::health::{Health, probe_port};
use super::{Action, Assignment, MountedVolume, Observed, ObservedState, Prerequisite};
use crate::cluster::replica::{Desired, PULL_FAILED, START_FAILED, is_oom_killed, out_of_memory};
use crate::cluster::{Phase, ReplicaStatus};
use crate::id::{ReplicaId, VolumeName};
use crate::limits::{RESTART_RESET_AFTER, START_FAILURES_MAX, STARTS_MAX};
use crate::spec::{RestartPolicy, ServiceSpec};
use crate::time::{Mono, UtcMs};

/// The exit code of a process of which nothing is left to ask.
const CODE_UNKNOWN: u32 = 137;

/// The time of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    /// By the clock that drives back-off.
    pub(super) now: Mono,
    /// By the clock that is shown.
    pub(super) utc: UtcMs,
}

/// What the replicas of a node share.
pub(super) struct Shared<'a> {
    /// What is being prepared, by the replica whose action does it.
    pub(super) preparing: &'a mut BTreeMap<ReplicaId, Prerequisite>,
    /// Starts under way.
    pub(super) starts: usize,
    /// What to do.
    pub(super) actions: &'a mut Vec<Action>,
}

/// A container, as far as known.
#[derive(Debug, Clone, Copy)]
enum Container {
    /// Its process runs since, or was first seen, then.
    Running { since: Mono, address: Option<Ipv4Addr> },
    /// Its process ended with this code.
    Ended(u32),
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Absent when its process has yet to be stopped.
    code: Option<u32>,
    /// How long it ran.
    ran: Duration,
    /// Whether its process did, rather than its node or runtime.
    by_itself: bool,
}

/// An action on a container that is under way, with the attempt it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Busy {
    Starting(u32),
    Removing(u32),
}

/// How far the preparation of the next start is.
#[derive(Debug, Default)]
struct Preparation {
    /// How many of the replica's prerequisites are here, in their order.
    here: usize,
    /// What was asked for and is waited for.
    waiting: Option<Prerequisite>,
    /// Whether an image got a name here meanwhile.
    named: bool,
}

/// One replica.
#[derive(Debug)]
pub(super) struct Replica {
    /// Absent when the state has no such replica: what is left of it is removed.
    assignment: Option<Assignment>,
    status: ReplicaStatus,
    /// The status last told.
    told: ReplicaStatus,
    /// Whether `status` was compared with the containers of the latest list.
    settled: bool,
    /// By attempt. Complete whenever the node's containers were listed and nothing is under way.
    containers: BTreeMap<u32, Container>,
    /// Attempts that ended after the kernel killed a process in them for want of memory, of those it has
    /// containers of.
    oom_killed: BTreeSet<u32>,
    busy: Option<Busy>,
    /// The code of a process that ended before its start was answered.
    early_exit: Option<u32>,
    preparation: Preparation,
    runs: Backoff,
    pulls: Backoff,
    starts: Backoff,
    removals: Backoff,
    /// The removal under way.
    removal: Option<Removal>,
    health: Option<Health>,
    /// Since when it has been ready at a stretch.
    ready_since: Option<Mono>,
}

impl Replica {
    /// A replica as the state has it, or (without an assignment) containers nobody asked for.
    pub(super) fn new(assignment: Option<Assignment>) -> Self {
        let status = assignment.as_ref().map_or_else(ReplicaStatus::assigned, |own| own.status.clone());
        Self {
            assignment,
            told: status.clone(),
            status,
            settled: false,
            containers: BTreeMap::new(),
            oom_killed: BTreeSet::new(),
            busy: None,
            early_exit: None,
            preparation: Preparation::default(),
            runs: Backoff::default(),
            pulls: Backoff::default(),
            starts: Backoff::default(),
            removals: Backoff::default(),
            removal: None,
            health: None,
            ready_since: None,
        }
    }

    /// Takes in what the state now says; `None` when the row is gone.
    pub(super) fn assign(&mut self, assignment: Option<Assignment>) {
        let key = |status: &ReplicaStatus| (status.attempt, status.phase);
        if let Some(new) = &assignment {
            let idle = self.busy.is_none() && self.containers.is_empty();
            let overtaken = idle && key(&new.status) > key(&self.status);
            if self.assignment.is_none() || overtaken {
                self.status = new.status.clone();
                self.told = new.status.clone();
                self.settled = false;
            }
        }
        let volumes = |assignment: &Option<Assignment>| assignment.as_ref().map(|own| own.volumes.clone());
        if volumes(&self.assignment) != volumes(&assignment) {
            self.preparation.here = 0;
        }
        self.assignment = assignment;
    }

    /// Takes in which containers it has. While an action on them is under way its answer says
    /// more than a list taken meanwhile.
    pub(super) fn list(&mut self, observed: &[Observed], now: Mono) {
        if self.busy.is_some() {
            return;
        }
        let known = std::mem::take(&mut self.containers);
        self.oom_killed.extend(observed.iter().filter(|seen| seen.oom_killed).map(|seen| seen.attempt));
        for seen in observed {
            let container = match (seen.state, known.get(&seen.attempt)) {
                (ObservedState::Exited(code), _) => Container::Ended(code),
                (ObservedState::Running, Some(&Container::Running { since, .. })) => {
                    Container::Running { since, address: seen.address }
                }
                (ObservedState::Running, _) => Container::Running { since: now, address: seen.address },
            };
            self.containers.insert(seen.attempt, container);
        }
        self.settled = false;
    }

    /// Whether nothing is left of it anywhere.
    pub(super) fn is_forgotten(&self) -> bool {
        self.assignment.is_none() && self.containers.is_empty() && self.busy.is_none()
    }

    /// The attempt that takes connections, and what it runs; absent when none should.
    pub(super) fn ready(&self) -> Option<(u32, Arc<ServiceSpec>)> {
        let own = self.assignment.as_ref()?;
        let attempt = self.status.attempt;
        let runs = self.status.phase == Phase::Running
            && matches!(self.containers.get(&attempt), Some(Container::Running { .. }));
        let probed = self.health.is_some() && probe_port(&own.spec).is_some();
        let well = !probed || self.status.healthy == Some(true);
        (runs && well && !self.should_go()).then(|| (attempt, own.spec.clone()))
    }

    /// Whether its container is being started.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.busy, Some(Busy::Starting(_)))
    }

    /// Whether it waits for `need`.
    pub(super) fn waits_for(&self, need: &Prerequisite) -> bool {
        self.preparation.waiting.as_ref() == Some(need)
    }

    /// The status, when it is not the one last told, or with `always`.
    pub(super) fn tell(&mut self, always: bool) -> Option<ReplicaStatus> {
        self.assignment.as_ref()?;
        if self.told == self.status && !always {
            return None;
        }
        self.told = self.status.clone();
        Some(self.status.clone())
    }

    /// The next time at which it may have something to do by itself.
    pub(super) fn deadline(&self, now: Mono) -> Option<Mono> {
        let next = match self.status.phase {
            Phase::Assigned | Phase::Pulling | Phase::Starting => {
                Some(self.pulls.until().max(self.starts.until()))
            }
            Phase::Running => {
                let probe = self.health.as_ref().and_then(Health::due);
                let proof = self.proof_due().filter(|_| !self.status.proven);
                probe.into_iter().chain(proof).min()
            }
            Phase::Waiting => Some(self.runs.until()),
            Phase::Stopping | Phase::Completed | Phase::Failed | Phase::Gone => None,
        };
        [next, Some(self.removals.until()), self.kill_due()]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    /// What must be here before its container starts, in the order in which it is fetched.
    fn prerequisites(&self) -> Vec<Prerequisite> {
        let Some(own) = &self.assignment else { return Vec::new() };
        let image = &own.spec.image;
        let image = Prerequisite::Image { reference: image.reference.clone(), digest: image.digest.clone() };
        let volume = |(name, volume): (&VolumeName, &MountedVolume)| Prerequisite::Volume {
            name: name.clone(),
            volume: *volume,
        };
        std::iter::once(image).chain(own.volumes.iter().map(volume)).collect()
    }

    fn should_go(&self) -> bool {
        self.assignment.as_ref().is_none_or(|own| own.desired == Desired::Stop)
    }

    fn enter(&mut self, phase: Phase, at: At, message: String) {
        if phase != self.status.phase {
            self.status.since = at.utc;
        }
        if phase != Phase::Running {
            self.ready_since = None;
        }
        self.status.phase = phase;
        self.status.message = message;
    }
}

/// What happened to it.
impl Replica {
    /// What it waits for is here, or why not.
    pub(super) fn prepared(&mut self, at: At, need: &Prerequisite, result: Result<(), &str>) {
        self.preparation.waiting = None;
        match result {
            // What is needed may have changed meanwhile.
            Ok(()) if self.prerequisites().get(self.preparation.here) != Some(need) => {
                self.preparation = Preparation::default();
            }
            Ok(()) => {
                self.preparation.here += 1;
                self.pulls.reset();
            }
            Err(error) => {
                let Preparation { named, .. } = std::mem::take(&mut self.preparation);
                let wait = self.pulls.fail(at.now);
                let again = at.utc.after(if named { self.pulls.hurry(at.now) } else { wait });
                if !self.should_go() {
                    let failed = match need {
                        Prerequisite::Image { .. } => PULL_FAILED.to_owned(),
                        Prerequisite::Volume { name, .. } => format!("volume `{name}` is not ready: "),
                    };
                    self.status.message = format!("{failed}{error}; trying again at {again}");
                }
            }
        }
    }

    /// Its container runs.
    pub(super) fn started(&mut self, at: At, attempt: u32, address: Option<Ipv4Addr>) {
        if self.busy != Some(Busy::Starting(attempt)) {
            return;
        }
        self.busy = None;
        self.starts.reset();
        self.containers.insert(attempt, Container::Running { since: at.now, address });
        if !self.should_go() {
            self.run(at, address);
        }
        if let Some(code) = self.early_exit.take() {
            self.exited(at, attempt, code, false);
        }
    }

    /// Its container could not be started, and nothing of it is left.
    pub(super) fn start_failed(&mut self, at: At, attempt: u32, error: &str) {
        if self.busy == Some(Busy::Starting(attempt)) {
            self.busy = None;
            self.early_exit = None;
            self.count_start_failure(at, error);
        }
    }

    /// Its process ended.
    pub(super) fn exited(&mut self, at: At, attempt: u32, code: u32, oom_killed: bool) {
        if oom_killed {
            self.oom_killed.insert(attempt);
        }
        if self.busy == Some(Busy::Starting(attempt)) {
            self.early_exit = Some(code);
            return;
        }
        let Some(Container::Running { since, .. }) = self.containers.get(&attempt).copied() else { return };
        self.containers.insert(attempt, Container::Ended(code));
        let current = attempt == self.status.attempt && self.status.phase == Phase::Running;
        if current && self.settled && !self.should_go() {
            let end = End { code: Some(code), ran: at.now.since(since), by_itself: true };
            self.end(at, end, self.ending(code));
        }
    }

    fn run(&mut self, at: At, address: Option<Ipv4Addr>) {
        self.enter(Phase::Running, at, String::new());
        self.status.address = address;
        let probed = self.assignment.as_ref().and_then(|own| own.spec.healthcheck.as_ref());
        self.health = probed.map(|health| Health::new(health, at.now));
        if self.health.is_none() {
            self.ready_since = self.ready_since.or(Some(at.now));
        }
    }

    /// When it is proven if it stays ready.
    fn proof_due(&self) -> Option<Mono> {
        let spec = &self.assignment.as_ref()?.spec;
        Some(self.ready_since? + Duration::from_millis(spec.min_healthy_ms()))
    }

    /// Notes that it has been ready for long enough.
    fn prove(&mut self, now: Mono) {
        self.status.proven |= self.proof_due().is_some_and(|due| due <= now);
    }

    fn count_start_failure(&mut self, at: At, error: &str) {
        self.preparation = Preparation::default();
        let again = at.utc.after(self.starts.fail(at.now));
        let tries = self.starts.failures();
        if self.should_go() {
            return;
        }
        if tries >= START_FAILURES_MAX {
            self.enter(Phase::Failed, at, format!("{START_FAILED} {tries} times: {error}"));
        } else {
            self.status.message = format!("{START_FAILED}: {error}; trying again at {again}");
        }
    }

    /// How the process of the current attempt ended, in words.
    fn ending(&self, code: u32) -> String {
        match &self.assignment {
            Some(own) if self.oom_killed.contains(&self.status.attempt) => {
                out_of_memory(code, own.spec.limits.memory_bytes)
            }
            _ => format!("exited with code {code}"),
        }
    }

    /// The current attempt is over.
    fn end(&mut self, at: At, End { code, ran, by_itself }: End, what: String) {
        let Some(own) = &self.assignment else { return };
        let restart = own.spec.restart;
        if ran >= RESTART_RESET_AFTER {
            self.runs.reset();
        }
        self.prove(at.now);
        self.health = None;
        self.status.exit_code = code;
        self.status.oom_killed = is_oom_killed(code, self.oom_killed.contains(&self.status.attempt));
        self.status.address = None;
        if code.is_some() {
            self.status.healthy = None;
        }
        let well = code == Some(0);
        let failures = self.runs.failures();
        let again = match restart.policy {
            RestartPolicy::Unsaid | RestartPolicy::Never => false,
            RestartPolicy::OnFailure => !well && restart.maximum_retry_count.is_none_or(|max| failures < max),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        if again {
            let start = at.utc.after(self.runs.fail(at.now));
            self.enter(Phase::Waiting, at, format!("{what}; starting again at {start}"));
        } else if well {
            self.enter(Phase::Completed, at, String::new());
        } else {
            // Nothing said is no word against another one in its place, and neither is an end that
            // was its node's.
            self.status.left = restart.policy != RestartPolicy::Unsaid && by_itself;
            let what = if failures > 0 { format!("{what} after {failures} restarts") } else { what };
            self.enter(Phase::Failed, at, what);
        }
    }
}

/// What to do about it.
impl Replica {
    /// Compares the status with the containers of the latest list: adopts what runs, notices what
    /// ended or vanished unseen. `starting` says whether it is the first list of this agent.
    pub(super) fn settle(&mut self, at: At, starting: bool) {
        if self.settled || self.busy.is_some() {
            return;
        }
        self.settled = true;
        if self.should_go() {
            return;
        }
        if starting {
            self.remember_failures(at);
        }
        if let Some((&attempt, _)) = self.containers.last_key_value()
            && attempt > self.status.attempt
        {
            self.begin_attempt(attempt, at);
        }
        let phase = self.status.phase;
        if phase > Phase::Running {
            return;
        }
        match self.containers.get(&self.status.attempt).copied() {
            Some(Container::Running { address, .. }) => {
                if self.health.is_none() || phase < Phase::Running {
                    self.run(at, address);
                }
                self.status.address = address;
            }
            Some(Container::Ended(CODE_UNKNOWN)) if phase < Phase::Running => {
                self.count_start_failure(at, "it was interrupted");
            }
            Some(Container::Ended(code)) => {
                let killed = self.oom_killed.contains(&self.status.attempt);
                let by_itself = killed || !(starting && code == CODE_UNKNOWN);
                let end = End { code: Some(code), ran: Duration::ZERO, by_itself };
                self.end(at, end, self.ending(code));
            }
            None if phase == Phase::Running => {
                let how = if starting {
                    "container was lost when its node restarted"
                } else {
                    "container disappeared from its runtime"
                };
                let end = End { code: Some(CODE_UNKNOWN), ran: Duration::ZERO, by_itself: false };
                self.end(at, end, how.to_owned());
            }
            None => {}
        }
    }

    /// Takes restarts before this agent's start for failures in a row, unless the container has run for
    /// long since: a daemon that starts again forgives none.
    fn remember_failures(&mut self, at: At) {
        let forgiven =
            self.status.phase == Phase::Running && at.utc.since(self.status.since) >= RESTART_RESET_AFTER;
        if !forgiven {
            self.runs.remember(self.status.attempt);
        }
    }

    /// Takes the next step, if there is one to take now.
    pub(super) fn advance(&mut self, id: ReplicaId, at: At, shared: &mut Shared<'_>) {
        self.kill_overdue(id, at.now, shared);
        if self.should_go() {
            self.tear_down(id, at, shared);
            return;
        }
        if self.status.phase == Phase::Running {
            self.prove(at.now);
            self.probe(id, at, shared);
        }
        if self.busy.is_some() {
            return;
        }
        if let Some(attempt) = self.superfluous() {
            self.remove(id, attempt, at, shared);
            return;
        }
        if self.status.phase == Phase::Waiting && self.runs.is_over(at.now) {
            self.begin_attempt(self.status.attempt.saturating_add(1), at);
        }
        if self.status.phase <= Phase::Starting {
            debug_assert!(self.containers.is_empty(), "a start while {:?} are left", self.containers);
            self.start(id, at, shared);
        }
    }

    fn begin_attempt(&mut self, attempt: u32, at: At) {
        self.status = ReplicaStatus {
            attempt,
            phase: Phase::Starting,
            since: at.utc,
            // Once proven, a restart in place takes nothing back.
            proven: self.status.proven,
            ..ReplicaStatus::assigned()
        };
        self.ready_since = None;
        self.preparation = Preparation::default();
        self.pulls.reset();
        self.starts.reset();
        self.health = None;
    }

    fn start(&mut self, id: ReplicaId, at: At, shared: &mut Shared<'_>) {
        let Some(own) = self.assignment.clone() else { return };
        if let Some(reason) = own.blocked {
            self.status.message = reason;
            return;
        }
        if !self.pulls.is_over(at.now) || !self.starts.is_over(at.now) {
            return;
        }
        if self.preparation.waiting.is_some() {
            return;
        }
        if let Some(need) = self.prerequisites().into_iter().nth(self.preparation.here) {
            if self.status.phase < Phase::Pulling {
                self.enter(Phase::Pulling, at, String::new());
            }
            self.preparation.waiting = Some(need.clone());
            if !shared.preparing.values().any(|other| *other == need) {
                shared.preparing.insert(id, need.clone());
                shared.actions.push(Action::Prepare { replica: id, need });
            }
            return;
        }
        if shared.starts >= STARTS_MAX {
            return;
        }
        if self.status.phase < Phase::Starting {
            self.enter(Phase::Starting, at, String::new());
        }
        let attempt = self.status.attempt;
        shared.starts += 1;
        self.busy = Some(Busy::Starting(attempt));
        let Assignment { slot, version, spec, volumes, .. } = own;
        let volumes = volumes.into_iter().map(|(name, volume)| (name, volume.id)).collect();
        shared.actions.push(Action::Start { replica: id, attempt, slot, version, spec, volumes });
    }
}

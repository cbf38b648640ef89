//! What must hold in every world. Each invariant has a file: what it states, where it is from and
//! which fault it shows. [`Checks`] shows them what happens and keeps the first that failed.

mod accused;
mod acknowledged;
mod agreement;
mod asked;
mod confirmed;
mod downs;
mod durable;
mod election;
mod holds;
mod kept;
mod leaders;
pub mod linearizable;
mod logs;
mod placements;
mod plans;
mod quiet;
mod reads;
pub(crate) mod restarts;
pub mod routes;
mod settled;
mod starts;
mod states;
mod strays;
mod terms;
mod updates;
mod voters;
mod votes;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_core::id::{NodeId, ReplicaId};
use blixard_core::limits::STOP_TIMEOUT_S;
use blixard_core::spec::ServiceSpec;
use blixard_node::handle::RaftStatus;
use blixard_node::platform::ContainerConfig;
use blixard_node::raft::inspect::{self, Said};
use bytes::Bytes;

pub use self::acknowledged::{Expected, acknowledged};
use self::agreement::Agreement;
use self::asked::Asked;
pub(crate) use self::asked::MARK;
use self::confirmed::Confirmed;
use self::downs::Downs;
use self::durable::Voters as KnownVoters;
use self::election::Election;
use self::leaders::Leaders;
use self::logs::Logs;
use self::quiet::Quiet;
pub use self::reads::Reads;
pub use self::routes::any_node_answers;
pub use self::settled::settled;
use self::starts::Starts;
use self::states::States;
use self::strays::Strays;
use self::terms::Terms;
pub use self::voters::members_agree_who_votes;
use self::votes::Votes;
use crate::disk::SimDisk;
use crate::machine::{Machine, number_of};
use crate::trace::Trace;
use crate::world::World;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What was seen.
    pub detail: String,
    /// When, in simulated time.
    pub at: Duration,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.detail)
    }
}

/// The checks of one world.
pub struct Checks {
    trace: Trace,
    /// Whether it is looked at what is on disk.
    looks_at_disks: AtomicBool,
    /// The machines' disks, in the order of their numbers.
    disks: OnceLock<Vec<SimDisk>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    agreement: Agreement,
    asked: Asked,
    election: Election,
    states: States,
    terms: Terms,
    quiet: Quiet,
    leaders: Leaders,
    downs: Downs,
    logs: Logs,
    configurations: KnownVoters,
    votes: Votes,
    starts: Starts,
    confirmed: Confirmed,
    strays: Strays,
    /// Machines whose states were damaged.
    wrong: BTreeSet<u64>,
    first: Option<Violation>,
}

impl Checks {
    /// The checks of a world that begins.
    pub fn new(trace: Trace) -> Self {
        let looks_at_disks = AtomicBool::new(false);
        Self { trace, looks_at_disks, disks: OnceLock::new(), inner: Mutex::default() }
    }

    /// The disks of the world's machines, which are known after the checks are.
    pub fn know_disks(&self, disks: Vec<SimDisk>) {
        assert!(self.disks.set(disks).is_ok(), "a world has one set of disks");
    }

    /// From now on it is looked at what is on disk: where nothing goes wrong nothing is lost.
    pub fn look_at_disks(&self) {
        self.looks_at_disks.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has published a state. Which entries are applied there first, published or not.
    pub fn state(&self, machine: u64, state: &Arc<ClusterState>) -> RangeInclusive<u64> {
        let mut inner = self.lock();
        let new = inner.agreement.highest() + 1..=state.applied;
        if inner.wrong.contains(&machine) {
            inner.confirmed.applied(machine, state.applied);
            return new;
        }
        let first = inner.states.at(state.applied);
        let checked = inner.agreement.seen(machine, state, first.as_deref());
        let checked = checked.map_err(|detail| ("states_agree".to_owned(), detail));
        self.trace.record_at("apply", machine, state.applied, checked.as_deref().unwrap_or_default());
        let checked = checked.and_then(|_| inner.states.seen(state));
        inner.asked.seen(state);
        inner.downs.seen(state);
        inner.leaders.seen(state);
        inner.confirmed.applied(machine, state.applied);
        drop(inner);
        if let Err((invariant, detail)) = checked {
            self.violated(&invariant, detail);
        }
        new
    }

    /// The state of a machine was damaged, or is to be right again: a wrong one agrees with none.
    pub fn set_wrong(&self, machine: u64, wrong: bool) {
        let mut inner = self.lock();
        if wrong {
            inner.wrong.insert(machine)
        } else {
            inner.wrong.remove(&machine)
        };
    }

    /// Entries were applied for the first time.
    pub fn applied(&self, world: &World, indexes: RangeInclusive<u64>) {
        if !self.looks_at_disks.load(Ordering::Relaxed) {
            return;
        }
        let checked = durable::durable(world, &self.lock().configurations, indexes);
        if let Err(detail) = checked {
            self.violated("committed_entries_are_durable", detail);
        }
    }

    /// A node knows this of Raft.
    pub fn status(&self, machine: u64, node: NodeId, status: &RaftStatus) {
        let now = self.trace.elapsed();
        let mut inner = self.lock();
        let news = inner.election.seen(machine, status, now);
        let terms = inner.terms.seen(node, status);
        inner.configurations.seen(node, status);
        drop(inner);
        if let Err(detail) = terms {
            self.violated("terms_only_rise", detail);
        }
        match news {
            Ok(Some(words)) => self.trace.say(machine, &words),
            Ok(None) => {}
            Err(detail) => self.violated("one_leader_a_term", detail),
        }
    }

    /// An agent asks a container whose process runs to stop within `timeout`; `usual_s` is its version's.
    pub fn stops(&self, replica: ReplicaId, attempt: u32, timeout: Duration, usual_s: u32) {
        let inner = self.lock();
        let mut given = inner.states.stop_timeouts(replica);
        let newest = inner.states.newest();
        drop(inner);
        given.insert(usual_s);
        // What no row is left of has the time of whatever says nothing.
        let row = newest.as_ref().and_then(|state| Some((state, state.replicas.get(&replica)?)));
        if !row.is_some_and(|(state, row)| state.nodes.contains_key(&row.node)) {
            given.insert(STOP_TIMEOUT_S);
        }
        if !given.iter().any(|&seconds| Duration::from_secs(seconds.into()) == timeout) {
            let detail = format!(
                "attempt {attempt} of replica {replica} has {timeout:?} to stop, not one of {given:?} s"
            );
            self.violated("stops_have_their_time", detail);
        }
    }

    /// An agent has removed a container whose process ran.
    pub fn ended(&self, replica: ReplicaId, attempt: u32) {
        let newest = self.lock().states.newest();
        let checked = newest.map_or(Ok(()), |state| kept::check(&state, replica, attempt));
        if let Err(detail) = checked {
            self.violated("healthy_containers_are_kept", detail);
        }
    }

    /// Looks at the world as it is now; to be called every tenth of a second.
    pub fn look_around(&self, world: &World) {
        let now = self.trace.elapsed();
        let running = world.running();
        let mut inner = self.lock();
        let Inner { quiet, leaders, downs, logs, election, wrong, .. } = &mut *inner;
        let accused = accused::check(&running, wrong);
        quiet.look(world, now);
        let left_alone = leaders.look(quiet, &running, world.machines.len(), now);
        let caused = downs.look(quiet, logs, election, now);
        drop(inner);
        let found = [
            ("leaders_are_left_alone", left_alone),
            ("nodes_go_down_for_a_reason", caused),
            ("nobody_is_accused", accused),
        ];
        for (invariant, checked) in found {
            if let Err(detail) = checked {
                self.violated(invariant, detail);
            }
        }
    }

    /// A member has answered another's Raft.
    pub fn spoke(&self, from: NodeId, to: NodeId, request: &Bytes, answer: &[u8]) {
        let mut inner = self.lock();
        let checked = match inspect::request(request) {
            Some(Said::Append { term, previous, entries, configurations, committed }) => {
                inner.configurations.told(configurations);
                inner.logs.appended(term, previous, &entries, committed)
            }
            Some(Said::Vote { term, candidate }) => {
                let own = inner.votes.given(from, term, candidate);
                let granted = inspect::grants(answer);
                let given =
                    own.and_then(|()| if granted { inner.votes.given(to, term, candidate) } else { Ok(()) });
                let durable = if granted { self.vote_is_durable(to, term, candidate) } else { Ok(()) };
                given
                    .map_err(|detail| ("one_vote_a_term", detail))
                    .and(durable.map_err(|detail| ("votes_are_durable", detail)))
            }
            Some(Said::Other) | None => Ok(()),
        };
        drop(inner);
        if let Err((invariant, detail)) = checked {
            self.violated(invariant, detail);
        }
    }

    fn vote_is_durable(&self, voter: NodeId, term: u64, candidate: u64) -> Result<(), String> {
        let disks = self.disks.get().filter(|_| self.looks_at_disks.load(Ordering::Relaxed));
        let number = usize::try_from(number_of(voter) - 1).expect("worlds are small");
        disks.map_or(Ok(()), |disks| durable::vote(&disks[number], voter, term, candidate))
    }

    /// The daemon of a machine starts, which has containers of these attempts.
    pub fn daemon_starts(&self, machine: u64, left: &BTreeSet<(ReplicaId, u32)>) {
        let mut inner = self.lock();
        let committed = inner.agreement.highest();
        inner.starts.daemon_starts(machine, left);
        inner.confirmed.daemon_starts(machine, committed);
    }

    /// A client submits a specification.
    pub fn submitted(&self, spec: ServiceSpec) {
        self.lock().asked.submitted(spec);
    }

    /// A node's runtime starts a container.
    pub fn asked(&self, node: Option<NodeId>, config: &ContainerConfig) {
        let checked = self.lock().asked.started(node, config);
        if let Err(detail) = checked {
            self.violated("what_runs_was_asked", detail);
        }
    }

    /// Checks what runs in a world that has settled.
    pub fn settled(&self, world: &World, state: &ClusterState) {
        if let Err(detail) = asked::runs(world, state) {
            self.violated("what_runs_was_asked", detail);
        }
    }

    /// A machine starts a container while other attempts of its replica run there.
    pub fn started(&self, machine: u64, replica: ReplicaId, attempt: u32, running: &[u32]) {
        let mut inner = self.lock();
        let once = inner.starts.started(machine, replica, attempt, running);
        let confirmed = inner.confirmed.started(machine);
        drop(inner);
        for (invariant, checked) in [("replicas_start_once", once), ("starts_are_confirmed", confirmed)] {
            if let Err(detail) = checked {
                self.violated(invariant, detail);
            }
        }
    }

    /// Looks at what runs on a machine.
    pub fn look(&self, machine: &Machine) {
        let now = self.trace.elapsed();
        let checked = self.lock().strays.look(machine, now);
        if let Err(detail) = checked {
            self.violated("no_strays", detail);
        }
    }

    /// The newest state that any node has shown.
    pub fn newest(&self) -> Option<Arc<ClusterState>> {
        self.lock().states.newest()
    }

    /// An invariant did not hold. The first counts.
    pub fn violated(&self, invariant: &str, detail: String) {
        let at = self.trace.elapsed();
        let mut inner = self.lock();
        if inner.first.is_some() {
            return;
        }
        inner.first = Some(Violation { invariant: invariant.to_owned(), detail: detail.clone(), at });
        drop(inner);
        self.trace.say(0, &format!("VIOLATED {invariant}: {detail}"));
    }

    /// The first violation.
    pub fn first(&self) -> Option<Violation> {
        self.lock().first.clone()
    }

    /// The highest index that any node has applied, and the highest term in which one led.
    pub fn reached(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.agreement.highest(), inner.election.highest())
    }
}

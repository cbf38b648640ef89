//! What must hold whatever happens in whatever order: random commands against a model of a
//! runtime, with the agent's node crashing in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{ADDRESS, assignment, spec};
use super::*;
use crate::cluster::Phase;
use crate::limits::STARTS_MAX;
use crate::spec::{HealthSpec, RestartPolicy};
use crate::time::UtcMs;

/// One thing the world does next. Numbers choose among what is possible, modulo its count.
#[derive(Debug, Clone)]
enum Happening {
    /// An action under way ends well.
    Succeed(usize),
    /// An action under way ends badly.
    Fail(usize),
    /// A process ends with this code.
    Exit(usize, u32),
    /// A container vanishes from the runtime, unseen.
    Lose(usize),
    /// A replica should retire or stop.
    Lower(usize),
    /// A replica's row goes.
    DropRow(usize),
    /// A replica stops being blocked.
    Unblock,
    /// The agent is told the state, with the statuses reported so far or only the acknowledged.
    Assign,
    /// Reported statuses are in the state from here on.
    Acknowledge,
    /// The agent is told the containers.
    List,
    /// Time passes, in seconds.
    Pass(u64),
    /// The daemon dies and starts again; actions under way may or may not have happened.
    Crash(bool),
    /// An event about something long over arrives.
    Stale(u64, u32),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        12 => any::<usize>().prop_map(Succeed),
        3 => any::<usize>().prop_map(Fail),
        4 => (any::<usize>(), prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, code)| Exit(n, code)),
        1 => any::<usize>().prop_map(Lose),
        1 => any::<usize>().prop_map(Lower),
        1 => any::<usize>().prop_map(DropRow),
        1 => Just(Unblock),
        3 => Just(Assign),
        3 => Just(Acknowledge),
        2 => Just(List),
        6 => (0_u64..20).prop_map(Pass),
        1 => any::<bool>().prop_map(Crash),
        1 => (0_u64..6, 0_u32..3).prop_map(|(replica, attempt)| Stale(replica, attempt)),
    ]
}

/// The node around the agent.
struct World {
    agent: Agent,
    /// The replicated state.
    rows: BTreeMap<ReplicaId, Assignment>,
    /// What the agent reported and the state does not have yet.
    reported: BTreeMap<ReplicaId, ReplicaStatus>,
    containers: BTreeMap<(ReplicaId, u32), ObservedState>,
    under_way: Vec<Action>,
    published: Ready,
    now: Mono,
    wake: Option<Mono>,
}

impl World {
    fn new(rows: BTreeMap<ReplicaId, Assignment>, strays: &[u64]) -> Self {
        let stray = |id: &u64| ((ReplicaId(100 + id), 0), ObservedState::Running);
        Self {
            agent: Agent::default(),
            rows,
            reported: BTreeMap::new(),
            containers: strays.iter().map(stray).collect(),
            under_way: Vec::new(),
            published: unpublished(),
            now: Mono(Duration::from_secs(1)),
            wake: None,
        }
    }

    fn feed(&mut self, event: Event) {
        let mut actions = Vec::new();
        let utc = UtcMs(u64::try_from(self.now.0.as_millis()).expect("short runs"));
        self.agent.step(self.now, utc, event, &mut actions);
        for action in actions {
            match action {
                Action::Report { replica, status } => self.report(replica, status),
                Action::WakeAt(at) => {
                    assert!(at > self.now, "a wish for the past is a hot loop");
                    self.wake = Some(at);
                }
                Action::Publish(ready) => {
                    assert_ne!(self.published, ready, "nothing changed");
                    self.published = ready;
                }
                Action::Kill { replica, attempt } => {
                    let removes = |action: &Action| matches!(action, Action::Remove { replica: of, attempt: which, .. } if (*of, *which) == (replica, attempt));
                    assert!(self.under_way.iter().any(removes), "only what is being removed is killed");
                }
                action => {
                    self.check_begins(&action);
                    self.under_way.push(action);
                }
            }
        }
        let starts = self.under_way.iter().filter(|action| matches!(action, Action::Start { .. })).count();
        assert!(starts <= STARTS_MAX, "{starts} starts at a time");
    }

    fn report(&mut self, replica: ReplicaId, status: ReplicaStatus) {
        let row = self.rows.get(&replica).expect("only replicas with a row are reported");
        let last = self.reported.get(&replica).unwrap_or(&row.status);
        let (old, new) = ((last.attempt, last.phase), (status.attempt, status.phase));
        assert!(old <= new, "replica {replica} went back from {old:?} to {new:?}");
        assert_ne!(*last, status, "replica {replica} was told twice");
        self.reported.insert(replica, status);
    }

    fn check_begins(&self, action: &Action) {
        let Some((replica, attempt)) = subject(action) else { return };
        let busy = self.under_way.iter().filter_map(subject).any(|(other, _)| other == replica);
        assert!(!busy, "two actions on containers of replica {replica}: {action:?}");
        let published = self.published.keys().any(|(other, _)| *other == replica);
        assert!(!published, "ports lead to replica {replica} while this begins: {action:?}");
        if matches!(action, Action::Start { .. }) {
            let left: Vec<u32> = self.containers_of(replica);
            assert_eq!(left, [0; 0], "replica {replica} starts {attempt} while others are left");
            let row = self.rows.get(&replica).expect("only replicas with a row start");
            assert!(
                row.blocked.is_none() || self.reported.contains_key(&replica),
                "a blocked replica starts"
            );
        }
    }

    fn containers_of(&self, replica: ReplicaId) -> Vec<u32> {
        self.containers.keys().filter(|(own, _)| *own == replica).map(|(_, attempt)| *attempt).collect()
    }

    /// Ends an action under way and tells the agent.
    fn finish(&mut self, which: usize, well: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let action = self.under_way.remove(which % self.under_way.len());
        let error = "boom".to_owned();
        if well {
            self.take_effect(&action);
        }
        let event = match (action, well) {
            (Action::Prepare { replica, .. }, true) => Event::Prepared { replica },
            (Action::Prepare { replica, .. }, false) => Event::PrepareFailed { replica, error },
            (Action::Start { replica, attempt, .. }, true) => {
                Event::Started { replica, attempt, address: Some(ADDRESS) }
            }
            (Action::Start { replica, attempt, .. }, false) => Event::StartFailed { replica, attempt, error },
            (Action::Remove { replica, attempt, .. }, true) => Event::Removed { replica, attempt },
            (Action::Remove { replica, attempt, .. }, false) => {
                Event::RemoveFailed { replica, attempt, error }
            }
            (Action::Probe { replica, attempt, .. }, healthy) => {
                Event::Probed { replica, attempt, failed: (!healthy).then_some(error) }
            }
            (Action::Report { .. } | Action::Publish(_) | Action::Kill { .. } | Action::WakeAt(_), _) => {
                unreachable!("never under way")
            }
        };
        self.feed(event);
    }

    fn take_effect(&mut self, action: &Action) {
        match action {
            Action::Start { replica, attempt, .. } => {
                self.containers.insert((*replica, *attempt), ObservedState::Running);
            }
            Action::Remove { replica, attempt, .. } => {
                self.containers.remove(&(*replica, *attempt));
            }
            _ => {}
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Succeed(which) => self.finish(which, true),
            Happening::Fail(which) => self.finish(which, false),
            Happening::Exit(which, code) => self.exit(which, code),
            Happening::Lose(which) => {
                if let Some(key) = nth(self.containers.keys(), which).copied()
                    && !self.under_way.iter().filter_map(subject).any(|(replica, _)| replica == key.0)
                {
                    self.containers.remove(&key);
                    self.list();
                }
            }
            Happening::Lower(which) => {
                if let Some(row) = nth(self.rows.values_mut(), which) {
                    row.desired = if row.desired == Desired::Run { Desired::Retire } else { Desired::Stop };
                    row.stop_timeout_s = u32::try_from(which % 20).expect("below 20");
                }
            }
            Happening::DropRow(which) => {
                if let Some(id) = nth(self.rows.keys(), which).copied() {
                    self.rows.remove(&id);
                    self.reported.remove(&id);
                    self.assign();
                }
            }
            Happening::Unblock => self.rows.values_mut().for_each(|row| row.blocked = None),
            Happening::Assign => self.assign(),
            Happening::Acknowledge => {
                for (id, status) in std::mem::take(&mut self.reported) {
                    self.rows.get_mut(&id).expect("reports have rows").status = status;
                }
            }
            Happening::List => self.list(),
            Happening::Pass(seconds) => self.pass(Duration::from_secs(seconds)),
            Happening::Crash(took_effect) => self.crash(took_effect),
            Happening::Stale(replica, attempt) => self.stale(ReplicaId(replica), attempt),
        }
    }

    fn exit(&mut self, which: usize, code: u32) {
        let starting = self.under_way.iter().filter_map(|action| match action {
            Action::Start { replica, attempt, .. } => Some((*replica, *attempt)),
            _ => None,
        });
        let early: Vec<(ReplicaId, u32)> = starting.collect();
        let running = self.containers.iter().filter(|(_, state)| **state == ObservedState::Running);
        let able: Vec<(ReplicaId, u32)> = running.map(|(key, _)| *key).chain(early.iter().copied()).collect();
        let Some((replica, attempt)) = nth(able.iter(), which).copied() else { return };
        if let Some(state) = self.containers.get_mut(&(replica, attempt)) {
            *state = ObservedState::Exited(code);
        }
        self.feed(Event::Exited { replica, attempt, code, oom_killed: false });
    }

    fn assign(&mut self) {
        self.feed(Event::Assigned(self.rows.clone()));
    }

    fn list(&mut self) {
        let observed = self.containers.iter().map(|((replica, attempt), state)| Observed {
            replica: *replica,
            attempt: *attempt,
            state: *state,
            oom_killed: false,
            address: Some(ADDRESS),
        });
        self.feed(Event::Listed(observed.collect()));
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake) = self.wake.filter(|wake| *wake <= end) {
            self.now = wake;
            self.wake = None;
            self.feed(Event::Tick);
        }
        self.now = end;
    }

    fn crash(&mut self, took_effect: bool) {
        for action in std::mem::take(&mut self.under_way) {
            if took_effect {
                self.take_effect(&action);
            }
        }
        self.agent = Agent::default();
        // It says so again, be it the same.
        self.published = unpublished();
        self.wake = None;
        self.reported.clear();
        self.list();
        self.assign();
    }

    fn stale(&mut self, replica: ReplicaId, attempt: u32) {
        let current = self.containers.contains_key(&(replica, attempt))
            || self.under_way.iter().filter_map(subject).any(|(other, _)| other == replica);
        if !current {
            let error = "stale".to_owned();
            self.feed(Event::Exited { replica, attempt, code: 1, oom_killed: false });
            self.feed(Event::Removed { replica, attempt });
            self.feed(Event::Started { replica, attempt, address: None });
            self.feed(Event::StartFailed { replica, attempt, error });
        }
    }

    /// Heals everything and lets the node run: every action succeeds, everything is told.
    fn settle(&mut self) {
        self.happen(Happening::Unblock);
        for _ in 0..200 {
            self.happen(Happening::Acknowledge);
            self.assign();
            while !self.under_way.is_empty() {
                self.finish(0, true);
            }
            self.pass(Duration::from_secs(30));
        }
        self.happen(Happening::Acknowledge);
    }
}

/// What no agent publishes.
fn unpublished() -> Ready {
    [((ReplicaId(u64::MAX), 0), Arc::new(spec(RestartPolicy::Never, None)))].into()
}

/// Whose container an action is about, when it is about one exclusively.
fn subject(action: &Action) -> Option<(ReplicaId, u32)> {
    match action {
        Action::Start { replica, attempt, .. } | Action::Remove { replica, attempt, .. } => {
            Some((*replica, *attempt))
        }
        _ => None,
    }
}

fn nth<T>(items: impl ExactSizeIterator<Item = T>, which: usize) -> Option<T> {
    let count = items.len();
    (count > 0).then(|| items.into_iter().nth(which % count)).flatten()
}

fn rows() -> impl Strategy<Value = BTreeMap<ReplicaId, Assignment>> {
    let policy = prop_oneof![
        Just(RestartPolicy::Unsaid),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Always),
        Just(RestartPolicy::UnlessStopped),
    ];
    let row = (policy, any::<bool>(), any::<bool>(), proptest::option::of(0_u32..3), 0_u8..3);
    let row = row.prop_map(|(policy, blocked, probed, max, image)| {
        let mut spec = spec(policy, max);
        spec.image.reference = format!("image-{image}");
        spec.healthcheck = probed.then(|| HealthSpec {
            path: "/".to_owned(),
            interval_ms: 3_000,
            timeout_ms: 1_000,
            retries: 2,
        });
        let mut row = assignment(spec);
        row.blocked = blocked.then(|| "waits".to_owned());
        row
    });
    proptest::collection::vec(row, 1..7).prop_map(|rows| (0..).map(ReplicaId).zip(rows).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The checks of `World` hold all along; once faults end, what should stop is gone, what has
    /// no row has no container, and what should run does unless it ended for good.
    #[test]
    fn the_agent_converges_whatever_happens(
        rows in rows(),
        strays in proptest::collection::vec(0_u64..5, 0..3),
        happenings in proptest::collection::vec(happening(), 0..120),
    ) {
        let mut world = World::new(rows, &strays);
        world.list();
        world.assign();
        for happening in happenings {
            world.happen(happening);
        }
        world.settle();
        let known: BTreeSet<ReplicaId> = world.rows.keys().copied().collect();
        for (replica, _) in world.containers.keys() {
            prop_assert!(known.contains(replica), "replica {replica} has no row but a container");
        }
        for (id, row) in &world.rows {
            let containers = world.containers_of(*id);
            if row.desired == Desired::Stop {
                prop_assert_eq!(row.status.phase, Phase::Gone, "replica {}", id);
                prop_assert!(containers.is_empty());
            } else if row.status.phase.is_final() {
                prop_assert!(containers.is_empty());
            } else {
                prop_assert!(world.published.contains_key(&(*id, row.status.attempt)), "replica {}", id);
                prop_assert_eq!(row.status.phase, Phase::Running, "replica {}: {:?}", id, row.status);
                prop_assert_eq!(containers, vec![row.status.attempt]);
            }
        }
    }
}

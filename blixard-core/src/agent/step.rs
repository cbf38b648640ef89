//! Feeds events to the replicas they are about and collects what follows.

use std::collections::BTreeMap;

use super::replica::{At, Replica, Shared};
use super::{Action, Agent, Assignment, Event, Observed};
use crate::id::ReplicaId;
use crate::time::{Mono, UtcMs};

impl Agent {
    /// Takes in `event` and appends what to do about it to `actions`.
    ///
    /// `now` is the node's monotonic clock and drives every back-off; `utc` is only shown.
    pub fn step(&mut self, now: Mono, utc: UtcMs, event: Event, actions: &mut Vec<Action>) {
        let at = At { now, utc };
        let starting = !(self.assigned && self.listed);
        let report_all = event == Event::ReportAll;
        self.take_in(at, event);
        if self.assigned && self.listed {
            let first = actions.len();
            self.advance(at, starting, actions);
            self.publish(first, actions);
            self.report(report_all, actions);
            self.wake(now, actions);
        }
    }

    fn take_in(&mut self, at: At, event: Event) {
        match event {
            Event::Assigned(assignments) => self.assign(assignments),
            Event::Listed(observed) => self.list(&observed, at.now),
            Event::Prepared { replica } => self.prepared(at, replica, Ok(())),
            Event::PrepareFailed { replica, error } => self.prepared(at, replica, Err(&error)),
            Event::ImageNamed => {
                self.replicas.values_mut().for_each(|replica| replica.image_named(at.now));
            }
            Event::Started { replica, attempt, address } => {
                self.with(replica, |own| own.started(at, attempt, address));
            }
            Event::StartFailed { replica, attempt, error } => {
                self.with(replica, |own| own.start_failed(at, attempt, &error));
            }
            Event::Exited { replica, attempt, code, oom_killed } => {
                self.with(replica, |own| own.exited(at, attempt, code, oom_killed));
            }
            Event::Removed { replica, attempt } => self.with(replica, |own| own.removed(attempt)),
            Event::RemoveFailed { replica, attempt, error } => {
                self.with(replica, |own| own.remove_failed(at, attempt, &error));
            }
            Event::Probed { replica, attempt, failed } => {
                self.with(replica, |own| own.probed(at, attempt, failed.as_deref()));
            }
            Event::ReportAll | Event::Tick => {}
        }
    }

    fn with(&mut self, replica: ReplicaId, act: impl FnOnce(&mut Replica)) {
        if let Some(replica) = self.replicas.get_mut(&replica) {
            act(replica);
        }
    }

    fn assign(&mut self, mut assignments: BTreeMap<ReplicaId, Assignment>) {
        self.assigned = true;
        for (id, replica) in &mut self.replicas {
            replica.assign(assignments.remove(id));
        }
        for (id, assignment) in assignments {
            self.replicas.insert(id, Replica::new(Some(assignment)));
        }
    }

    fn list(&mut self, observed: &[Observed], now: Mono) {
        self.listed = true;
        let mut by_replica: BTreeMap<ReplicaId, Vec<Observed>> = BTreeMap::new();
        for container in observed {
            by_replica.entry(container.replica).or_default().push(container.clone());
        }
        for id in by_replica.keys() {
            self.replicas.entry(*id).or_insert_with(|| Replica::new(None));
        }
        for (id, replica) in &mut self.replicas {
            replica.list(by_replica.get(id).map_or(&[], Vec::as_slice), now);
        }
    }

    fn prepared(&mut self, at: At, asker: ReplicaId, result: Result<(), &str>) {
        let Some(need) = self.preparing.remove(&asker) else { return };
        for replica in self.replicas.values_mut().filter(|replica| replica.waits_for(&need)) {
            replica.prepared(at, &need, result);
        }
    }

    fn advance(&mut self, at: At, starting: bool, actions: &mut Vec<Action>) {
        let starts = self.replicas.values().filter(|replica| replica.is_starting()).count();
        let mut shared = Shared { preparing: &mut self.preparing, starts, actions };
        for (id, replica) in &mut self.replicas {
            replica.settle(at, starting);
            replica.advance(*id, at, &mut shared);
        }
        self.replicas.retain(|_, replica| !replica.is_forgotten());
    }

    fn report(&mut self, all: bool, actions: &mut Vec<Action>) {
        for (id, replica) in &mut self.replicas {
            if let Some(status) = replica.tell(all) {
                actions.push(Action::Report { replica: *id, status });
            }
        }
    }

    fn wake(&mut self, now: Mono, actions: &mut Vec<Action>) {
        self.wake = self.wake.filter(|wake| *wake > now);
        let next = self.replicas.values().filter_map(|replica| replica.deadline(now)).min();
        if next.is_some() && next != self.wake {
            self.wake = next;
            actions.extend(next.map(Action::WakeAt));
        }
    }
}

//! Planning only what changed.
//!
//! The leader plans after every batch of writes, and a state may hold ten thousand services. The
//! planner keeps the last state it saw and what its nodes hold; the difference to the next state, which
//! shares almost all of its memory with it, says which services to plan.
//!
//! What it plans is what [`plan`](super::plan) would: a service nothing of which changed, that
//! waits for nothing and for which no time has come, has no steps. Only the reasons recorded for
//! waiting slots may be older than a full plan's: a node that fills up further does not reword
//! them, a node that gets room does.

use std::collections::{BTreeMap, BTreeSet};

use imbl::ordmap::DiffItem;

use super::observations::Observations;
use super::plan_for;
use super::report::Report;
use crate::cluster::{ClusterState, Plan, PlanStep, Replica};
use crate::id::{ReplicaId, ServiceName};
use crate::limits::PLAN_STEPS_MAX;
use crate::scheduler::NodeUsage;
use crate::time::UtcMs;

/// The leader's planner. A new leader makes a new one.
#[derive(Debug, Clone)]
pub struct Planner {
    seen: ClusterState,
    usage: NodeUsage,
    observations: Observations,
    /// Services to plan because something of theirs changed, or because the last plan had steps
    /// for them and nobody knows yet whether it was applied.
    dirty: BTreeSet<ServiceName>,
    /// Services that wait for something of other services or of nodes.
    waiting: BTreeSet<ServiceName>,
    /// When services are due though nothing changes.
    wakes: BTreeMap<ServiceName, UtcMs>,
}

impl Planner {
    /// A planner of a leader that begins at log time `now`; its first plan is of all services.
    pub fn new(state: &ClusterState, now: UtcMs) -> Self {
        Self {
            seen: state.clone(),
            usage: NodeUsage::of(state),
            observations: Observations::new(state, now),
            dirty: state.services.keys().cloned().collect(),
            waiting: BTreeSet::new(),
            wakes: BTreeMap::new(),
        }
    }

    /// What to change so that `state` is as it should be at log time `now`. The state may be a
    /// copy on which writes have been tried that are proposed together with the plan, and the
    /// plan need not be applied: the next call finds out. It has at most [`PLAN_STEPS_MAX`] steps; with
    /// as many, more is to be done at once.
    pub fn plan(&mut self, state: &ClusterState, now: UtcMs) -> (Plan, Report) {
        self.observe(state, now);
        let due: Vec<ServiceName> =
            self.wakes.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        let mut services = std::mem::take(&mut self.dirty);
        services.extend(due);
        let plan = |services| plan_for(state, &self.usage, services, &self.observations, now);
        let (mut plan_made, mut report) = plan(services.clone());
        // What it takes away may be what others wait for, and they are to have it in the same plan.
        if plan_made.steps.iter().any(gives_room) && !self.waiting.is_subset(&services) {
            services.extend(self.waiting.iter().cloned());
            (plan_made, report) = plan(services.clone());
        }
        for name in services {
            self.wakes.remove(&name);
            self.waiting.remove(&name);
        }
        self.wakes.extend(report.wakes.clone());
        let waiting = report.services.iter().filter(|(_, report)| !report.waits.is_empty());
        self.waiting.extend(waiting.map(|(name, _)| name.clone()));
        self.dirty = plan_made.steps.iter().filter_map(|step| step_service(state, step)).collect();
        // What is left out is due still: its services stay marked. Steps depend on those before only.
        plan_made.steps.truncate(PLAN_STEPS_MAX);
        (plan_made, report)
    }

    /// When to plan next though nothing changes.
    pub fn wake_at(&self) -> Option<UtcMs> {
        self.wakes.values().min().copied()
    }

    /// What the nodes of the last state planned hold.
    pub fn usage(&self) -> &NodeUsage {
        &self.usage
    }

    /// Takes in a state without planning; answers what has been observed up to it.
    #[cfg(test)]
    pub(super) fn look(&mut self, state: &ClusterState, now: UtcMs) -> &Observations {
        self.observe(state, now);
        &self.observations
    }

    /// Takes in what changed since the last state and marks the services it concerns.
    fn observe(&mut self, state: &ClusterState, now: UtcMs) {
        let seen = std::mem::replace(&mut self.seen, state.clone());
        let mut room = self.observe_nodes(&seen, state);
        self.observe_services(&seen, state);
        for change in seen.replicas.diff(&state.replicas) {
            match change {
                DiffItem::Add(id, new) => self.take_in(state, *id, new, now),
                DiffItem::Update { old: (id, old), new: (_, new) } => {
                    room |= (old.desired, old.lost_since) != (new.desired, new.lost_since);
                    room |= (old.status.phase, old.status.healthy) != (new.status.phase, new.status.healthy);
                    self.take_in(state, *id, new, now);
                }
                DiffItem::Remove(id, old) => {
                    room = true;
                    self.usage.remove(*id);
                    self.observations.forget(*id);
                    self.touch(&old.service);
                }
            }
        }
        if room {
            self.dirty.extend(self.waiting.iter().cloned());
        }
    }

    /// Marks the services that changed and those that wait for one of them. A service by itself
    /// takes no room, so that others which wait for room are left alone: a thousand of them would
    /// be planned again with every submission.
    fn observe_services(&mut self, seen: &ClusterState, state: &ClusterState) {
        let mut changed = BTreeSet::new();
        for change in seen.services.diff(&state.services) {
            let (DiffItem::Add(name, _)
            | DiffItem::Remove(name, _)
            | DiffItem::Update { new: (name, _), .. }) = change;
            if matches!(change, DiffItem::Remove(..)) {
                self.observations.forget_service(name);
            }
            changed.insert(name.clone());
        }
        let needs = |name: &&ServiceName| {
            let needed = state.services.get(*name).map(|service| &service.spec().depends_on);
            needed.into_iter().flatten().any(|needed| changed.contains(needed))
        };
        let dependents: Vec<ServiceName> = if changed.is_empty() {
            Vec::new()
        } else {
            self.waiting.iter().filter(needs).cloned().collect()
        };
        self.dirty.extend(changed);
        self.dirty.extend(dependents);
        for change in seen.volumes.diff(&state.volumes) {
            let (DiffItem::Add(name, _)
            | DiffItem::Remove(name, _)
            | DiffItem::Update { new: (name, _), .. }) = change;
            self.dirty.extend(state.services_mounting(name).cloned());
        }
    }

    /// Marks the services that have replicas on nodes that changed; answers whether any did.
    fn observe_nodes(&mut self, seen: &ClusterState, state: &ClusterState) -> bool {
        let mut changed = false;
        for change in seen.nodes.diff(&state.nodes) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) =
                change;
            for (_, replica) in seen.replicas_on(*id).chain(state.replicas_on(*id)) {
                self.touch(&replica.service);
            }
            changed = true;
        }
        changed
    }

    fn take_in(&mut self, state: &ClusterState, id: ReplicaId, replica: &Replica, now: UtcMs) {
        self.usage.set(id, replica, state.spec_of(replica).map(AsRef::as_ref));
        self.observations.note(id, replica, now);
        self.touch(&replica.service);
    }

    fn touch(&mut self, service: &ServiceName) {
        if !self.dirty.contains(service) {
            self.dirty.insert(service.clone());
        }
    }
}

/// Whether a step may leave a node with more room, or make something that is waited for end.
fn gives_room(step: &PlanStep) -> bool {
    match step {
        PlanStep::SetDesired { .. }
        | PlanStep::SetLost { .. }
        | PlanStep::Forget { .. }
        | PlanStep::ForgetService { .. }
        | PlanStep::PromoteVolume { .. } => true,
        PlanStep::Place { .. }
        | PlanStep::PlaceOlder { .. }
        | PlanStep::Backoff { .. }
        | PlanStep::Pending { .. }
        | PlanStep::AddVolumeCopy { .. } => false,
    }
}

/// The service a planned step is about.
fn step_service(state: &ClusterState, step: &PlanStep) -> Option<ServiceName> {
    match step {
        PlanStep::Place { service, .. }
        | PlanStep::PlaceOlder { service, .. }
        | PlanStep::Backoff { service, .. }
        | PlanStep::Pending { service, .. }
        | PlanStep::ForgetService { service } => Some(service.clone()),
        PlanStep::SetDesired { replica, .. }
        | PlanStep::SetLost { replica, .. }
        | PlanStep::Forget { replica } => state.replicas.get(replica).map(|row| row.service.clone()),
        // Volumes are planned whatever is marked.
        PlanStep::AddVolumeCopy { .. } | PlanStep::PromoteVolume { .. } => None,
    }
}

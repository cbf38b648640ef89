//! Planning only what changed.
//!
//! The leader plans after every batch of writes, and a state may hold ten thousand services. The
//! planner keeps the last state it saw and what its nodes hold; the difference to the next state, which
//! shares almost all of its memory with it, says which services to plan.
//!
//! What it plans is what [`plan`](super::plan) would: a service nothing of which changed, for which no
//! time has come and which waits for nothing that changed, has no steps. Only the reasons recorded for
//! waiting slots may be older than a full plan's: a node that fills up further, or gets less room than is
//! asked for, does not reword them; one that is up, takes replicas or has labels that it had not, does, a
//! few hundred of them with each plan.

use std::collections::BTreeSet;

use imbl::ordmap::DiffItem;

use super::agenda::Agenda;
use super::draft::{Draft, changed_key};
use super::observations::Observations;
use super::report::Report;
use super::waiting::Waiting;
use super::wakes::Wakes;
use super::{Made, plan_for, volumes};
use crate::cluster::{ClusterState, Node, Plan, PlanStep, Replica, Volume};
use crate::id::{NodeId, ReplicaId, ServiceName, VolumeName};
use crate::limits::{PLAN_REWORDED_MAX, PLAN_STEPS_MAX};
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
    /// Volumes to plan, for the same reasons.
    dirty_volumes: BTreeSet<VolumeName>,
    /// Nodes that changed: those that wait may fit there.
    changed: BTreeSet<NodeId>,
    /// Services that wait and are to be told anew why, some with each plan.
    stale: BTreeSet<ServiceName>,
    /// When the last plan was made.
    planned_at: UtcMs,
    waiting: Waiting,
    wakes: Wakes,
    /// What the nodes hold once the last plan is applied: if it never is, they have more room than those
    /// that wait were told of.
    planned: NodeUsage,
}

impl Planner {
    /// A planner of a leader that begins at log time `now`; its first plan is of all services.
    pub fn new(state: &ClusterState, now: UtcMs) -> Self {
        let usage = NodeUsage::of(state);
        Self {
            seen: state.clone(),
            planned: usage.clone(),
            usage,
            observations: Observations::new(state, now),
            dirty: state.services.keys().cloned().collect(),
            dirty_volumes: state.volumes.keys().cloned().collect(),
            changed: BTreeSet::new(),
            stale: BTreeSet::new(),
            planned_at: now,
            waiting: Waiting::default(),
            wakes: Wakes::default(),
        }
    }

    /// What to change so that `state` is as it should be at log time `now`. The state may be a
    /// copy on which writes have been tried that are proposed together with the plan, and the
    /// plan need not be applied: the next call finds out. It has at most [`PLAN_STEPS_MAX`] steps; with
    /// as many, more is to be done at once.
    pub fn plan(&mut self, state: &ClusterState, now: UtcMs) -> (Plan, Report) {
        self.observe(state, now);
        let mut services = std::mem::take(&mut self.dirty);
        services.extend(self.wakes.due(now).cloned());
        services.extend(self.stale.iter().take(PLAN_REWORDED_MAX).cloned());
        let dependents = |service| self.waiting.dependents_of(state, service);
        let dependents: Vec<ServiceName> = services.iter().flat_map(dependents).collect();
        services.extend(dependents);
        let mut grown = self.usage.with_more_room_than(&self.planned);
        grown.append(&mut self.changed);
        let agenda = Agenda::new(&mut self.waiting, services, grown);
        let draft = Draft::new(state, &self.usage, &self.observations, now);
        let volumes = std::mem::take(&mut self.dirty_volumes);
        let Made { mut plan, report, planned, rest, usage } = plan_for(draft, agenda, &volumes);
        (self.planned, self.planned_at) = (usage, now);
        for service in &planned {
            self.stale.remove(service);
            self.wakes.set(service, report.wakes.get(service).copied());
        }
        self.dirty = plan.steps.iter().filter_map(|step| step_service(state, step)).chain(rest).collect();
        self.dirty_volumes = plan.steps.iter().filter_map(step_volume).cloned().collect();
        // What is left out is due still: its services stay marked. Steps depend on those before only.
        plan.steps.truncate(PLAN_STEPS_MAX);
        (plan, report)
    }

    /// When to plan next though nothing changes; not later than the last plan when that left something.
    pub fn wake_at(&self) -> Option<UtcMs> {
        let left = (!self.stale.is_empty()).then_some(self.planned_at);
        left.into_iter().chain(self.wakes.first()).min()
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
        for change in seen.replicas.diff(&state.replicas) {
            match change {
                DiffItem::Add(id, new) | DiffItem::Update { new: (id, new), .. } => {
                    self.take_in(state, *id, new, now);
                }
                DiffItem::Remove(id, old) => {
                    self.usage.remove(*id);
                    self.observations.forget(*id);
                    self.touch(&old.service);
                }
            }
        }
        for change in seen.services.diff(&state.services) {
            if let DiffItem::Remove(name, _) = &change {
                self.observations.forget_service(name);
            }
            self.touch(changed_key(&change));
        }
        self.observe_volumes(&seen, state);
        self.observe_nodes(&seen, state);
    }

    /// Marks the volumes that changed, and the services that mount one which is, or begins, elsewhere.
    fn observe_volumes(&mut self, seen: &ClusterState, state: &ClusterState) {
        for change in seen.volumes.diff(&state.volumes) {
            let name = changed_key(&change);
            let place = |volume: &Volume| (volume.primary, volume.version.is_some());
            let same = matches!(change, DiffItem::Update { old, new } if place(old.1) == place(new.1));
            if !same {
                self.dirty.extend(state.services_mounting(name).cloned());
            }
            self.dirty_volumes.insert(name.clone());
        }
    }

    /// Marks the services that have replicas on nodes that changed. Those that wait for a node are planned
    /// if they fit there now; the others to which the change matters are told so in their turn.
    fn observe_nodes(&mut self, seen: &ClusterState, state: &ClusterState) {
        for change in seen.nodes.diff(&state.nodes) {
            let (id, old, new) = match change {
                DiffItem::Add(id, new) => (*id, None, Some(new)),
                DiffItem::Remove(id, old) => (*id, Some(old), None),
                DiffItem::Update { old: (id, old), new: (_, new) } => (*id, Some(old), Some(new)),
            };
            for (_, replica) in seen.replicas_on(id).chain(state.replicas_on(id)) {
                self.touch(&replica.service);
            }
            let takes = |node: Option<&Node>| node.map(|node| (node.status, node.availability));
            if takes(old) != takes(new) {
                self.dirty_volumes.extend(volumes::concerned(state, id).cloned());
            }
            let ports = |node: Option<&Node>| node.map(|node| node.facts.reserved_ports.clone());
            let ports_changed = ports(old) != ports(new);
            let concerned = self.waiting.asking().iter();
            let concerned =
                concerned.filter(|(ask, _)| ports_changed || ask.sees_change(&self.usage, id, old, new));
            self.stale.extend(concerned.flat_map(|(_, services)| services).cloned());
            self.changed.insert(id);
        }
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
        PlanStep::AddVolumeCopy { .. } | PlanStep::PromoteVolume { .. } => None,
    }
}

/// The volume a planned step is about.
fn step_volume(step: &PlanStep) -> Option<&VolumeName> {
    match step {
        PlanStep::AddVolumeCopy { volume, .. } | PlanStep::PromoteVolume { volume, .. } => Some(volume),
        _ => None,
    }
}

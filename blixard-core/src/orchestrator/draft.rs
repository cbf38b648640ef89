//! The state as it will be once the steps planned so far are applied.

use imbl::{OrdMap, OrdSet};

use super::observations::Observations;
use crate::cluster::replica::Desired;
use crate::cluster::service::SlotBackoff;
use crate::cluster::{ClusterState, Node, PlanStep, Replica, ReplicaStatus, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::scheduler::{Named, NodeUsage};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// Which replicas each service has, by slot, and what the nodes hold. A copy costs nothing.
///
/// # Invariants
/// Every replica of the state it was made from is in it, and no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    services: OrdMap<ServiceName, OrdSet<(u32, ReplicaId)>>,
    usage: NodeUsage,
}

impl Index {
    /// The index of a state: costs a walk over all its replicas.
    pub fn of(state: &ClusterState) -> Self {
        let mut index = Self::default();
        for (&id, replica) in &state.replicas {
            index.set(id, replica, crate::scheduler::spec_of(state, replica));
        }
        index
    }

    /// What the nodes hold.
    pub fn usage(&self) -> &NodeUsage {
        &self.usage
    }

    /// A service's replicas, by slot and then by age.
    pub fn replicas(&self, service: &ServiceName) -> impl Iterator<Item = (u32, ReplicaId)> + '_ {
        self.services.get(service).into_iter().flat_map(|rows| rows.iter().copied())
    }

    /// One slot's replicas, oldest first.
    pub fn slot(&self, service: &ServiceName, slot: u32) -> impl Iterator<Item = ReplicaId> + '_ {
        let range = (slot, ReplicaId(0))..=(slot, ReplicaId(u64::MAX));
        self.services
            .get(service)
            .into_iter()
            .flat_map(move |rows| rows.range(range.clone()))
            .map(|&(_, id)| id)
    }

    /// Takes in a replica as it is now.
    pub(super) fn set(&mut self, id: ReplicaId, replica: &Replica, spec: Option<&ServiceSpec>) {
        let rows = self.services.entry(replica.service.clone()).or_default();
        rows.insert((replica.slot, id));
        self.usage.set(id, replica, spec);
    }

    /// Drops a replica.
    pub(super) fn remove(&mut self, id: ReplicaId, replica: &Replica) {
        if let Some(rows) = self.services.get_mut(&replica.service) {
            rows.remove(&(replica.slot, id));
            if rows.is_empty() {
                self.services.remove(&replica.service);
            }
        }
        self.usage.remove(id);
    }
}

/// A copy of the state that planned steps are tried on.
pub(super) struct Draft<'a> {
    state: ClusterState,
    index: Index,
    steps: Vec<PlanStep>,
    observations: &'a Observations,
    now: UtcMs,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        state: &ClusterState,
        index: &Index,
        observations: &'a Observations,
        now: UtcMs,
    ) -> Self {
        Self { state: state.clone(), index: index.clone(), steps: Vec::new(), observations, now }
    }

    pub(super) fn steps(&self) -> &[PlanStep] {
        &self.steps
    }

    pub(super) fn into_steps(self) -> Vec<PlanStep> {
        self.steps
    }

    pub(super) fn now(&self) -> UtcMs {
        self.now
    }

    pub(super) fn observations(&self) -> &Observations {
        self.observations
    }

    pub(super) fn nodes(&self) -> &OrdMap<NodeId, Node> {
        &self.state.nodes
    }

    pub(super) fn node(&self, node: NodeId) -> Option<&Node> {
        self.state.nodes.get(&node)
    }

    /// A node as people know it.
    pub(super) fn named(&self, node: NodeId) -> Named<'_> {
        Named(node, self.node(node))
    }

    pub(super) fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.state.services.get(name)
    }

    pub(super) fn usage(&self) -> &NodeUsage {
        &self.index.usage
    }

    pub(super) fn spec_of(&self, replica: &Replica) -> Option<&ServiceSpec> {
        crate::scheduler::spec_of(&self.state, replica)
    }

    /// A service's replicas, by slot and then by age.
    pub(super) fn replicas(&self, service: &ServiceName) -> impl Iterator<Item = (ReplicaId, &Replica)> + '_ {
        self.index.replicas(service).filter_map(|(_, id)| Some((id, self.state.replicas.get(&id)?)))
    }

    /// One slot's replicas, oldest first.
    pub(super) fn slot(&self, service: &ServiceName, slot: u32) -> Vec<(ReplicaId, &Replica)> {
        self.index.slot(service, slot).filter_map(|id| Some((id, self.state.replicas.get(&id)?))).collect()
    }

    /// Adds a step to the plan and makes its change, as `apply` will.
    pub(super) fn push(&mut self, step: PlanStep) {
        match &step {
            PlanStep::Place { service, slot, version, node, after } => {
                let id = self.state.next_replica;
                self.state.next_replica = ReplicaId(id.0 + 1);
                let replica = Replica {
                    service: service.clone(),
                    slot: *slot,
                    version: *version,
                    node: *node,
                    desired: Desired::Run,
                    lost_since: None,
                    after: *after,
                    status: ReplicaStatus::assigned(),
                    created_at: self.now,
                };
                self.state.replicas.insert(id, replica);
                self.reindex(id);
            }
            PlanStep::SetDesired { replica, desired } => {
                if let Some(row) = self.state.replicas.get_mut(replica) {
                    row.desired = *desired;
                }
                self.reindex(*replica);
            }
            PlanStep::SetLost { replica, lost } => {
                if let Some(row) = self.state.replicas.get_mut(replica) {
                    row.lost_since = lost.then_some(self.now);
                }
                self.reindex(*replica);
            }
            PlanStep::Forget { replica } => {
                if let Some(row) = self.state.replicas.remove(replica) {
                    self.index.remove(*replica, &row);
                }
            }
            PlanStep::Backoff { service, slot, failures, not_before } => {
                if let Some(row) = self.state.services.get_mut(service) {
                    if *failures == 0 {
                        row.backoff.remove(slot);
                    } else {
                        let backoff = SlotBackoff { failures: *failures, not_before: *not_before };
                        row.backoff.insert(*slot, backoff);
                    }
                }
            }
            PlanStep::Pending { service, slot, reason } => {
                if let Some(row) = self.state.services.get_mut(service) {
                    match reason {
                        Some(reason) => row.pending.insert(*slot, reason.clone()),
                        None => row.pending.remove(slot),
                    };
                }
            }
            PlanStep::ForgetService { service } => {
                self.state.services.remove(service);
            }
        }
        self.steps.push(step);
    }

    fn reindex(&mut self, id: ReplicaId) {
        let Some(replica) = self.state.replicas.get(&id) else { return };
        let spec = crate::scheduler::spec_of(&self.state, replica);
        self.index.set(id, replica, spec);
    }
}

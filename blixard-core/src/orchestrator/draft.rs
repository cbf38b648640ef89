//! The state as it will be once the steps planned so far are applied.

use imbl::OrdMap;

use super::observations::Observations;
use crate::cluster::{ClusterState, Node, PlanStep, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::scheduler::{Named, NodeUsage};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// A copy of the state that planned steps are applied to.
pub(super) struct Draft<'a> {
    state: ClusterState,
    usage: NodeUsage,
    steps: Vec<PlanStep>,
    observations: &'a Observations,
    now: UtcMs,
}

impl<'a> Draft<'a> {
    /// `usage` is that of `state`.
    pub(super) fn new(
        state: &ClusterState,
        usage: &NodeUsage,
        observations: &'a Observations,
        now: UtcMs,
    ) -> Self {
        let mut state = state.clone();
        state.time = state.stamp(now);
        Self { state, usage: usage.clone(), steps: Vec::new(), observations, now }
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

    pub(super) fn state(&self) -> &ClusterState {
        &self.state
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

    /// What the nodes hold.
    pub(super) fn usage(&self) -> &NodeUsage {
        &self.usage
    }

    pub(super) fn spec_of(&self, replica: &Replica) -> Option<&ServiceSpec> {
        self.state.spec_of(replica).map(AsRef::as_ref)
    }

    /// Adds steps to the plan, all or none, and applies them.
    ///
    /// # Errors
    /// Why `apply` would drop one of them.
    pub(super) fn take(&mut self, steps: impl IntoIterator<Item = PlanStep>) -> Result<(), String> {
        let (state, usage, taken) = (self.state.clone(), self.usage.clone(), self.steps.len());
        for step in steps {
            let replica = match &step {
                PlanStep::Place { .. } => Some(self.state.next_replica),
                PlanStep::SetDesired { replica, .. }
                | PlanStep::SetLost { replica, .. }
                | PlanStep::Forget { replica } => Some(*replica),
                _ => None,
            };
            if let Err(reason) = self.state.step(&step) {
                (self.state, self.usage) = (state, usage);
                self.steps.truncate(taken);
                return Err(reason);
            }
            if let Some(replica) = replica {
                self.count(replica);
            }
            self.steps.push(step);
        }
        Ok(())
    }

    /// Brings the usage in line with one replica's row.
    fn count(&mut self, id: ReplicaId) {
        match self.state.replicas.get(&id) {
            Some(row) => self.usage.set(id, row, self.state.spec_of(row).map(AsRef::as_ref)),
            None => self.usage.remove(id),
        }
    }
}

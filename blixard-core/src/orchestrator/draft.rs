//! The state as it will be once the steps planned so far are applied.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::observations::Observations;
use crate::cluster::{ClusterState, Node, PlanStep, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName, VolumeName};
use crate::scheduler::{Ask, Named, NoFit, NodeUsage};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

/// A copy of the state that planned steps are applied to.
pub(super) struct Draft<'a> {
    /// What the draft began with: a step that does not hold is undone by taking the others again.
    /// That never happens to a planner without a fault, so that the others need no copy each.
    base: (ClusterState, NodeUsage),
    state: ClusterState,
    usage: NodeUsage,
    /// The nodes of which steps changed what they hold, since they were last taken.
    touched: Vec<NodeId>,
    /// That no node takes who asks for something, as long as they hold what they do.
    no_fits: BTreeMap<Ask, NoFit>,
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
        let base = (state.clone(), usage.clone());
        Self {
            base,
            state,
            usage: usage.clone(),
            touched: Vec::new(),
            no_fits: BTreeMap::new(),
            steps: Vec::new(),
            observations,
            now,
        }
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
        let taken = self.steps.len();
        for step in steps {
            if let Err(reason) = self.apply(&step) {
                self.undo(taken);
                return Err(reason);
            }
            self.steps.push(step);
        }
        Ok(())
    }

    fn apply(&mut self, step: &PlanStep) -> Result<(), String> {
        let replica = match step {
            PlanStep::Place { .. } | PlanStep::PlaceOlder { .. } => Some(self.state.next_replica),
            PlanStep::SetDesired { replica, .. }
            | PlanStep::SetLost { replica, .. }
            | PlanStep::Forget { replica } => Some(*replica),
            _ => None,
        };
        self.state.step(step)?;
        if let Some(replica) = replica {
            self.count(replica);
        }
        Ok(())
    }

    /// Goes back to where only the first `kept` steps were taken.
    fn undo(&mut self, kept: usize) {
        (self.state, self.usage) = self.base.clone();
        let mut steps = std::mem::take(&mut self.steps);
        steps.truncate(kept);
        for step in &steps {
            self.apply(step).expect("a step that held before holds again");
        }
        self.steps = steps;
    }

    /// The nodes of which steps changed what they hold, since this was last asked.
    pub(super) fn take_touched(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.touched)
    }

    /// Why no node takes who asks for `ask`, when that was found with what they hold now.
    pub(super) fn no_fit(&self, ask: &Ask) -> Option<&NoFit> {
        self.no_fits.get(ask)
    }

    /// Takes in what was just found.
    pub(super) fn remember(&mut self, no_fit: NoFit) {
        if let Some(ask) = no_fit.ask().filter(|ask| !self.no_fits.contains_key(*ask)).cloned() {
            self.no_fits.insert(ask, no_fit);
        }
    }

    /// The volumes that steps changed.
    pub(super) fn changed_volumes(&self) -> BTreeSet<VolumeName> {
        let changes = self.base.0.volumes.diff(&self.state.volumes);
        changes.map(|change| changed_key(&change).clone()).collect()
    }

    /// Brings the usage in line with one replica's row.
    fn count(&mut self, id: ReplicaId) {
        let touched = match self.state.replicas.get(&id) {
            Some(row) => self.usage.set(id, row, self.state.spec_of(row).map(AsRef::as_ref)),
            None => self.usage.remove(id),
        };
        if touched.is_some() {
            self.no_fits.clear();
        }
        self.touched.extend(touched);
    }
}

/// Whose row a change is of.
pub(super) fn changed_key<'a, K, V>(change: &DiffItem<'a, 'a, K, V>) -> &'a K {
    match change {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    }
}

#[cfg(test)]
mod tests {
    use super::Draft;
    use crate::cluster::PlanStep;
    use crate::id::NodeId;
    use crate::orchestrator::tests::world::{World, name, replicas, spec};
    use crate::scheduler::NodeUsage;

    #[test]
    fn steps_are_taken_together_or_not_at_all() {
        let mut world = World::new(2);
        world.submit(spec("web", |spec| spec.replicas = replicas(2)));
        let usage = NodeUsage::of(&world.state);
        let mut draft = Draft::new(&world.state, &usage, &world.observations, world.now);
        let service = || name("web");
        let place = |slot, node| PlanStep::Place {
            service: service(),
            slot,
            version: 1,
            node: NodeId(node),
            after: None,
        };
        draft.take([place(0, 1)]).expect("the slot is empty");
        let kept = (draft.state().clone(), draft.usage().clone(), draft.steps().to_vec());
        let refused = draft.take([place(1, 2), place(0, 2)]).expect_err("slot 0 is taken");
        assert!(refused.contains("slot 0"), "{refused}");
        assert_eq!((draft.state().clone(), draft.usage().clone(), draft.steps().to_vec()), kept);
        draft.take([place(1, 2)]).expect("the slot is empty again");
    }
}

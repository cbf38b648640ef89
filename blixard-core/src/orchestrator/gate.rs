//! How far a service's update may go.
//!
//! An update goes on to the next slot only while every replica of the current version is proven, so a
//! version that does not start, or ends soon, takes one slot at most. Nothing of an older version
//! holds it: whatever state that is in, the newest version supersedes it.
//!
//! Until the current version is proven somewhere, a slot that loses its replica is filled with the
//! version that was proven before, while there is one: a node that goes down, or a container that
//! ends, in the middle of a bad update gives the bad version no second slot.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::stranded;
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, NodeStatus, Replica, Service};
use crate::id::ServiceName;
use crate::readiness::{Readiness, has_arrived, is_proven, readiness};
use crate::time::UtcMs;

/// What keeps a service from touching another slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gate {
    /// Slots, two at most, whose replica of the current version is not proven or failed lately.
    unsettled: Vec<u32>,
    /// Slots, two at most, that are being moved off a node.
    moving: Vec<u32>,
    /// When a slot is not moving any more that seems to be now, if nothing else happens.
    moving_until: Option<UtcMs>,
    /// Whether a replica of the current version is ready and proven.
    current_is_proven: bool,
    /// The older versions of which a proven replica is there.
    proven: BTreeSet<u64>,
}

impl Gate {
    /// The gate of a service, as the draft has it.
    pub(super) fn of(draft: &Draft<'_>, name: &ServiceName) -> Self {
        let mut gate = Self::default();
        let Some(service) = draft.service(name) else { return gate };
        let state = draft.state();
        let failing = service
            .backoff
            .iter()
            .filter(|(_, backoff)| backoff.version.is_none_or(|version| service.runs_current(version)));
        let mut unsettled: Vec<u32> = failing.map(|(slot, _)| *slot).collect();
        let mut moving = Vec::new();
        for (_, replica) in state.replicas_of(name) {
            let current = service.runs_current(replica.version);
            if current && replica.counts() {
                gate.current_is_proven |=
                    readiness(state, replica) == Readiness::Ready && is_proven(state, replica);
                if !has_arrived(state, replica) {
                    unsettled.push(replica.slot);
                }
            }
            if !current && replica.desired != Desired::Stop && replica.status.proven {
                gate.proven.insert(replica.version);
            }
            if let Some(until) = moving_until(draft, service, replica) {
                moving.push(replica.slot);
                let until = until.into_iter().chain(gate.moving_until);
                gate.moving_until = until.min();
            }
        }
        gate.unsettled = two(unsettled);
        gate.moving = two(moving);
        gate
    }

    /// Takes in that an empty `slot` was given a replica of the current version: nothing else changes.
    pub(super) fn begin(&mut self, slot: u32) {
        self.unsettled.push(slot);
        self.unsettled = two(std::mem::take(&mut self.unsettled));
    }

    /// Whether `slot` may be given the current version in place of an older one.
    pub(super) fn admits_update_of(&self, slot: u32) -> bool {
        self.unsettled.iter().all(|&unsettled| unsettled == slot)
    }

    /// Whether `slot` may be moved off its node.
    pub(super) fn admits_move_of(&self, slot: u32) -> bool {
        self.moving.iter().all(|&moving| moving == slot)
    }

    /// When to ask again whether a slot may be moved, though nothing happens.
    pub(super) fn moving_until(&self) -> Option<UtcMs> {
        self.moving_until
    }

    /// Whether the current version has yet to be proven, and is being tried in another slot.
    pub(super) fn holds_back(&self, slot: u32) -> bool {
        !self.current_is_proven && !self.admits_update_of(slot)
    }

    /// The version that an empty `slot` is given while the current one is held back from it.
    pub(super) fn stand_in(&self, slot: u32) -> Option<u64> {
        self.proven.last().copied().filter(|_| self.holds_back(slot))
    }

    /// Whether a proven replica of the older `version` is there.
    pub(super) fn is_proven(&self, version: u64) -> bool {
        self.proven.contains(&version)
    }
}

/// Whether a replica is on its way off a node that is being emptied, and until when if that is for a time:
/// it is stopping and not gone, or superseded by one that runs the same, or by another that may yet come.
/// That is an update as well as a move that is given the newest version; nothing tells one from the other.
fn moving_until(draft: &Draft<'_>, service: &Service, replica: &Replica) -> Option<Option<UtcMs>> {
    let node = draft.node(replica.node).filter(|node| node.availability != Availability::Active)?;
    match replica.desired {
        Desired::Run => None,
        Desired::Stop => (node.status != NodeStatus::Down).then_some(None),
        Desired::Retire => {
            let (_, holder) = draft.state().counting_in(&replica.service, replica.slot)?;
            if service.same_containers(holder.version, replica.version) {
                return Some(None);
            }
            let until = stranded::given_up_at(holder);
            (until > draft.now()).then_some(Some(until))
        }
    }
}

fn two(mut slots: Vec<u32>) -> Vec<u32> {
    slots.sort_unstable();
    slots.dedup();
    slots.truncate(2);
    slots
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use crate::cluster::{Command, Plan};
    use crate::orchestrator::draft::Draft;
    use crate::orchestrator::tests::world::{World, name, replicas, spec};
    use crate::scheduler::NodeUsage;

    /// The gate of `web`.
    fn gate(world: &World) -> Gate {
        let usage = NodeUsage::of(&world.state);
        Gate::of(&Draft::new(&world.state, &usage, &world.observations, world.now), &name("web"))
    }

    #[test]
    fn a_slot_that_is_filled_is_unsettled_and_nothing_else_is() {
        let mut world = World::new(2);
        world.submit(spec("web", |spec| spec.replicas = replicas(1))).converge();
        world.submit(spec("web", |spec| spec.replicas = replicas(4)));
        let mut expected = gate(&world);
        for step in world.plan().0.steps {
            world.apply(Command::Plan(Plan { steps: vec![step.clone()] }));
            let crate::cluster::PlanStep::Place { slot, .. } = step else { panic!("{step:?}") };
            expected.begin(slot);
            assert_eq!(gate(&world), expected, "slot {slot}");
        }
        assert!(!expected.admits_update_of(1), "two slots are unsettled");
    }
}

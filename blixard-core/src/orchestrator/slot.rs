//! One slot's replicas.
//!
//! [`decide`] looks at one slot and answers the first thing to do about it, why it waits, or that
//! it is as it should be. It is asked again until it has nothing more to do, so that each rule
//! handles one situation and may rely on the rules above it having nothing to do.

use std::collections::BTreeMap;

use super::draft::Draft;
use super::rules::RULES;
use super::service::Pass;
use super::waiting::Blocker;
use super::{fill, moves};
use crate::cluster::replica::Desired;
use crate::cluster::{NodeStatus, Phase, PlanStep, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::readiness::{Readiness, readiness};
use crate::scheduler::{NoFit, Request};
use crate::spec::{NetworkMode, ServiceSpec};
use crate::time::UtcMs;

/// What to do about a slot.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing; it is as it should be, or time or an agent has to act first.
    Settled,
    /// These steps, then look again.
    Act(Vec<PlanStep>),
    /// It does not have what it should.
    Wait(Wait),
}

/// Why a slot does not have what it should.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wait {
    /// For people.
    pub(super) reason: String,
    /// What ends it, besides time.
    pub(super) blockers: Vec<Blocker>,
}

impl Wait {
    /// A wait that time ends, or a change of its own service.
    pub(super) fn itself(reason: String) -> Self {
        Self { reason, blockers: Vec::new() }
    }

    /// A wait for a node.
    pub(super) fn for_node(reason: String, no_fit: &NoFit) -> Self {
        Self { reason, blockers: no_fit.ask().cloned().map(Blocker::Node).into_iter().collect() }
    }
}

/// One slot of a service, as the draft has it.
#[derive(Clone)]
pub(super) struct Slot<'a> {
    pub(super) draft: &'a Draft<'a>,
    pub(super) name: &'a ServiceName,
    pub(super) service: &'a Service,
    pub(super) number: u32,
    /// The version that it is to be given: the current one, unless that is held back.
    pub(super) target: u64,
    /// Its replicas, oldest first.
    pub(super) rows: Vec<(ReplicaId, &'a Replica)>,
}

/// The first thing to do about a slot.
pub(super) fn decide(slot: &Slot<'_>, pass: &mut Pass) -> Decision {
    for rule in RULES {
        let steps = rule(slot, pass);
        if !steps.is_empty() {
            return Decision::Act(steps);
        }
    }
    if slot.number >= slot.service.wanted() {
        return Decision::Settled;
    }
    match slot.counting() {
        None => fill::decide(slot, pass),
        Some((id, replica)) => moves::decide(slot, pass, id, replica),
    }
}

impl<'a> Slot<'a> {
    /// The same slot, to be given `version`.
    pub(super) fn aiming_at(&self, version: u64) -> Self {
        Self { target: version, ..self.clone() }
    }

    /// What the version asks for that it is to be given.
    pub(super) fn spec(&self) -> &'a ServiceSpec {
        let service = self.service;
        service.spec_of(self.target).map_or(service.spec(), AsRef::as_ref)
    }

    /// Whether a replica does its work.
    pub(super) fn readiness(&self, replica: &Replica) -> Readiness {
        readiness(self.draft.state(), replica)
    }

    /// Whether a replica runs something else than the current version asks for.
    pub(super) fn is_outdated(&self, replica: &Replica) -> bool {
        !self.service.runs_current(replica.version)
    }

    /// The replica that counts.
    pub(super) fn counting(&self) -> Option<(ReplicaId, &'a Replica)> {
        self.rows.iter().copied().find(|(_, replica)| replica.counts())
    }

    /// The replicas that should run and are lost.
    pub(super) fn lost(&self) -> impl Iterator<Item = (ReplicaId, &'a Replica)> + '_ {
        let lost = |replica: &Replica| replica.desired == Desired::Run && replica.lost_since.is_some();
        self.rows.iter().copied().filter(move |(_, replica)| lost(replica))
    }

    /// Until when a replica is not lost though its node is down, for that announced its absence.
    pub(super) fn held_until(&self, replica: &Replica) -> Option<UtcMs> {
        let node = self.draft.node(replica.node).filter(|node| node.status == NodeStatus::Down)?;
        node.hold_until.filter(|&until| until > self.draft.now())
    }

    /// The status of a replica's node; absent when that is no member.
    pub(super) fn status_of(&self, replica: &Replica) -> Option<NodeStatus> {
        self.draft.node(replica.node).map(|node| node.status)
    }

    /// A request for a node that takes a replica of the target version in this slot.
    pub(super) fn request(&self) -> Request<'a> {
        let spec = self.spec();
        Request {
            service: self.name,
            spec,
            home: self.draft.state().home_of(spec, self.service.origin),
            network_held: self.network_held(spec),
            failed_on: self.failed_on(),
        }
    }

    /// Nodes on which a replica of this slot failed lately that ran what the target version asks for.
    fn failed_on(&self) -> BTreeMap<NodeId, UtcMs> {
        let failed = self.draft.observations().failed(self.name, self.number, self.draft.now());
        let alike = failed.filter(|(_, version, _)| self.service.same_containers(*version, self.target));
        alike.map(|(node, _, at)| (node, at)).collect()
    }

    /// Nodes on which a replica of the service that is not gone is in the way of one with `spec`:
    /// one of the two is on the node's own network. The newest of this slot is not: it can be
    /// waited for.
    fn network_held(&self, spec: &ServiceSpec) -> BTreeMap<NodeId, ReplicaId> {
        if !self.service.knows_host_network() {
            return BTreeMap::new();
        }
        let meets = |replica: &Replica| host(spec) || self.draft.spec_of(replica).is_some_and(host);
        let replicas = self.draft.state().replicas_of(self.name);
        replicas
            .filter(|(_, replica)| replica.status.phase != Phase::Gone && meets(replica))
            .filter(|&(id, replica)| replica.slot != self.number || self.newest_on(replica.node) != Some(id))
            .map(|(id, replica)| (replica.node, id))
            .collect()
    }

    /// The newest replica of this slot on a node.
    fn newest_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.rows.iter().rev().find(|(_, replica)| replica.node == node).map(|&(id, _)| id)
    }

    /// Stops what is left of this slot on a node and must not meet a replica of the target version
    /// there, but for `kept`. The last of them is what that replica is to wait for.
    pub(super) fn make_way(
        &self,
        node: NodeId,
        kept: Option<ReplicaId>,
    ) -> (Vec<PlanStep>, Option<ReplicaId>) {
        let apart =
            |replica: &Replica| exclusive(self.spec()) || self.draft.spec_of(replica).is_some_and(exclusive);
        let there = self.rows.iter().filter(|(id, replica)| replica.node == node && Some(*id) != kept);
        let rivals: Vec<_> = there.filter(|(_, replica)| apart(replica)).collect();
        let running = rivals.iter().filter(|(_, replica)| replica.desired != Desired::Stop);
        (running.map(|(id, _)| set_desired(*id, Desired::Stop)).collect(), rivals.last().map(|(id, _)| *id))
    }

    /// A step that puts a replica of the target version into this slot.
    pub(super) fn place(&self, node: NodeId, after: Option<ReplicaId>) -> PlanStep {
        let (service, slot, version) = (self.name.clone(), self.number, self.target);
        if version == self.service.current().version {
            PlanStep::Place { service, slot, version, node, after }
        } else {
            PlanStep::PlaceOlder { service, slot, version, node, after }
        }
    }
}

/// Whether two replicas of a slot must not run at the same time on one node: both would write
/// the same host path or take the same ports.
pub(super) fn exclusive(spec: &ServiceSpec) -> bool {
    host(spec) || spec.volumes.iter().any(|volume| !volume.read_only)
}

fn host(spec: &ServiceSpec) -> bool {
    spec.network == NetworkMode::Host
}

pub(super) fn set_desired(replica: ReplicaId, desired: Desired) -> PlanStep {
    PlanStep::SetDesired { replica, desired }
}

//! One slot's replicas.
//!
//! [`decide`] looks at one slot and answers the first thing to do about it, why it waits, or that
//! it is as it should be. It is asked again until it has nothing more to do, so that each rule
//! handles one situation and may rely on the rules above it having nothing to do.

use std::collections::BTreeMap;

use super::backoff;
use super::dependencies;
use super::draft::Draft;
use super::moves;
use super::service::Pass;
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, NodeStatus, Phase, PlanStep, Replica, Service};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::limits::RESTART_RESET_AFTER;
use crate::scheduler::{self, Request};
use crate::spec::{NetworkMode, ServiceSpec};
use crate::time::UtcMs;

/// What to do about a slot.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing; it is as it should be, or time or an agent has to act first.
    Settled,
    /// These steps, then look again.
    Act(Vec<PlanStep>),
    /// It does not have what it should, for this reason.
    Wait(String),
}

/// Whether a replica does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runs {
    /// It runs, and its probe passes where it has one.
    Yes,
    /// It did when its node was last heard of.
    Unsure,
    /// It ran to its successful end.
    Ended,
    /// Not now.
    No,
}

/// Whether `replica` does its work, as far as the cluster knows.
pub(super) fn runs(draft: &Draft<'_>, replica: &Replica) -> Runs {
    let probed = draft.spec_of(replica).is_some_and(|spec| spec.healthcheck.is_some());
    let healthy = match replica.status.healthy {
        Some(healthy) => healthy,
        None => !probed,
    };
    let up = draft.node(replica.node).is_some_and(|node| node.status == NodeStatus::Up);
    match replica.status.phase {
        Phase::Completed => Runs::Ended,
        Phase::Running if healthy && up => Runs::Yes,
        Phase::Running if healthy => Runs::Unsure,
        _ => Runs::No,
    }
}

/// One slot of a service, as the draft has it.
pub(super) struct Slot<'a> {
    pub(super) draft: &'a Draft<'a>,
    pub(super) name: &'a ServiceName,
    pub(super) service: &'a Service,
    pub(super) number: u32,
    /// Its replicas, oldest first.
    pub(super) rows: Vec<(ReplicaId, &'a Replica)>,
}

/// The first thing to do about a slot.
pub(super) fn decide(slot: &Slot<'_>, pass: &mut Pass) -> Decision {
    let rules = [forget, surplus, failed, lose, returned, retire, backoff_over];
    for rule in rules {
        let steps = rule(slot, pass);
        if !steps.is_empty() {
            return Decision::Act(steps);
        }
    }
    if slot.number >= slot.service.wanted() {
        return Decision::Settled;
    }
    match slot.counting() {
        None => fill(slot, pass),
        Some((id, replica)) => moves::decide(slot, pass, id, replica),
    }
}

impl<'a> Slot<'a> {
    /// The replica that counts.
    pub(super) fn counting(&self) -> Option<(ReplicaId, &'a Replica)> {
        self.rows.iter().copied().find(|(_, replica)| replica.counts())
    }

    fn lost(&self) -> impl Iterator<Item = (ReplicaId, &'a Replica)> + '_ {
        let lost = |replica: &Replica| replica.desired == Desired::Run && replica.lost_since.is_some();
        self.rows.iter().copied().filter(move |(_, replica)| lost(replica))
    }

    fn status_of(&self, replica: &Replica) -> Option<NodeStatus> {
        self.draft.node(replica.node).map(|node| node.status)
    }

    /// A request for a node that takes a replica of the current version in this slot.
    pub(super) fn request(&self) -> Request<'a> {
        let spec = self.service.spec();
        Request {
            service: self.name,
            spec,
            origin: self.service.origin,
            network_held: self.network_held(spec),
        }
    }

    /// Nodes on which a replica of the service that is not gone is in the way of one with `spec`:
    /// one of the two is on the node's own network. The newest of this slot is not: it can be
    /// waited for.
    fn network_held(&self, spec: &ServiceSpec) -> BTreeMap<NodeId, ReplicaId> {
        if !self.knows_host_network() {
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

    /// Whether any kept version of the service is on the host network: then it matters for a slot
    /// which nodes the other slots are on.
    pub(super) fn knows_host_network(&self) -> bool {
        self.service.versions.iter().any(|version| host(&version.spec))
    }

    /// The newest replica of this slot on a node.
    fn newest_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.rows.iter().rev().find(|(_, replica)| replica.node == node).map(|&(id, _)| id)
    }

    /// A step that puts a replica of the current version into this slot.
    pub(super) fn place(&self, node: NodeId, after: Option<ReplicaId>) -> PlanStep {
        let version = self.service.current().version;
        PlanStep::Place { service: self.name.clone(), slot: self.number, version, node, after }
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

/// A row goes when nothing of it is left on its node, or when its node is no member any more. A
/// replica told to stop on a node that is down stays until the node says that it is gone.
fn forget(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let gone = |replica: &Replica| replica.status.phase == Phase::Gone || slot.status_of(replica).is_none();
    let mut steps = Vec::new();
    for &(id, replica) in slot.rows.iter().filter(|(_, replica)| gone(replica)) {
        if replica.desired != Desired::Stop {
            steps.push(set_desired(id, Desired::Stop));
        }
        steps.push(PlanStep::Forget { replica: id });
    }
    steps
}

/// Slots above the wanted number stop; a slot holds one counting replica at most.
fn surplus(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    if slot.number < slot.service.wanted() {
        let counting = slot.rows.iter().filter(|(_, replica)| replica.counts());
        let kept = counting.clone().min_by_key(|(id, replica)| (runs(slot.draft, replica) != Runs::Yes, *id));
        return counting
            .filter(|row| Some(row.0) != kept.map(|kept| kept.0))
            .map(|&(id, _)| set_desired(id, Desired::Stop))
            .collect();
    }
    slot.rows
        .iter()
        .filter(|(_, replica)| replica.desired != Desired::Stop)
        .map(|&(id, _)| set_desired(id, Desired::Stop))
        .collect()
}

/// A counting replica that failed for good stops, and its slot waits before the next try. One of
/// an older version is replaced by the current one at once.
fn failed(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let Some((id, replica)) = slot.counting().filter(|(_, replica)| replica.status.phase == Phase::Failed)
    else {
        return Vec::new();
    };
    let stop = set_desired(id, Desired::Stop);
    if replica.version != slot.service.current().version {
        return vec![stop];
    }
    let next = backoff::after_failure(slot.service, slot.number, slot.draft.now());
    let record = PlanStep::Backoff {
        service: slot.name.clone(),
        slot: slot.number,
        failures: next.failures,
        not_before: next.not_before,
    };
    vec![record, stop]
}

/// A counting replica on a node that is down is lost, unless the node announced that it would be
/// away. One that ran to its end has nothing to lose.
fn lose(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    let Some((id, replica)) = slot.counting().filter(|(_, replica)| replica.status.phase != Phase::Completed)
    else {
        return Vec::new();
    };
    let Some(node) = slot.draft.node(replica.node).filter(|node| node.status == NodeStatus::Down) else {
        return Vec::new();
    };
    match node.hold_until.filter(|&until| until > slot.draft.now()) {
        Some(until) => {
            pass.wake(until);
            Vec::new()
        }
        None => vec![PlanStep::SetLost { replica: id, lost: true }],
    }
}

/// What becomes of lost replicas.
///
/// When the replacement runs, they stop, wherever they are. When a lost replica's node is back
/// before that, it counts again and the replacement stops. It does not when it is already outdated
/// or its node is being emptied: then it is superseded, and stops once the replacement runs. While
/// the replacement's own node is silent, nothing is decided.
fn returned(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let replacement = slot.counting();
    let stop_all = || slot.lost().map(|(id, _)| set_desired(id, Desired::Stop)).collect();
    match replacement.map(|(_, replica)| runs(slot.draft, replica)) {
        Some(Runs::Yes | Runs::Ended) => return stop_all(),
        Some(Runs::Unsure) => return Vec::new(),
        Some(Runs::No) | None => {}
    }
    let up = slot.lost().filter(|(_, replica)| slot.status_of(replica) == Some(NodeStatus::Up));
    let Some((id, replica)) = up.min_by_key(|(id, replica)| (runs(slot.draft, replica) != Runs::Yes, *id))
    else {
        return Vec::new();
    };
    let Some((replacement, _)) = replacement else {
        return vec![PlanStep::SetLost { replica: id, lost: false }];
    };
    if replica.status.phase == Phase::Failed {
        return vec![set_desired(id, Desired::Stop)];
    }
    let active = slot.draft.node(replica.node).is_some_and(|node| node.availability == Availability::Active);
    if !active || replica.version != slot.service.current().version {
        return vec![set_desired(id, Desired::Retire), PlanStep::SetLost { replica: id, lost: false }];
    }
    vec![set_desired(replacement, Desired::Stop), PlanStep::SetLost { replica: id, lost: false }]
}

/// A superseded replica stops once its replacement runs, or when it has itself ended.
fn retire(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let replaced = slot
        .counting()
        .is_some_and(|(_, replica)| matches!(runs(slot.draft, replica), Runs::Yes | Runs::Ended));
    slot.rows
        .iter()
        .filter(|(_, replica)| replica.desired == Desired::Retire)
        .filter(|(_, replica)| replaced || replica.status.phase.is_final())
        .map(|&(id, _)| set_desired(id, Desired::Stop))
        .collect()
}

/// Failures are forgiven when the replica ran to its end or has run for long enough.
fn backoff_over(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    if !slot.service.backoff.contains_key(&slot.number) {
        return Vec::new();
    }
    let Some((id, replica)) = slot.counting() else { return Vec::new() };
    let since = match runs(slot.draft, replica) {
        Runs::Ended => return vec![forgive(slot)],
        Runs::Yes => slot.draft.observations().running_since(id).unwrap_or(slot.draft.now()),
        Runs::Unsure | Runs::No => return Vec::new(),
    };
    let due = since.after(RESTART_RESET_AFTER);
    if due <= slot.draft.now() {
        return vec![forgive(slot)];
    }
    pass.wake(due);
    Vec::new()
}

fn forgive(slot: &Slot<'_>) -> PlanStep {
    PlanStep::Backoff { service: slot.name.clone(), slot: slot.number, failures: 0, not_before: UtcMs(0) }
}

/// Puts a replica into a slot that has none: after its back-off, after its dependencies, where
/// one fits. On the node of an earlier replica that it must not meet, it waits for that to be gone.
fn fill(slot: &Slot<'_>, pass: &mut Pass) -> Decision {
    if let Some(backoff) = slot.service.backoff.get(&slot.number)
        && backoff.not_before > slot.draft.now()
    {
        pass.wake(backoff.not_before);
        return Decision::Wait(last_failure(slot, backoff.not_before));
    }
    if slot.rows.is_empty()
        && let Some(reason) = pass.dependencies(|| dependencies::missing(slot.draft, slot.service))
    {
        return Decision::Wait(reason);
    }
    let choice =
        pass.choice(slot, || scheduler::choose(slot.draft.nodes(), slot.draft.usage(), &slot.request()));
    let node = match choice {
        Ok(node) => node,
        Err(no_fit) => return Decision::Wait(no_fit.to_string()),
    };
    let rivals = slot.rows.iter().filter(|(_, replica)| replica.node == node);
    let apart = |replica: &Replica| {
        exclusive(slot.service.spec()) || slot.draft.spec_of(replica).is_some_and(exclusive)
    };
    let rivals: Vec<_> = rivals.filter(|(_, replica)| apart(replica)).collect();
    let mut steps: Vec<PlanStep> = rivals
        .iter()
        .filter(|(_, replica)| replica.desired != Desired::Stop)
        .map(|(id, _)| set_desired(*id, Desired::Stop))
        .collect();
    steps.push(slot.place(node, rivals.last().map(|(id, _)| *id)));
    Decision::Act(steps)
}

/// Why the last try failed and when the next is. Once the failed replica's row is gone, the
/// reason recorded while it was there stands.
fn last_failure(slot: &Slot<'_>, not_before: UtcMs) -> String {
    let next = format!("next try at {not_before}");
    let failed = slot.rows.iter().rev().find(|(_, replica)| replica.status.phase == Phase::Failed);
    if let Some((_, replica)) = failed {
        let node = slot.draft.named(replica.node);
        let message = replica.status.message.trim_end_matches('.');
        let why = match (message, replica.status.exit_code) {
            ("", Some(code)) => format!("it ended with code {code}"),
            ("", None) => "it said no reason".to_owned(),
            (message, _) => message.to_owned(),
        };
        return format!("last try failed on {node}: {why}; {next}");
    }
    match slot.service.pending.get(&slot.number) {
        Some(recorded) if recorded.ends_with(&next) => recorded.clone(),
        _ => format!("last try failed; {next}"),
    }
}

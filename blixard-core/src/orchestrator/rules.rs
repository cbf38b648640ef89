//! What happens to a slot's replicas before a place is looked for or anything is moved.
//!
//! Each rule answers the steps for one situation, or none, and relies on the rules before it in
//! [`RULES`] having none: a rule that sees a counting replica sees the only one, and one that
//! looks at lost replicas knows that the counting one is not on a node that is down.

use super::service::Pass;
use super::slot::{Slot, set_desired};
use super::{backoff, stranded};
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, NodeStatus, Phase, PlanStep, Replica};
use crate::limits::RESTART_RESET_AFTER;
use crate::readiness::{Readiness, has_arrived, is_proven, serves};
use crate::spec::ServiceSpec;
use crate::time::UtcMs;

type Rule = fn(&Slot<'_>, &mut Pass) -> Vec<PlanStep>;

/// The rules, in order.
pub(super) const RULES: [Rule; 9] =
    [forget, surplus, failed, superseded, misplaced, lose, returned, retire, backoff_over];

/// A row goes when nothing of it is left on its node, or when its node is no member any more. A
/// replica told to stop on a node that is down stays until the node says that it is gone, unless its
/// service is being removed: then the name is free at once, and the node removes what has no row.
fn forget(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let removing = slot.service.removing && slot.draft.state().knows(SECOND_LEVEL);
    let gone = |replica: &Replica| {
        let node = slot.status_of(replica);
        replica.status.phase == Phase::Gone || node.is_none() || removing && node == Some(NodeStatus::Down)
    };
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
        let kept =
            counting.clone().min_by_key(|(id, replica)| (slot.readiness(replica) != Readiness::Ready, *id));
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
/// an older version is replaced by the current one at once, unless that is held back. One that its
/// restart policy leaves as it ended keeps its slot.
fn failed(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    let failed = |replica: &Replica| replica.status.phase == Phase::Failed && !replica.is_over();
    let Some((id, replica)) = slot.counting().filter(|(_, replica)| failed(replica)) else {
        return Vec::new();
    };
    let stop = set_desired(id, Desired::Stop);
    if slot.is_outdated(replica) && pass.gate(slot.draft).stand_in(slot.number) != Some(replica.version) {
        // One that stands in is placed again, and waits for that like any.
        return if stranded::stands_in(slot, replica) {
            vec![stop, backoff::failure(slot)]
        } else {
            vec![stop]
        };
    }
    vec![backoff::failure(slot), stop]
}

/// A replica of an older version that never did its work holds nobody up: it stops, whatever it is
/// waiting for, and its slot is filled with the newest. One of a version that is proven elsewhere
/// waits for its turn instead: it may yet serve.
fn superseded(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    let useless = |replica: &Replica| {
        slot.is_outdated(replica)
            && !is_proven(slot.draft.state(), replica)
            && slot.readiness(replica) == Readiness::No
    };
    match slot.counting() {
        Some((id, replica)) if useless(replica) && !pass.gate(slot.draft).is_proven(replica.version) => {
            vec![set_desired(id, Desired::Stop)]
        }
        _ => Vec::new(),
    }
}

/// A replica stops where the primary copy of a volume that it mounts is elsewhere now: what it writes there
/// is no part of the volume any more, also when its node returns. One that ended for good writes no more.
fn misplaced(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let state = slot.draft.state();
    let away = |replica: &Replica| {
        let mounted = slot.draft.spec_of(replica).into_iter().flat_map(ServiceSpec::mounted_volumes);
        let mut primaries = mounted.filter_map(|name| state.volumes.get(name)?.primary);
        primaries.any(|primary| primary != replica.node)
    };
    let running = slot.rows.iter().filter(|(_, replica)| replica.desired != Desired::Stop);
    running
        .filter(|(_, replica)| !replica.is_over() && away(replica))
        .map(|&(id, _)| set_desired(id, Desired::Stop))
        .collect()
}

/// A counting replica on a node that is down is lost, unless the node announced that it would be
/// away. One that ended for good has nothing to lose.
fn lose(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    let Some((id, replica)) = slot.counting().filter(|(_, replica)| !replica.is_over()) else {
        return Vec::new();
    };
    if slot.status_of(replica) != Some(NodeStatus::Down) {
        return Vec::new();
    }
    match slot.held_until(replica) {
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
    match replacement.map(|(_, replica)| slot.readiness(replica)) {
        Some(Readiness::Ready | Readiness::Ended) => return stop_all(),
        Some(Readiness::Unsure) => return Vec::new(),
        Some(Readiness::No) | None => {}
    }
    let up = slot.lost().filter(|(_, replica)| slot.status_of(replica) == Some(NodeStatus::Up));
    let Some((id, replica)) =
        up.min_by_key(|(id, replica)| (slot.readiness(replica) != Readiness::Ready, *id))
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
    if !active || slot.is_outdated(replica) {
        return vec![set_desired(id, Desired::Retire), PlanStep::SetLost { replica: id, lost: false }];
    }
    vec![set_desired(replacement, Desired::Stop), PlanStep::SetLost { replica: id, lost: false }]
}

/// A superseded replica stops once another does its work, or when it has itself ended and is not
/// replaced, or when it never served: of several, the one that is proven goes on.
fn retire(slot: &Slot<'_>, _: &mut Pass) -> Vec<PlanStep> {
    let state = slot.draft.state();
    let retiring = || slot.rows.iter().filter(|(_, replica)| replica.desired == Desired::Retire);
    let kept = retiring().any(|(_, replica)| is_proven(state, replica) && serves(state, replica));
    let holder = slot.counting().map(|(_, replica)| replica);
    let done = |replica: &Replica| {
        let of_use = is_proven(state, replica) || !kept && slot.readiness(replica) != Readiness::No;
        let missed = stranded::is_missed(slot, replica);
        let enough = |holder: &Replica| !missed || is_proven(state, holder);
        replica.status.phase.is_final() && !missed
            || !of_use
            || holder.is_some_and(|holder| takes_over(slot, holder, replica) && enough(holder))
    };
    retiring().filter(|(_, replica)| done(replica)).map(|&(id, _)| set_desired(id, Desired::Stop)).collect()
}

/// Whether `holder` of a slot does the work of `old`, which it supersedes. One that runs the same is
/// known to: it has only to be ready.
fn takes_over(slot: &Slot<'_>, holder: &Replica, old: &Replica) -> bool {
    let moved = slot.service.same_containers(holder.version, old.version);
    match slot.readiness(holder) {
        Readiness::Ready => moved || is_proven(slot.draft.state(), holder),
        Readiness::Ended => has_arrived(slot.draft.state(), holder) || !serves(slot.draft.state(), old),
        Readiness::Unsure | Readiness::No => false,
    }
}

/// Failures are forgiven when the replica ran to its end or has run for long enough.
fn backoff_over(slot: &Slot<'_>, pass: &mut Pass) -> Vec<PlanStep> {
    if !slot.service.backoff.contains_key(&slot.number) {
        return Vec::new();
    }
    let Some((id, replica)) = slot.counting() else { return Vec::new() };
    let since = match slot.readiness(replica) {
        Readiness::Ended => return vec![forgive(slot)],
        Readiness::Ready => slot.draft.observations().running_since(id).unwrap_or(slot.draft.now()),
        Readiness::Unsure | Readiness::No => return Vec::new(),
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

//! Updates and drains: replacing replicas that run.
//!
//! Both take one slot of a service at a time. Start-first is the rule: the replacement is placed
//! while the old replica, superseded, runs on until the replacement does. An update is stop-first,
//! on the same node, when two replicas must not meet there (a writable volume, the host network)
//! or when the new one fits only into what the old one gives free. A drain is never stop-first:
//! what fits nowhere else stays and says so.
//!
//! How far an update may go is [`super::gate`]'s to say. A drain does not wait for that: a node can
//! be emptied of a service that fails elsewhere. It gives the replica that it moves the current
//! version, unless that is held back. What an update has superseded there is [`super::stranded`]'s.

use std::fmt::Display;

use super::service::Pass;
use super::slot::{Decision, Slot, Wait, exclusive, set_desired};
use super::waiting::Blocker;
use super::{backoff, stranded};
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, NodeStatus, Replica};
use crate::id::{NodeId, ReplicaId};
use crate::scheduler::{self, Claim, NoFit};
use crate::time::UtcMs;

/// What to do about a counting replica: nothing, or replace it because its node is being emptied
/// or its version is old. A node that is not up is asked for nothing.
pub(super) fn decide(slot: &Slot<'_>, pass: &mut Pass, id: ReplicaId, replica: &Replica) -> Decision {
    let Some(node) = slot.draft.node(replica.node).filter(|node| node.status == NodeStatus::Up) else {
        return Decision::Settled;
    };
    if let Some(decision) = stranded::decide(slot, pass, id, replica) {
        return decision;
    }
    let stands_in = stranded::stands_in(slot, replica);
    if node.availability != Availability::Active && !replica.is_over() {
        if !pass.admits_move_of(slot) {
            return Decision::Settled;
        }
        let gate = pass.gate(slot.draft);
        // What was proven nowhere would be superseded where it arrives.
        let proven = slot.is_outdated(replica) && gate.is_proven(replica.version);
        let held_back = gate.holds_back(slot.number);
        let failed = retry_at(slot, replica);
        let slot = match failed {
            _ if proven && (held_back || stands_in || failed.is_some()) => slot.aiming_at(replica.version),
            None => slot.clone(),
            Some(until) => {
                pass.wake(until);
                let version = slot.service.current().version;
                let why = format!("version {version} failed here, and is tried again at {until}");
                let reason = stays(slot.draft.named(replica.node), node.availability, why);
                return Decision::Wait(Wait::itself(reason));
            }
        };
        let mut drained = drain(&slot, pass, id, replica, node.availability);
        if proven && let Decision::Wait(wait) = &mut drained {
            // The new version fits nowhere else; the old one may.
            match drain(&slot.aiming_at(replica.version), pass, id, replica, node.availability) {
                Decision::Wait(older) => wait.blockers.extend(older.blockers),
                moved => return moved,
            }
        }
        return drained;
    }
    if let Some(until) = retry_at(slot, replica) {
        pass.wake(until);
        return Decision::Settled;
    }
    // What failed in this slot is tried again once what it supersedes serves for sure.
    if stands_in || stranded::awaits_proof(slot, replica) {
        return Decision::Settled;
    }
    if slot.is_outdated(replica) && pass.gate(slot.draft).admits_update_of(slot.number) {
        return update(slot, pass, id, replica);
    }
    Decision::Settled
}

/// Until when the newest version, which failed a moment ago where another stands in, waits for its
/// next try.
fn retry_at(slot: &Slot<'_>, stand_in: &Replica) -> Option<UtcMs> {
    let until = backoff::holds_until(slot.service, slot.number, slot.target)?;
    (slot.is_outdated(stand_in) && until > slot.draft.now()).then_some(until)
}

fn drain(
    slot: &Slot<'_>,
    pass: &mut Pass,
    id: ReplicaId,
    replica: &Replica,
    availability: Availability,
) -> Decision {
    match elsewhere(slot, pass, id) {
        Ok(node) => start_first(slot, id, node),
        Err(no_fit) => {
            let reason = stays(slot.draft.named(replica.node), availability, &no_fit);
            Decision::Wait(Wait::for_node(reason, &no_fit))
        }
    }
}

/// Why a replica is still on a node that is being emptied.
pub(super) fn stays(node: impl Display, availability: Availability, why: impl Display) -> String {
    let doing = if availability == Availability::Leaving { "leaving" } else { "draining" };
    format!("cannot move off {node}, which is {doing}: {why}")
}

fn update(slot: &Slot<'_>, pass: &mut Pass, id: ReplicaId, replica: &Replica) -> Decision {
    let request = slot.request();
    let apart = exclusive(slot.spec()) || slot.draft.spec_of(replica).is_some_and(exclusive);
    let mut no_fit = None;
    if !apart {
        match elsewhere(slot, pass, id) {
            Ok(node) => return start_first(slot, id, node),
            Err(reason) => no_fit = Some(reason),
        }
    }
    let mut without = slot.draft.usage().clone();
    without.remove(id);
    let nodes = slot.draft.nodes();
    if scheduler::fits(nodes, &without, &request, replica.node) {
        return stop_first(slot, id, replica.node, true);
    }
    match scheduler::choose(nodes, &without, &request) {
        Ok(node) => stop_first(slot, id, node, false),
        Err(reason) => {
            let version = slot.service.current().version;
            let told = format!("version {version} waits: {}", no_fit.as_ref().unwrap_or(&reason));
            let mut wait = Wait::for_node(told, &reason);
            // Where the old one is, less is missing than elsewhere.
            let claim = Claim::of(replica, slot.draft.spec_of(replica));
            wait.blockers.extend(reason.ask().map(|ask| Blocker::Node(ask.in_place_of(&claim))));
            Decision::Wait(wait)
        }
    }
}

/// The node for a replacement that starts while `old`, superseded, runs on.
fn elsewhere(slot: &Slot<'_>, pass: &mut Pass, old: ReplicaId) -> Result<NodeId, NoFit> {
    pass.choice(slot, || {
        let mut usage = slot.draft.usage().clone();
        usage.supersede(old);
        scheduler::choose(slot.draft.nodes(), &usage, &slot.request())
    })
}

fn start_first(slot: &Slot<'_>, old: ReplicaId, node: NodeId) -> Decision {
    let mut steps = vec![set_desired(old, Desired::Retire)];
    let (stops, last) = slot.make_way(node, Some(old));
    steps.extend(stops);
    steps.push(slot.place(node, last));
    Decision::Act(steps)
}

/// `here`: on the node of `old`, which the replacement then waits for.
fn stop_first(slot: &Slot<'_>, old: ReplicaId, node: NodeId, here: bool) -> Decision {
    let (stops, last) = slot.make_way(node, Some(old));
    let mut steps = vec![set_desired(old, Desired::Stop)];
    steps.extend(stops);
    steps.push(slot.place(node, if here { Some(old) } else { last }));
    Decision::Act(steps)
}

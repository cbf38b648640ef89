//! What an update leaves behind on a node that is being emptied, or loses before it is done.
//!
//! A superseded replica runs on until its successor is proven, wherever it is. Where that does not
//! come, its node would never be empty: the old one is moved then as it would be without the update.
//! Nor would anything serve in its slot, where its node goes down or it ends meanwhile: it is replaced
//! then as it would be without the update. In both cases a stand-in of its version takes the slot from
//! the successor, and the old one stops once the stand-in runs, a lost one once that is proven. The slot's
//! back-off remembers that the successor did not come: while the old one is there it is not tried again,
//! so that a stand-in is placed once; a newer version begins without it.
//!
//! Only an old one that was proven is moved or replaced: of another nothing is lost when it ends. Nor is
//! it where the successor, tried again, would have to stop the stand-in first: then it stays, and
//! serves, until the successor is proven or taken back.

use std::time::Duration;

use super::backoff;
use super::moves::stays;
use super::service::Pass;
use super::slot::{Decision, Slot, Wait, exclusive, set_desired};
use super::waiting::Blocker;
use crate::cluster::replica::Desired;
use crate::cluster::{Availability, NodeStatus, Phase, Replica};
use crate::id::{NodeId, ReplicaId};
use crate::readiness::{Readiness, is_proven, serves};
use crate::scheduler::{self, Claim, NoFit, NodeUsage};
use crate::time::UtcMs;

/// How long a successor that has not failed has until it is ready, while its predecessor holds up that
/// a node becomes empty.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(10);

/// What to do about a slot whose `holder`, of the current version, has a predecessor that is left behind:
/// nothing of its own while the holder may yet come.
pub(super) fn decide(slot: &Slot<'_>, pass: &mut Pass, id: ReplicaId, holder: &Replica) -> Option<Decision> {
    let old = left_behind(slot)?;
    if slot.is_outdated(holder) || slot.readiness(holder) == Readiness::Ready {
        return None;
    }
    if let Some(until) = slot.held_until(old) {
        pass.wake(until);
        return None;
    }
    let due = given_up_at(holder);
    if due > slot.draft.now() {
        pass.wake(due);
        return None;
    }
    if !pass.admits_move_of(slot) {
        return None;
    }
    let aimed = slot.aiming_at(old.version);
    match place_for(&aimed, Some(id)) {
        Ok(node) if leaves_room(slot, old, node, Some(id)) => {
            let stop = set_desired(id, Desired::Stop);
            let (stops, last) = aimed.make_way(node, None);
            let mut steps = vec![backoff::failure(slot), stop];
            steps.extend(stops);
            steps.push(aimed.place(node, last));
            Some(Decision::Act(steps))
        }
        // It may be moved itself.
        _ if is_emptied(slot, holder) => None,
        place => {
            let node = slot.draft.node(old.node)?;
            let current = slot.service.current().version;
            let why = match place {
                Ok(node) => {
                    format!("on {} version {current} would not fit beside it", slot.draft.named(node))
                }
                Err(no_fit) => no_fit.to_string(),
            };
            let named = slot.draft.named(old.node);
            let what = match () {
                () if has_ended(old) => format!("ended on {named}: {why}"),
                () if node.status == NodeStatus::Down => format!("is lost with {named}: {why}"),
                () => stays(named, node.availability, why),
            };
            let reason = format!("version {} {what}; version {current} is not proven", old.version);
            Some(Decision::Wait(Wait { reason, blockers: blockers(slot, Some(holder)) }))
        }
    }
}

/// The version that an empty slot is given instead of the current one, which failed in it, because a
/// replica of it is left behind and can be moved.
pub(super) fn stand_in(slot: &Slot<'_>, pass: &mut Pass) -> Option<u64> {
    let old = left_behind(slot).filter(|_| has_failed(slot))?;
    if let Some(until) = slot.held_until(old) {
        pass.wake(until);
        return None;
    }
    let node = place_for(&slot.aiming_at(old.version), None).ok()?;
    leaves_room(slot, old, node, None).then_some(old.version)
}

/// What has to be found for the one that is left behind to be moved: room for a stand-in and, beside that,
/// for the current version, once `holder` is gone.
pub(super) fn blockers(slot: &Slot<'_>, holder: Option<&Replica>) -> Vec<Blocker> {
    let Some(old) = left_behind(slot) else { return Vec::new() };
    let ask = |version| slot.aiming_at(version).request().ask(slot.draft.nodes());
    let mut asks = vec![ask(old.version), ask(slot.service.current().version)];
    if let Some(holder) = holder {
        let claim = Claim::of(holder, slot.draft.spec_of(holder));
        asks.extend(asks.clone().iter().map(|ask| ask.in_place_of(&claim)));
    }
    asks.into_iter().map(Blocker::Node).collect()
}

/// Whether a replica stands in for one that is left behind, also when that one's node fails meanwhile, and
/// the current version has had its turn.
pub(super) fn stands_in(slot: &Slot<'_>, replica: &Replica) -> bool {
    let mut old = superseded(slot);
    has_failed(slot) && old.any(|old| slot.service.same_containers(replica.version, old.version))
}

/// Whether a replica of an older version, in a slot where the current one failed, is ready and yet to be
/// proven. When it is ready for long enough, the failure is forgiven, and nothing waits any more.
pub(super) fn awaits_proof(slot: &Slot<'_>, replica: &Replica) -> bool {
    let current = slot.service.current().version;
    slot.is_outdated(replica)
        && backoff::holds_until(slot.service, slot.number, current).is_some()
        && slot.readiness(replica) == Readiness::Ready
        && !is_proven(slot.draft.state(), replica)
}

/// Whether a superseded replica is lost: it is kept until what takes its place is proven, for that is all
/// that tells which version served.
pub(super) fn is_missed(slot: &Slot<'_>, replica: &Replica) -> bool {
    is_gone(slot, replica) && superseded(slot).any(|old| std::ptr::eq(old, replica))
}

/// The superseded replica of an older version that served and is to be moved or replaced; one that serves
/// before one that does not any more.
fn left_behind<'a>(slot: &Slot<'a>) -> Option<&'a Replica> {
    let serves = |replica: &Replica| serves(slot.draft.state(), replica);
    let moved = superseded(slot).find(|replica| is_emptied(slot, replica) && serves(replica));
    moved.or_else(|| {
        let lost = superseded(slot).find(|replica| is_gone(slot, replica))?;
        // Another of the slot does its work.
        let others = slot.rows.iter().any(|(_, other)| other.status.proven && serves(other));
        (!others).then_some(lost)
    })
}

/// The superseded replicas of older versions, proven and free to run beside others, that are to leave
/// their nodes or are lost; the newest first.
fn superseded<'s, 'a>(slot: &'s Slot<'a>) -> impl Iterator<Item = &'a Replica> + 's {
    let free = |replica: &Replica| {
        slot.draft.spec_of(replica).is_some_and(|spec| !exclusive(spec)) && !exclusive(slot.service.spec())
    };
    let leaves = |replica: &Replica| {
        slot.draft.node(replica.node).is_some_and(|node| node.availability != Availability::Active)
    };
    let proven = |replica: &Replica| replica.desired == Desired::Retire && replica.status.proven;
    let rows = slot.rows.iter().rev().map(|(_, replica)| *replica);
    let gone = move |replica: &Replica| leaves(replica) || is_gone(slot, replica);
    rows.filter(move |replica| proven(replica) && slot.is_outdated(replica) && gone(replica) && free(replica))
}

/// Whether a replica ended and would be started again if it counted.
fn has_ended(replica: &Replica) -> bool {
    replica.status.phase == Phase::Failed && !replica.is_over()
}

/// Whether a replica ended or is on a node that is down.
fn is_gone(slot: &Slot<'_>, replica: &Replica) -> bool {
    let node = slot.draft.node(replica.node);
    has_ended(replica) || node.is_some_and(|node| node.status == NodeStatus::Down)
}

fn is_emptied(slot: &Slot<'_>, replica: &Replica) -> bool {
    slot.draft
        .node(replica.node)
        .is_some_and(|node| node.status == NodeStatus::Up && node.availability != Availability::Active)
}

fn has_failed(slot: &Slot<'_>) -> bool {
    slot.service.backoff.contains_key(&slot.number)
}

/// From when on a replica that is not ready is not waited for any more: once it has ended, or at last.
pub(super) fn given_up_at(replica: &Replica) -> UtcMs {
    let ended = replica.status.attempt > 0 || replica.status.phase >= Phase::Stopping;
    if ended { replica.created_at } else { replica.created_at.after(SUCCESSOR_WITHIN) }
}

/// The node for a replica of the slot's target version, once `gone` is.
fn place_for(slot: &Slot<'_>, gone: Option<ReplicaId>) -> Result<NodeId, NoFit> {
    scheduler::choose(slot.draft.nodes(), &without(slot, gone), &slot.request())
}

/// Whether the current version fits beside a stand-in for `old` on `node`, once `gone` is.
fn leaves_room(slot: &Slot<'_>, old: &Replica, node: NodeId, gone: Option<ReplicaId>) -> bool {
    let stand_in = Replica { node, desired: Desired::Retire, ..old.clone() };
    let mut usage = without(slot, gone);
    usage.set(slot.draft.state().next_replica, &stand_in, slot.draft.spec_of(old));
    let current = slot.aiming_at(slot.service.current().version);
    scheduler::choose(slot.draft.nodes(), &usage, &current.request()).is_ok()
}

fn without(slot: &Slot<'_>, gone: Option<ReplicaId>) -> NodeUsage {
    let mut usage = slot.draft.usage().clone();
    if let Some(gone) = gone {
        usage.remove(gone);
    }
    usage
}

//! Puts a replica into a slot that has none, or says what it waits for.

use super::service::Pass;
use super::slot::{Decision, Slot, Wait};
use super::waiting::Blocker;
use super::{backoff, dependencies, stranded};
use crate::cluster::Phase;
use crate::time::UtcMs;

/// Fills a slot that holds no counting replica: after its back-off, after its dependencies, where
/// one fits. On the node of an earlier replica that it must not meet, it waits for that to be gone.
///
/// While the current version is held back, it is one of the version that was proven before; so it is when
/// the current one failed here, and a replica of the other is to be moved.
pub(super) fn decide(slot: &Slot<'_>, pass: &mut Pass) -> Decision {
    let stand_in = pass.gate(slot.draft).stand_in(slot.number).or_else(|| stranded::stand_in(slot, pass));
    let slot = &slot.aiming_at(stand_in.unwrap_or(slot.target));
    if let Some(until) = backoff::holds_until(slot.service, slot.number, slot.target)
        && until > slot.draft.now()
    {
        pass.wake(until);
        return Decision::Wait(Wait {
            reason: last_failure(slot, until),
            blockers: stranded::blockers(slot, None),
        });
    }
    if slot.rows.is_empty()
        && let Some((on, reason)) =
            pass.dependencies(|| dependencies::missing(slot.draft.state(), slot.service))
    {
        let blockers = vec![Blocker::Dependency(on, reason.clone())];
        return Decision::Wait(Wait { reason, blockers });
    }
    let node = match pass.node_for(slot) {
        Ok(node) => node,
        Err(no_fit) => return Decision::Wait(Wait::for_node(no_fit.to_string(), &no_fit)),
    };
    let (mut steps, last) = slot.make_way(node, None);
    steps.push(slot.place(node, last));
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

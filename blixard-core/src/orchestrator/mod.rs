//! What the leader wants changed.
//!
//! [`plan`] compares what services ask for with the replicas that exist and answers the steps
//! that bring them together. It is a function of the state, of what the leader observed and of
//! log time; it changes nothing, waits for nothing and remembers nothing. The leader's driver
//! proposes the steps as one log entry and plans again when the state has changed or when
//! [`Report::wake_at`] has come.
//!
//! A plan made right after a plan is applied is empty, by construction: each service is planned
//! on a copy of the state, to which every step is applied as it will be, until nothing more is to
//! be done. Services
//! are taken in the order of their names, slots in the order of their numbers.
//!
//! Where the rules are: `rules` (what happens to a slot's replicas), `fill` (empty slots), `moves`
//! (updates and drains), `stranded` (where the two meet), `gate` (how far they may go),
//! `dependencies`, `backoff`; `replacing` (single replicas on demand, rebalancing), [`health`] (which
//! nodes are up) and [`membership`] (which nodes vote) are apart.

mod backoff;
mod dependencies;
mod draft;
mod fill;
mod gate;
pub mod health;
pub mod membership;
mod moves;
mod observations;
mod planner;
mod replacing;
mod report;
mod rules;
mod service;
mod slot;
mod stranded;
#[cfg(test)]
pub(crate) mod tests;
mod volumes;

use std::collections::BTreeMap;

use self::draft::Draft;
pub use self::observations::Observations;
pub use self::planner::Planner;
pub use self::replacing::{Move, rebalance, starts_first};
pub use self::report::{Report, ServiceReport};
use self::service::{Findings, plan_service};
use crate::cluster::{ClusterState, Plan, PlanStep};
use crate::id::ServiceName;
use crate::scheduler::NodeUsage;
use crate::text;
use crate::time::UtcMs;

/// How often services that wait are tried again within one plan, because a later service freed
/// what they wait for. What is left after that is done by the next plan.
const PASSES_MAX: usize = 8;

/// What to change so that every service is as it should be at log time `now`.
pub fn plan(state: &ClusterState, observations: &Observations, now: UtcMs) -> (Plan, Report) {
    let services = state.services.keys().cloned();
    plan_for(state, &NodeUsage::of(state), services, observations, now)
}

/// What to change so that `services` are as they should be at log time `now`; the others are left
/// alone and absent from the report. `usage` is that of `state`.
pub fn plan_for(
    state: &ClusterState,
    usage: &NodeUsage,
    services: impl IntoIterator<Item = ServiceName>,
    observations: &Observations,
    now: UtcMs,
) -> (Plan, Report) {
    let mut draft = Draft::new(state, usage, observations, now);
    let mut found: BTreeMap<ServiceName, Findings> = BTreeMap::new();
    let mut queue: Vec<ServiceName> = services.into_iter().collect();
    for volume in volumes::plan(&mut draft) {
        queue.extend(state.services_mounting(&volume).cloned());
    }
    queue.sort();
    queue.dedup();
    for _ in 0..PASSES_MAX {
        let before = draft.steps().len();
        for name in queue {
            if let Some(findings) = plan_service(&mut draft, &name) {
                found.insert(name, findings);
            }
        }
        if draft.steps().len() == before {
            break;
        }
        let waits = found.iter().filter(|(_, findings)| !findings.waits.is_empty());
        queue = waits.map(|(name, _)| name.clone()).collect();
    }
    // Where replicas were placed first, volumes are now.
    volumes::plan(&mut draft);
    for (name, findings) in &found {
        record_waits(&mut draft, name, findings);
    }
    let report = Report::new(&draft, &found);
    (Plan { steps: draft.into_steps() }, report)
}

/// Records why slots wait, where that changed.
fn record_waits(draft: &mut Draft<'_>, name: &ServiceName, findings: &Findings) {
    let Some(service) = draft.service(name) else { return };
    let waits: BTreeMap<u32, String> = findings
        .waits
        .iter()
        .map(|(slot, reason)| {
            let mut reason = reason.clone();
            text::cut(&mut reason);
            (*slot, reason)
        })
        .collect();
    let cleared = service.pending.keys().filter(|slot| !waits.contains_key(slot)).map(|&slot| (slot, None));
    let changed = waits
        .iter()
        .filter(|(slot, reason)| service.pending.get(slot) != Some(reason))
        .map(|(&slot, reason)| (slot, Some(reason.clone())));
    let mut changes: Vec<(u32, Option<String>)> = cleared.chain(changed).collect();
    changes.sort();
    for (slot, reason) in changes {
        let step = PlanStep::Pending { service: name.clone(), slot, reason };
        draft.take([step]).expect("reasons are recorded for wanted slots of services that exist");
    }
}

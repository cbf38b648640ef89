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
//! What it costs: `planner` (only what changed is planned), `waiting` (who waits, by what for), `agenda`
//! (whose turn it is), `wakes` (who is due by time).
//!
//! Where the rules are: `rules` (what happens to a slot's replicas), `fill` (empty slots), `moves`
//! (updates and drains), `stranded` (where the two meet), `gate` (how far they may go),
//! `dependencies`, `backoff`; `replacing` (single replicas on demand, rebalancing), [`health`] (which
//! nodes are up) and [`membership`] (which nodes vote) are apart.

mod agenda;
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
mod waiting;
mod wakes;

use std::collections::{BTreeMap, BTreeSet};

use self::agenda::Agenda;
use self::draft::Draft;
pub use self::observations::Observations;
pub use self::planner::Planner;
pub use self::replacing::{Move, rebalance, starts_first};
pub use self::report::{Report, ServiceReport};
use self::service::{Findings, plan_service};
use self::waiting::Waiting;
use crate::cluster::{ClusterState, Plan, PlanStep};
use crate::id::{ServiceName, VolumeName};
use crate::scheduler::NodeUsage;
use crate::text;
use crate::time::UtcMs;

/// How often services that wait are tried again within one plan, because a later service freed
/// what they wait for. What is left after that is done by the next plan.
const PASSES_MAX: usize = 8;

/// What to change so that every service is as it should be at log time `now`.
pub fn plan(state: &ClusterState, observations: &Observations, now: UtcMs) -> (Plan, Report) {
    let (mut waiting, services) = (Waiting::default(), state.services.keys().cloned().collect());
    let agenda = Agenda::new(&mut waiting, services, BTreeSet::new());
    let volumes = state.volumes.keys().cloned().collect();
    let made = plan_for(Draft::new(state, &NodeUsage::of(state), observations, now), agenda, &volumes);
    (made.plan, made.report)
}

/// What planning some services made.
struct Made {
    plan: Plan,
    report: Report,
    /// The services that were planned, also those that are no more.
    planned: BTreeSet<ServiceName>,
    /// The services that are due at once.
    rest: BTreeSet<ServiceName>,
    /// What the nodes hold once the plan is applied.
    usage: NodeUsage,
}

/// What to change so that `volumes` and the services of `agenda` are as they should be; the others are left
/// alone and absent from the report.
fn plan_for(mut draft: Draft<'_>, mut agenda: Agenda<'_>, volumes: &BTreeSet<VolumeName>) -> Made {
    let mut found: BTreeMap<ServiceName, Findings> = BTreeMap::new();
    let mut planned = BTreeSet::new();
    for volume in volumes::plan(&mut draft, volumes) {
        draft.state().services_mounting(&volume).for_each(|service| agenda.add(service.clone()));
    }
    for _ in 0..PASSES_MAX {
        let steps = draft.steps().len();
        let waits = found.iter().filter(|(_, findings)| !findings.waits.is_empty());
        agenda.begin_pass(&draft, waits.map(|(name, _)| name.clone()));
        while let Some(name) = agenda.turn(&draft) {
            let before = draft.usage().clone();
            let findings = plan_service(&mut draft, &name);
            let blockers = findings.as_ref().map(|findings| &findings.blockers);
            agenda.planned(&draft, &before, &name, blockers.unwrap_or(&BTreeSet::new()));
            match findings {
                Some(findings) => found.insert(name.clone(), findings),
                None => found.remove(&name),
            };
            planned.insert(name);
        }
        if draft.steps().len() == steps {
            break;
        }
    }
    // Where replicas were placed first, volumes are now.
    let placed = draft.changed_volumes();
    volumes::plan(&mut draft, &placed);
    for (name, findings) in &found {
        record_waits(&mut draft, name, findings);
    }
    let (report, usage) = (Report::new(&draft, &found), draft.usage().clone());
    Made { plan: Plan { steps: draft.into_steps() }, report, planned, rest: agenda.rest(), usage }
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

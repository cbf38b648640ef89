//! What planning found, for people and for the driver.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::draft::Draft;
use super::observations::Observations;
use super::service::Findings;
use crate::cluster::ClusterState;
use crate::cluster::replica::Desired;
use crate::id::ServiceName;
use crate::readiness::{Readiness, readiness};
use crate::scheduler::NodeUsage;
use crate::time::UtcMs;

/// What planning found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Each planned service, as it is once the plan is applied.
    pub services: BTreeMap<ServiceName, ServiceReport>,
    /// When each planned service has to be planned again though nothing changed.
    pub wakes: BTreeMap<ServiceName, UtcMs>,
}

impl Report {
    pub(super) fn new(draft: &Draft<'_>, found: &BTreeMap<ServiceName, Findings>) -> Self {
        let services = found.keys().filter_map(|name| Some((name.clone(), summarise(draft, name)?)));
        let wakes = found.iter().filter_map(|(name, findings)| Some((name.clone(), findings.wake_at?)));
        Self { services: services.collect(), wakes: wakes.collect() }
    }

    /// The earliest time at which to plan again though nothing changed: a back-off ends, a hold
    /// does, or a run has been long enough to forgive failures.
    pub fn wake_at(&self) -> Option<UtcMs> {
        self.wakes.values().min().copied()
    }
}

/// A service in numbers. [`fmt::Display`] makes one sentence of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceReport {
    /// How many replicas should run.
    pub wanted: u32,
    /// How many replicas count: they should run and are not lost.
    pub counting: u32,
    /// How many of those run, healthy where they are probed, on nodes that are up.
    pub running: u32,
    /// How many of those ran to their successful end.
    pub completed: u32,
    /// How many replicas are lost with their nodes and not yet replaced by one that runs.
    pub lost: u32,
    /// How many counting replicas have an older version than the current one.
    pub outdated: u32,
    /// Replicas on their way out: superseded, or told to stop and not gone.
    pub leaving: u32,
    /// Why slots do not have what they should.
    pub waits: BTreeMap<u32, String>,
}

impl ServiceReport {
    /// A service in numbers, from the state alone: any member can tell. Absent when there is no
    /// such service.
    pub fn of(state: &ClusterState, service: &ServiceName) -> Option<Self> {
        let observations = Observations::default();
        summarise(&Draft::new(state, &NodeUsage::default(), &observations, state.time), service)
    }
}

impl fmt::Display for ServiceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} replicas run", self.running, self.wanted)?;
        let parts = [
            (self.completed, "completed"),
            (self.lost, "lost"),
            (self.outdated, "of an older version"),
            (self.leaving, "on their way out"),
        ];
        for (count, what) in parts.iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        match self.waits.first_key_value() {
            None => Ok(()),
            Some((slot, reason)) => write!(f, "; slot {slot}: {reason}"),
        }
    }
}

fn summarise(draft: &Draft<'_>, name: &ServiceName) -> Option<ServiceReport> {
    let service = draft.service(name)?;
    let mut report =
        ServiceReport { wanted: service.wanted(), waits: service.pending.clone(), ..Default::default() };
    for (_, replica) in draft.state().replicas_of(name) {
        if replica.desired != Desired::Run {
            report.leaving += 1;
        } else if replica.lost_since.is_some() {
            report.lost += 1;
        } else {
            let state = readiness(draft.state(), replica);
            report.counting += 1;
            report.running += u32::from(state == Readiness::Ready);
            report.completed += u32::from(state == Readiness::Ended);
            report.outdated += u32::from(!service.runs_current(replica.version));
        }
    }
    Some(report)
}

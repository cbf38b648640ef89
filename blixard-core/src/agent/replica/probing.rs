//! Whether a container is healthy: probes, and what their results lead to.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::health::{Verdict, probe_port};
use super::{Action, At, Container, End, Replica, Shared};
use crate::cluster::Phase;
use crate::id::ReplicaId;
use crate::spec::{NetworkMode, RestartPolicy};

impl Replica {
    /// A probe passed, or `failed` for a reason.
    pub(in super::super) fn probed(&mut self, at: At, attempt: u32, failed: Option<&str>) {
        if attempt != self.status.attempt || self.status.phase != Phase::Running {
            return;
        }
        let (Some(health), Some(own)) = (&mut self.health, &self.assignment) else { return };
        match health.record(at.now, failed.is_none()) {
            Verdict::Undecided => {}
            Verdict::Healthy => {
                self.status.healthy = Some(true);
                self.status.message.clear();
                self.ready_since = self.ready_since.or(Some(at.now));
            }
            Verdict::Unhealthy { failures } => {
                let restarts =
                    !matches!(own.spec.restart.policy, RestartPolicy::Unsaid | RestartPolicy::Never);
                let ran = match (health.has_passed(), self.containers.get(&attempt)) {
                    (true, Some(&Container::Running { since, .. })) => at.now.since(since),
                    _ => Duration::ZERO,
                };
                let known = self.status.healthy.replace(false) == Some(false);
                self.ready_since = None;
                let why = failed.unwrap_or_default();
                if restarts && !self.should_go() {
                    let end = End { code: None, ran, by_itself: true };
                    self.end(at, end, format!("unhealthy: {failures} probes in a row failed: {why}"));
                } else if !known {
                    // The first reason is kept: a report with every probe would say little more.
                    self.status.message = format!("its probes fail: {why}");
                }
            }
        }
    }

    pub(super) fn probe(&mut self, id: ReplicaId, at: At, shared: &mut Shared<'_>) {
        let (Some(own), Some(health)) = (&self.assignment, &mut self.health) else { return };
        let address = match own.spec.network {
            NetworkMode::Host => Some(Ipv4Addr::LOCALHOST),
            NetworkMode::Bridge => self.status.address,
        };
        let (Some(address), Some(_)) = (address, probe_port(&own.spec)) else { return };
        if health.begin(at.now) {
            let (attempt, spec) = (self.status.attempt, own.spec.clone());
            shared.actions.push(Action::Probe { replica: id, attempt, address, spec });
        }
    }
}

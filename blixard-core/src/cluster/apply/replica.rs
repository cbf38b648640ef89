//! Replicas: what their agents report, and their end.

use std::collections::BTreeMap;

use super::{About, Answer};
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::replica::{PULL_FAILED, START_FAILED};
use crate::cluster::service::VersionFailure;
use crate::cluster::{ClusterState, Desired, EventKind, Outcome, Phase, Refusal, Replica, ReplicaStatus};
use crate::id::{NodeId, ReplicaId};
use crate::limits::STOP_TIMEOUT_S_MAX;

/// How much of a failure's message is kept with its version, in characters.
const FAILURE_CHARS_MAX: usize = 500;

/// What a reported status does to the one known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transition {
    /// Nothing: it is older than what is known, or contradicts an end.
    Ignored,
    /// It takes the place of what is known.
    Taken,
    /// Nothing of a replica that should run is left: it failed, and its slot is to be replaced.
    Failed,
    /// Nothing is left of a replica that is not to run: its row goes.
    Removed,
}

/// The legal transitions. `(attempt, phase)` only rises; an end is final, but for its traces
/// being gone.
fn transition(desired: Desired, known: &ReplicaStatus, told: &ReplicaStatus) -> Transition {
    let rises = (told.attempt, told.phase) >= (known.attempt, known.phase);
    let ended = known.phase.is_final();
    match (told.phase, desired) {
        _ if !rises => Transition::Ignored,
        (Phase::Gone, Desired::Retire | Desired::Stop) => Transition::Removed,
        (Phase::Gone, Desired::Run) if ended => Transition::Ignored,
        (Phase::Gone, Desired::Run) => Transition::Failed,
        (phase, _) if ended && (told.attempt, phase) != (known.attempt, known.phase) => Transition::Ignored,
        _ => Transition::Taken,
    }
}

impl Replica {
    fn about(&self, id: ReplicaId) -> About {
        About { service: Some(self.service.clone()), replica: Some(id), node: Some(self.node) }
    }

    fn label(&self) -> String {
        format!("{}-{}", self.service, self.slot)
    }
}

impl ClusterState {
    /// Takes in what an agent tells of its own replicas. Rows it no longer has are passed over:
    /// the agent learns of that from its own copy of the state.
    pub(super) fn report(&mut self, node: NodeId, statuses: &BTreeMap<ReplicaId, ReplicaStatus>) -> Answer {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::not_found("node", node));
        }
        for (id, told) in statuses {
            let Some(row) = self.replicas.get(id).filter(|row| row.node == node) else { continue };
            match transition(row.desired, &row.status, told) {
                Transition::Ignored => {}
                Transition::Taken => self.set_status(*id, told.clone()),
                Transition::Failed => self.set_status(*id, lost_container(told)),
                Transition::Removed => self.drop_replica(*id, "gone from its node"),
            }
        }
        Ok(Outcome::Done)
    }

    fn set_status(&mut self, id: ReplicaId, mut status: ReplicaStatus) {
        self.bound(&mut status.message);
        let Some(row) = self.replicas.get_mut(&id) else { return };
        // A proof stands: an agent that lost its memory tells of none.
        status.proven |= row.status.proven;
        if row.status == status {
            return;
        }
        let proven = status.proven && !row.status.proven;
        let failure = (!status.proven).then(|| failure(&row.status, &status)).flatten();
        let shown = |status: &ReplicaStatus| (status.attempt, status.phase, status.healthy);
        let told = shown(&row.status) != shown(&status);
        row.status = status;
        if told {
            let message = describe(row);
            let about = row.about(id);
            self.emit(EventKind::ReplicaChanged, about, message);
        }
        if self.knows(SECOND_LEVEL) && (proven || failure.is_some()) {
            self.note_version(id, failure);
        }
    }

    /// Keeps with its version that a replica was proven, or (with `failure`) failed before it was.
    fn note_version(&mut self, id: ReplicaId, failure: Option<String>) {
        let Some(row) = self.replicas.get(&id) else { return };
        let (number, at) = (row.version, self.time);
        let message = failure.map(|how| {
            let mut message = format!("{} on node {}: {how}", row.label(), row.node);
            self.bound(&mut message);
            message
        });
        let Some(service) = self.services.get_mut(&row.service) else { return };
        let Some(version) = service.versions.iter_mut().find(|kept| kept.version == number) else { return };
        version.failure = message.map(|message| VersionFailure { at, message });
        if version.failure.is_none() {
            version.proven_at = version.proven_at.or(Some(at));
        }
    }

    pub(super) fn stop_replica(&mut self, id: ReplicaId, timeout_s: Option<u32>) -> Answer {
        check_stop_timeout(timeout_s)?;
        if !self.replicas.contains_key(&id) {
            return Err(Refusal::not_found("replica", id));
        }
        self.stop_row(id);
        self.bound_stop(id, timeout_s);
        Ok(Outcome::Done)
    }

    /// Gives a replica that stops another time to end than its version's.
    pub(super) fn bound_stop(&mut self, id: ReplicaId, timeout_s: Option<u32>) {
        let Some(row) = self.replicas.get_mut(&id).filter(|row| row.desired == Desired::Stop) else { return };
        row.stop_timeout_s = timeout_s.or(row.stop_timeout_s);
    }

    pub(super) fn replace(&mut self, id: ReplicaId) -> Answer {
        let row = self.replicas.get(&id).ok_or_else(|| Refusal::not_found("replica", id))?;
        if row.desired != Desired::Run {
            return Err(Refusal::conflict(format!("{} is being replaced or stopped already", row.label())));
        }
        if self.lower_desired(id, Desired::Retire) {
            self.tell_replica(EventKind::ReplicaChanged, id, "is to be replaced");
        }
        Ok(Outcome::Done)
    }

    /// Has a replica stop, unless it does already.
    pub(super) fn stop_row(&mut self, id: ReplicaId) {
        if self.lower_desired(id, Desired::Stop) {
            self.tell_replica(EventKind::ReplicaChanged, id, "is to stop");
        }
    }

    /// Removes a replica's row.
    pub(super) fn drop_replica(&mut self, id: ReplicaId, why: &str) {
        if let Some(row) = self.remove_replica(id) {
            let message = format!("{} on node {} is removed: {why}", row.label(), row.node);
            self.emit(EventKind::ReplicaRemoved, row.about(id), message);
        }
    }

    pub(super) fn tell_replica(&mut self, kind: EventKind, id: ReplicaId, what: &str) {
        if let Some(row) = self.replicas.get(&id) {
            let (about, message) = (row.about(id), format!("{} on node {} {what}", row.label(), row.node));
            self.emit(kind, about, message);
        }
    }
}

/// Checks the time that replicas are given to end.
pub(super) fn check_stop_timeout(timeout_s: Option<u32>) -> Result<(), Refusal> {
    match timeout_s {
        Some(seconds) if seconds > STOP_TIMEOUT_S_MAX => {
            Err(Refusal::out_of_bounds(format!("a stop may take 0 to {STOP_TIMEOUT_S_MAX} s, not {seconds}")))
        }
        _ => Ok(()),
    }
}

/// How a replica failed, when `told` is news of a failure after `known`.
fn failure(known: &ReplicaStatus, told: &ReplicaStatus) -> Option<String> {
    let fails = match told.phase {
        Phase::Waiting | Phase::Failed => true,
        Phase::Pulling | Phase::Starting => {
            told.message.starts_with(PULL_FAILED) || told.message.starts_with(START_FAILED)
        }
        Phase::Running => told.healthy == Some(false),
        Phase::Assigned | Phase::Stopping | Phase::Completed | Phase::Gone => false,
    };
    let news = (known.attempt, known.phase, &known.message) != (told.attempt, told.phase, &told.message);
    (fails && news).then(|| {
        // When it is tried again is soon no longer true.
        let what = told.message.rsplit_once("; ").filter(|(_, next)| next.contains("ing again at "));
        let what = what.map_or(told.message.as_str(), |(what, _)| what);
        match (what, told.exit_code) {
            ("", Some(code)) => format!("exited with code {code}"),
            ("", None) => "failed".to_owned(),
            (what, _) => what.chars().take(FAILURE_CHARS_MAX).collect(),
        }
    })
}

/// What becomes of a replica that should run and whose container somebody removed.
fn lost_container(told: &ReplicaStatus) -> ReplicaStatus {
    let message = if told.message.is_empty() {
        "its container was removed from the node".to_owned()
    } else {
        told.message.clone()
    };
    ReplicaStatus { phase: Phase::Failed, healthy: None, address: None, message, ..told.clone() }
}

fn describe(row: &Replica) -> String {
    let status = &row.status;
    let doing = match status.phase {
        Phase::Assigned => "is assigned",
        Phase::Pulling => "pulls its image",
        Phase::Starting => "starts",
        Phase::Running if status.healthy == Some(false) => "runs and is unhealthy",
        Phase::Running if status.healthy == Some(true) => "runs and is healthy",
        Phase::Running => "runs",
        Phase::Stopping => "stops",
        Phase::Waiting => "ended and waits to start again",
        Phase::Completed => "completed",
        Phase::Failed => "failed",
        Phase::Gone => "is gone",
    };
    let attempt = if status.attempt > 0 { format!(" (attempt {})", status.attempt) } else { String::new() };
    let code = status.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    let detail = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    format!("{} on node {} {doing}{attempt}{code}{detail}", row.label(), row.node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Write;
    use crate::cluster::testing::{Cluster, assert_refused, place, spec, status};

    #[test]
    fn a_status_only_moves_forward() {
        use Desired::{Retire, Run, Stop};
        use Phase::*;
        use Transition::*;
        let check = |desired, known: (u32, Phase), told: (u32, Phase), expect: Transition| {
            let found = transition(desired, &status(known.0, known.1), &status(told.0, told.1));
            assert_eq!(found, expect, "{desired:?} {known:?} {told:?}");
        };
        check(Run, (0, Assigned), (0, Pulling), Taken);
        check(Run, (0, Running), (0, Running), Taken);
        check(Run, (0, Running), (0, Starting), Ignored);
        check(Run, (1, Starting), (0, Waiting), Ignored);
        check(Run, (0, Waiting), (1, Starting), Taken);
        check(Run, (0, Running), (0, Completed), Taken);
        check(Run, (0, Completed), (0, Phase::Failed), Ignored);
        check(Run, (0, Completed), (1, Starting), Ignored);
        check(Run, (0, Phase::Failed), (0, Phase::Failed), Taken);
        check(Run, (0, Running), (0, Gone), Transition::Failed);
        check(Run, (1, Running), (0, Gone), Ignored);
        check(Run, (0, Completed), (0, Gone), Ignored);
        check(Run, (0, Phase::Failed), (0, Gone), Ignored);
        check(Retire, (0, Running), (0, Gone), Removed);
        check(Stop, (0, Phase::Failed), (0, Gone), Removed);
        check(Stop, (2, Completed), (2, Gone), Removed);
        check(Stop, (2, Stopping), (1, Gone), Ignored);
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(2);
        cluster.submit(spec("web", 1, 1));
        cluster.planned(vec![place("web", 0, 1, 1)]);
        cluster
    }

    fn row(cluster: &Cluster) -> &Replica {
        &cluster.state.replicas[&ReplicaId(1)]
    }

    #[test]
    fn changes_are_told_and_details_are_not() {
        let mut cluster = cluster();
        let running = status(0, Phase::Running);
        cluster.report(1, 1, running.clone());
        assert_eq!(cluster.events(), ["web-0 on node 1 runs"]);
        cluster.report(1, 1, ReplicaStatus { address: Some([10, 210, 0, 5].into()), ..running.clone() });
        assert_eq!(cluster.events(), Vec::<&str>::new());
        cluster.report(1, 1, ReplicaStatus { healthy: Some(false), ..running.clone() });
        assert_eq!(cluster.events(), ["web-0 on node 1 runs and is unhealthy"]);
        cluster.report(1, 1, ReplicaStatus { exit_code: Some(3), ..status(0, Phase::Waiting) });
        assert_eq!(cluster.events(), ["web-0 on node 1 ended and waits to start again, exit code 3"]);
        cluster.report(1, 1, status(1, Phase::Starting));
        assert_eq!(cluster.events(), ["web-0 on node 1 starts (attempt 1)"]);
    }

    #[test]
    fn only_a_replicas_own_node_tells_of_it() {
        let mut cluster = cluster();
        assert_eq!(cluster.report(2, 1, status(0, Phase::Running)), Outcome::Done);
        assert_eq!(row(&cluster).status.phase, Phase::Assigned);
        assert_eq!(cluster.report(1, 9, status(0, Phase::Running)), Outcome::Done);
        assert_refused(cluster.report(3, 1, status(0, Phase::Running)), "no node `3`");
    }

    #[test]
    fn a_container_gone_while_it_should_run_has_failed() {
        let mut cluster = cluster();
        cluster.report(1, 1, status(0, Phase::Running));
        cluster.report(1, 1, status(0, Phase::Gone));
        assert_eq!(row(&cluster).status.phase, Phase::Failed);
        assert_eq!(row(&cluster).status.message, "its container was removed from the node");
        cluster.write(Write::StopReplica { replica: ReplicaId(1), timeout_s: None });
        cluster.report(1, 1, status(0, Phase::Gone));
        assert!(cluster.state.replicas.is_empty());
        assert_eq!(cluster.events(), ["web-0 on node 1 is removed: gone from its node"]);
    }

    #[test]
    fn texts_are_cut_once_every_member_cuts_them() {
        let long = || "x".repeat(6 << 20);
        for level in [1, 2] {
            let mut cluster = cluster();
            cluster.state.level = level;
            let max = if level == 1 { usize::MAX } else { crate::limits::TEXT_BYTES_MAX };
            cluster.report(1, 1, ReplicaStatus { message: long(), ..status(0, Phase::Running) });
            assert_eq!(row(&cluster).status.message.len(), max.min(long().len()), "level {level}");
            let pending = crate::cluster::PlanStep::Pending {
                service: "web".parse().expect("a name"),
                slot: 0,
                reason: Some(long()),
            };
            cluster.planned(vec![pending]);
            let longest = cluster.state.events.iter().map(|event| event.message.len()).max();
            assert!(longest.is_some_and(|longest| (longest <= max) && longest > 1_000), "level {level}");
            let service = cluster.state.services.values().next().expect("a service");
            assert!(service.pending.values().all(|reason| reason.len() <= max), "level {level}");
            let name = cluster.write(Write::SetAvailability {
                node: NodeId(99),
                availability: crate::cluster::Availability::Active,
            });
            assert_refused(name, "no node `99`");
        }
    }

    #[test]
    fn what_a_node_tells_of_itself_is_bounded_once_every_member_bounds_it() {
        for level in [1, 2] {
            let mut cluster = cluster();
            cluster.state.level = level;
            let mut facts = cluster.state.nodes[&NodeId(1)].facts.clone();
            facts.labels = (0..500).map(|n| (format!("label-{n}"), "x".repeat(50))).collect();
            let answer =
                cluster.apply(vec![crate::cluster::Command::Facts { node: NodeId(1), facts }]).remove(0);
            match level {
                1 => assert_eq!(answer, Outcome::Done),
                _ => assert_refused(answer, "at most 12288 are kept"),
            }
        }
    }

    #[test]
    fn a_state_that_fills_a_snapshot_takes_no_more() {
        assert_eq!(ClusterState::check_room(64 << 20), Ok(()));
        let refused =
            ClusterState::check_room(crate::limits::SNAPSHOT_BYTES_MAX - 1).expect_err("it is full");
        assert!(refused.to_string().contains("at most 1024 MiB are held"), "{refused}");
    }

    #[test]
    fn a_stop_may_bound_the_time_it_takes() {
        let mut cluster = cluster();
        let stop = |timeout_s| Write::StopReplica { replica: ReplicaId(1), timeout_s };
        assert_refused(cluster.write(stop(Some(3_601))), "0 to 3600 s, not 3601");
        assert_eq!(cluster.desired(1), Some(Desired::Run));
        cluster.write(stop(None));
        assert_eq!(row(&cluster).stop_timeout_s, None);
        cluster.write(stop(Some(2)));
        assert_eq!(row(&cluster).stop_timeout_s, Some(2));
        cluster.write(stop(None));
        assert_eq!(row(&cluster).stop_timeout_s, Some(2), "who says nothing takes nothing back");
        cluster.write(Write::Stop { service: row(&cluster).service.clone(), timeout_s: Some(0) });
        assert_eq!(row(&cluster).stop_timeout_s, Some(0));
        let levels = [stop(None).level(), stop(Some(0)).level()];
        assert_eq!(levels, [1, 2]);
    }

    #[test]
    fn a_stopped_replica_leaves_its_slot() {
        let mut cluster = cluster();
        assert_eq!(
            cluster.write(Write::StopReplica { replica: ReplicaId(1), timeout_s: None }),
            Outcome::Done
        );
        assert_eq!(cluster.desired(1), Some(Desired::Stop));
        cluster.planned(vec![place("web", 0, 1, 2)]);
        assert_refused(
            cluster.write(Write::StopReplica { replica: ReplicaId(7), timeout_s: None }),
            "no replica `7`",
        );
    }
}

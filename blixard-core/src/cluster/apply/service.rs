//! Services: submission, scaling, stopping, removal.
//!
//! How many replicas are wanted is settled here, and with it which slots are surplus: their
//! replicas are told to stop at once. Filling empty slots is the leader's plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::vector;

use super::replica::check_stop_timeout;
use super::{About, Answer, submission};
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::{ClusterState, Desired, EventKind, Outcome, Refusal, Replica, Service, ServiceVersion};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::ServiceSpec;

impl ClusterState {
    pub(super) fn submit(&mut self, spec: &Arc<ServiceSpec>, origin: NodeId) -> Answer {
        let spec = &self.completed(spec);
        let name = &spec.name;
        let Some(service) = self.services.get(name) else {
            submission::check(self, spec, origin)?;
            return Ok(self.create_service(spec, origin));
        };
        check_stays(name, service)?;
        if service.spec() == spec.as_ref() {
            return Ok(self.submit_again(name, origin));
        }
        submission::check(self, spec, origin)?;
        Ok(self.change_service(spec, origin, None))
    }

    fn create_service(&mut self, spec: &Arc<ServiceSpec>, origin: NodeId) -> Outcome {
        self.make_volumes(spec);
        let first = ServiceVersion::new(1, Arc::clone(spec), self.time);
        let service = Service {
            versions: vector![first],
            desired: spec.replicas.min,
            suspended: false,
            removing: false,
            origin,
            backoff: BTreeMap::new(),
            pending: BTreeMap::new(),
            created_at: self.time,
        };
        self.services.insert(spec.name.clone(), service);
        self.settle_versions(&spec.name);
        self.tell_service(EventKind::ServiceSubmitted, &spec.name, "was submitted");
        Outcome::Service { version: 1, changed: true }
    }

    /// The same specification once more: it changes nothing, but runs a stopped service again and
    /// gives one whose volumes' node was removed a new home.
    fn submit_again(&mut self, name: &ServiceName, origin: NodeId) -> Outcome {
        let origin = self.origin_after(name, origin);
        let mut changed = false;
        let mut version = 0;
        if let Some(service) = self.services.get_mut(name) {
            version = service.current().version;
            let moved = service.origin != origin && service.spec().is_pinned();
            changed = service.suspended || moved;
            service.origin = origin;
            if service.suspended {
                service.suspended = false;
                service.backoff.clear();
            }
        }
        if changed {
            self.tell_service(EventKind::ServiceChanged, name, "was submitted again");
        }
        Outcome::Service { version, changed }
    }

    /// Another specification: a new version, or, where nothing but the bounds differs, the current one
    /// with other bounds, since a version replaces every container.
    fn change_service(
        &mut self,
        spec: &Arc<ServiceSpec>,
        origin: NodeId,
        rollback_of: Option<u64>,
    ) -> Outcome {
        let (name, now) = (&spec.name, self.time);
        self.make_volumes(spec);
        let origin = self.origin_after(name, origin);
        let (mut version, mut kind, mut told) = (0, EventKind::ServiceChanged, String::new());
        if let Some(service) = self.services.get_mut(name) {
            version = service.current().version;
            if service.spec().differs_in_replicas_only(spec)
                && let Some(current) = service.versions.back_mut()
            {
                current.spec = Arc::clone(spec);
                told = format!("now takes {} to {} replicas", spec.replicas.min, spec.replicas.max);
            } else {
                version += 1;
                let new = ServiceVersion::new(version, Arc::clone(spec), now);
                service.versions.push_back(ServiceVersion { rollback_of, ..new });
                let back = rollback_of.map(|old| format!(", as version {old} was")).unwrap_or_default();
                (kind, told) = (EventKind::ServiceSubmitted, format!("is now version {version}{back}"));
            }
            service.desired = service.desired.clamp(spec.replicas.min, spec.replicas.max);
            service.suspended = false;
            service.origin = origin;
            service.backoff.clear();
        }
        self.settle_versions(name);
        self.stop_surplus(name);
        self.tell_service(kind, name, &told);
        Outcome::Service { version, changed: true }
    }

    /// Takes up again what an earlier version asked for, as a new version. How many replicas there
    /// are is not part of it: the bounds stay.
    pub(super) fn roll_back(&mut self, name: &ServiceName, version: Option<u64>) -> Answer {
        let service = self.service_to_change(name)?;
        let target = match version {
            Some(number) => service
                .versions
                .iter()
                .find(|kept| kept.version == number)
                .ok_or_else(|| Refusal::not_found("version", number))?,
            None => service.previous().ok_or_else(|| {
                Refusal::conflict(format!(
                    "`{name}` has no earlier version that runs something else: `blixard service history {name}` lists what is kept"
                ))
            })?,
        };
        let (number, bounds, origin) = (target.version, service.spec().replicas, service.origin);
        let spec = Arc::new(ServiceSpec { replicas: bounds, ..target.spec.as_ref().clone() });
        if service.spec() == spec.as_ref() {
            return Ok(self.submit_again(name, origin));
        }
        submission::check(self, &spec, origin)?;
        Ok(self.change_service(&spec, origin, Some(number)))
    }

    /// Has the replicas of a service that ended for good start anew: they stop, and their slots are
    /// filled. Of the second feature level.
    fn renew_ended(&mut self, name: &ServiceName) {
        if !self.knows(SECOND_LEVEL) {
            return;
        }
        let over = |(_, row): &(ReplicaId, &Replica)| row.desired == Desired::Run && row.is_over();
        let ended: Vec<ReplicaId> = self.replicas_of(name).filter(over).map(|(id, _)| id).collect();
        for replica in ended {
            self.stop_row(replica);
        }
    }

    /// Where a service's host volumes are after it is submitted on `origin`: where they were, as
    /// long as it had any and that node is a member. An update from elsewhere moves no data.
    fn origin_after(&self, name: &ServiceName, origin: NodeId) -> NodeId {
        match self.services.get(name) {
            Some(service) if service.spec().is_pinned() && self.nodes.contains_key(&service.origin) => {
                service.origin
            }
            _ => origin,
        }
    }

    pub(super) fn scale(&mut self, name: &ServiceName, replicas: u32) -> Answer {
        let service = self.service_to_change(name)?;
        let bounds = service.spec().replicas;
        if !(bounds.min..=bounds.max).contains(&replicas) {
            let (bound, verb) = if replicas > bounds.max { ("max", "raise") } else { ("min", "lower") };
            return Err(Refusal::out_of_bounds(format!(
                "`{name}` takes {} to {} replicas, not {replicas}: {verb} replicas.{bound} in its bundle",
                bounds.min, bounds.max
            )));
        }
        if service.desired != replicas {
            service.desired = replicas;
            self.stop_surplus(name);
            self.tell_service(EventKind::ServiceChanged, name, &format!("is scaled to {replicas}"));
        }
        self.renew_ended(name);
        Ok(Outcome::Done)
    }

    pub(super) fn stop_service(&mut self, name: &ServiceName, timeout_s: Option<u32>) -> Answer {
        check_stop_timeout(timeout_s)?;
        let service = self.service_to_change(name)?;
        if !service.suspended {
            service.suspended = true;
            self.stop_surplus(name);
            self.tell_service(EventKind::ServiceChanged, name, "was stopped");
        }
        let replicas: Vec<ReplicaId> = self.replicas_of(name).map(|(id, _)| id).collect();
        for replica in replicas {
            self.bound_stop(replica, timeout_s);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn start_service(&mut self, name: &ServiceName) -> Answer {
        let service = self.service_to_change(name)?;
        if service.suspended {
            service.suspended = false;
            service.backoff.clear();
            self.tell_service(EventKind::ServiceChanged, name, "was started");
        }
        self.renew_ended(name);
        Ok(Outcome::Done)
    }

    /// The service stays, as removing, until its last replica is gone and a plan forgets it.
    pub(super) fn remove_service(&mut self, name: &ServiceName) -> Answer {
        let service = self.services.get_mut(name).ok_or_else(|| Refusal::not_found("service", name))?;
        if !service.removing {
            service.removing = true;
            self.stop_surplus(name);
            self.tell_service(EventKind::ServiceChanged, name, "is being removed");
        }
        Ok(Outcome::Done)
    }

    fn service_to_change(&mut self, name: &ServiceName) -> Result<&mut Service, Refusal> {
        let service = self.services.get_mut(name).ok_or_else(|| Refusal::not_found("service", name))?;
        check_stays(name, service)?;
        Ok(service)
    }

    /// Stops the replicas in slots that are no longer wanted, and forgets what was kept of those
    /// slots. Afterwards every replica that counts is in a wanted slot.
    fn stop_surplus(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get_mut(name) else { return };
        let wanted = service.wanted();
        service.pending.retain(|slot, _| *slot < wanted);
        service.backoff.retain(|slot, _| *slot < wanted);
        let surplus: Vec<ReplicaId> = self.replicas_from(name, wanted, u32::MAX).map(|(id, _)| id).collect();
        for replica in surplus {
            self.stop_row(replica);
        }
    }

    pub(super) fn tell_service(&mut self, kind: EventKind, name: &ServiceName, what: &str) {
        self.emit(kind, About::service(name), format!("{name} {what}"));
    }
}

fn check_stays(name: &ServiceName, service: &Service) -> Result<(), Refusal> {
    if service.removing {
        return Err(Refusal::conflict(format!(
            "`{name}` is being removed: wait until its replicas are gone, then submit it again"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::service::VersionFailure;
    use crate::cluster::testing::{
        Cluster, assert_refused, marked, name, place, publishing, spec, status, with_volume,
    };
    use crate::cluster::{Phase, PlanStep, Write};
    use crate::limits::SERVICE_VERSIONS_MAX;
    use crate::time::UtcMs;

    fn answered(version: u64, changed: bool) -> Outcome {
        Outcome::Service { version, changed }
    }

    fn scale(replicas: u32) -> Write {
        Write::Scale { service: name("web"), replicas }
    }

    fn stop() -> Write {
        Write::Stop { service: name("web"), timeout_s: None }
    }

    fn remove() -> Write {
        Write::Remove { service: name("web") }
    }

    fn web(cluster: &Cluster) -> &Service {
        &cluster.state.services[&name("web")]
    }

    /// Three replicas of `web`, of 1 to 5, on one node.
    fn three() -> Cluster {
        let mut cluster = Cluster::of(1);
        cluster.submit(spec("web", 1, 5));
        cluster.write(scale(3));
        cluster.planned((0..3).map(|slot| place("web", slot, 1, 1)).collect());
        cluster
    }

    #[test]
    fn the_same_specification_is_the_same_version() {
        let mut cluster = Cluster::of(1);
        assert_eq!(cluster.submit(spec("web", 2, 5)), answered(1, true));
        assert_eq!(web(&cluster).desired, 2);
        assert_eq!(cluster.submit(spec("web", 2, 5)), answered(1, false));
        assert_eq!(cluster.events(), Vec::<&str>::new());
        assert_eq!(cluster.submit(marked(1, spec("web", 3, 5))), answered(2, true));
        assert_eq!(web(&cluster).desired, 3);
    }

    #[test]
    fn other_bounds_are_no_version() {
        let mut cluster = three();
        assert_eq!(cluster.submit(spec("web", 2, 9)), answered(1, true));
        assert_eq!(cluster.events(), ["web now takes 2 to 9 replicas"]);
        assert_eq!((web(&cluster).desired, web(&cluster).spec().replicas.max), (3, 9));
        assert_eq!(cluster.write(scale(9)), Outcome::Done);
        cluster.write(stop());
        assert_eq!(cluster.submit(spec("web", 1, 2)), answered(1, true));
        assert_eq!(web(&cluster).wanted(), 2);
        assert_eq!(cluster.submit(marked(1, spec("web", 1, 3))), answered(2, true));
    }

    #[test]
    fn submitting_a_stopped_service_runs_it_again() {
        let mut cluster = three();
        cluster.write(stop());
        assert_eq!(cluster.submit(spec("web", 1, 5)), answered(1, true));
        assert_eq!(web(&cluster).wanted(), 3);
        cluster.write(stop());
        assert_eq!(cluster.submit(marked(1, spec("web", 1, 4))), answered(2, true));
        assert_eq!(web(&cluster).wanted(), 3);
    }

    #[test]
    fn desired_moves_into_new_bounds_and_surplus_replicas_stop() {
        let check = |min, max, desired, stopped: &[u64]| {
            let mut cluster = three();
            cluster.submit(spec("web", min, max));
            assert_eq!(web(&cluster).desired, desired);
            for replica in 1..=3 {
                let expect = if stopped.contains(&replica) { Desired::Stop } else { Desired::Run };
                assert_eq!(cluster.desired(replica), Some(expect), "{min}..{max} replica {replica}");
            }
        };
        check(1, 9, 3, &[]);
        check(4, 9, 4, &[]);
        check(1, 2, 2, &[3]);
        check(1, 1, 1, &[2, 3]);
    }

    #[test]
    fn scaling_stays_within_the_bounds_and_names_them() {
        let mut cluster = three();
        assert_refused(
            cluster.write(scale(9)),
            "`web` takes 1 to 5 replicas, not 9: raise replicas.max in its bundle",
        );
        assert_refused(cluster.write(scale(0)), "lower replicas.min");
        assert_eq!(cluster.write(scale(1)), Outcome::Done);
        assert_eq!(
            [1, 2, 3].map(|id| cluster.desired(id)),
            [Some(Desired::Run), Some(Desired::Stop), Some(Desired::Stop)]
        );
        assert_refused(cluster.write(Write::Scale { service: name("api"), replicas: 1 }), "no service `api`");
    }

    #[test]
    fn what_was_kept_of_a_slot_goes_with_it() {
        let mut cluster = three();
        let pending =
            |slot| PlanStep::Pending { service: name("web"), slot, reason: Some("full".to_owned()) };
        let backoff =
            |slot| PlanStep::Backoff { service: name("web"), slot, failures: 1, not_before: UtcMs(0) };
        cluster.write(scale(5));
        cluster.planned(vec![pending(3), pending(4), backoff(2), backoff(4)]);
        cluster.write(scale(4));
        assert_eq!(web(&cluster).pending.keys().copied().collect::<Vec<_>>(), [3]);
        cluster.write(stop());
        assert!(web(&cluster).pending.is_empty() && web(&cluster).backoff.is_empty());
    }

    #[test]
    fn a_stopped_service_starts_again() {
        let mut cluster = three();
        assert_eq!(cluster.write(stop()), Outcome::Done);
        assert_eq!(cluster.desired(1), Some(Desired::Stop));
        assert_eq!(cluster.plan(vec![place("web", 0, 1, 1)]), ["`web` is stopped"]);
        assert_eq!(cluster.write(Write::Start { service: name("web") }), Outcome::Done);
        cluster.planned(vec![place("web", 0, 1, 1)]);
    }

    #[test]
    fn a_removed_service_stays_until_its_last_replica_is_gone() {
        let mut cluster = three();
        let forget = || vec![PlanStep::ForgetService { service: name("web") }];
        assert_eq!(cluster.plan(forget()), ["`web` is not being removed"]);
        assert_eq!(cluster.write(remove()), Outcome::Done);
        assert_eq!(cluster.write(remove()), Outcome::Done);
        for outcome in [
            cluster.submit(spec("web", 1, 5)),
            cluster.write(scale(2)),
            cluster.write(stop()),
            cluster.write(Write::Start { service: name("web") }),
        ] {
            assert_refused(outcome, "is being removed");
        }
        assert_eq!(cluster.plan(forget()), ["`web` still has replica 1"]);
        for replica in 1..=3 {
            cluster.report(1, replica, status(0, Phase::Gone));
        }
        cluster.planned(forget());
        assert_eq!(cluster.submit(spec("web", 1, 5)), answered(1, true));
    }

    #[test]
    fn old_versions_are_kept_for_rollback_and_while_they_run() {
        let mut cluster = three();
        for mark in 6..=12 {
            cluster.submit(marked(mark, spec("web", 1, 5)));
        }
        let kept = |cluster: &Cluster| web(cluster).versions.iter().map(|v| v.version).collect::<Vec<_>>();
        assert_eq!(kept(&cluster), [1, 5, 6, 7, 8]);
        assert_eq!(kept(&cluster).len(), SERVICE_VERSIONS_MAX);
        for replica in 1..=3 {
            cluster.write(Write::StopReplica { replica: ReplicaId(replica), timeout_s: None });
            cluster.report(1, replica, status(0, Phase::Gone));
        }
        cluster.submit(marked(13, spec("web", 1, 5)));
        assert_eq!(kept(&cluster), [5, 6, 7, 8, 9]);
    }

    #[test]
    fn who_names_no_version_goes_back_to_none_that_failed() {
        let target = |versions: &[(u32, bool, bool)]| {
            let mut cluster = Cluster::of(1);
            for (mark, ..) in versions {
                cluster.submit(marked(*mark, spec("web", 1, 5)));
            }
            let service = cluster.state.services.get_mut(&name("web")).expect("it was submitted");
            for (version, (_, proven, failed)) in service.versions.iter_mut().zip(versions) {
                version.proven_at = proven.then_some(UtcMs(1));
                version.failure = failed.then(|| VersionFailure { at: UtcMs(1), message: String::new() });
            }
            web(&cluster).rollback_target().map(|version| version.version)
        };
        let (good, bad, unknown) = ((true, false), (false, true), (false, false));
        let of = |mark: u32, (proven, failed)| (mark, proven, failed);
        assert_eq!(target(&[of(1, good), of(2, good), of(3, bad), of(4, bad)]), Some(2));
        assert_eq!(target(&[of(1, good), of(2, bad), of(1, good)]), None, "what it went back from failed");
        assert_eq!(target(&[of(1, bad), of(2, bad)]), None);
        assert_eq!(target(&[of(1, unknown), of(2, bad), of(3, unknown)]), Some(1), "of an earlier release");
    }

    #[test]
    fn a_port_is_held_until_the_last_replica_that_publishes_it_is_gone() {
        let mut cluster = Cluster::of(1);
        cluster.submit(publishing(spec("web", 1, 1), &[80]));
        cluster.planned(vec![place("web", 0, 1, 1)]);
        cluster.submit(publishing(spec("web", 1, 1), &[81]));
        assert_refused(cluster.submit(publishing(spec("api", 1, 1), &[80])), "belongs to service `web`");
        cluster.write(Write::StopReplica { replica: ReplicaId(1), timeout_s: None });
        cluster.report(1, 1, status(0, Phase::Gone));
        assert_eq!(cluster.submit(publishing(spec("api", 1, 1), &[80])), answered(1, true));
        cluster.write(remove());
        cluster.planned(vec![PlanStep::ForgetService { service: name("web") }]);
        assert_eq!(cluster.submit(publishing(spec("b", 1, 1), &[81])), answered(1, true));
    }

    #[test]
    fn host_volumes_stay_where_they_are_while_that_node_is_a_member() {
        let mut cluster = Cluster::of(3);
        cluster.submit_on(1, spec("web", 1, 1));
        cluster.submit_on(2, with_volume(spec("web", 1, 1)));
        assert_eq!(web(&cluster).origin, NodeId(2));
        cluster.submit_on(3, marked(1, with_volume(spec("web", 1, 2))));
        assert_eq!(web(&cluster).origin, NodeId(2));
        cluster.write(Write::RemoveNode { node: NodeId(2), force: true });
        assert_eq!(cluster.submit_on(3, marked(1, with_volume(spec("web", 1, 2)))), answered(3, true));
        assert_eq!(web(&cluster).origin, NodeId(3));
    }
}

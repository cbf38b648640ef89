//! Services: submission, scaling, stopping, removal.
//!
//! How many replicas are wanted is settled here, and with it which slots are surplus: their
//! replicas are told to stop at once. Filling empty slots is the leader's plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::vector;

use super::{About, Answer, submission};
use crate::cluster::{ClusterState, EventKind, Outcome, Refusal, Service, ServiceVersion};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::ServiceSpec;

impl ClusterState {
    pub(super) fn submit(&mut self, spec: &Arc<ServiceSpec>, origin: NodeId) -> Answer {
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
        Ok(self.add_version(spec, origin))
    }

    fn create_service(&mut self, spec: &Arc<ServiceSpec>, origin: NodeId) -> Outcome {
        let first = ServiceVersion { version: 1, spec: Arc::clone(spec), submitted_at: self.time };
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
            let moved = service.origin != origin && !service.spec().volumes.is_empty();
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

    fn add_version(&mut self, spec: &Arc<ServiceSpec>, origin: NodeId) -> Outcome {
        let (name, now) = (&spec.name, self.time);
        let origin = self.origin_after(name, origin);
        let mut version = 0;
        if let Some(service) = self.services.get_mut(name) {
            version = service.current().version + 1;
            service.versions.push_back(ServiceVersion { version, spec: Arc::clone(spec), submitted_at: now });
            service.desired = service.desired.clamp(spec.replicas.min, spec.replicas.max);
            service.suspended = false;
            service.origin = origin;
            service.backoff.clear();
        }
        self.settle_versions(name);
        self.stop_surplus(name);
        self.tell_service(EventKind::ServiceSubmitted, name, &format!("is now version {version}"));
        Outcome::Service { version, changed: true }
    }

    /// Where a service's host volumes are after it is submitted on `origin`: where they were, as
    /// long as it had any and that node is a member. An update from elsewhere moves no data.
    fn origin_after(&self, name: &ServiceName, origin: NodeId) -> NodeId {
        match self.services.get(name) {
            Some(service)
                if !service.spec().volumes.is_empty() && self.nodes.contains_key(&service.origin) =>
            {
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
        Ok(Outcome::Done)
    }

    pub(super) fn stop_service(&mut self, name: &ServiceName) -> Answer {
        let service = self.service_to_change(name)?;
        if !service.suspended {
            service.suspended = true;
            self.stop_surplus(name);
            self.tell_service(EventKind::ServiceChanged, name, "was stopped");
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

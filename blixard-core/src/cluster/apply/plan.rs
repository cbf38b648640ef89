//! Plans: each step is checked against the state as it is now, and dropped with its reason when
//! it no longer holds. A dropped step stops no other.

use super::About;
use crate::cluster::index::claims;
use crate::cluster::service::SlotBackoff;
use crate::cluster::{
    Availability, ClusterState, Desired, EventKind, Node, NodeStatus, Outcome, Phase, Plan, PlanStep,
    Replica, ReplicaStatus, Service,
};
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::{NetworkMode, ServiceSpec};
use crate::time::UtcMs;

/// Whether a step was applied, or why it was dropped.
type Step = Result<(), String>;

/// A replica to be made.
struct Placement<'a> {
    service: &'a ServiceName,
    slot: u32,
    version: u64,
    node: NodeId,
    after: Option<ReplicaId>,
}

impl ClusterState {
    pub(super) fn plan(&mut self, plan: &Plan) -> Outcome {
        let mut dropped = Vec::new();
        for (position, step) in (0..).zip(&plan.steps) {
            if let Err(reason) = self.step(step) {
                dropped.push((position, reason));
            }
        }
        Outcome::Planned { dropped }
    }

    /// Applies one step of a plan; the leader's planner tries its steps on a copy with it.
    ///
    /// # Errors
    /// Why the step does not hold; then nothing changed.
    pub(crate) fn step(&mut self, step: &PlanStep) -> Step {
        match step {
            PlanStep::Place { service, slot, version, node, after } => {
                let placement =
                    Placement { service, slot: *slot, version: *version, node: *node, after: *after };
                self.place(&placement)
            }
            PlanStep::SetDesired { replica, desired } => self.set_desired(*replica, *desired),
            PlanStep::SetLost { replica, lost: true } => self.set_lost(*replica),
            PlanStep::SetLost { replica, lost: false } => self.set_found(*replica),
            PlanStep::Forget { replica } => self.forget(*replica),
            PlanStep::Backoff { service, slot, failures, not_before } => {
                self.set_backoff(service, *slot, *failures, *not_before)
            }
            PlanStep::Pending { service, slot, reason } => {
                self.set_pending(service, *slot, reason.as_deref())
            }
            PlanStep::ForgetService { service } => self.forget_service(service),
        }
    }

    fn place(&mut self, placement: &Placement<'_>) -> Step {
        let Placement { service, slot, version, node, .. } = *placement;
        let after = self.check_placement(placement)?;
        let id = self.next_replica;
        self.next_replica = ReplicaId(id.0 + 1);
        let row = Replica {
            service: service.clone(),
            slot,
            version,
            node,
            desired: Desired::Run,
            lost_since: None,
            after,
            status: ReplicaStatus::assigned(),
            created_at: self.time,
        };
        self.insert_replica(id, row);
        if let Some(service) = self.services.get_mut(service) {
            service.pending.remove(&slot);
        }
        self.tell_replica(EventKind::ReplicaPlaced, id, &format!("is placed, version {version}"));
        Ok(())
    }

    /// Checks a placement and answers which replica it is to wait for, if that is still there.
    fn check_placement(&self, placement: &Placement<'_>) -> Result<Option<ReplicaId>, String> {
        let Placement { service: name, slot, version, node: node_id, after } = *placement;
        let service = self.wanted_slot(name, slot)?;
        let current = service.current();
        if version != current.version {
            return Err(format!("`{name}` is at version {}, not {version}", current.version));
        }
        if let Some((holder, _)) = self.counting_in(name, slot) {
            return Err(format!("slot {slot} of `{name}` is held by replica {holder}"));
        }
        let node = self.placeable(node_id)?;
        if !current.spec.volumes.is_empty() && node_id != service.origin {
            return Err(format!("the host volumes of `{name}` are on node {}", service.origin));
        }
        self.check_fits(node_id, node, &current.spec)?;
        let after = self.check_after(placement, after)?;
        self.check_ports(placement, &current.spec, after)?;
        Ok(after)
    }

    fn placeable(&self, id: NodeId) -> Result<&Node, String> {
        let node = self.nodes.get(&id).ok_or_else(|| format!("there is no node {id}"))?;
        if node.status != NodeStatus::Up {
            return Err(format!("node {id} is not up"));
        }
        if node.availability != Availability::Active {
            return Err(format!("node {id} takes no replicas"));
        }
        Ok(node)
    }

    fn check_fits(&self, id: NodeId, node: &Node, spec: &ServiceSpec) -> Step {
        let (reserved, asked, facts) = (self.reserved_on(id), spec.reservations, &node.facts);
        let check = |what: &str, reserved: u64, asked: u64, capacity: u64| {
            let free = capacity.saturating_sub(reserved);
            if asked > free {
                return Err(format!("node {id} has {free} {what} free, `{}` reserves {asked}", spec.name));
            }
            Ok(())
        };
        check("thousandths of a CPU", reserved.cpu_millis, asked.cpu_millis, facts.cpu_millis)?;
        check("bytes of memory", reserved.memory_bytes, asked.memory_bytes, facts.memory_bytes)
    }

    fn check_after(
        &self,
        placement: &Placement<'_>,
        after: Option<ReplicaId>,
    ) -> Result<Option<ReplicaId>, String> {
        let Some((id, row)) = after.and_then(|id| Some((id, self.replicas.get(&id)?))) else {
            return Ok(None);
        };
        if row.service != *placement.service || row.slot != placement.slot {
            return Err(format!("replica {id} is in another slot than the one that is to follow it"));
        }
        Ok(Some(id))
    }

    /// Replicas of one service share a published port on a node, unless one of them listens on
    /// the node's own network: then the other must have ended, or be the one it waits for.
    fn check_ports(&self, placement: &Placement<'_>, spec: &ServiceSpec, after: Option<ReplicaId>) -> Step {
        let Placement { service: name, node, .. } = *placement;
        for (port, protocol) in claims(spec) {
            if self.port_claim(port, protocol) != Some(name) {
                return Err(format!("port {port}/{protocol} is not `{name}`'s"));
            }
        }
        if claims(spec).next().is_none() {
            return Ok(());
        }
        let rival = self.replicas_of(name).find(|(id, row)| {
            row.node == node
                && Some(*id) != after
                && !row.status.phase.is_final()
                && self.spec_of(row).is_some_and(|other| collide(spec, other))
        });
        match rival {
            Some((id, _)) => Err(format!("replica {id} listens on node {node} itself, on the same port")),
            None => Ok(()),
        }
    }

    fn set_desired(&mut self, id: ReplicaId, desired: Desired) -> Step {
        let row = self.row(id)?;
        if desired < row.desired {
            return Err(format!("replica {id} is to {}, and that is not taken back", verb(row.desired)));
        }
        if self.lower_desired(id, desired) {
            let what = format!("is to {}", verb(desired));
            self.tell_replica(EventKind::ReplicaChanged, id, &what);
        }
        Ok(())
    }

    fn set_lost(&mut self, id: ReplicaId) -> Step {
        let row = self.row(id)?;
        if self.nodes.get(&row.node).is_some_and(|node| node.status != NodeStatus::Down) {
            return Err(format!("node {} is not down", row.node));
        }
        if row.lost_since.is_none() {
            let now = self.time;
            self.set_lost_since(id, Some(now));
            self.tell_replica(EventKind::ReplicaLost, id, "is lost: the node is down");
        }
        Ok(())
    }

    fn set_found(&mut self, id: ReplicaId) -> Step {
        let row = self.row(id)?;
        if row.lost_since.is_none() {
            return Ok(());
        }
        if self.nodes.get(&row.node).is_none_or(|node| node.status != NodeStatus::Up) {
            return Err(format!("node {} is not up", row.node));
        }
        if row.desired == Desired::Run
            && let Some((holder, _)) = self.counting_in(&row.service, row.slot)
        {
            return Err(format!("replica {holder} has taken the place of replica {id}"));
        }
        self.set_lost_since(id, None);
        self.tell_replica(EventKind::ReplicaChanged, id, "is back: the node returned");
        Ok(())
    }

    fn set_lost_since(&mut self, id: ReplicaId, since: Option<UtcMs>) {
        if let Some(row) = self.replicas.get_mut(&id) {
            row.lost_since = since;
        }
    }

    /// A row is forgotten only where no container can be left behind it.
    fn forget(&mut self, id: ReplicaId) -> Step {
        let row = self.row(id)?;
        if row.desired != Desired::Stop {
            return Err(format!("replica {id} is not to stop"));
        }
        if self.nodes.contains_key(&row.node) && row.status.phase != Phase::Gone {
            return Err(format!("the container of replica {id} may still be on node {}", row.node));
        }
        self.drop_replica(id, "nothing of it is left");
        Ok(())
    }

    fn set_backoff(&mut self, name: &ServiceName, slot: u32, failures: u32, not_before: UtcMs) -> Step {
        self.wanted_slot(name, slot)?;
        if let Some(service) = self.services.get_mut(name) {
            if failures == 0 {
                service.backoff.remove(&slot);
            } else {
                service.backoff.insert(slot, SlotBackoff { failures, not_before });
            }
        }
        Ok(())
    }

    fn set_pending(&mut self, name: &ServiceName, slot: u32, reason: Option<&str>) -> Step {
        let Some(reason) = reason else {
            if let Some(service) = self.services.get_mut(name) {
                service.pending.remove(&slot);
            }
            return Ok(());
        };
        let service = self.wanted_slot(name, slot)?;
        if service.pending.get(&slot).is_some_and(|known| known == reason) {
            return Ok(());
        }
        if let Some(service) = self.services.get_mut(name) {
            service.pending.insert(slot, reason.to_owned());
        }
        self.emit(EventKind::SlotPending, About::service(name), format!("{name}.{slot} waits: {reason}"));
        Ok(())
    }

    fn forget_service(&mut self, name: &ServiceName) -> Step {
        let service = self.services.get(name).ok_or_else(|| format!("there is no service `{name}`"))?;
        if !service.removing {
            return Err(format!("`{name}` is not being removed"));
        }
        if let Some((id, _)) = self.replicas_of(name).next() {
            return Err(format!("`{name}` still has replica {id}"));
        }
        self.release_ports(name);
        self.services.remove(name);
        self.tell_service(EventKind::ServiceRemoved, name, "was removed");
        Ok(())
    }

    fn row(&self, id: ReplicaId) -> Result<&Replica, String> {
        self.replicas.get(&id).ok_or_else(|| format!("there is no replica {id}"))
    }

    /// The service, when a replica should run in `slot` of it.
    fn wanted_slot(&self, name: &ServiceName, slot: u32) -> Result<&Service, String> {
        let service = self.services.get(name).ok_or_else(|| format!("there is no service `{name}`"))?;
        if service.removing {
            return Err(format!("`{name}` is being removed"));
        }
        if service.suspended {
            return Err(format!("`{name}` is stopped"));
        }
        if slot >= service.desired {
            return Err(format!(
                "`{name}` wants {} replicas, slot {slot} is not among them",
                service.desired
            ));
        }
        Ok(service)
    }
}

/// Whether two replicas of a service cannot listen on one node at once.
fn collide(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    let shares_network = a.network == NetworkMode::Bridge && b.network == NetworkMode::Bridge;
    !shares_network && claims(a).any(|claim| claims(b).any(|other| other == claim))
}

fn verb(desired: Desired) -> &'static str {
    match desired {
        Desired::Run => "run",
        Desired::Retire => "retire",
        Desired::Stop => "stop",
    }
}

//! Plans: each step is checked against the state as it is now, and dropped with its reason when
//! it no longer holds. A dropped step stops no other.

use super::About;
use super::placement::Placement;
use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::service::SlotBackoff;
use crate::cluster::{
    ClusterState, Desired, EventKind, NodeStatus, Outcome, Phase, Plan, PlanStep, Replica, Service,
};
use crate::id::{ReplicaId, ServiceName};
use crate::time::UtcMs;

/// Whether a step was applied, or why it was dropped.
pub(super) type Step = Result<(), String>;

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
                let (slot, version, node, after) = (*slot, *version, *node, *after);
                self.place(&Placement { service, slot, version, node, after, older: false })
            }
            PlanStep::PlaceOlder { service, slot, version, node, after } => {
                let (slot, version, node, after) = (*slot, *version, *node, *after);
                self.place(&Placement { service, slot, version, node, after, older: true })
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
            PlanStep::AddVolumeCopy { volume, node } => self.add_copy(volume, *node),
            PlanStep::PromoteVolume { volume, node } => self.promote(volume, *node),
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
        if row.desired == Desired::Run {
            if let Some((holder, _)) = self.counting_in(&row.service, row.slot) {
                return Err(format!("replica {holder} has taken the place of replica {id}"));
            }
            let (service, slot) = (row.service.clone(), row.slot);
            self.clear_pending(&service, slot);
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
        let mut why = "nothing of it is left".to_owned();
        if let Some(node) = self.nodes.get(&row.node).filter(|_| row.status.phase != Phase::Gone) {
            // The agent of a node that returns removes what has no row: a service that is removed
            // need not wait for it.
            let removing = self.services.get(&row.service).is_some_and(|service| service.removing);
            if !(removing && node.status == NodeStatus::Down && self.knows(SECOND_LEVEL)) {
                return Err(format!("the container of replica {id} may still be on node {}", row.node));
            }
            why = format!("node {} is down: what is left of it there stops when the node returns", row.node);
        }
        self.drop_replica(id, &why);
        Ok(())
    }

    fn set_backoff(&mut self, name: &ServiceName, slot: u32, failures: u32, not_before: UtcMs) -> Step {
        self.wanted_slot(name, slot)?;
        let failed = self.counting_in(name, slot).map(|(_, row)| row.version);
        let version = failed.filter(|_| self.knows(SECOND_LEVEL));
        if let Some(service) = self.services.get_mut(name) {
            if failures == 0 {
                service.backoff.remove(&slot);
            } else {
                service.backoff.insert(slot, SlotBackoff { failures, not_before, version });
            }
        }
        Ok(())
    }

    fn set_pending(&mut self, name: &ServiceName, slot: u32, reason: Option<&str>) -> Step {
        let Some(reason) = reason else {
            self.clear_pending(name, slot);
            return Ok(());
        };
        let mut reason = reason.to_owned();
        self.bound(&mut reason);
        let service = self.wanted_slot(name, slot)?;
        if service.pending.get(&slot).is_some_and(|known| *known == reason) {
            return Ok(());
        }
        if let Some(service) = self.services.get_mut(name) {
            service.pending.insert(slot, reason.clone());
        }
        self.emit(EventKind::SlotPending, About::service(name), format!("{name}-{slot} waits: {reason}"));
        Ok(())
    }

    pub(super) fn clear_pending(&mut self, name: &ServiceName, slot: u32) {
        if let Some(service) = self.services.get_mut(name) {
            service.pending.remove(&slot);
        }
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
    pub(super) fn wanted_slot(&self, name: &ServiceName, slot: u32) -> Result<&Service, String> {
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

fn verb(desired: Desired) -> &'static str {
    match desired {
        Desired::Run => "run",
        Desired::Retire => "retire",
        Desired::Stop => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Command;
    use crate::cluster::level::FIRST_LEVEL;
    use crate::cluster::testing::{Cluster, desire, name, place, spec, status, two_nodes};
    use crate::spec::{Reservations, ServiceSpec};

    fn web(cluster: &Cluster) -> &Service {
        &cluster.state.services[&name("web")]
    }

    fn lost(replica: u64, lost: bool) -> PlanStep {
        PlanStep::SetLost { replica: ReplicaId(replica), lost }
    }

    #[test]
    fn a_dropped_step_stops_no_other() {
        let mut cluster = two_nodes();
        let steps = vec![place("web", 0, 1, 2), place("web", 1, 1, 2)];
        let outcome = cluster.command(Command::Plan(Plan { steps: steps.clone() }));
        let dropped = vec![(0, "slot 0 of `web` is held by replica 1".to_owned())];
        assert_eq!(outcome, Outcome::Planned { dropped });
        assert_eq!(cluster.events(), ["web-1 on node 2 is placed, version 1"]);
        assert_eq!(cluster.plan(steps).len(), 2, "the same plan again places nothing");
    }

    #[test]
    fn desired_is_only_lowered() {
        let mut cluster = two_nodes();
        cluster.planned(vec![desire(1, Desired::Retire), desire(1, Desired::Retire)]);
        let kept = "replica 1 is to retire, and that is not taken back";
        assert_eq!(cluster.plan(vec![desire(1, Desired::Run)]), [kept]);
        cluster.planned(vec![desire(1, Desired::Stop)]);
        assert_eq!(cluster.plan(vec![desire(9, Desired::Stop)]), ["there is no replica 9"]);
    }

    #[test]
    fn a_lost_replica_gives_way_and_comes_back_only_to_an_empty_slot() {
        let mut cluster = two_nodes();
        assert_eq!(cluster.plan(vec![lost(1, true)]), ["node 1 is not down"]);
        cluster.health(1, NodeStatus::Down);
        cluster.planned(vec![lost(1, true), place("web", 0, 1, 2)]);
        assert!(cluster.state.replicas[&ReplicaId(1)].lost_since.is_some());
        assert_eq!(cluster.plan(vec![lost(1, false)]), ["node 1 is not up"]);
        cluster.health(1, NodeStatus::Up);
        assert_eq!(cluster.plan(vec![lost(1, false)]), ["replica 2 has taken the place of replica 1"]);
        cluster.planned(vec![desire(2, Desired::Stop), lost(1, false)]);
        assert_eq!(cluster.state.counting_in(&name("web"), 0).map(|(id, _)| id), Some(ReplicaId(1)));
    }

    #[test]
    fn a_slot_whose_replica_came_back_waits_no_more() {
        let mut cluster = two_nodes();
        cluster.health(1, NodeStatus::Down);
        let reason = Some("no node fits".to_owned());
        cluster.planned(vec![lost(1, true), PlanStep::Pending { service: name("web"), slot: 0, reason }]);
        cluster.health(1, NodeStatus::Up);
        cluster.planned(vec![lost(1, false)]);
        assert!(web(&cluster).pending.is_empty());
    }

    #[test]
    fn a_lost_replica_keeps_its_place_on_its_node() {
        let mut cluster = Cluster::of(2);
        let reservations = Reservations { cpu_millis: 3_000, memory_bytes: 0 };
        cluster.submit(ServiceSpec { reservations, ..spec("web", 1, 1) });
        cluster.submit(ServiceSpec { reservations, ..spec("api", 1, 1) });
        cluster.planned(vec![place("web", 0, 1, 1)]);
        cluster.health(1, NodeStatus::Down);
        cluster.planned(vec![lost(1, true)]);
        cluster.health(1, NodeStatus::Up);
        assert_eq!(cluster.plan(vec![place("api", 0, 1, 1)]).len(), 1);
        cluster.planned(vec![lost(1, false)]);
    }

    #[test]
    fn a_row_is_kept_while_its_container_may_be_there() {
        let mut cluster = two_nodes();
        let forget = || vec![PlanStep::Forget { replica: ReplicaId(1) }];
        assert_eq!(cluster.plan(forget()), ["replica 1 is not to stop"]);
        cluster.planned(vec![desire(1, Desired::Stop)]);
        cluster.report(1, 1, status(0, Phase::Stopping));
        cluster.health(1, NodeStatus::Down);
        assert_eq!(cluster.plan(forget()), ["the container of replica 1 may still be on node 1"]);
    }

    #[test]
    fn a_reason_to_wait_is_told_when_it_changes_and_goes_with_a_placement() {
        let mut cluster = two_nodes();
        let pending = |slot, reason: Option<&str>| {
            vec![PlanStep::Pending { service: name("web"), slot, reason: reason.map(str::to_owned) }]
        };
        cluster.planned(pending(0, Some("its node drains")));
        assert_eq!(cluster.events(), ["web-0 waits: its node drains"]);
        cluster.planned(pending(0, None));
        cluster.planned(pending(1, Some("full")));
        assert_eq!(cluster.events(), ["web-1 waits: full"]);
        cluster.planned(pending(1, Some("full")));
        assert_eq!(cluster.events(), Vec::<&str>::new());
        cluster.planned(vec![place("web", 1, 1, 2)]);
        assert!(web(&cluster).pending.is_empty());
        cluster.planned(pending(1, None));
    }

    #[test]
    fn a_removed_service_does_not_wait_for_a_node_that_is_down() {
        for level in [FIRST_LEVEL, SECOND_LEVEL] {
            let mut cluster = Cluster::of_level(2, level);
            cluster.submit(spec("web", 1, 1));
            cluster.planned(vec![place("web", 0, 1, 2)]);
            let forget = || vec![PlanStep::Forget { replica: ReplicaId(1) }];
            let there = ["the container of replica 1 may still be on node 2"];
            cluster.write(crate::cluster::Write::Stop { service: name("web"), timeout_s: None });
            cluster.health(2, NodeStatus::Down);
            assert_eq!(cluster.plan(forget()), there, "a service that stays keeps what it knows of");
            cluster.write(crate::cluster::Write::Remove { service: name("web") });
            let expect: &[&str] = if level == FIRST_LEVEL { &there } else { &[] };
            assert_eq!(cluster.plan(forget()), expect);
        }
    }

    #[test]
    fn a_failing_slot_is_remembered_until_it_is_forgiven() {
        let mut cluster = two_nodes();
        let backoff = |failures| {
            let not_before = UtcMs(9);
            vec![PlanStep::Backoff { service: name("web"), slot: 0, failures, not_before }]
        };
        cluster.planned(backoff(2));
        assert_eq!(
            web(&cluster).backoff[&0],
            SlotBackoff { failures: 2, not_before: UtcMs(9), version: Some(1) }
        );
        cluster.planned(backoff(0));
        assert!(web(&cluster).backoff.is_empty());
    }
}

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
        self.clear_pending(service, slot);
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
            self.clear_pending(name, slot);
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

    fn clear_pending(&mut self, name: &ServiceName, slot: u32) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::node::NodeFacts;
    use crate::cluster::testing::{Cluster, facts, name, place, publishing, spec, status, with_volume};
    use crate::cluster::{Command, Write};
    use crate::spec::Reservations;

    fn web(cluster: &Cluster) -> &Service {
        &cluster.state.services[&name("web")]
    }

    fn lost(replica: u64, lost: bool) -> PlanStep {
        PlanStep::SetLost { replica: ReplicaId(replica), lost }
    }

    fn desire(replica: u64, desired: Desired) -> PlanStep {
        PlanStep::SetDesired { replica: ReplicaId(replica), desired }
    }

    /// Two nodes and `web`, of which slot 0 of two is filled on node 1.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(2);
        cluster.submit(spec("web", 2, 3));
        cluster.planned(vec![place("web", 0, 1, 1)]);
        cluster
    }

    #[test]
    fn a_placement_that_no_longer_holds_is_dropped() {
        let check = |change: &dyn Fn(&mut Cluster), step: PlanStep, expect: &[&str]| {
            let mut cluster = cluster();
            change(&mut cluster);
            assert_eq!(cluster.plan(vec![step]), expect);
        };
        let nothing = |_: &mut Cluster| ();
        check(&nothing, place("web", 1, 1, 2), &[]);
        check(&nothing, place("api", 1, 1, 2), &["there is no service `api`"]);
        check(&nothing, place("web", 0, 1, 2), &["slot 0 of `web` is held by replica 1"]);
        check(&nothing, place("web", 2, 1, 2), &["`web` wants 2 replicas, slot 2 is not among them"]);
        check(&nothing, place("web", 1, 2, 2), &["`web` is at version 1, not 2"]);
        check(&nothing, place("web", 1, 1, 9), &["there is no node 9"]);
        let unknown = |cluster: &mut Cluster| cluster.health(2, NodeStatus::Unknown);
        check(&unknown, place("web", 1, 1, 2), &["node 2 is not up"]);
        let drain = |cluster: &mut Cluster| {
            let availability = Availability::Draining;
            cluster.write(Write::SetAvailability { node: NodeId(2), availability });
        };
        check(&drain, place("web", 1, 1, 2), &["node 2 takes no replicas"]);
        let update = |cluster: &mut Cluster| drop(cluster.submit(spec("web", 2, 4)));
        check(&update, place("web", 1, 1, 2), &["`web` is at version 2, not 1"]);
        let stop = |cluster: &mut Cluster| drop(cluster.write(Write::Stop { service: name("web") }));
        check(&stop, place("web", 1, 1, 2), &["`web` is stopped"]);
        let remove = |cluster: &mut Cluster| drop(cluster.write(Write::Remove { service: name("web") }));
        check(&remove, place("web", 1, 1, 2), &["`web` is being removed"]);
    }

    #[test]
    fn a_dropped_step_stops_no_other() {
        let mut cluster = cluster();
        let steps = vec![place("web", 0, 1, 2), place("web", 1, 1, 2)];
        let outcome = cluster.command(Command::Plan(Plan { steps: steps.clone() }));
        let dropped = vec![(0, "slot 0 of `web` is held by replica 1".to_owned())];
        assert_eq!(outcome, Outcome::Planned { dropped });
        assert_eq!(cluster.events(), ["web.1 on node 2 is placed, version 1"]);
        assert_eq!(cluster.plan(steps).len(), 2, "the same plan again places nothing");
    }

    #[test]
    fn replicas_fit_into_what_a_node_has() {
        let mut cluster = Cluster::of(1);
        let reservations = Reservations { cpu_millis: 1_500, memory_bytes: 1 << 30 };
        cluster.submit(ServiceSpec { reservations, ..spec("web", 3, 3) });
        let full = "node 1 has 1000 thousandths of a CPU free, `web` reserves 1500";
        assert_eq!(cluster.plan((0..3).map(|slot| place("web", slot, 1, 1)).collect()), [full]);
        cluster.planned(vec![desire(1, Desired::Retire)]);
        assert_eq!(cluster.plan(vec![place("web", 2, 1, 1)]), [full]);
        cluster.planned(vec![desire(1, Desired::Stop), place("web", 2, 1, 1)]);
        assert_eq!(cluster.state.reserved_on(NodeId(1)).cpu_millis, 3_000);
        let small = NodeFacts { memory_bytes: 1 << 30, cpu_millis: 9_000, ..facts("one") };
        cluster.command(Command::Facts { node: NodeId(1), facts: small });
        let full = "node 1 has 0 bytes of memory free, `web` reserves 1073741824";
        assert_eq!(cluster.plan(vec![place("web", 0, 1, 1)]), [full]);
    }

    #[test]
    fn host_volumes_pin_to_the_node_they_are_on() {
        let mut cluster = Cluster::of(2);
        cluster.submit_on(2, with_volume(spec("db", 1, 1)));
        assert_eq!(cluster.plan(vec![place("db", 0, 1, 1)]), ["the host volumes of `db` are on node 2"]);
        cluster.planned(vec![place("db", 0, 1, 2)]);
    }

    #[test]
    fn a_port_is_shared_in_networks_of_their_own_only() {
        let two = |network| {
            let mut cluster = Cluster::of(2);
            cluster.submit(ServiceSpec { network, ..publishing(spec("web", 2, 2), &[80]) });
            cluster.planned(vec![place("web", 0, 1, 1)]);
            cluster
        };
        two(NetworkMode::Bridge).planned(vec![place("web", 1, 1, 1)]);
        let mut cluster = two(NetworkMode::Host);
        let taken = "replica 1 listens on node 1 itself, on the same port";
        assert_eq!(cluster.plan(vec![place("web", 1, 1, 1)]), [taken]);
        cluster.planned(vec![place("web", 1, 1, 2)]);
        assert_eq!(cluster.plan(vec![desire(1, Desired::Stop), place("web", 0, 1, 1)]), [taken]);
        let after = Some(ReplicaId(1));
        let follow =
            |slot| PlanStep::Place { service: name("web"), slot, version: 1, node: NodeId(1), after };
        cluster.planned(vec![follow(0)]);
        assert_eq!(cluster.state.replicas[&ReplicaId(3)].after, after);
    }

    #[test]
    fn a_replica_follows_one_of_its_own_slot_or_nothing() {
        let mut cluster = cluster();
        let follow = |slot, after| PlanStep::Place {
            service: name("web"),
            slot,
            version: 1,
            node: NodeId(2),
            after: Some(ReplicaId(after)),
        };
        let other = "replica 1 is in another slot than the one that is to follow it";
        assert_eq!(cluster.plan(vec![follow(1, 1)]), [other]);
        cluster.planned(vec![follow(1, 77)]);
        assert_eq!(cluster.state.replicas[&ReplicaId(2)].after, None, "what is gone is not waited for");
    }

    #[test]
    fn desired_is_only_lowered() {
        let mut cluster = cluster();
        cluster.planned(vec![desire(1, Desired::Retire), desire(1, Desired::Retire)]);
        let kept = "replica 1 is to retire, and that is not taken back";
        assert_eq!(cluster.plan(vec![desire(1, Desired::Run)]), [kept]);
        cluster.planned(vec![desire(1, Desired::Stop)]);
        assert_eq!(cluster.plan(vec![desire(9, Desired::Stop)]), ["there is no replica 9"]);
    }

    #[test]
    fn a_lost_replica_gives_way_and_comes_back_only_to_an_empty_slot() {
        let mut cluster = cluster();
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
        let mut cluster = cluster();
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
        let mut cluster = cluster();
        let forget = || vec![PlanStep::Forget { replica: ReplicaId(1) }];
        assert_eq!(cluster.plan(forget()), ["replica 1 is not to stop"]);
        cluster.planned(vec![desire(1, Desired::Stop)]);
        cluster.report(1, 1, status(0, Phase::Stopping));
        cluster.health(1, NodeStatus::Down);
        assert_eq!(cluster.plan(forget()), ["the container of replica 1 may still be on node 1"]);
    }

    #[test]
    fn a_reason_to_wait_is_told_when_it_changes_and_goes_with_a_placement() {
        let mut cluster = cluster();
        let pending = |slot, reason: Option<&str>| {
            vec![PlanStep::Pending { service: name("web"), slot, reason: reason.map(str::to_owned) }]
        };
        cluster.planned(pending(0, Some("its node drains")));
        assert_eq!(cluster.events(), ["web.0 waits: its node drains"]);
        cluster.planned(pending(0, None));
        cluster.planned(pending(1, Some("full")));
        assert_eq!(cluster.events(), ["web.1 waits: full"]);
        cluster.planned(pending(1, Some("full")));
        assert_eq!(cluster.events(), Vec::<&str>::new());
        cluster.planned(vec![place("web", 1, 1, 2)]);
        assert!(web(&cluster).pending.is_empty());
        cluster.planned(pending(1, None));
    }

    #[test]
    fn a_failing_slot_is_remembered_until_it_is_forgiven() {
        let mut cluster = cluster();
        let backoff = |failures| {
            let not_before = UtcMs(9);
            vec![PlanStep::Backoff { service: name("web"), slot: 0, failures, not_before }]
        };
        cluster.planned(backoff(2));
        assert_eq!(web(&cluster).backoff[&0], SlotBackoff { failures: 2, not_before: UtcMs(9) });
        cluster.planned(backoff(0));
        assert!(web(&cluster).backoff.is_empty());
    }
}

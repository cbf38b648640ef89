//! Replicas as `ps` and `inspect` show them.

use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::PendingSlot;
use blixard_core::cluster::{ClusterState, Desired, Node, NodeStatus, Replica, Service};
use blixard_core::id::{ClusterId, ContainerId, ReplicaId, ServiceName};

use super::service::pending_slots;
use blixard_core::readiness::{Readiness, has_arrived, readiness, serves};

/// Every replica and every slot that waits for one, by service and slot. Without `all`, replicas
/// that ended are left out, unless they ended for good and are all there is in their slots.
pub fn replicas(state: &ClusterState, cluster: ClusterId, all: bool) -> Vec<ReplicaRow> {
    let mut rows: Vec<ReplicaRow> = state
        .replicas
        .iter()
        .filter(|(_, replica)| all || is_live(replica))
        .map(|(&id, replica)| row(state, cluster, id, replica))
        .collect();
    for (name, service) in &state.services {
        let slots = pending_slots(state, name, service);
        rows.extend(slots.into_iter().map(|slot| pending_row(name, service, slot)));
    }
    rows.sort_by(|a, b| (&a.service, a.slot, a.replica).cmp(&(&b.service, b.slot, b.replica)));
    rows
}

/// One replica; `None` when there is no such.
pub fn replica(state: &ClusterState, cluster: ClusterId, id: ReplicaId) -> Option<ReplicaRow> {
    state.replicas.get(&id).map(|replica| row(state, cluster, id, replica))
}

/// Whether a replica belongs in `ps` without `-a`: it has not ended, or nothing comes in its place.
fn is_live(replica: &Replica) -> bool {
    !replica.status.phase.is_final() || (replica.is_over() && replica.desired == Desired::Run)
}

/// Whether a replica does what it is for: it serves, or it ran to its successful end.
pub(super) fn is_ready(state: &ClusterState, replica: &Replica) -> bool {
    let ended = readiness(state, replica) == Readiness::Ended;
    let counts = replica.desired != Desired::Stop && replica.lost_since.is_none();
    serves(state, replica) || ended && counts
}

/// Whether a replica is away with its node. One that was replaced meanwhile stops when its node is
/// back, as any other that is to stop; one that was to stop when its node went was not replaced.
pub(super) fn is_lost(node: Option<&Node>, replica: &Replica) -> bool {
    let is = |status| node.is_some_and(|node| node.status == status);
    match replica.desired {
        Desired::Stop => is(NodeStatus::Down) || (replica.lost_since.is_some() && !is(NodeStatus::Up)),
        // What is superseded counts for nothing, so that nobody records that it is lost.
        Desired::Retire => replica.lost_since.is_some() || is(NodeStatus::Down),
        Desired::Run => replica.lost_since.is_some(),
    }
}

pub(super) fn row(state: &ClusterState, cluster: ClusterId, id: ReplicaId, replica: &Replica) -> ReplicaRow {
    let service = state.services.get(&replica.service);
    let spec = service.and_then(|service| service.spec_of(replica.version));
    let node = state.nodes.get(&replica.node);
    let status = &replica.status;
    ReplicaRow {
        container_id: Some(ContainerId::new(cluster, id, status.attempt)),
        name: format!("{}-{}", replica.service, replica.slot),
        replica: Some(id),
        service: replica.service.clone(),
        slot: replica.slot,
        version: replica.version,
        node: Some(replica.node),
        node_name: node.map(|node| node.facts.name.clone()),
        image: spec.map(|spec| spec.image.reference.clone()).unwrap_or_default(),
        phase: Some(status.phase),
        desired: Some(replica.desired),
        ready: is_ready(state, replica),
        proven: is_ready(state, replica) && has_arrived(state, replica),
        current: service.is_some_and(|service| service.runs_current(replica.version)),
        over: replica.is_over(),
        healthy: status.healthy,
        lost: is_lost(node, replica),
        attempt: status.attempt,
        exit_code: status.exit_code,
        oom_killed: status.oom_killed,
        message: status.message.clone(),
        blocked: service
            .filter(|_| replica.counts())
            .and_then(|service| service.pending.get(&replica.slot).cloned()),
        since: Some(status.since),
        created_at: Some(replica.created_at),
        address: status.address.map(|address| address.to_string()),
        node_address: node
            .and_then(|node| node.facts.addresses.first())
            .map(|address| address.ip().to_string()),
        ports: spec.map(|spec| spec.ports.clone()).unwrap_or_default(),
        progress: None,
    }
}

fn pending_row(name: &ServiceName, service: &Service, slot: PendingSlot) -> ReplicaRow {
    let spec = service.spec();
    ReplicaRow {
        container_id: None,
        name: format!("{name}-{}", slot.slot),
        replica: None,
        service: name.clone(),
        slot: slot.slot,
        version: service.current().version,
        node: None,
        node_name: None,
        image: spec.image.reference.clone(),
        phase: None,
        desired: None,
        ready: false,
        proven: false,
        current: true,
        over: false,
        healthy: None,
        lost: false,
        attempt: 0,
        exit_code: None,
        oom_killed: false,
        message: slot.reason,
        blocked: None,
        since: None,
        created_at: None,
        address: None,
        node_address: None,
        ports: spec.ports.clone(),
        progress: None,
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::{Desired, NodeStatus, Phase};
    use blixard_core::id::NodeId;
    use blixard_core::time::UtcMs;

    use super::super::fixture;
    use super::replicas;

    #[test]
    fn ps_lists_live_replicas_and_waiting_slots_in_order() {
        let check = |all: bool, expect: &[(&str, Option<u64>, &str)]| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "web", 3);
            fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
            fixture::add_replica(&mut state, 2, "web", 1, Phase::Failed, Desired::Stop);
            // One that ended for good is its service's state; one that was told to go is not.
            fixture::add_service(&mut state, "job", 1);
            fixture::add_replica(&mut state, 3, "job", 0, Phase::Completed, Desired::Run);
            fixture::add_service(&mut state, "old", 1);
            fixture::add_replica(&mut state, 4, "old", 0, Phase::Completed, Desired::Stop);
            fixture::set_pending(&mut state, "old", 0, "");
            fixture::set_pending(&mut state, "web", 2, "port 8080 is taken on node 1");
            let rows = replicas(&state, fixture::CLUSTER, all);
            let short: Vec<_> = rows
                .iter()
                .map(|row| (row.name.as_str(), row.replica.map(|id| id.0), row.message.as_str()))
                .collect();
            assert_eq!(short, expect, "all: {all}");
        };
        let waits = ("web-1", None, "waiting to be placed");
        let pending = ("web-2", None, "port 8080 is taken on node 1");
        let (job, waits_too) = (("job-0", Some(3), ""), ("old-0", None, ""));
        check(false, &[job, waits_too, ("web-0", Some(1), ""), waits, pending]);
        let (old, web) = (("old-0", Some(4), ""), ("web-1", Some(2), ""));
        check(true, &[job, waits_too, old, ("web-0", Some(1), ""), waits, web, pending]);
    }

    #[test]
    fn a_counting_replica_says_why_it_cannot_move() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
        fixture::add_replica(&mut state, 2, "web", 0, Phase::Stopping, Desired::Stop);
        fixture::set_pending(&mut state, "web", 0, "cannot move");
        let rows = replicas(&state, fixture::CLUSTER, false);
        let blocked: Vec<_> = rows.iter().map(|row| row.blocked.as_deref()).collect();
        assert_eq!(blocked, [Some("cannot move"), None]);
    }

    #[test]
    fn a_replica_is_lost_until_its_node_is_back_to_stop_it() {
        let check = |status, lost_since: Option<UtcMs>, desired, expect: bool| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "web", 1);
            fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, desired);
            fixture::edit_replica(&mut state, 1, |replica| replica.lost_since = lost_since);
            state.nodes.get_mut(&NodeId(1)).unwrap().status = status;
            let rows = replicas(&state, fixture::CLUSTER, true);
            let row = rows.iter().find(|row| row.replica.is_some()).unwrap();
            assert_eq!(row.lost, expect, "{status:?} {lost_since:?} {desired:?}");
            assert!(!(row.lost && row.ready));
        };
        let lost = Some(UtcMs(7));
        check(NodeStatus::Down, lost, Desired::Run, true);
        check(NodeStatus::Down, lost, Desired::Stop, true);
        check(NodeStatus::Up, lost, Desired::Run, true);
        check(NodeStatus::Up, lost, Desired::Stop, false);
        check(NodeStatus::Down, None, Desired::Stop, true);
        check(NodeStatus::Down, None, Desired::Retire, true);
        check(NodeStatus::Unknown, None, Desired::Stop, false);
        check(NodeStatus::Unknown, None, Desired::Retire, false);
        check(NodeStatus::Unknown, None, Desired::Run, false);
    }

    #[test]
    fn a_probed_replica_is_ready_once_healthy() {
        let check = |probe: bool, phase, healthy, desired, expect: bool| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "web", 1);
            if probe {
                fixture::add_probe(&mut state, "web");
            }
            fixture::add_replica(&mut state, 1, "web", 0, phase, desired);
            fixture::edit_replica(&mut state, 1, |replica| replica.status.healthy = healthy);
            let rows = replicas(&state, fixture::CLUSTER, true);
            let ready = rows.iter().any(|row| row.ready);
            assert_eq!(ready, expect, "{probe} {phase:?} {healthy:?} {desired:?}");
        };
        check(false, Phase::Running, None, Desired::Run, true);
        check(false, Phase::Starting, None, Desired::Run, false);
        check(true, Phase::Running, None, Desired::Run, false);
        check(true, Phase::Running, Some(false), Desired::Run, false);
        check(true, Phase::Running, Some(true), Desired::Run, true);
        check(true, Phase::Running, Some(true), Desired::Stop, false);
        check(false, Phase::Completed, None, Desired::Run, true);
        check(false, Phase::Failed, None, Desired::Run, false);
    }
}

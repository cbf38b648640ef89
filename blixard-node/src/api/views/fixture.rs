//! States for the tests of the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use blixard_core::cluster::level::LEVEL;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::cluster::{
    Availability, ClusterState, Desired, Node, NodeStatus, Phase, Replica, ReplicaStatus, Service,
    ServiceVersion,
};
use blixard_core::id::{ClusterId, NodeId, NodeKey, ReplicaId, ServiceName};
use blixard_core::spec::{HealthSpec, ServiceSpec};
use blixard_core::time::UtcMs;

pub(in super::super) const CLUSTER: ClusterId = ClusterId([3; 16]);

pub(in super::super) fn state() -> ClusterState {
    let mut state =
        ClusterState { applied: 7, time: UtcMs(1_000), cluster: Some(CLUSTER), ..ClusterState::new() };
    add_node(&mut state, 1, NodeStatus::Up);
    state
}

pub(in super::super) fn add_node(state: &mut ClusterState, id: u64, status: NodeStatus) {
    let node = Node {
        key: NodeKey([id as u8; 32]),
        facts: NodeFacts {
            name: format!("box{id}"),
            addresses: vec![format!("10.77.0.{id}:7001").parse().unwrap()],
            labels: BTreeMap::new(),
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            arch: "amd64".into(),
            os: "linux".into(),
            version: "0.1.0".into(),
            level: LEVEL,
            reserved_ports: Vec::new(),
        },
        subnet: format!("10.210.{id}.0").parse().unwrap(),
        status,
        availability: Availability::Active,
        hold_until: None,
        joined_at: UtcMs(0),
        status_since: UtcMs(0),
    };
    state.nodes.insert(NodeId(id), node);
}

pub(in super::super) fn add_service(state: &mut ClusterState, name: &str, desired: u32) {
    let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
        "name": name, "image": {"reference": "nginx"}, "replicas": {"min": 1, "max": 5},
        "environment": {"PASSWORD": "hunter2"}
    }))
    .unwrap();
    let service = Service {
        versions: [ServiceVersion::new(1, Arc::new(spec), UtcMs(5))].into_iter().collect(),
        desired,
        suspended: false,
        removing: false,
        origin: NodeId(1),
        backoff: BTreeMap::new(),
        pending: BTreeMap::new(),
        created_at: UtcMs(5),
    };
    state.services.insert(name.parse().unwrap(), service);
}

pub(in super::super) fn edit_service(state: &mut ClusterState, name: &str, edit: impl FnOnce(&mut Service)) {
    let name: ServiceName = name.parse().unwrap();
    edit(state.services.get_mut(&name).unwrap());
}

pub(in super::super) fn set_pending(state: &mut ClusterState, name: &str, slot: u32, reason: &str) {
    edit_service(state, name, |service| {
        service.pending.insert(slot, reason.to_owned());
    });
}

pub(in super::super) fn add_probe(state: &mut ClusterState, name: &str) {
    edit_service(state, name, |service| {
        let mut version = service.versions.pop_back().unwrap();
        let mut spec = version.spec.as_ref().clone();
        spec.healthcheck =
            Some(HealthSpec { path: "/".into(), interval_ms: 1000, timeout_ms: 1000, retries: 3 });
        version.spec = Arc::new(spec);
        service.versions.push_back(version);
    });
}

pub(in super::super) fn add_replica(
    state: &mut ClusterState,
    id: u64,
    service: &str,
    slot: u32,
    phase: Phase,
    desired: Desired,
) {
    let replica = Replica {
        service: service.parse().unwrap(),
        slot,
        version: 1,
        node: NodeId(1),
        desired,
        stop_timeout_s: None,
        lost_since: None,
        after: None,
        status: ReplicaStatus { phase, ..ReplicaStatus::assigned() },
        created_at: UtcMs(6),
    };
    state.replicas.insert(ReplicaId(id), replica);
    state.reindex();
}

pub(in super::super) fn edit_replica(state: &mut ClusterState, id: u64, edit: impl FnOnce(&mut Replica)) {
    edit(state.replicas.get_mut(&ReplicaId(id)).unwrap());
}

//! What planning one change costs the leader in a small cluster and in the largest there is: a
//! submission, a report, a change of a node, and room for one of many services that wait for it.
//!
//! Both clusters have 250 nodes, and the node that changes holds 20 replicas in both, so that what
//! is to be done is the same, and only what is beside it grows.

mod fixture;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use blixard_core::agent::assignments;
use blixard_core::cluster::{
    ClusterState, Command, Entry, NodeStatus, Outcome, Phase, PlanStep, ReplicaStatus, Write,
};
use blixard_core::id::{NodeId, NodeKey, ReplicaId, RequestId, ServiceName};
use blixard_core::orchestrator::Planner;
use blixard_core::spec::{ReplicaBounds, ServiceSpec};
use criterion::measurement::{Measurement, WallTime};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};

use self::fixture::{START, TOKEN, facts, first_node};

const NODES: u64 = 250;
/// How many services there are, of [`REPLICAS`] replicas each; one more is the most there can be.
const SERVICES: [u64; 2] = [100, 9_999];
const REPLICAS: u32 = 5;
/// How many services wait for room.
const WAITING: [u64; 2] = [10, 8_400];
/// The node that changes, and how many services have their replicas on it.
const NODE: NodeId = NodeId(2);
const AT_NODE: u64 = 4;

fn spec(name: &str, replicas: u32, more: Value) -> Command {
    let mut spec = json!({
        "name": name,
        "image": {"reference": "docker.io/library/web:1", "digest": format!("sha256:{:064x}", 1)},
        "limits": {"pids": 4096},
    });
    spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let mut spec: ServiceSpec = serde_json::from_value(spec).expect("the specification is well formed");
    spec.replicas = ReplicaBounds { min: replicas, max: replicas };
    write(Write::Submit { spec: Arc::new(spec), origin: NodeId(1) })
}

/// A client's write; each has a request id of its own, by its content.
fn write(write: Write) -> Command {
    let text = format!("{write:?}");
    let hash = text.bytes().fold(14_695_981_039_346_656_037_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    Command::Write { request: RequestId(hash.to_be_bytes()), made_at: START, write, by: None }
}

fn scale(service: &str, replicas: u64) -> Command {
    let replicas = u32::try_from(replicas).expect("they are few");
    write(Write::Scale { service: service.parse().expect("a name"), replicas })
}

/// The state after some commands.
fn after(state: &ClusterState, commands: Vec<Command>) -> ClusterState {
    let mut state = state.clone();
    let outcomes = state.apply(state.applied + 1, &Entry::new(START, commands));
    for outcome in outcomes {
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    state
}

/// [`NODES`] nodes; those above the first have two labels, by which services keep to [`NODE`] and off it.
fn nodes() -> ClusterState {
    let join = |id: u64| {
        let mut facts = facts(&format!("host{id}"));
        facts.labels.insert("measured".to_owned(), (id == NODE.0).to_string());
        let mut key = [0; 32];
        key[..8].copy_from_slice(&id.to_be_bytes());
        let (node, key) = (Some(NodeId(id)), NodeKey(key));
        Command::Join { node, key, facts, token: TOKEN, secret_sha256: [0; 32] }
    };
    after(&first_node(), (2..=NODES).map(join).collect())
}

/// Plans and applies until nothing is left to be done, then has every replica run, and plans again.
fn converge(mut state: ClusterState) -> (ClusterState, Planner) {
    let mut planner = Planner::new(&state, START);
    for _ in 0..2 {
        loop {
            let plan = planner.plan(&state, START).0;
            if plan.steps.is_empty() {
                break;
            }
            state = after(&state, vec![Command::Plan(plan)]);
        }
        let mut reports: BTreeMap<NodeId, BTreeMap<ReplicaId, ReplicaStatus>> = BTreeMap::new();
        for (id, row) in &state.replicas {
            let status = ReplicaStatus { phase: Phase::Running, proven: true, ..row.status.clone() };
            reports.entry(row.node).or_default().insert(*id, status);
        }
        let reports = reports.into_iter().map(|(node, statuses)| Command::Report { node, statuses });
        state = after(&state, reports.collect());
    }
    assert!(planner.plan(&state, START).0.steps.is_empty(), "nothing is left to be done");
    (state, planner)
}

/// A cluster of so many services, all of whose replicas run.
fn cluster(services: u64) -> (ClusterState, Planner) {
    let kept = |value: &str| {
        json!({"placement": {"constraints": [
            {"label": "measured", "operator": value, "value": "true"}
        ]}})
    };
    let submissions = (0..services).map(|number| {
        let place = kept(if number < AT_NODE { "equal" } else { "not-equal" });
        spec(&format!("service-{number:05}"), REPLICAS, place)
    });
    converge(after(&nodes(), submissions.collect()))
}

/// A cluster of full nodes in which so many services wait for the memory of one that is there.
fn full_cluster(waiting: u64) -> (ClusterState, Planner) {
    let memory = |gib: u64| json!({"reservations": {"cpu_millis": 0, "memory_bytes": gib << 30}});
    let mut there = spec("there", u32::try_from(NODES).expect("few"), memory(16));
    if let Command::Write { write: Write::Submit { spec, .. }, .. } = &mut there {
        Arc::make_mut(spec).replicas.min = 1;
    }
    let state = after(&nodes(), vec![there, scale("there", NODES)]);
    let waits = (0..waiting).map(|number| spec(&format!("waiting-{number:05}"), 1, memory(8)));
    converge(after(&state, waits.collect()))
}

/// Measures planning `commands`, of whose plan so many steps are expected that are no reasons. The same
/// planner is shown the state with them and without, in turns, as one that leads is shown one state after
/// another.
fn planned(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    (state, planner): &mut (ClusterState, Planner),
    commands: Vec<Command>,
    deeds: usize,
) {
    let next = after(state, commands);
    let plan = planner.plan(&next, START).0;
    let done = plan.steps.iter().filter(|step| !matches!(step, PlanStep::Pending { .. })).count();
    assert_eq!(done, deeds, "{:?}", plan.steps);
    let rest = |planner: &mut Planner| {
        planner.plan(state, START);
        assert!(planner.plan(state, START).0.steps.is_empty(), "nothing is left to be done");
    };
    rest(planner);
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|times| {
            let mut taken = WallTime.zero();
            for _ in 0..times {
                let began = WallTime.start();
                let made = black_box(planner.plan(black_box(&next), START));
                taken = WallTime.add(&taken, &WallTime.end(began));
                drop(made);
                rest(planner);
            }
            taken
        });
    });
}

/// Some replica that is not on [`NODE`], and what its node tells of it when it is unhealthy.
fn unhealthy(state: &ClusterState) -> Command {
    let (id, row) = state.replicas.iter().find(|(_, row)| row.node != NODE).expect("there are replicas");
    let status = ReplicaStatus { healthy: Some(false), ..row.status.clone() };
    Command::Report { node: row.node, statuses: BTreeMap::from([(*id, status)]) }
}

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    for services in SERVICES {
        let mut cluster = cluster(services);
        let id = |what: &str| BenchmarkId::new(what, services);
        let submission = spec("service-a", REPLICAS, Value::Null);
        planned(&mut group, id("submission"), &mut cluster, vec![submission], 5);
        let report = unhealthy(&cluster.0);
        planned(&mut group, id("report"), &mut cluster, vec![report], 0);
        let node = |status| vec![Command::Health { node: NODE, status }];
        planned(&mut group, id("node unknown"), &mut cluster, node(NodeStatus::Unknown), 0);
        planned(&mut group, id("node down"), &mut cluster, node(NodeStatus::Down), 20);
        group.bench_function(id("assignments"), |bencher| {
            bencher.iter(|| assignments(black_box(&cluster.0), NODE));
        });
    }
    group.finish();
}

fn waits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("beside services that wait");
    for waiting in WAITING {
        let mut cluster = full_cluster(waiting);
        let id = |what: &str| BenchmarkId::new(what, waiting);
        planned(&mut group, id("submission"), &mut cluster, vec![spec("a", 1, Value::Null)], 1);
        let there: ServiceName = "there".parse().expect("a name");
        let (replica, row) = cluster.0.replicas_of(&there).last().expect("it is there");
        let status = ReplicaStatus { healthy: Some(false), ..row.status.clone() };
        let report = Command::Report { node: row.node, statuses: BTreeMap::from([(replica, status)]) };
        planned(&mut group, id("report"), &mut cluster, vec![report], 0);
        group.bench_function(id("new leader"), |bencher| {
            bencher.iter(|| Planner::new(&cluster.0, START).plan(black_box(&cluster.0), START));
        });
        let unknown = Command::Health { node: NODE, status: NodeStatus::Unknown };
        planned(&mut group, id("node unknown"), &mut cluster, vec![unknown], 0);
        planned(&mut group, id("room for two"), &mut cluster, vec![scale("there", NODES - 1)], 2);
    }
    group.finish();
}

/// A submission where each service has a volume that its replicas mount, and a report of one.
fn volumes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("beside volumes");
    for services in [100, 9_000] {
        let submissions = (0..services).map(|number| {
            let volume = format!("volume-{number}");
            let mount = json!({"source": volume, "target": "/data", "kind": {"volume": volume}});
            spec(&format!("service-{number:05}"), 1, json!({"volumes": [mount]}))
        });
        let mut cluster = converge(after(&nodes(), submissions.collect()));
        let id = |what: &str| BenchmarkId::new(what, services);
        planned(&mut group, id("submission"), &mut cluster, vec![spec("service-a", 1, Value::Null)], 1);
    }
    group.finish();
}

/// Placing all replicas of one service: nodes are ranked for them together.
fn groups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placing");
    group.sample_size(10);
    let state = nodes();
    let planner = Planner::new(&state, START);
    let mut cluster = (state, planner);
    let port = json!({"ports": [{"container_port": 80, "host_port": 80, "protocol": "tcp"}]});
    for replicas in [10, 1_000] {
        for (what, more) in [("replicas", Value::Null), ("replicas with a port", port.clone())] {
            let submission = spec("web", replicas, more);
            let id = BenchmarkId::new(what, replicas);
            planned(&mut group, id, &mut cluster, vec![submission], replicas as usize);
        }
    }
    group.finish();
}

criterion_group!(benches, changes, waits, volumes, groups);
criterion_main!(benches);

//! What the leader and every member do for each entry, without disk or network: applying a
//! submission, planning after it, encoding it, and encoding the whole state for a snapshot.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use blixard_core::cluster::node::{NodeFacts, Token, TokenScope};
use blixard_core::cluster::snapshot::{decode_entry, decode_state, digest, encode_entry, encode_state};
use blixard_core::cluster::{ClusterState, Command, Entry, SubnetRange, Write};
use blixard_core::id::{ClusterId, NodeId, NodeKey, RequestId, TokenId};
use blixard_core::orchestrator::Planner;
use blixard_core::spec::ServiceSpec;
use blixard_core::time::UtcMs;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

const START: UtcMs = UtcMs(1_700_000_000_000);
/// How many services there are already.
const SERVICES: [u64; 3] = [10, 1_000, 5_000];

/// An entry with a submission of service `number`, whose `note` makes it a new version.
fn submission(number: u64, note: u64) -> Entry {
    let mut request = [0; 16];
    request[..8].copy_from_slice(&number.to_be_bytes());
    request[8..].copy_from_slice(&note.to_be_bytes());
    let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
        "name": format!("service-{number}"),
        "image": {"reference": "docker.io/library/web:1", "digest": format!("sha256:{number:064x}")},
        "environment": {"NOTE": format!("{note:0200}")},
        "limits": {"pids": 4096},
    }))
    .expect("the specification is well formed");
    let write = Write::Submit { spec: Arc::new(spec), origin: NodeId(1) };
    Entry::new(START, vec![Command::Write { request: RequestId(request), made_at: START, write, by: None }])
}

/// A cluster of one node with so many services, all placed.
fn cluster(services: u64) -> ClusterState {
    let mut state = ClusterState::new();
    let facts = NodeFacts {
        name: "host1".to_owned(),
        addresses: vec![SocketAddr::from(([10, 77, 0, 1], 7001))],
        labels: Default::default(),
        cpu_millis: 4_000,
        memory_bytes: 16 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        level: blixard_core::cluster::level::LEVEL,
        reserved_ports: Vec::new(),
    };
    let token = Token {
        secret_sha256: [0; 32],
        scope: TokenScope::Join,
        expires_at: None,
        uses_left: None,
        services: None,
    };
    let bootstrap = Command::Bootstrap {
        cluster: ClusterId([1; 16]),
        subnets: SubnetRange::default(),
        node: NodeId(1),
        key: NodeKey([1; 32]),
        facts,
        token: (TokenId([1; 8]), token),
    };
    state.apply(1, &Entry::new(START, vec![bootstrap]));
    for number in 0..services {
        state.apply(2 + number, &submission(number, 0));
    }
    let plan = Planner::new(&state, START).plan(&state, START).0;
    state.apply(state.applied + 1, &Entry::new(START, vec![Command::Plan(plan)]));
    state
}

fn entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("submission");
    for services in SERVICES {
        let state = cluster(services);
        let next = state.applied + 1;
        let entry = submission(services / 2, 1);
        group.bench_function(BenchmarkId::new("apply", services), |bencher| {
            bencher.iter_batched(
                || state.clone(),
                |mut state| state.apply(next, black_box(&entry)),
                BatchSize::SmallInput,
            );
        });
        let mut planner = Planner::new(&state, START);
        planner.plan(&state, START);
        let mut after = state.clone();
        after.apply(next, &entry);
        group.bench_function(BenchmarkId::new("plan", services), |bencher| {
            bencher.iter_batched(
                || planner.clone(),
                |mut planner| planner.plan(black_box(&after), START),
                BatchSize::SmallInput,
            );
        });
    }
    let entry = submission(1, 1);
    let bytes = encode_entry(&entry);
    let Command::Write { write: Write::Submit { spec, .. }, .. } = &entry.commands[0] else { unreachable!() };
    group.bench_function("check", |bencher| bencher.iter(|| blixard_core::bundle::check(black_box(spec))));
    group.bench_function("complete", |bencher| {
        bencher.iter(|| Arc::new(black_box(spec).as_ref().clone().completed()))
    });
    group.bench_function("encode", |bencher| bencher.iter(|| encode_entry(black_box(&entry))));
    group.bench_function("decode", |bencher| bencher.iter(|| decode_entry(black_box(&bytes))));
    group.finish();
}

/// A thousand submissions in one entry, each of another service: what a loaded leader does.
fn batches(criterion: &mut Criterion) {
    const BATCH: u64 = 1_000;
    let mut group = criterion.benchmark_group("batch of 1,000");
    group.sample_size(20);
    let state = cluster(BATCH);
    let next = state.applied + 1;
    let commands = (0..BATCH).flat_map(|number| submission(number, 1).commands).collect();
    let entry = Entry::new(START, commands);
    group.bench_function("apply", |bencher| {
        bencher.iter_batched(
            || state.clone(),
            |mut state| state.apply(next, black_box(&entry)),
            BatchSize::LargeInput,
        );
    });
    let mut planner = Planner::new(&state, START);
    planner.plan(&state, START);
    let mut after = state.clone();
    after.apply(next, &entry);
    group.bench_function("plan", |bencher| {
        bencher.iter_batched(
            || planner.clone(),
            |mut planner| planner.plan(black_box(&after), START),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn snapshots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state");
    group.sample_size(10);
    for services in SERVICES {
        let state = cluster(services);
        let bytes = encode_state(&state);
        group.bench_function(BenchmarkId::new("encode", services), |bencher| {
            bencher.iter(|| encode_state(black_box(&state)));
        });
        group.bench_function(BenchmarkId::new("decode", services), |bencher| {
            bencher.iter(|| decode_state(black_box(&bytes)));
        });
        group.bench_function(BenchmarkId::new("digest", services), |bencher| {
            bencher.iter(|| digest(black_box(&state)));
        });
    }
    group.finish();
}

criterion_group!(benches, entries, batches, snapshots);
criterion_main!(benches);

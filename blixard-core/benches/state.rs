//! What the leader and every member do for each entry, without disk or network: applying a
//! submission, planning after it, encoding it, and encoding the whole state for a snapshot.

mod fixture;

use std::hint::black_box;
use std::sync::Arc;

use blixard_core::cluster::snapshot::{decode_entry, decode_state, digest, encode_entry, encode_state};
use blixard_core::cluster::{ClusterState, Command, Entry, Write};
use blixard_core::id::{NodeId, RequestId};
use blixard_core::orchestrator::Planner;
use blixard_core::spec::ServiceSpec;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

use self::fixture::{START, first_node};

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
        // One node has addresses for few.
        "network": "host",
    }))
    .expect("the specification is well formed");
    let write = Write::Submit { spec: Arc::new(spec), origin: NodeId(1) };
    Entry::new(START, vec![Command::Write { request: RequestId(request), made_at: START, write, by: None }])
}

/// A cluster of one node with so many services, all placed.
fn cluster(services: u64) -> ClusterState {
    let mut state = first_node();
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

//! What starts that were cut off leave is in nobody's way, and goes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blixard_core::id::ContainerId;
use blixard_node::platform::{ContainerRuntime, RuntimeError};

use crate::bench::{Bench, DEADLINE, IMAGE, alive, config, ctr};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_is_made_good_by_the_next() {
    let bench = Bench::new().await;
    for (replica, cut_after_ms) in (1..).zip([1, 4, 8, 15, 30, 50, 70, 90, 120]) {
        let config = config(replica, serde_json::json!({}));
        let cut_after = Duration::from_millis(cut_after_ms);
        let _ = tokio::time::timeout(cut_after, bench.runtime().start(&config)).await;
        let started = bench.start(&config).await;
        assert!(alive(started.pid), "cut off after {cut_after:?}");
    }
    // Cut off for good: listing shows what has a container, and removes what has none. containerd
    // may still be at what was asked of it, so that something shows late.
    let lost = config(100, serde_json::json!({}));
    let _ = tokio::time::timeout(Duration::from_millis(12), bench.runtime().start(&lost)).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        for observed in bench.runtime().list().await.expect("list") {
            bench.runtime().remove(observed.replica, observed.attempt, Duration::ZERO).await.expect("remove");
        }
        let socket = bench.runtime().socket();
        let snapshots = ctr(socket, &bench.namespace(), &["snapshots", "ls"]);
        if !snapshots.contains("Active") && bench.runtime().list().await.expect("list").is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{snapshots}");
    }
    bench.finish().await;
}

/// Starts a shim of a container as containerd does, and removes its directory before anybody reads
/// its log: what a start leaves that was cut off while its shim was made.
async fn forget_shim(bench: &Bench, id: &ContainerId) -> u32 {
    let directory = tempfile::tempdir().expect("directory");
    std::fs::write(directory.path().join("config.json"), "{}").expect("specification");
    let log = Command::new("mkfifo").arg(directory.path().join("log")).status().expect("mkfifo");
    assert!(log.success());
    let started = Command::new("containerd-shim-runc-v2")
        .args(["-namespace", &bench.namespace(), "-id", &id.0, "-address"])
        .arg(bench.runtime().socket())
        .arg("start")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .expect("the shim");
    assert!(started.status.success(), "{started:?}");
    let mut pid = None;
    wait_until("the shim opens its log", async || {
        pid = shims_of(id).into_iter().find(|pid| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let targets: Vec<_> = open.filter_map(|file| file.path().read_link().ok()).collect();
            targets.iter().any(|target| target.ends_with(Path::new("log")))
        });
        pid.is_some()
    })
    .await;
    pid.expect("found")
}

fn shims_of(id: &ContainerId) -> Vec<u32> {
    let found = Command::new("pgrep").args(["--full", &format!("containerd-shim.*{}", id.0)]).output();
    let found = String::from_utf8(found.expect("pgrep").stdout).expect("numbers");
    found.lines().map(|line| line.parse().expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_containerd_forgot_is_no_obstacle() {
    let bench = Bench::new().await;
    let met = config(1, serde_json::json!({}));
    let shim = forget_shim(&bench, &ContainerId::new(bench.cluster, met.replica, 1)).await;
    let begun = Instant::now();
    let started = bench.start(&met).await;
    assert!(alive(started.pid));
    assert!(!alive(shim));
    assert!(begun.elapsed() < DEADLINE, "containerd was not waited for until it gave up");

    // What is wrong with a start is said, also when such a shim is met.
    let command = serde_json::json!({"reference": IMAGE, "command": ["nope"]});
    let wrong = config(2, serde_json::json!({"image": command}));
    let shim = forget_shim(&bench, &ContainerId::new(bench.cluster, wrong.replica, 1)).await;
    match bench.runtime().start(&wrong).await {
        Err(RuntimeError::Invalid(text)) => assert!(text.contains("`nope` is not in the image"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(!alive(shim));

    // One that no start meets goes with the next listing.
    let unmet = ContainerId::new(bench.cluster, blixard_core::id::ReplicaId(3), 1);
    let shim = forget_shim(&bench, &unmet).await;
    assert_eq!(bench.runtime().list().await.expect("list").len(), 1, "the other");
    wait_until("the shim is gone", async || !alive(shim)).await;
    assert_eq!(shims_of(&unmet), [0; 0]);
    assert!(alive(started.pid));
    bench.finish().await;
}

//! A joiner whose log prefix is gone gets a snapshot.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{image, wait};

/// Entries between two snapshots, far fewer than by default.
const EVERY: u64 = 50;

#[test]
fn a_joiner_whose_log_prefix_was_purged_installs_a_snapshot_while_writes_run() -> Result<()> {
    let mut cluster = Cluster::hosts(2)?;
    for host in &mut cluster.hosts {
        host.environment.insert("BLIXARD_RAFT_SNAPSHOT_ENTRIES".to_owned(), EVERY.to_string());
    }
    cluster.form()?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let write = |host: &blixard_tests::host::Host, number: u32| {
            host.submit(&Bundle::new(&format!("job-{number}"), &busybox).constraint("node.name==nowhere"))
        };
        let next = AtomicU32::new(0);
        wait::until("the second snapshot", Duration::from_secs(90), || {
            write(&cluster.hosts[0], next.fetch_add(1, Ordering::SeqCst))?;
            let status = cluster.hosts[0].status()?;
            wait::ensure(status.snapshot > 2 * EVERY, format!("the newest is at {}", status.snapshot))
        })?;
        let covered = cluster.hosts[0].status()?.snapshot;
        let position = cluster.add_host(3)?;
        cluster.hosts[position].environment = cluster.hosts[0].environment.clone();
        let registry = cluster.registry()?;
        let joined = AtomicBool::new(false);
        let (first, rest) = cluster.hosts.split_first_mut().expect("there are three");
        let joiner = &mut rest[1];
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<u32> {
                let mut written = 0;
                while !joined.load(Ordering::SeqCst) {
                    write(first, next.fetch_add(1, Ordering::SeqCst))?;
                    written += 1;
                }
                Ok(written)
            });
            let started = joiner.start(&["--join", &registry]);
            let caught_up = started.and_then(|()| {
                wait::until("the joiner to catch up", Duration::from_secs(30), || {
                    let status = joiner.status()?;
                    wait::ensure(status.applied > covered, format!("it applied up to {}", status.applied))
                })
            });
            joined.store(true, Ordering::SeqCst);
            let written = writer.join().expect("the writer does not panic")?;
            ensure!(written > 0, "nothing was written meanwhile");
            caught_up
        })?;
        cluster.wait_formed()?;
        let log = cluster.hosts[position].log();
        ensure!(log.contains("snapshot installed"), "the joiner did not install a snapshot: {log}");
        let written = next.load(Ordering::SeqCst) as usize;
        for host in &cluster.hosts {
            wait::until("every service", Duration::from_secs(10), || {
                let found = host.services()?.len();
                wait::ensure(found == written, format!("host {} has {found} of {written}", host.number))
            })?;
        }
        Ok(())
    })
}

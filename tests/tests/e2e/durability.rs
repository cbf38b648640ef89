//! Nothing acknowledged is lost.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::blixard;
use blixard_tests::{image, wait};

const WRITERS: u32 = 4;
const ACKNOWLEDGED: u32 = 500;
const KILLS: u32 = 10;
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn five_hundred_acknowledged_submissions_survive_ten_kills() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        // An image that is there needs no looking up anywhere.
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let bundle = Bundle::new("job", &busybox).constraint("node.name==nowhere");
        let sockets: Vec<String> = cluster
            .hosts
            .iter()
            .map(|host| format!("unix://{}", host.data_dir().join("blixard.sock").display()))
            .collect();
        let acknowledged = Mutex::new(BTreeSet::new());
        let (next, killed) = (AtomicU32::new(0), AtomicU32::new(0));
        let start = Instant::now();
        let finished = || {
            let count = acknowledged.lock().expect("no writer panics").len() as u32;
            (count >= ACKNOWLEDGED && killed.load(Ordering::SeqCst) >= KILLS) || start.elapsed() > LIMIT
        };
        std::thread::scope(|scope| -> Result<()> {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (sockets, next, acknowledged) = (&sockets, &next, &acknowledged);
                    let (bundle, finished) = (&bundle, &finished);
                    scope.spawn(move || -> Result<()> {
                        let mut asked = writer as usize;
                        while !finished() {
                            let name = format!("job-{}", next.fetch_add(1, Ordering::SeqCst));
                            if submit(bundle, &name, &sockets[asked % sockets.len()])? {
                                acknowledged.lock().expect("no writer panics").insert(name);
                            } else {
                                asked += 1;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let outcome = kill_by_turns(cluster, &killed, &finished);
            for writer in writers {
                writer.join().expect("writers do not panic")?;
            }
            outcome
        })?;
        let acknowledged = acknowledged.into_inner().expect("no writer panics");
        println!("{} acknowledged of {} tried, {:?}", acknowledged.len(), next.into_inner(), start.elapsed());
        ensure!(acknowledged.len() as u32 >= ACKNOWLEDGED, "only {} were acknowledged", acknowledged.len());
        ensure!(killed.into_inner() >= KILLS, "too few kills");
        cluster.wait_formed()?;
        for host in &cluster.hosts {
            wait::until("every acknowledged submission", Duration::from_secs(20), || {
                let found: BTreeSet<String> =
                    host.services()?.into_iter().map(|row| row.name.as_str().to_owned()).collect();
                let lost: Vec<_> = acknowledged.difference(&found).collect();
                wait::ensure(lost.is_empty(), format!("host {} lost {lost:?}", host.number))
            })?;
        }
        Ok(())
    })
}

/// Kills the leader's daemon and a follower's by turns, each time until all are back.
fn kill_by_turns(
    cluster: &mut Cluster,
    killed: &AtomicU32,
    finished: &(impl Fn() -> bool + Sync),
) -> Result<()> {
    while !finished() && killed.load(Ordering::SeqCst) < KILLS {
        let (leader, followers) = cluster.leader_and_followers()?;
        let victim = if killed.load(Ordering::SeqCst).is_multiple_of(2) { leader } else { followers[0] };
        cluster.hosts[victim].kill()?;
        cluster.hosts[victim].start(&[])?;
        cluster.wait_formed()?;
        killed.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Submits a service that no node may run; true when that was acknowledged.
fn submit(bundle: &Bundle, name: &str, host: &str) -> Result<bool> {
    let file = bundle.write()?;
    let status = std::process::Command::new(blixard()?)
        .args(["run", "-d", "--name", name, file.path()])
        .env("BLIXARD_HOST", host)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot start blixard")?;
    Ok(status.success())
}

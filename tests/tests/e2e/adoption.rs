//! Containers outlive the daemon, and containerd.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::cluster::NodeStatus;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{image, process, wait};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_daemon_killed_and_started_again_adopts_its_containers_with_the_same_pid() -> Result<()> {
    same_pid_after(|cluster| {
        cluster.hosts[0].kill()?;
        cluster.hosts[0].served(8080).context("the container went with the daemon")?;
        cluster.hosts[0].start(&[])
    })
}

#[test]
fn a_daemon_stopped_and_started_again_adopts_its_containers_with_the_same_pid() -> Result<()> {
    same_pid_after(|cluster| {
        cluster.hosts[0].interrupt()?;
        cluster.hosts[0].served(8080).context("the container went with the daemon")?;
        cluster.hosts[0].start(&[])
    })
}

#[test]
fn a_killed_containerd_comes_back_and_finds_its_containers_with_the_same_pid() -> Result<()> {
    same_pid_after(|cluster| {
        let host = &cluster.hosts[0];
        let old = host.containerd_pid()?;
        process::signal(old, Signal::KILL);
        wait::until("another containerd", SOON, || {
            wait::ensure(host.containerd_pid()? != old, "it is the old one")?;
            host.tasks().map(drop)
        })
    })
}

#[test]
fn what_happened_to_a_container_while_the_daemon_was_away_is_seen() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &mut cluster.hosts[0];
        host.import(&busybox)?;
        host.run(&Bundle::new("work", &busybox).shell("sleep 600").always())?;
        let pid = host.pid_of("work-0")?;
        host.kill()?;
        process::signal(pid, Signal::KILL);
        host.start(&[])?;
        wait::until("another process in its place", SOON, || {
            let now = host.pid_of("work-0")?;
            wait::ensure(now != pid && process::is_alive(now), format!("it is {now}"))
        })
    })
}

#[test]
fn a_planned_stop_moves_nothing() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(3, 3).port(80, 8080))?;
        let ids = |cluster: &Cluster, asked: usize| -> Result<Vec<_>> {
            Ok(cluster.hosts[asked].replicas("web")?.into_iter().map(|row| row.container_id).collect())
        };
        let before = ids(cluster, 0)?;
        let (_, followers) = cluster.leader_and_followers()?;
        let (stopped, asked) = (followers[0], followers[1]);
        cluster.hosts[stopped].interrupt()?;
        // Longer than the silence after which a node without a hold is Down.
        cluster.wait_status(asked, stopped, NodeStatus::Unknown).ok();
        std::thread::sleep(blixard_core::limits::NODE_DOWN_AFTER * 2);
        // What has moved does not move back; while a leader is elected, more is shown as lost.
        let stayed = |when: &str| {
            wait::until(&format!("the same containers {when}"), SOON, || {
                let now = ids(cluster, asked)?;
                wait::ensure(now == before, format!("{before:?} became {now:?}"))
            })
        };
        stayed("although one node stopped")?;
        ensure!(cluster.hosts[stopped].get(8080, "/")?.0 == 200, "its container stopped");
        cluster.hosts[stopped].start(&[])?;
        cluster.wait_formed()?;
        let now = ids(cluster, asked)?;
        ensure!(now == before, "replicas moved after its return: {before:?} became {now:?}");
        Ok(())
    })
}

/// One node with one web server: `event` happens, and the same process still serves.
fn same_pid_after(event: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).port(80, 8080).always())?;
        let id = cluster.hosts[0].inspect("web-0")?.row.container_id.context("no id")?;
        let pid = cluster.hosts[0].pid_of("web-0")?;
        event(cluster)?;
        let host = &cluster.hosts[0];
        wait::until("the same process", SOON, || {
            let now = host.pid_of("web-0")?;
            wait::ensure(now == pid, format!("pid {pid} became {now}"))?;
            let row = host.inspect("web-0")?.row;
            wait::ensure(row.ready && row.container_id.as_ref() == Some(&id), format!("{row:?}"))
        })?;
        ensure!(process::is_alive(pid), "the process ended");
        host.served(8080)?;
        // It is not only shown: logs, exec and stopping still work.
        ensure!(host.cli(&["exec", "web-0", "sh", "-c", "echo hi"])? == "hi\n", "exec");
        host.cli(&["stop", "web"])?;
        ensure!(!process::is_alive(pid), "it runs");
        Ok(())
    })
}

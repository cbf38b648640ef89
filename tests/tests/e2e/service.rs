//! The node as a member: draining, leaving, being removed; its own machine left clean.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::cluster::{Availability, NodeStatus};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::run;
use blixard_tests::{image, process, wait};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_drained_node_gives_its_replicas_away_and_takes_no_new_ones() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(3, 6).port(80, 8080))?;
        cluster.hosts[0].cli(&["node", "drain", "3"])?;
        wait::until("the node to be empty", SOON, || {
            let nodes = cluster.wait_ready(0, "web", 3, Duration::ZERO)?;
            wait::ensure(!nodes.contains(&3), format!("replicas on {nodes:?}"))?;
            wait::ensure(cluster.hosts[2].tasks()?.is_empty(), "containerd still has tasks")
        })?;
        let view = cluster.hosts[1].nodes()?;
        ensure!(view[2].availability != Availability::Active, "{:?}", view[2]);
        cluster.hosts[0].cli(&["service", "scale", "web", "6"])?;
        let nodes = cluster.wait_ready(0, "web", 6, SOON)?;
        ensure!(!nodes.contains(&3), "a drained node got a replica: {nodes:?}");

        // Back in service, it is given some of what runs, and by no more than it takes.
        cluster.hosts[0].cli(&["node", "activate", "3"])?;
        let planned = cluster.hosts[1].cli(&["node", "rebalance", "--dry-run"])?;
        ensure!(planned.contains("host3") || planned.contains("node 3"), "{planned}");
        ensure!(cluster.hosts[2].tasks()?.is_empty(), "a dry run moved something");
        cluster.hosts[1].cli(&["node", "rebalance"])?;
        let nodes = cluster.wait_ready(0, "web", 6, SOON)?;
        ensure!(nodes.iter().filter(|node| **node == 3).count() == 2, "replicas on {nodes:?}");
        let ids = || -> Result<Vec<_>> {
            Ok(cluster.hosts[0]
                .replicas("web")?
                .into_iter()
                .map(|row| (row.name, row.container_id))
                .collect())
        };
        let before = ids()?;
        cluster.hosts[1].cli(&["restart", "web-0"])?;
        let after = ids()?;
        let anew = after.iter().filter(|row| !before.contains(row));
        ensure!(anew.clone().all(|(name, _)| name == "web-0") && anew.count() == 1, "{before:?}, {after:?}");
        Ok(())
    })
}

#[test]
fn a_node_leaves_and_a_dead_one_is_removed_by_force() -> Result<()> {
    Cluster::formed(4)?.check(|cluster| {
        cluster.hosts[3].cli(&["node", "leave", "4"])?;
        wait::until("node 4 to be gone", SOON, || {
            wait::ensure(cluster.hosts[0].nodes()?.len() == 3, "it is listed")
        })?;
        cluster.hosts[2].power_off()?;
        let text = cluster.hosts[0].cli_refused(&["node", "rm", "3"])?;
        ensure!(text.contains("--force"), "the way out is not named: {text}");
        cluster.wait_status(0, 2, NodeStatus::Down)?;
        cluster.hosts[0].cli(&["node", "rm", "3", "--force"])?;
        wait::until("node 3 to be gone", SOON, || {
            wait::ensure(cluster.hosts[1].nodes()?.len() == 2, "it is listed")
        })?;
        // It comes back, and is told that it is no member any more; its number is never used again.
        cluster.hosts[2].power_on()?;
        let registry = cluster.registry()?;
        cluster.hosts[2].spawn(&["--join", &registry])?;
        wait::until("node 3 to say that it was removed", SOON, || {
            wait::ensure(cluster.hosts[2].log().contains("removed"), "it does not say so")
        })?;
        ensure!(cluster.hosts[0].nodes()?.len() == 2, "it is a member again");
        Ok(())
    })
}

#[test]
fn a_stopped_daemon_leaves_its_containers_and_purge_leaves_nothing() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &mut cluster.hosts[0];
        host.import(&web)?;
        host.run(&Bundle::new("web", &web).port(80, 8080))?;
        host.interrupt()?;
        host.served(8080).context("the container went with the daemon")?;
        ensure!(host.log().contains("containers go on"), "the daemon does not say that containers stay");

        let data = host.data_dir().display().to_string();
        let namespace = host.namespace();
        let blixard = blixard_tests::host::blixard()?.display().to_string();
        let net = format!("--net=/run/netns/{namespace}");
        run("nsenter", &[&net, &blixard, "node", "purge", "--yes", "--data-dir", &data])?;
        ensure!(host.get(8080, "/").is_err(), "something answers");
        ensure!(host.processes().is_empty(), "left running: {:?}", host.processes());
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&data), "mounts are left: {mounts}");
        let links = run("ip", &["-n", &namespace, "-o", "link"])?;
        ensure!(links.lines().count() == 2, "links besides lo and eth0 are left: {links}");
        let rules = run("ip", &["netns", "exec", &namespace, "nft", "list", "ruleset"])?;
        ensure!(rules.trim().is_empty(), "rules are left: {rules}");
        Ok(())
    })
}

#[test]
fn purge_finds_everything_when_the_identity_is_damaged_and_the_directory_is_a_mount_point() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &mut cluster.hosts[0];
        host.import(&web)?;
        host.run(&Bundle::new("web", &web).port(80, 8080))?;
        let data = host.data_dir().display().to_string();
        let net = format!("--net=/run/netns/{}", host.namespace());
        let blixard = blixard_tests::host::blixard()?.display().to_string();
        let purge = [net.as_str(), &blixard, "node", "purge", "--yes", "--data-dir", &data];
        let refused = run("nsenter", &purge).map_err(|error| format!("{error:#}"));
        ensure!(refused.is_err_and(|why| why.contains("node.redb is in use")), "a running node is purged");

        host.interrupt()?;
        host.served(8080).context("the container went with the daemon")?;
        run("mount", &["--bind", &data, &data])?;
        let purged = (|| {
            std::fs::write(format!("{data}/node.redb"), [7; 8192])?;
            std::fs::remove_file(host.registry_file())?;
            run("nsenter", &purge)
        })();
        run("umount", &[&data])?;
        let text = purged?;
        ensure!(text.contains("mount point"), "{text}");
        ensure!(std::fs::read_dir(&data)?.count() == 0, "something is left in {data}");
        ensure!(host.get(8080, "/").is_err(), "something answers");
        ensure!(host.processes().is_empty(), "left running: {:?}", host.processes());
        let links = run("ip", &["-n", &host.namespace(), "-o", "link"])?;
        ensure!(links.lines().count() == 2, "links besides lo and eth0 are left: {links}");

        // A containerd that starts and cannot read its own records.
        host.start(&[])?;
        host.import(&web)?;
        host.run(&Bundle::new("web", &web).port(80, 8080))?;
        host.interrupt()?;
        let containerd = std::fs::read_to_string(format!("{data}/containerd/containerd.pid"))?;
        process::signal(containerd.trim().parse()?, Signal::KILL);
        std::fs::write(format!("{data}/containerd/io.containerd.metadata.v1.bolt/meta.db"), [7; 65_536])?;
        host.served(8080).context("the container went with containerd")?;
        run("nsenter", &purge)?;
        ensure!(!host.data_dir().exists() && host.get(8080, "/").is_err(), "something is left, or answers");
        ensure!(host.processes().is_empty(), "left running: {:?}", host.processes());
        let rules = run("ip", &["netns", "exec", &host.namespace(), "nft", "list", "ruleset"])?;
        ensure!(rules.trim().is_empty(), "rules are left: {rules}");
        Ok(())
    })
}

#[test]
fn node_down_stops_the_containers_of_one_node() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(3, 3).port(80, 8080))?;
        cluster.hosts[1].cli(&["node", "down"])?;
        wait::until("host 2 to run nothing", SOON, || {
            wait::ensure(cluster.hosts[1].tasks()?.iter().all(|task| !task.running), "it runs some")
        })
    })
}

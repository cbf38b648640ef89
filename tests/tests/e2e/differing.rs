//! A member whose state is wrong although its files are whole.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::id::NodeId;
use blixard_core::time::UtcMs;
use blixard_node::disk::LinuxDisk;
use blixard_node::platform::Disk;
use blixard_node::raft::inspect::{self, STATE_FILE};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::{image, wait};
use rustix::process::Signal;

/// Entries between two snapshots, far fewer than by default.
const EVERY: u64 = 20;
/// What a member says that finds its own state wrong.
const FOUND: &str = "this node's state is not the majority's";

/// When host 1 joined, as a host answers.
fn joined(host: &Host) -> Result<u64> {
    let nodes = host.nodes()?;
    Ok(nodes.iter().find(|node| node.id == NodeId(1)).context("node 1 is not listed")?.joined_at.0)
}

#[test]
fn a_member_whose_snapshot_is_wrong_is_found_and_given_the_majoritys() -> Result<()> {
    let mut cluster = Cluster::hosts(3)?;
    for host in &mut cluster.hosts {
        host.environment.insert("BLIXARD_RAFT_SNAPSHOT_ENTRIES".to_owned(), EVERY.to_string());
    }
    cluster.form()?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let mut number = 0;
        wait::until("a snapshot on host 3", Duration::from_secs(90), || {
            number += 1;
            let bundle = Bundle::new(&format!("job-{number}"), &busybox).constraint("node.name==nowhere");
            cluster.hosts[0].submit(&bundle)?;
            let status = cluster.hosts[2].status()?;
            wait::ensure(status.snapshot > 0, "there is none")
        })?;
        let (others, wrong) = cluster.hosts.split_at_mut(2);
        let wrong = &mut wrong[0];
        let right = joined(&others[0])?;
        wrong.interrupt()?;
        let file = LinuxDisk::new(wrong.data_dir()).open(STATE_FILE)?;
        let altered = inspect::alter_snapshot(file, |state| {
            if let Some(row) = state.nodes.get_mut(&NodeId(1)) {
                row.joined_at = UtcMs(row.joined_at.0 + 1);
            }
        })?;
        ensure!(altered, "host 3 has no snapshot");
        wrong.start(&[])?;
        ensure!(joined(wrong)? == right + 1, "the state is not damaged, or was mended before anybody looked");
        wait::until("host 3 to be found", Duration::from_secs(90), || {
            wait::ensure(wrong.log().contains(FOUND), "it is not")
        })?;
        // Held where it is, it is not mended while the others are asked of it.
        wrong.signal(Signal::STOP);
        let said = wait::until("others to say that it differs", Duration::from_secs(5), || {
            let status = others[0].status()?;
            let differs = status.warnings.iter().any(|words| words.contains("the state of node 3"));
            let listed = others[0].cli(&["node", "ls"])?.contains("the state of node 3");
            wait::ensure(differs && listed, format!("{:?}", status.warnings))
        });
        wrong.signal(Signal::CONT);
        said?;
        wait::until("host 3 to be mended", Duration::from_secs(90), || {
            wait::ensure(joined(wrong)? == right, "it still answers wrongly")
        })?;
        for phrase in [FOUND, "taking the majority's state", "answers again"] {
            ensure!(wrong.log().contains(phrase), "`{phrase}` is not in its log");
        }
        let said =
            others.iter().any(|host| host.log().contains("it answers nobody until it has the majority's"));
        ensure!(said, "no other member said that it differs");
        wait::until("nobody to say so any more", Duration::from_secs(30), || {
            let nodes = others[0].nodes()?;
            wait::ensure(nodes.iter().all(|node| node.warnings.is_empty()), "somebody is warned of")
        })?;
        // What it was given is what it starts with.
        wrong.interrupt()?;
        wrong.start(&[])?;
        ensure!(joined(wrong)? == right, "after a restart it answers wrongly again");
        ensure!(wrong.services()?.len() == number, "it lacks services");
        Ok(())
    })
}

//! Data goes where its service goes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::volume::VolumeRow;
use blixard_core::cluster::NodeStatus;
use blixard_core::id::NodeId;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{image, wait};

const SOON: Duration = Duration::from_secs(60);

fn volume(cluster: &Cluster, asked: usize) -> Result<VolumeRow> {
    cluster.hosts[asked].cli_json(&["volume", "inspect", "data"])
}

fn position(cluster: &Cluster, node: NodeId) -> Result<usize> {
    let found = cluster.hosts.iter().position(|host| u64::from(host.number) == node.0);
    found.context("no host has that number")
}

/// What is in the directory of the only volume on a host.
fn on_disk(cluster: &Cluster, host: usize, name: &str) -> std::path::PathBuf {
    cluster.hosts[host].data_dir().join("volumes/1").join(name)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[test]
fn a_service_fails_over_with_what_it_wrote_and_what_its_lost_node_did_not_deliver_is_kept() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let busybox = image::busybox()?;
        cluster.hosts[0].import(&busybox)?;
        let script = "n=0; while :; do n=$((n+1)); echo $n >/data/count; sleep 0.1; done";
        let writer = Bundle::new("writer", &busybox).shell(script).volume("data", "/data");
        let said = cluster.hosts[0].run(&writer)?;
        ensure!(!said.contains("pins"), "a volume of the cluster pins nothing: {said}");
        let first = volume(cluster, 0)?.primary.context("it is nowhere")?;
        let lost = position(cluster, first)?;
        let asked = (0..3).find(|host| *host != lost).context("three hosts")?;

        // A change of a few bytes in a file of some size; and names that go and come.
        let prepare =
            "dd if=/dev/urandom of=/data/large bs=1M count=8; mkdir /data/deep; echo kept >/data/deep/note";
        cluster.hosts[asked].cli(&["exec", "writer-0", "sh", "-c", prepare])?;
        let synced = cluster.hosts[asked].cli(&["volume", "sync", "data", "--wait"])?;
        ensure!(synced.contains("on 2 nodes"), "{synced}");
        let large = std::fs::read(on_disk(cluster, lost, "live/large"))?;
        cluster.hosts[asked].cli(&[
            "exec",
            "writer-0",
            "sh",
            "-c",
            "echo page | dd of=/data/large conv=notrunc",
        ])?;
        cluster.hosts[asked].cli(&["volume", "sync", "data", "--wait"])?;
        let count: u64 = read(&on_disk(cluster, lost, "copy/count"))?.trim().parse()?;
        let refused = cluster.hosts[asked].cli_refused(&["volume", "rm", "data"])?;
        ensure!(refused.contains("mounted by service `writer`"), "{refused}");

        cluster.hosts[lost].power_off()?;
        // The last of its writes, which nobody has seen: what it wrote besides may have been delivered.
        std::fs::write(on_disk(cluster, lost, "live/late"), "not delivered\n")?;
        let row = wait::until("another primary", SOON, || {
            let row = volume(cluster, asked)?;
            wait::ensure(row.primary != Some(first), format!("{row:?}"))?;
            Ok(row)
        })?;
        let second = row.primary.context("no primary")?;
        ensure!(row.epoch == 2, "{row:?}");
        let nodes = cluster.wait_ready(asked, "writer", 1, SOON)?;
        ensure!(nodes == [second.0], "it runs on {nodes:?}, its data is on {second}");
        let note = cluster.hosts[asked].cli(&["exec", "writer-0", "cat", "/data/deep/note"])?;
        ensure!(note == "kept\n", "{note}");
        let taken = position(cluster, second)?;
        let found = std::fs::read(on_disk(cluster, taken, "live/large"))?;
        ensure!(found.starts_with(b"page\n") && found[5..] == large[5..], "what was synced is lost");

        // The third node holds a copy in the place of the one that is lost.
        cluster.hosts[asked].cli(&["volume", "sync", "data", "--wait"])?;

        cluster.hosts[lost].power_on()?;
        cluster.hosts[lost].start(&[])?;
        cluster.wait_status(asked, lost, NodeStatus::Up)?;
        let aside = wait::until("what was not delivered to be kept aside", SOON, || {
            let aside = on_disk(cluster, lost, "aside/epoch-1-0");
            wait::ensure(aside.is_dir(), "nothing is aside yet")?;
            Ok(aside)
        })?;
        let undelivered: u64 = read(&aside.join("count"))?.trim().parse()?;
        ensure!(undelivered >= count, "{undelivered} is older than what was synced, {count}");
        ensure!(read(&aside.join("late"))? == "not delivered\n", "what is aside is not what was there");
        let all = ["volume", "sync", "data", "--wait", "--copies", "3"];
        let synced = cluster.hosts[lost].cli(&all)?;
        ensure!(synced.contains("on 3 nodes"), "{synced}");
        ensure!(read(&on_disk(cluster, lost, "copy/deep/note"))? == "kept\n", "it did not follow");
        ensure!(cluster.wait_ready(asked, "writer", 1, SOON)? == nodes, "it moved back");

        cluster.hosts[asked].cli(&["rm", "writer"])?;
        cluster.hosts[asked].cli(&["volume", "rm", "data"])?;
        wait::until("every copy to be gone", SOON, || {
            let left = (0..3).find(|host| on_disk(cluster, *host, "").exists());
            wait::ensure(left.is_none(), format!("something is left on host {left:?}"))
        })
    })
}

//! How large the program is, and how long it takes from nothing to ready.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::api::node::PeerRow;
use blixard_core::api::{Health, List};
use blixard_tests::cluster::Cluster;
use blixard_tests::host::{Host, blixard};
use blixard_tests::{http, process};

use crate::api;
use crate::report::{Figure, Section, mebibytes};
use crate::sample::Samples;
use crate::{Plan, etcd};

const DEADLINE: Duration = Duration::from_secs(30);

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let (mut first, mut again) = (Samples::default(), Samples::default());
    let (mut peer, mut containerd) = (Samples::default(), Samples::default());
    for _ in 0..plan.cold_starts {
        let (cold, warm) = starts()?;
        first.push(cold);
        again.push(warm);
        peer.push(etcd::cold_start()?);
        containerd.push(containerd_start()?);
    }
    let own = blixard()?.metadata()?.len();
    let other = Path::new("/usr/bin/etcd").metadata().context("where is etcd?")?.len();
    let mut size = Figure::plain("size of the program", mebibytes(own), format!("etcd {}", mebibytes(other)));
    size.ratio = Some(own as f64 / other as f64);
    let figures = vec![
        size,
        Figure::duration("first start to ready: p50", first.p50(), "containerd alone", containerd.p50()),
        Figure::duration("first start to ready: p50", first.p50(), "etcd", peer.p50()),
        Figure::duration("restart to ready: p50", again.p50(), "etcd, first start", peer.p50()),
    ];
    let how = format!(
        "One node alone, {} times. First start: from the start of the daemon without any data, its private \
         containerd included, until it leads its new cluster; beside it a containerd alone until its socket accepts, \
         and one member of etcd until it has acknowledged a put. Restart: after `kill -9`, with its data and with \
         containerd still running.",
        plan.cold_starts
    );
    Ok(vec![Section { title: "Size and cold start", how, figures }])
}

/// How long a first start and a restart take.
fn starts() -> Result<(Duration, Duration)> {
    let mut cluster = Cluster::hosts(1)?;
    let host = &mut cluster.hosts[0];
    let mut start = || {
        let begun = Instant::now();
        host.spawn(&[])?;
        api::until("the node to lead", DEADLINE, || leads(host))?;
        let took = begun.elapsed();
        host.kill()?;
        anyhow::Ok(took)
    };
    Ok((start()?, start()?))
}

fn leads(host: &Host) -> Result<()> {
    let health: Health = serde_json::from_str(&http::get(&host.namespace(), api::ADDRESS, "/v1/health")?.1)?;
    ensure!(health.leader == Some(health.node), "it does not lead yet");
    let peers: List<PeerRow> =
        serde_json::from_str(&http::get(&host.namespace(), api::ADDRESS, "/v1/peers")?.1)?;
    ensure!(peers.items.len() == 1, "the first entry is not applied yet");
    Ok(())
}

fn containerd_start() -> Result<Duration> {
    let cluster = Cluster::hosts(1)?;
    let host = &cluster.hosts[0];
    let folder = cluster.directory().join("alone");
    std::fs::create_dir(&folder)?;
    let socket = folder.join("c.sock");
    let begun = Instant::now();
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", host.namespace()))
        .args(["containerd", "--log-level", "error", "--address"])
        .arg(&socket)
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--state")
        .arg(folder.join("state"))
        .env(process::MARK, host.namespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start containerd")?;
    let started = api::until("containerd to accept", DEADLINE, || Ok(UnixStream::connect(&socket)?));
    let took = begun.elapsed();
    // The host's end kills it.
    drop(cluster);
    child.wait()?;
    started.map(|_| took)
}

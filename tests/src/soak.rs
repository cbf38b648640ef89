//! A service that is asked all the time while everything is done to it that a user does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::cluster::Cluster;
use crate::host::Host;
use crate::image::{self, Image};
use crate::process;
use crate::traffic::{Traffic, Verdict};

/// The service's published port.
const PORT: u16 = 8080;
/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Forms a service of three replicas on the cluster's three hosts and, under requests, kills its
/// replicas, scales it, updates it five times (the fourth a bad version, undone by a good one),
/// starts and removes containers beside it, drains and activates a node, restarts and kills
/// daemons; over again until `at_least` has passed. `say` is told each step.
///
/// # Errors
/// When a step fails. What became of the requests is the caller's to judge.
pub fn soak(cluster: &mut Cluster, at_least: Duration, say: &dyn Fn(&str)) -> Result<Verdict> {
    let (web, beside) = (image::web()?, image::busybox()?);
    cluster.hosts[0].import(&web)?;
    cluster.hosts[0].import(&beside)?;
    let mut version = 0;
    cluster.hosts[0].run(&bundle(&web, version))?;
    cluster.hosts[0].cli(&["service", "scale", "web", "3"])?;
    cluster.wait_ready(0, "web", 3, PATIENCE)?;
    let traffic = Traffic::begin(cluster, "web", PORT);
    loop {
        round(cluster, &traffic, &web, &beside, &mut version, say)?;
        if traffic.age() >= at_least {
            break;
        }
    }
    traffic.judge()
}

/// Version `number` of the service: good ones differ in a variable.
fn bundle(web: &Image, number: u32) -> Bundle {
    Bundle::new("web", web)
        .replicas(1, 5)
        .port(80, PORT)
        .always()
        .environment("VERSION", &number.to_string())
        .set("healthcheck", json!({"path": "/", "interval": "200ms", "timeout": "5s", "retries": 3}))
        .set("min_healthy_time", json!("1s"))
}

fn round(
    cluster: &mut Cluster,
    traffic: &Traffic,
    web: &Image,
    beside: &Image,
    version: &mut u32,
    say: &dyn Fn(&str),
) -> Result<()> {
    for slot in [0, 2] {
        let killed = kill(cluster, traffic, slot)?;
        say(&format!("a replica on host {killed} was killed"));
        cluster.wait_ready(0, "web", 3, PATIENCE)?;
    }
    for count in [1, 3, 5, 3] {
        cluster.hosts[1].cli(&["service", "scale", "web", &count.to_string()])?;
        cluster.wait_ready(1, "web", count, PATIENCE)?;
        say(&format!("scaled to {count}"));
    }
    for _ in 0..3 {
        *version += 1;
        update(&cluster.hosts[2], web, *version)?;
        say(&format!("updated to version {version}"));
    }
    let bad = bundle(web, *version).shell("sleep 3; exit 1");
    let told = cluster.hosts[0].run_refused(&bad, 60)?;
    say(&format!("a version that ends after 3 s was refused: {}", told.lines().last().unwrap_or_default()));
    *version += 1;
    update(&cluster.hosts[0], web, *version)?;
    say("and undone by a good one");
    neighbours(&cluster.hosts[0], beside)?;
    say("containers beside it came and went");
    cluster.hosts[0].cli(&["node", "drain", "2"])?;
    cluster.hosts[0].cli(&["node", "activate", "2"])?;
    say("node 2 was drained and activated");
    restart(cluster, 0, Host::interrupt)?;
    restart(cluster, 2, Host::kill)?;
    say("a daemon was restarted, another killed and started");
    // Leaves the next round a replica on each host again.
    *version += 1;
    update(&cluster.hosts[1], web, *version)?;
    cluster.wait_ready(1, "web", 3, PATIENCE).map(drop)
}

/// Kills the process of a replica; gives its host's number.
fn kill(cluster: &Cluster, traffic: &Traffic, slot: u32) -> Result<u8> {
    let name = format!("web-{slot}");
    let rows = cluster.hosts[0].replicas("web")?;
    let row = rows.iter().find(|row| row.slot == slot && row.ready).context("the slot has none")?;
    let host = u8::try_from(row.node.context("it is nowhere")?.0)?;
    let pid = cluster.hosts[0].pid_of(&name)?;
    traffic.kills(host);
    process::signal(pid, rustix::process::Signal::KILL);
    Ok(host)
}

fn update(asked: &Host, web: &Image, version: u32) -> Result<()> {
    let file = bundle(web, version).write()?;
    asked.cli(&["run", "--timeout", "90s", file.path()]).map(drop)
}

/// Containers beside the service start and end: whatever of the network is shared changes.
fn neighbours(asked: &Host, image: &Image) -> Result<()> {
    let name = |number: u32| format!("beside-{number}");
    for number in 0..3 {
        let beside = Bundle::new(&name(number), image).shell("sleep 100000").replicas(2, 2);
        asked.submit(&beside)?;
    }
    for number in 0..3 {
        let file = Bundle::new(&name(number), image).shell("sleep 100000").replicas(2, 2).write()?;
        asked.cli(&["run", file.path()])?;
        asked.cli(&["rm", &name(number)])?;
    }
    Ok(())
}

/// Ends a daemon by `how` and starts it again.
fn restart(cluster: &mut Cluster, position: usize, how: fn(&mut Host) -> Result<()>) -> Result<()> {
    how(&mut cluster.hosts[position])?;
    cluster.hosts[position].start(&[])?;
    cluster.wait_formed()?;
    let ready = cluster.wait_ready(position, "web", 3, PATIENCE)?;
    ensure!(!ready.is_empty(), "nothing is ready");
    Ok(())
}

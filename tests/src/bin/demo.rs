//! `make demo`: three hosts, real daemons, real containers; leaders and machines die.
//!
//! Tells what it does as it goes, checks everything by HTTP through published ports and by the
//! container runtime's own task list, and removes all it made, also when it fails or is
//! interrupted. The last line of a good run is
//! `demo: ok nodes=3 replicas=3 leader_failover_s=X worker_failover_s=Y`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::cluster::NodeStatus;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::image::{self, Image};
use blixard_tests::{capability, cleanup, wait};

const NODES: u8 = 3;
const REPLICAS: usize = 3;
const PORT: u16 = 8080;
const LEADER_KILLS: u32 = 5;
/// Longer than anything here takes on a busy machine; what is reported is what it took.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match demo() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<String> {
    cleanup::on_interrupt()?;
    capability::check()?;
    say("three hosts: network namespaces on a bridge, 10.77.0.1 to .3, each with its own containerd");
    let mut cluster = Cluster::hosts(NODES)?;
    let outcome = story(&mut cluster);
    if outcome.is_err() {
        for host in &cluster.hosts {
            eprintln!("--- the end of host {}'s log\n{}", host.number, host.log_tail(40));
        }
    }
    let line = outcome?;
    drop(cluster);
    ensure!(cleanup::leftovers().is_empty(), "left behind: {:?}", cleanup::leftovers());
    say("everything the demo made is removed");
    Ok(line)
}

fn story(cluster: &mut Cluster) -> Result<String> {
    form(cluster)?;
    let web = image::web()?;
    run(cluster, &web)?;
    let mut leader = Duration::ZERO;
    for kill in 1..=LEADER_KILLS {
        leader = leader.max(kill_leader(cluster, kill)?);
    }
    let worker = lose_machine(cluster, false)?.max(lose_machine(cluster, true)?);
    Ok(format!(
        "demo: ok nodes={NODES} replicas={REPLICAS} leader_failover_s={:.2} worker_failover_s={:.2}",
        leader.as_secs_f64(),
        worker.as_secs_f64()
    ))
}

fn form(cluster: &mut Cluster) -> Result<()> {
    command("blixard node --id 1 --bind 10.77.0.1:7001");
    cluster.hosts[0].start(&[])?;
    let registry = cluster.registry()?;
    for number in 2..=NODES {
        command(&format!(
            "blixard node --id {number} --bind 10.77.0.{number}:7001 --join node-registry.json"
        ));
        cluster.hosts[usize::from(number) - 1].spawn(&["--join", &registry])?;
    }
    for host in &mut cluster.hosts[1..] {
        host.wait_ready()?;
    }
    cluster.wait_formed()?;
    say("the cluster is formed: every node sees three members up, all three vote");
    Ok(())
}

fn run(cluster: &Cluster, web: &Image) -> Result<()> {
    let (leader, followers) = cluster.leader_and_followers()?;
    let asked = &cluster.hosts[followers[0]];
    say(&format!("node {} leads; what follows is asked of node {}", leader + 1, asked.number));
    command("blixard image import web.tar");
    asked.import(web)?;
    command("blixard run web.bun");
    let start = Instant::now();
    asked.run(&Bundle::new("web", web).replicas(3, 6).port(80, PORT))?;
    let took = start.elapsed().as_secs_f64();
    check_replicas(cluster, followers[0])?;
    check_tasks(cluster, followers[0])?;
    check_answers(cluster, &[0, 1, 2])?;
    say(&format!("three replicas run after {took:.2} s, one on each node; each answers HTTP on port {PORT}"));
    command("blixard ps");
    print!("{}", asked.cli(&["ps"])?);
    Ok(())
}

/// Kills the leader's daemon; gives the time until a survivor accepts a submission.
fn kill_leader(cluster: &mut Cluster, kill: u32) -> Result<Duration> {
    let (leader, followers) = cluster.leader_and_followers()?;
    let before = cluster.hosts[leader].tasks()?;
    let name = format!("after-kill-{kill}");
    let parked = Bundle::of(&name, "blixard.test/web:1").constraint("node.name==nowhere");
    let start = Instant::now();
    cluster.hosts[leader].kill()?;
    let mut turn = followers.iter().cycle();
    wait::until("a submission to be accepted", PATIENCE, || {
        let asked = turn.next().context("there are two followers")?;
        cluster.hosts[*asked].submit(&parked).map(drop)
    })?;
    let took = start.elapsed();
    say(&format!(
        "kill -9 of the leader, node {}: the next submission was accepted after {:.2} s ({kill} of {LEADER_KILLS})",
        leader + 1,
        took.as_secs_f64()
    ));
    // Its containers never noticed.
    ensure!(cluster.hosts[leader].tasks()? == before, "containers changed when their daemon was killed");
    check_answers(cluster, &[leader])?;
    cluster.hosts[leader].start(&[])?;
    cluster.wait_formed()?;
    cluster.hosts[leader].cli(&["rm", &name])?;
    check_replicas(cluster, leader)?;
    ensure!(cluster.hosts[leader].tasks()? == before, "containers changed when their daemon came back");
    Ok(took)
}

/// Cuts a machine's power; gives the time until all replicas answer elsewhere. Then it returns.
fn lose_machine(cluster: &mut Cluster, leads: bool) -> Result<Duration> {
    let (leader, followers) = cluster.leader_and_followers()?;
    let victim = if leads { leader } else { followers[0] };
    let survivors: Vec<usize> = (0..usize::from(NODES)).filter(|position| *position != victim).collect();
    let start = Instant::now();
    cluster.hosts[victim].power_off()?;
    wait::until("all replicas to answer elsewhere", PATIENCE, || {
        let mut pages = std::collections::BTreeSet::new();
        for position in &survivors {
            // A node's replicas take turns behind its port, so asking twice meets two of them.
            for _ in 0..REPLICAS - 1 {
                let (status, page) = cluster.hosts[*position].get(PORT, "/")?;
                ensure!(status == 200, "host {} answers {status}", position + 1);
                pages.insert(page);
            }
        }
        wait::ensure(pages.len() == REPLICAS, format!("{} of {REPLICAS} replicas answer", pages.len()))
    })?;
    let took = start.elapsed();
    check_tasks(cluster, survivors[0])?;
    say(&format!(
        "power cut of the {} machine, node {}: all {REPLICAS} replicas answer elsewhere after {:.2} s",
        if leads { "leader's" } else { "worker" },
        victim + 1,
        took.as_secs_f64()
    ));
    command("blixard ps");
    print!("{}", cluster.hosts[survivors[0]].cli(&["ps"])?);
    cluster.hosts[victim].power_on()?;
    cluster.hosts[victim].start(&[])?;
    cluster.wait_status(survivors[0], victim, NodeStatus::Up)?;
    cluster.wait_formed()?;
    wait::until("the cluster to settle", PATIENCE, || check_tasks(cluster, survivors[0]))?;
    check_replicas(cluster, victim)?;
    say(&format!("node {} is back and the cluster has settled", victim + 1));
    Ok(took)
}

/// Three replicas are ready.
fn check_replicas(cluster: &Cluster, asked: usize) -> Result<()> {
    cluster.wait_ready(asked, "web", REPLICAS, PATIENCE).map(drop)
}

/// What containerd runs on the hosts that have power is what `ps` shows, nothing else.
fn check_tasks(cluster: &Cluster, asked: usize) -> Result<()> {
    let rows = cluster.hosts[asked].replicas("web")?;
    let shown = rows.iter().filter(|row| row.ready && !row.lost);
    let mut shown: Vec<String> =
        shown.filter_map(|row| row.container_id.as_ref()).map(|id| id.0.clone()).collect();
    let mut running = Vec::new();
    for host in cluster.hosts.iter().filter(|host| host.is_powered()) {
        running.extend(host.tasks()?.into_iter().filter(|task| task.running).map(|task| task.container));
    }
    shown.sort();
    running.sort();
    ensure!(shown == running, "containerd runs {running:?}, ps shows {shown:?}");
    ensure!(running.len() == REPLICAS, "{} containers run", running.len());
    Ok(())
}

fn check_answers(cluster: &Cluster, positions: &[usize]) -> Result<()> {
    for position in positions {
        cluster.hosts[*position].served(PORT)?;
    }
    Ok(())
}

fn say(text: &str) {
    println!("* {text}");
}

fn command(line: &str) {
    println!("  $ {line}");
}

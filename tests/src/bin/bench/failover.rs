//! What a failure costs: the daemon of the leader is killed, the machine of a worker dies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::limits;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::image;
use rustix::process::Signal;

use crate::Plan;
use crate::api::{self, Api};
use crate::report::{Figure, Section, duration};
use crate::sample::Samples;

const REPLICAS: u32 = 3;
const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(60);

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let leader = leader(plan)?;
    let worker = worker(plan)?;
    let (second, six) = (Duration::from_secs(1), Duration::from_secs(6));
    // The earliest moment at which anybody may stand for election, or a silent node be given up.
    let election = limits::RAFT_ELECTION_MAX + limits::RAFT_ELECTION_MIN;
    let figures = vec![
        Figure::duration("leader lost: p50", leader.p50(), "earliest election", election)
            .aim(format!("under {}", duration(second)), leader.p50() < second),
        Figure::duration("leader lost: worst", leader.worst(), "earliest election", election),
        Figure::duration("worker lost: p50", worker.p50(), "node down after", limits::NODE_DOWN_AFTER),
        Figure::duration("worker lost: worst", worker.worst(), "node down after", limits::NODE_DOWN_AFTER)
            .aim(format!("under {}", duration(six)), worker.worst() < six),
    ];
    let how = format!(
        "Three nodes at default settings. Leader: `kill -9` of the leader's daemon {} times, each time until a \
         surviving node has acknowledged the next submission. Worker: the machine of a node that does not lead dies \
         {} times (cable, daemon, containerd, shims and containers), each time until all {REPLICAS} replicas of a web \
         service run on the other two and answer HTTP on the published port. Beside them the silence that the default \
         settings require before anything may happen, which is configuration and not measured.",
        leader.len(),
        worker.len()
    );
    Ok(vec![Section { title: "Failover", how, figures }])
}

fn leader(plan: &Plan) -> Result<Samples> {
    let mut cluster = Cluster::formed(3)?;
    let api = Api::new(&cluster.hosts[0])?;
    let mut samples = Samples::default();
    for kill in 0..plan.kills {
        let (leader, others) = cluster.leader_and_followers()?;
        let asked = &cluster.hosts[others[kill as usize % others.len()]];
        let spec = api::unplaceable(&format!("after-kill-{kill}"), "");
        let begun = Instant::now();
        cluster.hosts[leader].signal(Signal::KILL);
        api::until("a submission to be accepted", DEADLINE, || api.submit(asked, &spec))?;
        samples.push(begun.elapsed());
        // Only reaps it: it was killed above.
        cluster.hosts[leader].kill()?;
        cluster.hosts[leader].start(&[])?;
        cluster.wait_formed()?;
    }
    Ok(samples)
}

fn worker(plan: &Plan) -> Result<Samples> {
    let mut cluster = Cluster::formed(3)?;
    let api = Api::new(&cluster.hosts[0])?;
    let image = image::web()?;
    cluster.hosts[0].import(&image)?;
    let bundle = Bundle::new("web", &image).replicas(REPLICAS, REPLICAS).port(80, PORT);
    cluster.hosts[0].run(&bundle)?;
    let mut samples = Samples::default();
    for _ in 0..plan.kills {
        let (leader, victim) = victim(&cluster, &api)?;
        let begun = Instant::now();
        cluster.hosts[victim].power_off()?;
        api::until("the replicas to run elsewhere", DEADLINE, || running(&cluster, &api, leader, victim))?;
        samples.push(begun.elapsed());
        cluster.hosts[victim].power_on()?;
        cluster.hosts[victim].start(&[])?;
        cluster.wait_formed()?;
    }
    Ok(samples)
}

/// The leader's position, and that of another node that runs replicas.
fn victim(cluster: &Cluster, api: &Api) -> Result<(usize, usize)> {
    api::until("a worker with replicas", DEADLINE, || {
        let (leader, others) = cluster.leader_and_followers()?;
        let rows = api.replicas(&cluster.hosts[leader], "web")?;
        let runs = |position: &usize| {
            let id = u64::from(cluster.hosts[*position].number);
            rows.iter().any(|row| row.ready && row.node.is_some_and(|node| node.0 == id))
        };
        Ok((leader, others.into_iter().find(runs).context("no worker runs a replica")?))
    })
}

fn running(cluster: &Cluster, api: &Api, leader: usize, victim: usize) -> Result<()> {
    let id = u64::from(cluster.hosts[victim].number);
    let rows = api.replicas(&cluster.hosts[leader], "web")?;
    let elsewhere: Vec<_> = rows
        .iter()
        .filter(|row| row.ready && !row.lost && row.node.is_some_and(|node| node.0 != id))
        .collect();
    ensure!(elsewhere.len() == REPLICAS as usize, "{} replicas run elsewhere", elsewhere.len());
    for host in &cluster.hosts {
        if elsewhere.iter().any(|row| row.node.is_some_and(|node| node.0 == u64::from(host.number))) {
            let (status, _) = host.get(PORT, "/")?;
            ensure!(status == 200, "host {} answered {status}", host.number);
        }
    }
    Ok(())
}

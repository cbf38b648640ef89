//! From `blixard run` to running, for one replica and for fifty.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::image::{self, Image};
use blixard_tests::{command, machine, wait};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::Plan;
use crate::bare::Bare;
use crate::report::{Figure, Section};
use crate::sample::Samples;

/// How many replicas the large service has.
const MANY: u32 = 50;
/// How many containers are started at a time by hand, as many as blixard's agent starts.
const AT_A_TIME: usize = blixard_core::limits::STARTS_MAX;
const DEADLINE: Duration = Duration::from_secs(120);

struct Bench {
    cluster: Cluster,
    image: Image,
    bare: Bare,
    runtime: tokio::runtime::Runtime,
}

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let bench = Bench::new()?;
    let sections = vec![bench.one(plan)?, bench.many(plan)?];
    // The connection to containerd goes before the hosts do.
    drop(bench.bare);
    Ok(sections)
}

impl Bench {
    fn new() -> Result<Self> {
        let cluster = Cluster::formed(3)?;
        let image = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&image)?;
        host.run(&sleeper("reference", &image))?;
        let replica = host.replicas("reference")?.pop().context("the service has no replica")?;
        let id = replica.container_id.context("the replica has no container")?.0;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let bare = runtime.block_on(Bare::like(host, &id))?;
        Ok(Self { cluster, image, bare, runtime })
    }

    fn host(&self) -> &Host {
        &self.cluster.hosts[0]
    }

    fn one(&self, plan: &Plan) -> Result<Section> {
        let bridge = sleeper("one", &self.image);
        let proven = bridge.clone().set("min_healthy_time", json!("5s"));
        let on_host = sleeper("one", &self.image).set("network", json!("host"));
        let (mut bridged, mut hosted) = (Samples::default(), Samples::default());
        let (mut bare, mut ctr, mut prove) = (Samples::default(), Samples::default(), Samples::default());
        for turn in 0..plan.starts {
            bridged.push(self.run(&bridge, "one")?);
            bare.push(self.bare(turn)?);
            hosted.push(self.run(&on_host, "one")?);
            ctr.push(self.ctr(turn)?);
        }
        for _ in 0..plan.rounds {
            prove.push(self.run(&proven, "one")?);
        }
        let name = |what: &str| format!("1 replica, {what}");
        let figures = vec![
            Figure::duration(name("ready, bridge network: p50"), bridged.p50(), "bare calls", bare.p50())
                .at_most(1.3),
            Figure::duration(name("ready, host network: p50"), hosted.p50(), "bare calls", bare.p50()),
            Figure::duration(name("ready, bridge network: p50"), bridged.p50(), "ctr run -d", ctr.p50()),
            Figure::duration(
                name("ready, bridge network: worst"),
                bridged.worst(),
                "bare calls",
                bare.worst(),
            ),
            Figure::duration(name("proven: p50"), prove.p50(), "min_healthy_time", Duration::from_secs(5)),
        ];
        let how = format!(
            "`blixard run`, from the start of the program to its end, on one node of a formed cluster of three, with \
             the image present and a min_healthy_time of 0, so that ready is enough; {} starts each, in turns; and with \
             the default of 5 s, until it is proven, {} times. Beside it the bare calls to the same containerd \
             (Snapshots.Prepare, Containers.Create, Tasks.Create, Tasks.Start) with the specification of a container \
             that blixard made, with no network to set up and no log to keep, and `ctr run -d`, a program too.",
            plan.starts, plan.rounds
        );
        Ok(Section { title: "One replica to ready, and to proven", how, figures })
    }

    fn many(&self, plan: &Plan) -> Result<Section> {
        let bundle = sleeper("many", &self.image).replicas(MANY, MANY);
        let (mut ours, mut bare) = (Samples::default(), Samples::default());
        for _ in 0..plan.rounds {
            ours.push(self.run(&bundle, "many")?);
            bare.push(self.bare_many()?);
        }
        let what = format!("{MANY} replicas on one node: p50");
        let figures = vec![Figure::duration(what, ours.p50(), "bare calls", bare.p50())];
        let how = format!(
            "`blixard run` of {MANY} replicas held to one node, until all are ready, {} times; beside it the bare calls for \
             as many containers, {AT_A_TIME} at a time as blixard starts them.",
            plan.rounds
        );
        Ok(Section { title: "Fifty replicas on one node", how, figures })
    }

    /// Runs a bundle by the command line, tells how long that took and removes the service.
    fn run(&self, bundle: &Bundle, name: &str) -> Result<Duration> {
        let file = bundle.write()?;
        let begun = Instant::now();
        self.host().cli(&["run", "--timeout", "120", file.path()])?;
        let took = begun.elapsed();
        self.host().cli(&["rm", name])?;
        wait::until("the replicas to be gone", DEADLINE, || {
            let left = self.host().services()?.into_iter().any(|row| row.name.as_str() == name);
            let tasks = self.host().tasks()?.len();
            ensure!(
                !left && tasks <= 1,
                "the service is {}there and {tasks} tasks",
                if left { "" } else { "not " }
            );
            Ok(())
        })?;
        Ok(took)
    }

    fn bare(&self, turn: u32) -> Result<Duration> {
        let id = format!("bare-{turn}");
        self.runtime.block_on(async {
            let took = self.bare.start(&id).await?;
            self.bare.remove(&id).await?;
            Ok(took)
        })
    }

    fn bare_many(&self) -> Result<Duration> {
        self.runtime.block_on(async {
            let begun = Instant::now();
            let lanes = (0..AT_A_TIME).map(|lane| async move {
                let mut ids = Vec::new();
                for number in (lane..MANY as usize).step_by(AT_A_TIME) {
                    let id = format!("bare-many-{number}");
                    self.bare.start(&id).await?;
                    ids.push(id);
                }
                anyhow::Ok(ids)
            });
            let ids = try_join_all(lanes).await?;
            let took = begun.elapsed();
            try_join_all(ids.iter().flatten().map(|id| self.bare.remove(id))).await?;
            Ok(took)
        })
    }

    fn ctr(&self, turn: u32) -> Result<Duration> {
        let socket = machine::run_directory(&self.host().data_dir()).join("containerd.sock");
        let socket = socket.to_str().context("the path is not UTF-8")?;
        let base = ["-a", socket, "-n", self.bare.namespace()];
        let id = format!("ctr-{turn}");
        let ctr = |arguments: &[&str]| command::run("ctr", &[&base, arguments].concat());
        let begun = Instant::now();
        ctr(&["run", "-d", &self.image.reference, &id, "sleep", "1000"])?;
        let took = begun.elapsed();
        ctr(&["tasks", "delete", "--force", &id])?;
        ctr(&["containers", "delete", &id])?;
        Ok(took)
    }
}

/// One replica, on the first host, that sleeps and ends at once when told to.
fn sleeper(name: &str, image: &Image) -> Bundle {
    let bundle = Bundle::new(name, image).constraint("node.name==host1");
    bundle.shell("trap 'exit 0' TERM; sleep 1000 & wait").set("min_healthy_time", json!("0s"))
}

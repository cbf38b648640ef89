//! Raft alone: three members in this process on real links and real stores, without API, planning
//! or batching above them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use blixard_core::cluster::{Command, Outcome, Write};
use blixard_core::id::{ClusterId, NodeId, NodeKey, RequestId};
use blixard_core::spec::ServiceSpec;
use blixard_core::time::UtcMs;
use blixard_core::wire::{Channel, Peer};
use blixard_node::disk::LinuxDisk;
use blixard_node::linux::{LinuxClock, LinuxRandom, LinuxSpawner};
use blixard_node::platform::{Clock, Duplex, Inbound, Platform, RandomSource, Silence, Transport};
use blixard_node::raft::{RaftConfig, RaftNode};
use blixard_node::transport::IrohTransport;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::load::Load;
use crate::no_containers::{NoContainers, NoVolumes};
use crate::report::{Figure, Section};
use crate::sample::Samples;
use crate::{Plan, api, disk};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const MEMBERS: u64 = 3;
const PROPOSERS: [usize; 3] = [1, 64, 1024];
const DEADLINE: Duration = Duration::from_secs(20);

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let directory =
        tempfile::Builder::new().prefix(&blixard_tests::cleanup::prefix(std::process::id())).tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let members = runtime.block_on(members(directory.path()))?;
    let mut figures = Vec::new();
    for proposers in PROPOSERS {
        let (mut load, mut floor) = (Load::default(), Samples::default());
        for _ in 0..plan.rounds {
            floor.extend(disk::fdatasync(directory.path(), Duration::from_millis(300))?);
            load.extend(runtime.block_on(round(&members[0], proposers, plan.round))?);
        }
        let who = if proposers == 1 { "1 proposer".to_owned() } else { format!("{proposers} proposers") };
        let syncs = 1.0 / floor.p50().as_secs_f64();
        figures.push(Figure::duration(
            format!("{who}: p50"),
            load.samples.p50(),
            "fdatasync p50",
            floor.p50(),
        ));
        figures.push(Figure::duration(
            format!("{who}: p99"),
            load.samples.p99(),
            "fdatasync p99",
            floor.p99(),
        ));
        figures.push(Figure::rate(format!("{who}: committed and applied"), load.rate(), "fdatasync", syncs));
    }
    runtime.block_on(async {
        for member in &members {
            member.shutdown().await;
        }
    });
    let how = format!(
        "{MEMBERS} members of Raft in one process, on encrypted links over loopback and stores on the disk, each \
         entry one submission like those above, from the proposal to its application by the leader. Beside it the \
         same disk's fdatasync of one page after another: what a durable write takes at least, and how many one \
         writer without group commit could do."
    );
    Ok(vec![Section { title: "Raft alone, three durable members", how, figures }])
}

async fn members(directory: &std::path::Path) -> Result<Vec<RaftNode>> {
    let (mut platforms, mut peers) = (Vec::new(), BTreeMap::new());
    for id in 1..=MEMBERS {
        let folder = directory.join(id.to_string());
        std::fs::create_dir(&folder)?;
        let mut secret = [0; 32];
        LinuxRandom.fill(&mut secret);
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let transport = IrohTransport::bind(secret, 1, bind, Vec::new(), None, Arc::new(LinuxRandom)).await?;
        let peer = Peer { key: transport.key(), addresses: transport.addresses(), relay_url: None };
        peers.insert(NodeId(id), peer);
        platforms.push(Platform {
            clock: Arc::new(LinuxClock),
            rng: Arc::new(LinuxRandom),
            spawner: Arc::new(LinuxSpawner::new(Handle::current())),
            disk: Arc::new(LinuxDisk::new(folder)),
            transport,
            announcer: Arc::new(Silence),
            containers: Arc::new(NoContainers),
            volumes: Arc::new(NoVolumes),
        });
    }
    let mut members = Vec::new();
    for (id, platform) in (1..).zip(platforms) {
        let member = RaftNode::open(platform.clone(), CLUSTER, NodeId(id), RaftConfig::default()).await?;
        let others = peers.iter().filter(|(other, _)| other.0 != id);
        platform.transport.set_peers(others.map(|(other, peer)| (*other, peer.clone())).collect());
        platform.transport.serve(Arc::new(Dispatch(member.clone())));
        members.push(member);
    }
    let first = &members[0];
    first.initialize().await?;
    first.read_barrier(DEADLINE).await?;
    for id in 2..=MEMBERS {
        first.add_learner(NodeId(id), DEADLINE).await?;
    }
    first.change_voters((1..=MEMBERS).map(NodeId).collect::<BTreeSet<_>>(), DEADLINE).await?;
    Ok(members)
}

async fn round(leader: &RaftNode, proposers: usize, time: Duration) -> Result<Load> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for proposer in 0..proposers {
        let leader = leader.clone();
        tasks.spawn(async move {
            let mut samples = Samples::default();
            let name = format!("raft-{proposer:04}");
            for count in 0u64.. {
                let note = format!("{count:012}{}", "x".repeat(200));
                let spec: ServiceSpec = serde_json::from_value(api::unplaceable(&name, &note))?;
                let command = submission(spec);
                let asked = Instant::now();
                if asked >= begun + time {
                    break;
                }
                let (_, outcomes) = leader.propose(vec![command], DEADLINE).await?;
                if !matches!(outcomes[..], [Outcome::Service { .. }]) {
                    bail!("a submission was answered {outcomes:?}");
                }
                if begun.elapsed() <= time {
                    samples.push(asked.elapsed());
                }
            }
            Ok(samples)
        });
    }
    let mut samples = Samples::default();
    while let Some(ended) = tasks.join_next().await {
        samples.extend(ended.context("a proposer panicked")??);
    }
    Ok(Load { samples, time })
}

fn submission(spec: ServiceSpec) -> Command {
    let mut request = [0; 16];
    LinuxRandom.fill(&mut request);
    let made_at: UtcMs = LinuxClock.utc();
    let write = Write::Submit { spec: Arc::new(spec), origin: NodeId(1) };
    Command::Write { request: RequestId(request), made_at, write, by: None }
}

/// Hands what arrives to one member's Raft.
struct Dispatch(RaftNode);

#[async_trait]
impl Inbound for Dispatch {
    async fn call(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String> {
        if channel == Channel::Raft {
            self.0.handle_rpc(from, request).await
        } else {
            Err("only Raft is here".to_owned())
        }
    }

    async fn stranger(&self, _: NodeKey, _: Option<SocketAddr>, _: Bytes) -> Result<Bytes, String> {
        Err("only members are here".to_owned())
    }

    async fn stream(&self, from: NodeId, channel: Channel, header: Bytes, stream: Box<dyn Duplex>) {
        if channel == Channel::Snapshot {
            self.0.handle_snapshot_stream(from, header, stream).await;
        }
    }

    fn linked(&self, _: NodeId, _: SocketAddr) {}
}

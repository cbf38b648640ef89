//! Members in one process, on real databases and links that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blixard_core::cluster::snapshot::digest;
use blixard_core::cluster::{Command, Write};
use blixard_core::id::{ClusterId, NodeId, RequestId, TokenId};
use blixard_core::time::UtcMs;
use tempfile::TempDir;

use super::testing::{Links, TestSpawner, platform};
use super::types::Proposal;
use super::{OpenError, ProposeError, RaftConfig, RaftNode};
use crate::platform::{Disk, DurableWriter, Platform};

/// How long anything here may take on a busy machine.
const CLUSTER: ClusterId = ClusterId([7; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    node: RaftNode,
    spawner: Arc<TestSpawner>,
}

struct Cluster {
    config: RaftConfig,
    links: Links,
    directories: BTreeMap<NodeId, TempDir>,
    members: BTreeMap<NodeId, Member>,
}

impl Cluster {
    /// Starts `size` voters.
    async fn start(size: u64, config: RaftConfig) -> Self {
        let mut cluster =
            Self { config, links: Links::default(), directories: BTreeMap::new(), members: BTreeMap::new() };
        for id in 1..=size {
            cluster.open(id).await;
        }
        let first = cluster.node(1);
        first.initialize().await.expect("Raft runs");
        cluster.leader().await;
        for id in 2..=size {
            first.add_learner(NodeId(id), PATIENCE).await.expect("the learner is added");
        }
        let voters = (1..=size).map(NodeId).collect();
        first.change_voters(voters, PATIENCE).await.expect("the voters are promoted");
        cluster
    }

    /// Starts a member, on what it left when it was stopped.
    async fn open(&mut self, id: u64) -> RaftNode {
        let id = NodeId(id);
        let directory =
            self.directories.entry(id).or_insert_with(|| tempfile::tempdir().expect("a directory"));
        let (platform, spawner) = platform(id, directory.path(), &self.links);
        let node = RaftNode::open(platform, CLUSTER, id, self.config.clone()).await.expect("the stores open");
        self.links.connect(id, node.clone());
        self.members.insert(id, Member { node: node.clone(), spawner });
        node
    }

    /// Ends a member without any warning.
    fn kill(&mut self, id: u64) {
        self.links.disconnect(NodeId(id));
        self.members.remove(&NodeId(id)).expect("the member runs").spawner.abort_all();
    }

    /// Ends a member in order.
    async fn stop(&mut self, id: u64) {
        self.links.disconnect(NodeId(id));
        self.members.remove(&NodeId(id)).expect("the member runs").node.shutdown().await;
    }

    fn node(&self, id: u64) -> RaftNode {
        self.members[&NodeId(id)].node.clone()
    }

    fn nodes(&self) -> Vec<RaftNode> {
        self.members.values().map(|member| member.node.clone()).collect()
    }

    async fn leader(&self) -> RaftNode {
        let nodes = self.nodes();
        eventually("a member leads", || {
            nodes.iter().find(|node| node.leads() && node.status().quorum_ack_ms_ago.is_some()).cloned()
        })
        .await
    }

    /// Waits until all members have applied the same, and checks that it made the same of all.
    async fn converge(&self) {
        let nodes = self.nodes();
        eventually("all members have applied the same", || {
            let applied: BTreeSet<_> = nodes.iter().map(|node| node.state().applied).collect();
            (applied.len() == 1).then_some(())
        })
        .await;
        let digests: BTreeSet<_> = nodes.iter().map(|node| digest(&node.state())).collect();
        assert_eq!(digests.len(), 1, "members differ at the same index");
    }
}

async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn request(number: u64) -> RequestId {
    RequestId(u128::from(number).to_be_bytes())
}

/// A write that leaves nothing in the state but that it was answered.
fn write(number: u64) -> Command {
    Command::Write {
        request: request(number),
        made_at: UtcMs(1_700_000_000_000),
        write: Write::RemoveToken { id: TokenId(number.to_be_bytes()) },
        by: None,
    }
}

/// Has `node` or whoever it says leads apply the write, however often leadership changes.
async fn write_anywhere(nodes: &[RaftNode], number: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut turn = number as usize;
    loop {
        let node = &nodes[turn % nodes.len()];
        match node.propose(vec![write(number)], Duration::from_secs(2)).await {
            Ok((index, outcomes)) => {
                assert_eq!(outcomes.len(), 1);
                assert!(node.state().applied >= index, "the outcome came before the state");
                return;
            }
            Err(ProposeError::Invalid(words)) => panic!("{words}"),
            Err(_) => {
                assert!(tokio::time::Instant::now() < deadline, "write {number} was never taken");
                turn += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed() {
    let mut cluster = Cluster::start(3, RaftConfig::default()).await;
    let mut acknowledged = 0;
    for round in 0..3 {
        let nodes = cluster.nodes();
        for _ in 0..20 {
            write_anywhere(&nodes, acknowledged).await;
            acknowledged += 1;
        }
        let leader = cluster.leader().await.id().0;
        cluster.kill(leader);
        let nodes = cluster.nodes();
        for _ in 0..20 {
            write_anywhere(&nodes, acknowledged).await;
            acknowledged += 1;
        }
        cluster.open(leader).await;
        assert!(cluster.leader().await.status().term > round);
    }
    cluster.converge().await;
    let state = cluster.node(1).state();
    for number in 0..acknowledged {
        assert!(state.requests.contains_key(&request(number)), "write {number} was acknowledged and is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_learner_gets_a_snapshot_while_writes_run() {
    let config = RaftConfig { snapshot_entries: 100, log_keep: 10, ..RaftConfig::default() };
    let mut cluster = Cluster::start(3, config).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (nodes, stop, written) = (cluster.nodes(), Arc::clone(&stop), Arc::clone(&written));
        async move {
            while !stop.load(Ordering::Relaxed) {
                write_anywhere(&nodes, written.load(Ordering::Relaxed)).await;
                written.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let test = async {
        eventually("the log is purged", || {
            (cluster.node(1).status().snapshot > 200 && written.load(Ordering::Relaxed) > 300).then_some(())
        })
        .await;
        let learner = cluster.open(4).await;
        let leader = cluster.leader().await;
        leader.add_learner(NodeId(4), PATIENCE).await.expect("the learner is added");
        eventually("a snapshot is installed", || (learner.status().snapshot > 0).then_some(())).await;
        eventually("the learner has caught up", || {
            leader.replication_lag(NodeId(4)).filter(|lag| *lag < 5).map(|_| ())
        })
        .await;
        assert_eq!(leader.status().learners, [NodeId(4)]);
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(writer, test);
    cluster.converge().await;

    // What it installed is on its disk: it starts from there.
    cluster.kill(4);
    let learner = cluster.open(4).await;
    assert!(learner.state().requests.contains_key(&request(0)));
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let cluster = Cluster::start(3, RaftConfig::default()).await;
    let from = cluster.leader().await;
    let to = cluster.nodes().into_iter().find(|node| node.id() != from.id()).expect("there are three");
    write_anywhere(std::slice::from_ref(&from), 0).await;
    let refused = to.transfer_leader(from.id(), PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let unknown = from.transfer_leader(NodeId(9), PATIENCE).await;
    assert!(matches!(unknown, Err(ProposeError::Invalid(_))), "{unknown:?}");

    from.transfer_leader(to.id(), PATIENCE).await.expect("it takes over");
    eventually("the chosen member leads", || to.leads().then_some(())).await;
    assert_eq!(to.take_leader_contact().map(|(leader, _)| leader), Some(from.id()));
    assert_eq!(to.take_leader_contact(), None, "nobody led before this member's next term yet");
    write_anywhere(std::slice::from_ref(&to), 1).await;
    every_question_may_be_asked_from_any_task(&to);
}

/// Fails to compile when a future of the façade cannot move between threads: drivers spawn them.
fn every_question_may_be_asked_from_any_task(node: &RaftNode) {
    fn is_send(future: impl Send) {
        drop(future);
    }
    is_send(node.propose(Vec::new(), PATIENCE));
    is_send(node.read_barrier(PATIENCE));
    is_send(node.transfer_leader(NodeId(1), PATIENCE));
    is_send(node.add_learner(NodeId(1), PATIENCE));
    is_send(node.change_voters(BTreeSet::new(), PATIENCE));
    is_send(node.remove(BTreeSet::new(), PATIENCE));
    is_send(node.failed());
    is_send(node.shutdown());
    is_send(node.initialize());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_barrier_shows_acknowledged_writes_on_every_member() {
    let cluster = Cluster::start(3, RaftConfig::default()).await;
    let nodes = cluster.nodes();
    for number in 0..20 {
        write_anywhere(&nodes, number).await;
        for node in &nodes {
            let applied = node.read_barrier(PATIENCE).await.expect("a quorum is there");
            assert!(node.state().applied >= applied);
            assert!(node.state().requests.contains_key(&request(number)), "{} reads old data", node.id());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_and_barriers_fail_in_time_and_name_who_is_missing() {
    let mut cluster = Cluster::start(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    for id in [1, 2, 3].into_iter().filter(|id| leader.id().0 != *id) {
        cluster.kill(id);
    }
    let deadline = Duration::from_secs(2);
    let written = leader.propose(vec![write(0)], deadline).await;
    let Err(ProposeError::Unavailable(words)) = written else { panic!("{written:?}") };
    for id in [1, 2, 3].into_iter().filter(|id| leader.id().0 != *id) {
        assert!(words.contains(&format!("node {id}")), "{words}");
    }
    let read = leader.read_barrier(deadline).await;
    assert!(matches!(read, Err(ProposeError::Unavailable(_))), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_learns_that_the_leader_is_silent_and_that_it_is_back() {
    let cluster = Cluster::start(3, RaftConfig::default()).await;
    let leader = cluster.leader().await.id();
    let follower = cluster.nodes().into_iter().find(|node| node.id() != leader).expect("there are three");
    let mut statuses = follower.watch_status();
    for node in cluster.nodes() {
        cluster.links.cut(node.id(), true);
    }
    let silent = async { while statuses.changed().await.expect("Raft runs").leader.is_some() {} };
    tokio::time::timeout(PATIENCE, silent).await.expect("told that nobody leads");
    for node in cluster.nodes() {
        cluster.links.cut(node.id(), false);
    }
    // What `status` would say is older or newer than what was told: a machine that stalls for a moment
    // makes a difference that nobody need be told of.
    let back = async { while statuses.changed().await.expect("Raft runs").leader.is_none() {} };
    tokio::time::timeout(PATIENCE, back).await.expect("told of the leader that is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_member_disturbs_nobody_when_it_returns() {
    let cluster = Cluster::start(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    let apart = cluster.nodes().into_iter().find(|node| node.id() != leader.id()).expect("there are three");
    let term = leader.status().term;
    cluster.links.cut(apart.id(), true);
    eventually("it misses its leader", || apart.status().leader.is_none().then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.links.cut(apart.id(), false);
    write_anywhere(std::slice::from_ref(&leader), 0).await;
    cluster.converge().await;
    assert_eq!(leader.status().term, term, "its elections deposed a working leader");
    assert!(leader.leads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_added_demoted_and_removed() {
    let mut cluster = Cluster::start(3, RaftConfig::default()).await;
    cluster.open(4).await;
    let leader = cluster.leader().await;
    let unknown = leader.change_voters([1, 2, 9].map(NodeId).into(), PATIENCE).await;
    assert!(matches!(unknown, Err(ProposeError::Invalid(_))), "{unknown:?}");
    leader.add_learner(NodeId(4), PATIENCE).await.expect("added");
    leader.add_learner(NodeId(4), PATIENCE).await.expect("added again");
    let others: BTreeSet<_> = [1, 2, 3, 4].map(NodeId).into_iter().filter(|id| *id != leader.id()).collect();
    let refused = leader.change_voters(others.clone(), PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(_) })), "{refused:?}");
    let next = cluster.leader().await;
    assert_ne!(next.id(), leader.id());
    next.change_voters(others.clone(), PATIENCE).await.expect("the old leader votes no more");
    write_anywhere(std::slice::from_ref(&next), 0).await;
    assert_eq!(next.status().learners, [leader.id()]);
    next.remove([leader.id()].into(), PATIENCE).await.expect("removed");
    assert_eq!(next.status().configurations, [others]);
    assert!(next.status().learners.is_empty());

    let refused = next.remove([next.id()].into(), PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(_) })), "{refused:?}");
    let last = cluster.node(cluster.leader().await.id().0);
    last.remove([next.id()].into(), PATIENCE).await.expect("removed");
    assert_eq!(last.status().voters().len(), 2);
    let nobody = last.remove(last.status().voters(), PATIENCE).await;
    assert!(matches!(nobody, Err(ProposeError::Invalid(_))), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_member_starts_with_the_state_it_had_also_without_a_leader() {
    let mut cluster = Cluster::start(3, RaftConfig::default()).await;
    let nodes = cluster.nodes();
    for number in 0..10 {
        write_anywhere(&nodes, number).await;
    }
    cluster.converge().await;
    let before = cluster.node(2).state();
    drop(nodes);
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let after = cluster.open(2).await;
    assert_eq!(digest(&after.state()), digest(&before));
    assert!(after.is_initialized().await);

    // An initialized member is not initialized again.
    after.initialize().await.expect("Raft runs");
    assert_eq!(after.status().voters().len(), 3);
    cluster.open(1).await;
    cluster.open(3).await;
    write_anywhere(&cluster.nodes(), 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_a_quorum_by_itself_is_confirmed_at_any_time() {
    let cluster = Cluster::start(1, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(leader.status().quorum_ack_ms_ago, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_is_one_members_and_one_process() {
    let mut cluster = Cluster::start(1, RaftConfig::default()).await;
    let directory = cluster.directories[&NodeId(1)].path().to_owned();
    let (again, _) = platform(NodeId(1), &directory, &cluster.links);
    let error = RaftNode::open(again, CLUSTER, NodeId(1), RaftConfig::default()).await.err();
    assert!(matches!(error, Some(OpenError::InUse(_))), "{error:?}");

    cluster.stop(1).await;
    let (other, _) = platform(NodeId(2), &directory, &cluster.links);
    let error = RaftNode::open(other, CLUSTER, NodeId(2), RaftConfig::default()).await.err();
    assert!(matches!(error, Some(OpenError::Other { file: "raft.redb", .. })), "{error:?}");
    cluster.open(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_understood_halts_with_its_index() {
    let cluster = Cluster::start(1, RaftConfig::default()).await;
    let node = cluster.node(1);
    let (index, _) = node.propose(vec![write(0)], PATIENCE).await.expect("taken");
    let garbage = Proposal(b"\x00\x09\x00\x01".as_slice().into());
    let written = node.context().run(node.raft().client_write(garbage)).await;
    assert!(written.is_err());
    let words = tokio::time::timeout(PATIENCE, node.failed()).await.expect("it halts");
    assert!(words.contains(&format!("log index {}", index + 1)) && words.contains("format 9"), "{words}");
    assert_eq!(node.state().applied, index, "the entry was skipped");
    let refused = node.propose(vec![write(1)], PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::Fatal(_))), "{refused:?}");
}

/// A disk that is full while its switch is on.
struct FullDisk {
    inner: Arc<dyn Disk>,
    full: Arc<AtomicBool>,
}

impl Disk for FullDisk {
    fn open(&self, name: &str) -> std::io::Result<Box<dyn redb::StorageBackend>> {
        Ok(Box::new(FullFile { inner: self.inner.open(name)?, full: Arc::clone(&self.full) }))
    }

    fn exists(&self, name: &str) -> std::io::Result<bool> {
        self.inner.exists(name)
    }

    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.inner.rename(from, to)
    }

    fn start_writer(&self, name: &'static str, writer: Box<dyn DurableWriter>) -> std::io::Result<()> {
        self.inner.start_writer(name, writer)
    }
}

#[derive(Debug)]
struct FullFile {
    inner: Box<dyn redb::StorageBackend>,
    full: Arc<AtomicBool>,
}

impl redb::StorageBackend for FullFile {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.inner.write(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_raft_which_opens_again_once_there_is_space() {
    let (links, directory) = (Links::default(), tempfile::tempdir().expect("a directory"));
    let full = Arc::new(AtomicBool::new(false));
    let open = || {
        let (platform, _) = platform(NodeId(1), directory.path(), &links);
        let disk = FullDisk { inner: Arc::clone(&platform.disk), full: Arc::clone(&full) };
        let platform = Platform { disk: Arc::new(disk), ..platform };
        RaftNode::open(platform, CLUSTER, NodeId(1), RaftConfig::default())
    };
    let node = open().await.expect("the stores open");
    node.initialize().await.expect("Raft runs");
    eventually("it leads", || node.leads().then_some(())).await;
    node.propose(vec![write(0)], PATIENCE).await.expect("there is space");

    full.store(true, Ordering::Relaxed);
    let refused = node.propose(vec![write(1)], PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::Fatal(_))), "{refused:?}");
    let words = tokio::time::timeout(PATIENCE, node.failed()).await.expect("it fails");
    assert!(words.contains("raft.redb"), "{words}");
    node.shutdown().await;
    assert!(open().await.is_err(), "there is still no space");

    full.store(false, Ordering::Relaxed);
    let node = open().await.expect("there is space again");
    eventually("it leads", || node.leads().then_some(())).await;
    node.propose(vec![write(2)], PATIENCE).await.expect("there is space");
    assert!(node.state().requests.contains_key(&request(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a measurement: run it alone, with --release --nocapture"]
async fn measure_proposals() {
    let cluster = Cluster::start(3, RaftConfig::default()).await;
    let leader = cluster.leader().await;
    let next = AtomicU64::new(0);
    for clients in [1, 64, 1_024] {
        let started = tokio::time::Instant::now();
        let client = async || {
            let mut latencies = Vec::new();
            while started.elapsed() < Duration::from_secs(5) {
                let asked = tokio::time::Instant::now();
                let command = write(next.fetch_add(1, Ordering::Relaxed));
                leader.propose(vec![command], PATIENCE).await.expect("a quorum is there");
                latencies.push(asked.elapsed());
            }
            latencies
        };
        let mut latencies = futures_util::future::join_all((0..clients).map(|_| client())).await.concat();
        latencies.sort_unstable();
        let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
        let at = |share: usize| latencies[latencies.len() * share / 1_000];
        println!("{clients} clients: {rate:.0}/s, p50 {:?}, p99 {:?}, p99.9 {:?}", at(500), at(990), at(999));
    }
    let started = tokio::time::Instant::now();
    for _ in 0..200 {
        leader.read_barrier(PATIENCE).await.expect("a quorum is there");
    }
    println!("read barrier: {:?}", started.elapsed() / 200);
}

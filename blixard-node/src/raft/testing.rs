//! What the tests of this module run on: real disks, and links that can be cut, all in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::id::{ClusterId, NodeId, NodeKey, ReplicaId};
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};
use tokio::io::AsyncRead;
use tokio::task::AbortHandle;

use super::RaftNode;
use crate::context::NodeContext;
use crate::disk::LinuxDisk;
use crate::platform::*;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A context on the real clock whose randomness begins at `seed`.
pub(crate) fn context(seed: u64) -> NodeContext {
    NodeContext {
        clock: Arc::new(TestClock(tokio::time::Instant::now())),
        rng: Arc::new(TestRandom(AtomicU64::new(seed))),
        spawner: Arc::new(TestSpawner::default()),
    }
}

struct TestClock(tokio::time::Instant);

impl Clock for TestClock {
    fn now(&self) -> Mono {
        Mono(self.0.elapsed())
    }

    fn utc(&self) -> UtcMs {
        UtcMs(1_700_000_000_000).after(self.0.elapsed())
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        tokio::time::sleep_until(self.0 + deadline.0).boxed()
    }
}

/// SplitMix64.
struct TestRandom(AtomicU64);

impl RandomSource for TestRandom {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Remembers its tasks, to abort them as a crash would.
#[derive(Default)]
pub(super) struct TestSpawner(Mutex<Vec<AbortHandle>>);

impl TestSpawner {
    pub(super) fn abort_all(&self) {
        for task in lock(&self.0).drain(..) {
            task.abort();
        }
    }
}

impl Spawner for TestSpawner {
    #[expect(clippy::disallowed_methods, reason = "the test's implementation of the seam")]
    fn spawn(&self, _: &'static str, task: BoxFuture<'static, ()>) {
        lock(&self.0).push(tokio::spawn(task).abort_handle());
    }

    #[expect(clippy::disallowed_methods, reason = "the test's implementation of the seam")]
    fn run_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<'static, ()> {
        tokio::task::spawn_blocking(work).map(|ended| ended.expect("the work does not panic")).boxed()
    }
}

/// Every link between the test's nodes.
#[derive(Clone, Default)]
pub(super) struct Links(Arc<Mutex<LinkTable>>);

#[derive(Default)]
struct LinkTable {
    nodes: BTreeMap<NodeId, Arc<dyn Inbound>>,
    cut: BTreeSet<NodeId>,
}

impl Links {
    /// Connects `node`, in place of what had its id.
    pub(super) fn connect(&self, id: NodeId, node: RaftNode) {
        lock(&self.0).nodes.insert(id, Arc::new(Dispatch(node)));
    }

    /// Takes a node off its links.
    pub(super) fn disconnect(&self, id: NodeId) {
        lock(&self.0).nodes.remove(&id);
    }

    /// Cuts or mends all links of a node.
    pub(super) fn cut(&self, id: NodeId, cut: bool) {
        let mut links = lock(&self.0);
        if cut {
            links.cut.insert(id)
        } else {
            links.cut.remove(&id)
        };
    }

    fn find(&self, from: NodeId, to: NodeId) -> Result<Arc<dyn Inbound>, LinkError> {
        let links = lock(&self.0);
        let unreachable = || LinkError::Unreachable { to: to.to_string(), reason: "no link".to_owned() };
        if links.cut.contains(&from) || links.cut.contains(&to) {
            return Err(unreachable());
        }
        links.nodes.get(&to).cloned().ok_or_else(unreachable)
    }
}

struct Dispatch(RaftNode);

#[async_trait]
impl Inbound for Dispatch {
    async fn call(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String> {
        assert_eq!(channel, Channel::Raft);
        self.0.handle_rpc(from, request).await
    }

    async fn stranger(&self, _: NodeKey, _: Option<SocketAddr>, _: Bytes) -> Result<Bytes, String> {
        unreachable!("no strangers here")
    }

    async fn stream(&self, from: NodeId, channel: Channel, header: Bytes, stream: Box<dyn Duplex>) {
        assert_eq!(channel, Channel::Snapshot);
        self.0.handle_snapshot_stream(from, header, stream).await;
    }

    fn linked(&self, _: NodeId, _: SocketAddr) {}
}

struct TestTransport {
    id: NodeId,
    links: Links,
}

#[async_trait]
impl Transport for TestTransport {
    fn key(&self) -> NodeKey {
        unreachable!("links are by id here")
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn set_peers(&self, _: BTreeMap<NodeId, Peer>) {}

    fn serve(&self, _: Arc<dyn Inbound>) {}

    #[expect(clippy::disallowed_methods, reason = "the test's implementation of the seam")]
    async fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let (from, target) = (self.id, self.links.find(self.id, to)?);
        // The answer to an abandoned call is worked on to its end, as over a network.
        let answering = tokio::spawn(async move { target.call(from, channel, request).await });
        match tokio::time::timeout(deadline, answering).await {
            Ok(Ok(answer)) => {
                self.links.find(self.id, to)?;
                answer.map_err(|reason| LinkError::Refused { to: to.to_string(), reason })
            }
            Ok(Err(error)) => Err(LinkError::Unreachable { to: to.to_string(), reason: error.to_string() }),
            Err(_) => Err(LinkError::Timeout { to: to.to_string(), within: deadline }),
        }
    }

    async fn call_stranger(&self, _: &Peer, _: Bytes, _: Duration) -> Result<Bytes, LinkError> {
        unreachable!("no strangers here")
    }

    #[expect(clippy::disallowed_methods, reason = "the test's implementation of the seam")]
    async fn open_stream(
        &self,
        to: NodeId,
        channel: Channel,
        header: Bytes,
        _: Duration,
    ) -> Result<Box<dyn Duplex>, LinkError> {
        let (from, target) = (self.id, self.links.find(self.id, to)?);
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move { target.stream(from, channel, header, Box::new(far)).await });
        Ok(Box::new(near))
    }

    async fn shutdown(&self) {}
}

/// The platform of a node with its data in `directory`, and what aborts its tasks.
pub(super) fn platform(id: NodeId, directory: &Path, links: &Links) -> (Platform, Arc<TestSpawner>) {
    let spawner = Arc::new(TestSpawner::default());
    let NodeContext { clock, rng, .. } = context(id.0);
    let transport = Arc::new(TestTransport { id, links: links.clone() });
    let platform = Platform {
        clock,
        rng,
        spawner: Arc::clone(&spawner) as Arc<dyn Spawner>,
        disk: Arc::new(LinuxDisk::new(directory)),
        transport,
        announcer: Arc::new(Silence),
        containers: Arc::new(NoContainers),
        volumes: Arc::new(NoVolumes),
    };
    (platform, spawner)
}

struct NoVolumes;

impl VolumeStore for NoVolumes {}

struct NoContainers;

#[async_trait]
impl Routing for NoContainers {
    async fn listen(&self, _: u16) -> Result<Box<dyn Listener>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn unlisten(&self, _: u16) {
        unreachable!("Raft runs no containers")
    }

    async fn dial(&self, _: ReplicaId, _: u32, _: u16) -> Result<Box<dyn Duplex>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }
}

#[async_trait]
impl ContainerRuntime for NoContainers {
    async fn attach(&self, _: ClusterId, _: NodeId, _: Ipv4Addr) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>> {
        unreachable!("Raft runs no containers")
    }

    async fn start(&self, _: &ContainerConfig) -> Result<Started, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn state(&self, _: ReplicaId, _: u32) -> Result<ObservedState, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn remove(&self, _: ReplicaId, _: u32, _: Duration) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn publish(&self, _: &Ready) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn probe(&self, _: SocketAddr, _: &str, _: Duration) -> Result<(), String> {
        unreachable!("Raft runs no containers")
    }

    async fn inspect(&self, _: ReplicaId, _: u32) -> Result<ContainerInfo, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn logs(
        &self,
        _: ReplicaId,
        _: u32,
        _: LogQuery,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn exec(&self, _: ReplicaId, _: u32, _: &ExecConfig) -> Result<Box<dyn ExecSession>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn image(&self, _: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn resolve(&self, _: &str) -> Result<String, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn has_image(&self, _: &str, _: Option<&str>) -> Result<bool, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn pull(&self, _: &str, _: Option<&str>, _: OnProgress) -> Result<String, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn import(
        &self,
        _: Pin<Box<dyn AsyncRead + Send>>,
        _: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn export(&self, _: &str, _: Option<&str>) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn remove_images(&self, _: &[String]) -> Result<u64, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn disk_usage(&self) -> Result<crate::platform::DiskUsage, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn purge(&self, _: bool) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }
}

//! Simulated containers: they belong to a machine and outlive its daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::id::{ClusterId, ContainerId, NodeId, ReplicaId};
use blixard_core::spec::RestartPolicy;
use blixard_node::platform::{
    ContainerConfig, ContainerInfo, ContainerRuntime, DiskUsage, ExecConfig, ExecSession, ImageInfo, LogLine,
    LogQuery, OnProgress, PullProgress, RuntimeError, RuntimeEvent, Started,
};
use futures_util::Stream as FutureStream;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::checks::Checks;
use crate::checks::restarts::Restarts;
use crate::random::Stream;
use crate::trace::Trace;

/// The containers and images of one machine. Cloning shares them.
#[derive(Clone)]
pub struct SimContainers(Arc<Mutex<Inner>>);

struct Inner {
    machine: u64,
    random: Stream,
    trace: Trace,
    cluster: Option<ClusterId>,
    subnet: Ipv4Addr,
    containers: BTreeMap<(ReplicaId, u32), Container>,
    /// Whom published ports lead to.
    published: BTreeSet<(ReplicaId, u32)>,
    images: BTreeSet<String>,
    subscriber: Option<mpsc::UnboundedSender<RuntimeEvent>>,
    next_pid: u32,
    /// Troubles by number; they may meet.
    troubles: BTreeMap<u64, Suffered>,
    next_trouble: u64,
    /// Whether the runtime itself is gone: containers go on, nobody answers.
    down: bool,
    counts: ContainerCounts,
    restarts: Restarts,
    /// Told of every start.
    checks: Arc<Checks>,
}

/// How often the runtime fails, each in thousandths of the calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// A pull fails.
    pub pull: u64,
    /// A start fails, having made the container or not.
    pub start: u64,
    /// A removal fails.
    pub remove: u64,
}

/// A trouble and how many calls it failed.
struct Suffered {
    trouble: Trouble,
    failed: u64,
}

/// What happened to containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerCounts {
    /// Containers started.
    pub started: u64,
    /// Pulls, starts and removals that failed by [`Trouble`].
    pub failed: u64,
    /// Processes that ended by themselves.
    pub exited: u64,
}

impl ContainerCounts {
    /// Adds another machine's.
    pub fn add(&mut self, other: Self) {
        self.started += other.started;
        self.failed += other.failed;
        self.exited += other.exited;
    }
}

#[derive(Debug, Clone)]
struct Container {
    pid: u32,
    state: ObservedState,
    address: Option<Ipv4Addr>,
    image: String,
    /// Whether its end is for good when it ends well: a world waits for it to run.
    fails_only: bool,
}

impl SimContainers {
    /// A machine without containers or images.
    pub fn new(machine: u64, seed: u64, trace: Trace, checks: Arc<Checks>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            machine,
            random: Stream::new(seed, &format!("containers {machine}")),
            trace,
            cluster: None,
            subnet: Ipv4Addr::UNSPECIFIED,
            containers: BTreeMap::new(),
            published: BTreeSet::new(),
            images: BTreeSet::new(),
            subscriber: None,
            next_pid: 100,
            troubles: BTreeMap::new(),
            next_trouble: 0,
            down: false,
            counts: ContainerCounts::default(),
            restarts: Restarts::default(),
            checks,
        })))
    }

    /// The runtime fails from now on, besides what it failed at already. The number of this
    /// trouble, by which it ends.
    pub fn begin_trouble(&self, trouble: Trouble) -> u64 {
        let mut inner = self.lock();
        let number = inner.next_trouble;
        inner.next_trouble += 1;
        inner.troubles.insert(number, Suffered { trouble, failed: 0 });
        number
    }

    /// A trouble is over. How many calls it failed.
    pub fn end_trouble(&self, number: u64) -> u64 {
        self.lock().troubles.remove(&number).map_or(0, |suffered| suffered.failed)
    }

    /// Every trouble is over.
    pub fn end_troubles(&self) {
        self.lock().troubles.clear();
    }

    /// Ends the runtime, or starts it again: its subscriber is told to look anew.
    pub fn set_down(&self, down: bool) {
        let mut inner = self.lock();
        let started = inner.down && !down;
        inner.down = down;
        if let Some(subscriber) = inner.subscriber.as_ref().filter(|_| started) {
            subscriber.send(RuntimeEvent::Resync).ok();
        }
    }

    /// Another machine takes the place of this one: nothing is left.
    pub fn wipe(&self) {
        let mut inner = self.lock();
        inner.containers.clear();
        inner.published.clear();
        inner.images.clear();
        inner.cluster = None;
    }

    /// Whether the runtime answers and does what it is asked.
    pub fn is_well(&self) -> bool {
        let inner = self.lock();
        !inner.down && inner.troubles.is_empty()
    }

    /// What happened so far.
    pub fn counts(&self) -> ContainerCounts {
        self.lock().counts
    }

    /// The daemon ended: nobody listens. Containers go on.
    pub fn unsubscribe(&self) {
        let mut inner = self.lock();
        inner.subscriber = None;
        inner.restarts.forget();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's daemon starts.
    pub fn daemon_starts(&self) {
        let inner = self.lock();
        inner.checks.daemon_starts(inner.machine, &inner.containers.keys().copied().collect());
    }

    /// The machine lost power: no process is left, what is on disk stays.
    pub fn power_off(&self) {
        let mut inner = self.lock();
        inner.subscriber = None;
        for container in inner.containers.values_mut() {
            container.state = ObservedState::Exited(137);
        }
    }

    /// The running containers: replica, attempt and process.
    pub fn running(&self) -> Vec<(ReplicaId, u32, u32)> {
        let inner = self.lock();
        let running =
            inner.containers.iter().filter(|(_, container)| container.state == ObservedState::Running);
        running.map(|((replica, attempt), container)| (*replica, *attempt, container.pid)).collect()
    }

    /// A container's process ends by itself.
    pub fn exit(&self, replica: ReplicaId, attempt: u32, code: u32) {
        let mut inner = self.lock();
        let Some(container) = inner.containers.get_mut(&(replica, attempt)) else { return };
        if container.state != ObservedState::Running {
            return;
        }
        let code = if container.fails_only { code.max(1) } else { code };
        container.state = ObservedState::Exited(code);
        inner.counts.exited += 1;
        inner.restarts.ended(replica);
        inner.record("container exit", replica, attempt);
        if let Some(subscriber) = inner.subscriber.as_ref().filter(|_| !inner.down) {
            subscriber.send(RuntimeEvent::Exited { replica, attempt, code, oom_killed: false }).ok();
        }
    }

    async fn take(&self, milliseconds: u64) {
        let random = self.lock().random.clone();
        tokio::time::sleep(Duration::from_millis(milliseconds + random.below(milliseconds + 1))).await;
    }
}

impl Inner {
    fn record(&self, kind: &str, replica: ReplicaId, attempt: u32) {
        let what = [replica.0.to_le_bytes().as_slice(), &attempt.to_le_bytes()].concat();
        self.trace.record(kind, self.machine, &what);
    }

    /// Whether there is a runtime to answer.
    fn up(&self) -> Result<(), RuntimeError> {
        if self.down {
            Err(RuntimeError::Unavailable("the simulated runtime is gone".to_owned()))
        } else {
            Ok(())
        }
    }

    /// Whether a call fails now, which the troubles make as likely as the worst of them does.
    fn fails(&mut self, chance: impl Fn(&Trouble) -> u64, what: &str) -> Result<(), RuntimeError> {
        self.up()?;
        let worst = self.troubles.values().map(|suffered| chance(&suffered.trouble)).max().unwrap_or(0);
        if worst == 0 || !self.random.chance(worst) {
            return Ok(());
        }
        for suffered in self.troubles.values_mut().filter(|suffered| chance(&suffered.trouble) > 0) {
            suffered.failed += 1;
        }
        self.counts.failed += 1;
        self.trace.record("container trouble", self.machine, what.as_bytes());
        Err(RuntimeError::Unavailable(format!("the simulated runtime does not {what}")))
    }

    fn check_start(&self, replica: ReplicaId, attempt: u32) {
        let others = self.containers.iter().filter(|((other, number), container)| {
            *other == replica && *number != attempt && container.state == ObservedState::Running
        });
        let running: Vec<u32> = others.map(|((_, attempt), _)| *attempt).collect();
        self.checks.started(self.machine, replica, attempt, &running);
    }

    /// The lowest address of the node's network that no container has.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<_> = self.containers.values().filter_map(|container| container.address).collect();
        let network = u32::from(self.subnet);
        (2..=254).map(|host| Ipv4Addr::from(network | host)).find(|address| !taken.contains(address))
    }
}

/// Every reference stands for one image for ever.
fn digest_of(reference: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(reference)))
}

fn none(replica: ReplicaId, attempt: u32) -> RuntimeError {
    RuntimeError::NotFound(format!("replica {replica} has no container of attempt {attempt}"))
}

#[async_trait]
impl ContainerRuntime for SimContainers {
    async fn attach(&self, cluster: ClusterId, _: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        inner.cluster = Some(cluster);
        inner.subnet = subnet;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.take(2).await;
        let inner = self.lock();
        inner.up()?;
        let observed = inner.containers.iter().map(|((replica, attempt), container)| Observed {
            replica: *replica,
            attempt: *attempt,
            state: container.state,
            oom_killed: false,
            address: container.address,
        });
        Ok(observed.collect())
    }

    fn events(&self) -> Pin<Box<dyn FutureStream<Item = RuntimeEvent> + Send>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().subscriber = Some(sender);
        Box::pin(futures_util::stream::unfold(receiver, |mut receiver| async move {
            Some((receiver.recv().await?, receiver))
        }))
    }

    async fn start(&self, config: &ContainerConfig) -> Result<Started, RuntimeError> {
        self.take(20).await;
        let started = {
            let mut inner = self.lock();
            inner.up()?;
            let key = (config.replica, config.attempt);
            if let Some(container) = inner.containers.get(&key)
                && container.state == ObservedState::Running
            {
                return Ok(Started { pid: container.pid, address: container.address });
            }
            inner.fails(|trouble| trouble.start / 2, "make a container")?;
            if !inner.images.contains(&config.spec.image.reference) {
                return Err(RuntimeError::NotFound(format!("no image {}", config.spec.image.reference)));
            }
            inner.next_pid += 1;
            let pid = inner.next_pid;
            let address = inner.free_address();
            let image = config.spec.image.reference.clone();
            let fails_only = config.spec.restart.policy == RestartPolicy::Unsaid;
            let container = Container { pid, state: ObservedState::Running, address, image, fails_only };
            inner.containers.insert(key, container);
            inner.counts.started += 1;
            if let Err(detail) = inner.restarts.started(config.replica, config.attempt) {
                inner.checks.violated("restarts_wait", detail);
            }
            inner.check_start(config.replica, config.attempt);
            inner.record("container start", config.replica, config.attempt);
            inner.fails(|trouble| trouble.start / 2, "say that a container started")?;
            Started { pid, address }
        };
        self.take(20).await;
        // It may have gone meanwhile: then nobody says so.
        self.lock().up()?;
        Ok(started)
    }

    async fn state(&self, replica: ReplicaId, attempt: u32) -> Result<ObservedState, RuntimeError> {
        let inner = self.lock();
        inner.up()?;
        inner
            .containers
            .get(&(replica, attempt))
            .map(|found| found.state)
            .ok_or_else(|| none(replica, attempt))
    }

    async fn remove(&self, replica: ReplicaId, attempt: u32, _: Duration) -> Result<(), RuntimeError> {
        self.take(20).await;
        let mut inner = self.lock();
        inner.published.remove(&(replica, attempt));
        inner.fails(|trouble| trouble.remove, "remove a container")?;
        let removed = inner.containers.remove(&(replica, attempt));
        if removed.is_some_and(|container| container.state == ObservedState::Running) {
            inner.checks.ended(replica, attempt);
        }
        inner.record("container remove", replica, attempt);
        Ok(())
    }

    async fn publish(&self, ready: &Ready) -> Result<(), RuntimeError> {
        self.take(5).await;
        let mut inner = self.lock();
        inner.up()?;
        for (replica, attempt) in ready.keys() {
            if !inner.containers.contains_key(&(*replica, *attempt)) {
                let detail = format!("replica {replica} attempt {attempt} on machine {}", inner.machine);
                inner.checks.violated("published_containers_exist", detail);
            }
            inner.record("publish", *replica, *attempt);
        }
        inner.published = ready.keys().copied().collect();
        Ok(())
    }

    async fn probe(&self, address: SocketAddr, _: &str, _: Duration) -> bool {
        self.take(1).await;
        let inner = self.lock();
        inner.containers.values().any(|container| {
            container.state == ObservedState::Running
                && container.address.map(Into::into) == Some(address.ip())
        })
    }

    async fn inspect(&self, replica: ReplicaId, attempt: u32) -> Result<ContainerInfo, RuntimeError> {
        let inner = self.lock();
        let container = inner.containers.get(&(replica, attempt)).ok_or_else(|| none(replica, attempt))?;
        let cluster = inner.cluster.ok_or_else(|| none(replica, attempt))?;
        let running = container.state == ObservedState::Running;
        Ok(ContainerInfo {
            id: ContainerId::new(cluster, replica, attempt),
            pid: running.then_some(container.pid),
            exit_code: match container.state {
                ObservedState::Running => None,
                ObservedState::Exited(code) => Some(code),
            },
            address: container.address,
            image: container.image.clone(),
            image_digest: digest_of(&container.image),
            log_path: String::new(),
            ports: Vec::new(),
        })
    }

    async fn logs(
        &self,
        replica: ReplicaId,
        attempt: u32,
        _: LogQuery,
    ) -> Result<Pin<Box<dyn FutureStream<Item = Result<LogLine, RuntimeError>> + Send>>, RuntimeError> {
        self.state(replica, attempt).await?;
        Ok(Box::pin(futures_util::stream::empty()))
    }

    async fn exec(&self, _: ReplicaId, _: u32, _: &ExecConfig) -> Result<Box<dyn ExecSession>, RuntimeError> {
        Err(RuntimeError::Invalid("simulated containers have no processes to start".to_owned()))
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let inner = self.lock();
        inner.up()?;
        let here = inner.images.contains(reference).then(|| ImageInfo {
            reference: reference.to_owned(),
            digest: digest_of(reference),
            bytes: 0,
            imported: false,
        });
        Ok(here)
    }

    async fn resolve(&self, reference: &str) -> Result<String, RuntimeError> {
        self.take(5).await;
        Ok(digest_of(reference))
    }

    async fn has_image(&self, reference: &str, _: Option<&str>) -> Result<bool, RuntimeError> {
        self.lock().up()?;
        Ok(self.lock().images.contains(reference))
    }

    async fn pull(
        &self,
        reference: &str,
        _: Option<&str>,
        progress: OnProgress,
    ) -> Result<String, RuntimeError> {
        self.take(100).await;
        progress(PullProgress { bytes: 1, bytes_total: 1 });
        let mut inner = self.lock();
        inner.fails(|trouble| trouble.pull, "pull")?;
        inner.images.insert(reference.to_owned());
        inner.trace.record("pull", inner.machine, reference.as_bytes());
        Ok(digest_of(reference))
    }

    async fn import(
        &self,
        mut archive: Pin<Box<dyn AsyncRead + Send>>,
        _: Option<&str>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        let mut reference = String::new();
        let read = archive.read_to_string(&mut reference).await;
        read.map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        let digest = digest_of(&reference);
        self.lock().images.insert(reference.clone());
        Ok(vec![ImageInfo { reference, digest, bytes: 0, imported: true }])
    }

    async fn export(
        &self,
        reference: &str,
        _: Option<&str>,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        if !self.lock().images.contains(reference) {
            return Err(RuntimeError::NotFound(format!("no image {reference}")));
        }
        Ok(Box::pin(std::io::Cursor::new(reference.as_bytes().to_vec())))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let inner = self.lock();
        let images = inner.images.iter().map(|reference| ImageInfo {
            reference: reference.clone(),
            digest: digest_of(reference),
            bytes: 0,
            imported: false,
        });
        Ok(images.collect())
    }

    async fn remove_images(&self, names: &[String]) -> Result<u64, RuntimeError> {
        let mut inner = self.lock();
        inner.up()?;
        inner.images.retain(|image| !names.contains(image));
        Ok(0)
    }

    async fn disk_usage(&self) -> Result<DiskUsage, RuntimeError> {
        let inner = self.lock();
        inner.up()?;
        let (images, containers) = (inner.images.len() as u64, inner.containers.len() as u64);
        Ok(DiskUsage { images, containers, ..DiskUsage::default() })
    }

    async fn purge(&self, images: bool) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        inner.containers.clear();
        if images {
            inner.images.clear();
        }
        Ok(())
    }
}

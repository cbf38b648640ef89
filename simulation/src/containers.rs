//! Simulated containers: they belong to a machine and outlive its daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::id::{ClusterId, ContainerId, NodeId, ReplicaId};
use blixard_core::spec::{RestartPolicy, ServiceSpec};
use blixard_node::platform::{
    ContainerConfig, ContainerInfo, ContainerRuntime, DiskUsage, Duplex, ExecConfig, ExecSession, ImageInfo,
    ImportedImages, LogLine, LogQuery, OnProgress, PullProgress, RuntimeError, RuntimeEvent, Started,
};
use futures_util::Stream as FutureStream;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::checks::Checks;
use crate::checks::restarts::Restarts;
use crate::random::Stream;
use crate::trace::Trace;

mod routing;

/// How long a call takes at most that takes long, in milliseconds: longer than a question may.
const SLOW_MS_MAX: u64 = 15_000;
/// How long a process runs at most that ends soon after it was started, in milliseconds.
const SOON_MS_MAX: u64 = 3_000;
/// How many thousandths of the containers take no notice of the signal to stop.
const STUBBORN: u64 = 100;

/// The containers and images of one machine. Cloning shares them.
#[derive(Clone)]
pub struct SimContainers(Arc<Mutex<Inner>>);

struct Inner {
    machine: u64,
    node: Option<NodeId>,
    random: Stream,
    trace: Trace,
    cluster: Option<ClusterId>,
    subnet: Ipv4Addr,
    containers: BTreeMap<(ReplicaId, u32), Container>,
    /// Whom published ports lead to.
    published: BTreeSet<(ReplicaId, u32)>,
    /// The ports that the daemon takes connections on.
    listening: BTreeMap<u16, mpsc::UnboundedSender<Box<dyn Duplex>>>,
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
    /// A removal fails: before anything was done, once the process has ended, or when all is done.
    pub remove: u64,
    /// A call takes long.
    pub slow: u64,
    /// A process that was started ends soon, perhaps before it is said that it runs.
    pub ends: u64,
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
    spec: Arc<ServiceSpec>,
    /// Whether it was said that it runs.
    answered: bool,
    /// Whether it takes no notice of the signal to stop.
    stubborn: bool,
    /// Whether its end is for good when it ends well: a world waits for it to run.
    fails_only: bool,
}

impl SimContainers {
    /// A machine without containers or images.
    pub fn new(machine: u64, seed: u64, trace: Trace, checks: Arc<Checks>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            machine,
            node: None,
            random: Stream::new(seed, &format!("containers {machine}")),
            trace,
            cluster: None,
            subnet: Ipv4Addr::UNSPECIFIED,
            containers: BTreeMap::new(),
            published: BTreeSet::new(),
            listening: BTreeMap::new(),
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

    /// What each running container runs.
    pub(crate) fn specs(&self) -> Vec<(ReplicaId, u32, Arc<ServiceSpec>)> {
        let inner = self.lock();
        let running =
            inner.containers.iter().filter(|(_, container)| container.state == ObservedState::Running);
        running.map(|((replica, attempt), container)| (*replica, *attempt, container.spec.clone())).collect()
    }

    /// A process that was just started ends by itself after a time, unless another has taken its place.
    fn ends_soon(&self, replica: ReplicaId, attempt: u32, pid: u32, after: Duration, code: u32) {
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let same = own.lock().containers.get(&(replica, attempt)).is_some_and(|found| found.pid == pid);
            if same {
                own.exit(replica, attempt, code);
            }
        });
    }

    /// A container's process ends by itself.
    pub fn exit(&self, replica: ReplicaId, attempt: u32, code: u32) {
        let mut inner = self.lock();
        let Some(container) = inner.containers.get_mut(&(replica, attempt)) else { return };
        if container.state != ObservedState::Running {
            return;
        }
        let code = if container.fails_only { code.max(1) } else { code };
        inner.counts.exited += 1;
        inner.restarts.ended(replica);
        inner.process_ends(replica, attempt, code);
    }

    async fn take(&self, milliseconds: u64) {
        let time = {
            let mut inner = self.lock();
            let random = inner.random.clone();
            let usual = milliseconds + random.below(milliseconds + 1);
            if inner.suffers(|trouble| trouble.slow) { usual + random.below(SLOW_MS_MAX) } else { usual }
        };
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
}

impl Inner {
    fn record(&self, kind: &str, replica: ReplicaId, attempt: u32) {
        let what = [replica.0.to_le_bytes().as_slice(), &attempt.to_le_bytes()].concat();
        self.trace.record(kind, self.machine, &what);
    }

    /// A process ends, by itself or not; whoever listens is told.
    fn process_ends(&mut self, replica: ReplicaId, attempt: u32, code: u32) {
        if let Some(container) = self.containers.get_mut(&(replica, attempt)) {
            container.state = ObservedState::Exited(code);
        }
        self.record("container exit", replica, attempt);
        if let Some(subscriber) = self.subscriber.as_ref().filter(|_| !self.down) {
            subscriber.send(RuntimeEvent::Exited { replica, attempt, code, oom_killed: false }).ok();
        }
    }

    /// A container is asked to stop within a time: how long its process goes on, when it runs.
    fn asked_to_stop(&mut self, replica: ReplicaId, attempt: u32, timeout: Duration) -> Option<Duration> {
        let found = self.containers.get(&(replica, attempt));
        let container = found.filter(|found| found.state == ObservedState::Running)?.clone();
        self.checks.ended(replica, attempt);
        if container.answered {
            self.checks.stops(replica, attempt, timeout, container.spec.stop_timeout_s);
        }
        Some(if container.stubborn { timeout } else { Duration::from_millis(self.random.below(50)) })
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
        if !self.suffers(chance) {
            return Ok(());
        }
        self.counts.failed += 1;
        self.trace.record("container trouble", self.machine, what.as_bytes());
        Err(RuntimeError::Unavailable(format!("the simulated runtime does not {what}")))
    }

    /// Whether the troubles act now.
    fn suffers(&mut self, chance: impl Fn(&Trouble) -> u64) -> bool {
        let worst = self.troubles.values().map(|suffered| chance(&suffered.trouble)).max().unwrap_or(0);
        if worst == 0 || !self.random.chance(worst) {
            return false;
        }
        for suffered in self.troubles.values_mut().filter(|suffered| chance(&suffered.trouble) > 0) {
            suffered.failed += 1;
        }
        true
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
pub(crate) fn digest_of(reference: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(reference)))
}

fn none(replica: ReplicaId, attempt: u32) -> RuntimeError {
    RuntimeError::NotFound(format!("replica {replica} has no container of attempt {attempt}"))
}

#[async_trait]
impl ContainerRuntime for SimContainers {
    async fn attach(&self, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        inner.cluster = Some(cluster);
        inner.node = Some(node);
        inner.subnet = subnet;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.take(1).await;
        let observed = {
            let inner = self.lock();
            inner.up()?;
            let observed = inner.containers.iter().map(|((replica, attempt), container)| Observed {
                replica: *replica,
                attempt: *attempt,
                state: container.state,
                oom_killed: false,
                address: container.address,
            });
            observed.collect()
        };
        // What it says may be old when it arrives.
        self.take(1).await;
        self.lock().up()?;
        Ok(observed)
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
            if let Some(container) = inner.containers.get_mut(&key)
                && container.state == ObservedState::Running
            {
                container.answered = true;
                return Ok(Started { pid: container.pid, address: container.address });
            }
            inner.fails(|trouble| trouble.start / 2, "make a container")?;
            if !inner.images.contains(&config.spec.image.reference) {
                return Err(RuntimeError::NotFound(format!("no image {}", config.spec.image.reference)));
            }
            inner.next_pid += 1;
            let pid = inner.next_pid;
            let address = inner.free_address();
            let container = Container {
                pid,
                state: ObservedState::Running,
                address,
                spec: config.spec.clone(),
                answered: false,
                stubborn: inner.random.chance(STUBBORN),
                fails_only: config.spec.restart.policy == RestartPolicy::Unsaid,
            };
            inner.containers.insert(key, container);
            inner.checks.asked(inner.node, config);
            inner.counts.started += 1;
            if let Err(detail) = inner.restarts.started(config.replica, config.attempt) {
                inner.checks.violated("restarts_wait", detail);
            }
            inner.check_start(config.replica, config.attempt);
            inner.record("container start", config.replica, config.attempt);
            if inner.suffers(|trouble| trouble.ends) {
                let (after, code) = (inner.random.below(SOON_MS_MAX), inner.random.below(3));
                let at_once = inner.random.chance(400);
                let after = Duration::from_millis(if at_once { 0 } else { after });
                let code = u32::try_from(code).expect("small");
                self.ends_soon(config.replica, config.attempt, pid, after, code);
            }
            inner.fails(|trouble| trouble.start / 2, "say that a container started")?;
            Started { pid, address }
        };
        self.take(20).await;
        // It may have gone meanwhile: then nobody says so.
        let mut inner = self.lock();
        inner.up()?;
        if let Some(container) = inner.containers.get_mut(&(config.replica, config.attempt)) {
            container.answered = true;
        }
        Ok(started)
    }

    async fn state(&self, replica: ReplicaId, attempt: u32) -> Result<ObservedState, RuntimeError> {
        self.take(1).await;
        let inner = self.lock();
        inner.up()?;
        inner
            .containers
            .get(&(replica, attempt))
            .map(|found| found.state)
            .ok_or_else(|| none(replica, attempt))
    }

    async fn remove(&self, replica: ReplicaId, attempt: u32, timeout: Duration) -> Result<(), RuntimeError> {
        self.take(10).await;
        let goes_on = {
            let mut inner = self.lock();
            inner.published.remove(&(replica, attempt));
            inner.fails(|trouble| trouble.remove / 3, "stop a container")?;
            inner.asked_to_stop(replica, attempt, timeout)
        };
        if let Some(goes_on) = goes_on {
            tokio::time::sleep(goes_on).await;
            let mut inner = self.lock();
            inner.up()?;
            let found = inner.containers.get(&(replica, attempt));
            if found.is_some_and(|found| found.state == ObservedState::Running) {
                inner.process_ends(replica, attempt, if goes_on < timeout { 143 } else { 137 });
            }
        }
        self.take(5).await;
        {
            let mut inner = self.lock();
            inner.fails(|trouble| trouble.remove / 3, "remove what a container left")?;
            inner.containers.remove(&(replica, attempt));
            inner.record("container remove", replica, attempt);
            inner.fails(|trouble| trouble.remove / 3, "say that a container is gone")?;
        }
        self.take(5).await;
        self.lock().up()
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

    async fn probe(&self, address: SocketAddr, _: &str, _: Duration) -> Result<(), String> {
        self.take(1).await;
        let inner = self.lock();
        let answers = inner.containers.values().any(|container| {
            container.state == ObservedState::Running
                && container.address.map(Into::into) == Some(address.ip())
        });
        if answers { Ok(()) } else { Err("connection refused".to_owned()) }
    }

    async fn inspect(&self, replica: ReplicaId, attempt: u32) -> Result<ContainerInfo, RuntimeError> {
        self.take(1).await;
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
            image: container.spec.image.reference.clone(),
            image_digest: digest_of(&container.spec.image.reference),
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
        self.take(1).await;
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
    ) -> Result<ImportedImages, RuntimeError> {
        let mut reference = String::new();
        let read = archive.read_to_string(&mut reference).await;
        read.map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        let digest = digest_of(&reference);
        self.lock().images.insert(reference.clone());
        let images = vec![ImageInfo { reference, digest, bytes: 0, imported: true }];
        Ok(ImportedImages { images, passed_over: Vec::new() })
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
        self.take(1).await;
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

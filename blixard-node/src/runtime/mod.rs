//! Containers on Linux: [`ContainerdRuntime`] runs them by containerd and runc.
//!
//! Everything a container is can be found again from outside this process: containerd has the
//! container with its replica and attempt as labels, the shim its process, the logger its output,
//! the data directory its files. A daemon that starts therefore lists and goes on; it never needs
//! to have been the one that started a container.
//!
//! The node's composition root makes the runtime; the agent's driver and the API call it through
//! [`ContainerRuntime`]. It decides nothing: whether a container should run, and when a failed one
//! runs again, is the agent's to say.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the simulator replaces this whole module: it may use real clocks, tasks and containerd's hash maps"
)]

mod apparmor;
mod cgroups;
mod client;
mod connect;
mod containers;
mod copy;
mod ended;
mod events;
mod exec;
mod files;
mod host_paths;
pub mod images;
mod inventory;
mod log_reader;
mod log_tail;
pub mod logger;
mod logs;
mod networks;
mod oom;
mod probe;
mod record;
mod remains;
mod resolver;
mod rootfs;
mod routing;
mod runc;
mod seccomp;
mod shims;
mod spec;
mod start;
mod supervise;
mod usage;
mod user;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_core::limits::{EXEC_SESSIONS_MAX, LOG_READERS_MAX};
use blixard_core::spec::MountSpec;
use containerd_client::tonic::transport::Channel;
use futures_util::Stream;
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::cgroups::CgroupSupport;
use self::client::{Client, disk};
use self::containers::Containers;
use self::files::Files;
use self::host_paths::HostPaths;
use self::images::{ImageStore, Registries};
use self::supervise::Private;
use crate::platform::{
    Chunks, ContainerConfig, ContainerInfo, ContainerRuntime, DiskUsage, EndedContainer, ExecConfig,
    ExecSession, ImageInfo, ImportedImages, LogLine, LogQuery, OnProgress, RuntimeError, RuntimeEvent,
    Started,
};

pub use self::connect::{ContainerdChoice, SYSTEM_SOCKET};
pub use self::networks::{Bridge, HostOnly, NetworkLease, Networks};
pub(crate) use self::remains::mounts_below;

/// How long a containerd that was just started takes to answer, at most.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// The file in the data directory that says what `auto` found, and what it says.
const CHOICE: &str = "containerd.choice";
const CHOICE_SYSTEM: &str = "system";
const CHOICE_PRIVATE: &str = "private";
/// What the names of nodes' containerd namespaces begin with.
const NAMESPACE_PREFIX: &str = "blixard-";
/// Where sockets and running state of nodes are: short paths, cleared by a reboot.
const RUN: &str = "/run/blixard";

/// How a node runs its containers.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// The node's data directory, absolute.
    pub data: PathBuf,
    /// Which containerd.
    pub containerd: ContainerdChoice,
    /// How registries are reached.
    pub registries: Registries,
    /// The program started as a container's logger, with [`logger::SUBCOMMAND`] as its first
    /// argument: this very program unless a test says otherwise.
    pub logger: Option<PathBuf>,
    /// Paths of the host that containers may be given besides those that any may.
    pub allow_paths: Vec<PathBuf>,
    /// The container network: the node's [`Bridge`] unless a test says otherwise.
    pub networks: Option<Arc<dyn Networks>>,
}

/// The containers of one node, by containerd.
pub struct ContainerdRuntime {
    config: RuntimeConfig,
    logger: PathBuf,
    networks: Arc<dyn Networks>,
    /// This node's directory under `/run`.
    run: PathBuf,
    socket: PathBuf,
    channel: Channel,
    private: Option<Private>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    containers: OnceLock<Arc<Containers>>,
}

impl ContainerdRuntime {
    /// Finds or starts containerd and connects to it.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] when containerd is not installed, naming the package;
    /// [`RuntimeError::Unavailable`] when it does not answer.
    pub async fn connect(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let logger = match &config.logger {
            Some(logger) => logger.clone(),
            None => own_program()?,
        };
        let data = config.data.clone();
        blocking(move || {
            std::fs::create_dir_all(&data).map_err(|error| disk("make the data directory", &error))
        })
        .await?;
        let run = run_directory(&config.data);
        let networks = match &config.networks {
            Some(networks) => Arc::clone(networks),
            None => Arc::new(Bridge::new(run.join("network"))),
        };
        let system = match &config.containerd {
            ContainerdChoice::Socket(socket) => Some(socket.clone()),
            ContainerdChoice::Private => None,
            ContainerdChoice::Auto => automatic(&config.data).await?,
        };
        let (socket, private) = match system {
            Some(socket) => (socket, None),
            None => {
                blocking(cgroups::check_mounted).await?;
                let private = Private::new(&config.data, &run)?;
                (private.socket.clone(), Some(private))
            }
        };
        let channel = connect::channel(&socket);
        let supervisor = private.clone().map(|private| tokio::spawn(private.supervise()));
        let runtime = Self {
            config,
            logger,
            networks,
            run,
            socket,
            channel,
            private,
            supervisor: Mutex::new(supervisor),
            containers: OnceLock::new(),
        };
        let ready = connect::wait_ready(&runtime.channel, &runtime.socket, READY_TIMEOUT).await;
        let version = ready.map_err(|error| match (error, &runtime.private) {
            (RuntimeError::Unavailable(text), Some(private)) => {
                RuntimeError::Unavailable(format!("{text}; its log is {}", private.log_path().display()))
            }
            (error, _) => error,
        })?;
        tracing::info!(containerd.version = version, socket = %runtime.socket.display(), "containerd answers");
        Ok(runtime)
    }

    /// The socket of the containerd in use.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process of the private containerd, when there is one and it runs.
    pub fn containerd_pid(&self) -> Option<u32> {
        let pid = self.private.as_ref()?.running()?;
        pid.as_raw_nonzero().get().try_into().ok()
    }

    /// Stops the private containerd and removes what it keeps, images included; for a node that
    /// leaves the machine, after [`ContainerRuntime::purge`].
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when it does not stop or its files cannot be removed.
    pub async fn remove_containerd(&self) -> Result<(), RuntimeError> {
        let Some(private) = &self.private else { return Ok(()) };
        if let Some(supervisor) = self.stop_supervising() {
            // It may be starting one at this moment, which is to be seen below.
            let _ = supervisor.await;
        }
        private.stop().await?;
        let directories = [self.config.data.join("containerd"), self.run.clone()];
        let choice = self.config.data.join(CHOICE);
        blocking(move || {
            for directory in directories {
                files::absent_is_fine(std::fs::remove_dir_all(&directory))
                    .map_err(|error| disk(&format!("remove {}", directory.display()), &error))?;
            }
            files::absent_is_fine(std::fs::remove_file(choice))
                .map_err(|error| disk("forget the choice of containerd", &error))
        })
        .await
    }

    /// Does the same for a node that belongs to no cluster, unless there are containers: those of a
    /// node whose identity was lost.
    ///
    /// # Errors
    /// As above, and when there are containers.
    pub async fn remove_unused_containerd(&self) -> Result<(), RuntimeError> {
        if self.private.is_some() && self.has_containers().await? {
            return Err(RuntimeError::Unavailable("containerd has containers of another node".to_owned()));
        }
        self.remove_containerd().await
    }

    /// Whether containerd has containers of any node of any cluster.
    async fn has_containers(&self) -> Result<bool, RuntimeError> {
        let client = Client::new(self.channel.clone(), NAMESPACE_PREFIX)?;
        for namespace in client.all_namespaces().await? {
            let ours = namespace.starts_with(NAMESPACE_PREFIX);
            if ours && !Client::new(self.channel.clone(), &namespace)?.all_containers().await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stop_supervising(&self) -> Option<JoinHandle<()>> {
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        supervisor.abort();
        Some(supervisor)
    }

    fn host_paths(&self) -> HostPaths {
        let own = [self.config.data.as_path(), Path::new(RUN)];
        HostPaths::new(&own, self.config.allow_paths.iter().map(PathBuf::as_path))
    }

    fn attached(&self) -> Result<&Arc<Containers>, RuntimeError> {
        self.containers
            .get()
            .ok_or_else(|| RuntimeError::Unavailable("this node belongs to no cluster yet".to_owned()))
    }
}

impl Drop for ContainerdRuntime {
    /// containerd and the containers go on.
    fn drop(&mut self) {
        drop(self.stop_supervising());
    }
}

#[async_trait]
impl ContainerRuntime for ContainerdRuntime {
    async fn attach(&self, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError> {
        if let Some(containers) = self.containers.get() {
            if (containers.cluster, containers.node) == (cluster, node) {
                return Ok(());
            }
            return Err(RuntimeError::Invalid(format!(
                "this runtime has the containers of node {} of cluster {}",
                containers.node, containers.cluster
            )));
        }
        let client = Client::new(self.channel.clone(), &namespace(cluster, node))?;
        client.create_namespace().await?;
        self.networks.attach(cluster, node, subnet).await?;
        let (cgroups, apparmor) = blocking(|| Ok((CgroupSupport::detect(), apparmor::load()))).await?;
        let host_paths = self.host_paths();
        let images =
            ImageStore::new(client.channel(), client.namespace().to_owned(), self.config.registries.clone())?;
        let containers = Containers {
            cluster,
            node,
            client,
            images,
            networks: Arc::clone(&self.networks),
            files: Files::new(self.config.data.clone()),
            host_paths,
            runc_root: self.run.join("runc"),
            logger: self.logger.clone(),
            cgroups,
            apparmor,
            starting: Mutex::default(),
            survived: Mutex::default(),
            log_readers: Arc::new(Semaphore::new(LOG_READERS_MAX)),
            exec_sessions: Arc::new(Semaphore::new(EXEC_SESSIONS_MAX)),
        };
        let exec = containers.files.exec();
        blocking(move || {
            files::absent_is_fine(std::fs::remove_dir_all(exec))
                .map_err(|error| disk("remove what exec sessions of an earlier daemon left", &error))
        })
        .await?;
        // A second call that came meanwhile attached the same.
        let _ = self.containers.set(Arc::new(containers));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.attached()?.list().await
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>> {
        match self.attached() {
            Ok(containers) => events::subscribe(Arc::clone(containers)),
            Err(_) => Box::pin(futures_util::stream::pending()),
        }
    }

    async fn start(&self, config: &ContainerConfig) -> Result<Started, RuntimeError> {
        self.attached()?.start(config).await
    }

    async fn state(&self, replica: ReplicaId, attempt: u32) -> Result<ObservedState, RuntimeError> {
        let containers = self.attached()?;
        containers.state(&containers.id(replica, attempt)).await
    }

    async fn remove(&self, replica: ReplicaId, attempt: u32, timeout: Duration) -> Result<(), RuntimeError> {
        let containers = self.attached()?;
        containers.remove(&containers.id(replica, attempt), timeout).await
    }

    async fn publish(&self, ready: &Ready) -> Result<(), RuntimeError> {
        self.attached()?.publish(ready).await
    }

    async fn probe(&self, address: SocketAddr, path: &str, timeout: Duration) -> Result<(), String> {
        probe::http(address, path, timeout).await
    }

    async fn inspect(&self, replica: ReplicaId, attempt: u32) -> Result<ContainerInfo, RuntimeError> {
        let containers = self.attached()?;
        containers.inspect(&containers.id(replica, attempt)).await
    }

    async fn logs(
        &self,
        replica: ReplicaId,
        attempt: u32,
        query: LogQuery,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>, RuntimeError> {
        self.attached()?.logs(replica, attempt, query).await
    }

    async fn log_attempts(&self, replica: ReplicaId) -> Result<BTreeSet<u32>, RuntimeError> {
        self.attached()?.log_attempts(replica).await
    }

    async fn read_tree(&self, replica: ReplicaId, attempt: u32, path: &str) -> Result<Chunks, RuntimeError> {
        let containers = self.attached()?;
        containers.read_tree(&containers.id(replica, attempt), path.to_owned()).await
    }

    async fn write_tree(
        &self,
        replica: ReplicaId,
        attempt: u32,
        path: &str,
        name: Option<&str>,
        chunks: Chunks,
    ) -> Result<(), RuntimeError> {
        let containers = self.attached()?;
        let id = containers.id(replica, attempt);
        containers.write_tree(&id, path.to_owned(), name.map(str::to_owned), chunks).await
    }

    async fn kill(&self, replica: ReplicaId, attempt: u32, signal: &str) -> Result<(), RuntimeError> {
        let containers = self.attached()?;
        containers.send_signal(&containers.id(replica, attempt), signal).await
    }

    async fn missing_sources(&self, volumes: &[MountSpec]) -> Result<Vec<String>, RuntimeError> {
        let volumes = volumes.to_vec();
        blocking(move || Ok(start::missing_sources(&volumes))).await
    }

    async fn refused_sources(&self, volumes: &[MountSpec]) -> Result<Vec<String>, RuntimeError> {
        let (volumes, paths) = (volumes.to_vec(), self.attached()?.host_paths.clone());
        blocking(move || Ok(paths.refusals(&volumes))).await
    }

    async fn ended(&self) -> Result<Vec<EndedContainer>, RuntimeError> {
        self.attached()?.ended_containers().await
    }

    async fn exec(
        &self,
        replica: ReplicaId,
        attempt: u32,
        config: &ExecConfig,
    ) -> Result<Box<dyn ExecSession>, RuntimeError> {
        let containers = self.attached()?;
        containers.exec(&containers.id(replica, attempt), config).await
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        self.attached()?.images.image(reference).await
    }

    async fn resolve(&self, reference: &str) -> Result<String, RuntimeError> {
        self.attached()?.images.resolve(reference).await
    }

    async fn has_image(&self, reference: &str, digest: Option<&str>) -> Result<bool, RuntimeError> {
        self.attached()?.images.has_image(reference, digest).await
    }

    async fn pull(
        &self,
        reference: &str,
        digest: Option<&str>,
        progress: OnProgress,
    ) -> Result<String, RuntimeError> {
        self.attached()?.images.pull(reference, digest, progress).await
    }

    async fn import(
        &self,
        archive: Pin<Box<dyn AsyncRead + Send>>,
        name: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        self.attached()?.images.import(archive, name).await
    }

    async fn export(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        self.attached()?.images.export(reference, digest).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.attached()?.images.images().await
    }

    async fn remove_images(&self, names: &[String]) -> Result<u64, RuntimeError> {
        self.attached()?.images.remove(names).await
    }

    async fn disk_usage(&self) -> Result<DiskUsage, RuntimeError> {
        self.attached()?.disk_usage(self.config.data.clone()).await
    }

    async fn purge(&self, images: bool) -> Result<(), RuntimeError> {
        self.attached()?.purge(images).await
    }
}

/// containerd's namespace of a node's containers.
pub fn namespace(cluster: ClusterId, node: NodeId) -> String {
    let cluster = cluster.to_string();
    format!("{NAMESPACE_PREFIX}{}-n{node}", cluster.get(..12).unwrap_or(&cluster))
}

/// This program's file, also after an upgrade replaced it.
fn own_program() -> Result<PathBuf, RuntimeError> {
    let path = std::env::current_exe().map_err(|error| disk("find this program", &error))?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.filter(|path| path.exists()).unwrap_or(path))
}

/// A node's directory under `/run`: its name is a hash, since a socket's path has at most 107 bytes.
fn run_directory(data: &Path) -> PathBuf {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_path_buf());
    let digest = hex::encode(Sha256::digest(data.as_os_str().as_encoded_bytes()));
    Path::new(RUN).join(digest.get(..12).unwrap_or(&digest))
}

/// The socket of the system's containerd, or nothing where a private one is to be used. What was
/// found once is kept, since the containers and images of a node are in one of them: a system
/// containerd that a reboot brings up late is waited for.
async fn automatic(data: &Path) -> Result<Option<PathBuf>, RuntimeError> {
    let marker = data.join(CHOICE);
    let system = match std::fs::read_to_string(&marker) {
        Ok(choice) => choice.trim() == CHOICE_SYSTEM,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let socket = Path::new(SYSTEM_SOCKET);
            let system = socket.exists() && connect::version(&connect::channel(socket)).await.is_some();
            let choice = if system { CHOICE_SYSTEM } else { CHOICE_PRIVATE };
            std::fs::write(&marker, format!("{choice}\n"))
                .map_err(|error| disk("keep the choice of containerd", &error))?;
            system
        }
        Err(error) => return Err(disk("read the choice of containerd", &error)),
    };
    Ok(system.then(|| SYSTEM_SOCKET.into()))
}

/// Runs `work`, which uses the disk, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RuntimeError::Unavailable(format!("a disk operation was cut off: {error}"))),
    }
}

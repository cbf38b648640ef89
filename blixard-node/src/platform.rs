//! The seams: everything of the world that a node touches, each as a trait with two
//! implementations, the Linux one in this crate and the simulator's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::api::image::PassedOverImage;
use blixard_core::discovery::copies::{Start, Twice};
use blixard_core::id::{
    ClusterId, ContainerId, NodeId, NodeKey, ReplicaId, ServiceName, VolumeId, VolumeName,
};
use blixard_core::spec::{MountSpec, PortSpec, ServiceSpec};
use blixard_core::text::one_line;
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

mod neighbours;
mod routing;
mod volumes;

pub use self::neighbours::{Announcer, Link, LinkError, Silence};
pub use self::routing::{Listener, Routing};
pub use self::volumes::{StepSink, StepSource, VolumeError, VolumeStore};

/// All seams of one node. Cloning shares them.
#[derive(Clone)]
pub struct Platform {
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The only source of randomness.
    pub rng: Arc<dyn RandomSource>,
    /// The only way to start a task.
    pub spawner: Arc<dyn Spawner>,
    /// The disk under the stores.
    pub disk: Arc<dyn Disk>,
    /// Links to other members.
    pub transport: Arc<dyn Transport>,
    /// What the local network is told and heard.
    pub announcer: Arc<dyn Announcer>,
    /// Containers, their images and their logs.
    pub containers: Arc<dyn ContainerRuntime>,
    /// What the machine holds of volumes.
    pub volumes: Arc<dyn VolumeStore>,
}

/// A node's clocks.
pub trait Clock: Send + Sync + 'static {
    /// The monotonic clock, which also counts while the machine is suspended.
    fn now(&self) -> Mono;
    /// The wall clock.
    fn utc(&self) -> UtcMs;
    /// Waits until the monotonic clock reads at least `deadline`.
    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()>;
}

/// A node's source of randomness: the kernel's in production, the seed's in simulation.
pub trait RandomSource: Send + Sync + 'static {
    /// Fills `bytes` with random ones.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// Starts a node's tasks, so that the node can be stopped, or in simulation crashed, as a whole.
pub trait Spawner: Send + Sync + 'static {
    /// Starts `task` under `name`. It runs until it ends or the node does.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>);
    /// Starts a task that serves others, which however much it has to do holds up none of the node's
    /// own: on threads apart in production (docs/adr/0013); in simulation like any other.
    fn spawn_apart(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.spawn(name, task);
    }
    /// Runs `work`, which may block on the disk, off the async threads; in simulation at once.
    fn run_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<'static, ()>;
}

/// A node's disk, as its databases and its log see it.
pub trait Disk: Send + Sync + 'static {
    /// Opens the database file `name` in the node's data directory, making it when absent.
    ///
    /// # Errors
    /// When the file cannot be opened. That another process has it open shows later, by the
    /// backend's lock.
    fn open(&self, name: &str) -> std::io::Result<Box<dyn redb::StorageBackend>>;

    /// Whether the file `name` is there.
    ///
    /// # Errors
    /// When the disk refuses to tell.
    fn exists(&self, name: &str) -> std::io::Result<bool>;

    /// Gives a file that nobody has open another name, durably. One that has that name is no more.
    ///
    /// # Errors
    /// The disk's.
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()>;

    /// Runs a database's only writer until [`DurableWriter::wait`] says that no work can come: on a
    /// thread of its own in production; in simulation in a task, whose completions run later.
    ///
    /// # Errors
    /// When the thread cannot be started.
    fn start_writer(&self, name: &'static str, writer: Box<dyn DurableWriter>) -> std::io::Result<()>;
}

/// A database's only writer: collects what waits and commits it as one group.
pub trait DurableWriter: Send + 'static {
    /// Waits, blocking the thread, for the next piece of work; false when no more can come.
    fn wait(&mut self) -> bool;
    /// Waits for the next piece of work without blocking; false when no more can come.
    fn wait_async<'a>(&'a mut self) -> BoxFuture<'a, bool>;
    /// Commits everything that waits as one durable group. The completions returned are for the
    /// caller to run once the group is durable: at once in production, where the commit returned
    /// after the disk's flush; later in simulation.
    fn commit(&mut self) -> Vec<Box<dyn FnOnce() + Send>>;
    /// Does what nobody waits for, once the completions have run.
    fn rest(&mut self) {}
}

/// A two-way stream of bytes between members.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// Links to other members: messages and streams, authenticated by key in both directions.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// This node's own key.
    fn key(&self) -> NodeKey;

    /// Where this node listens.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Replaces the set of members: whom to accept, and where each may be. Links to others close.
    fn set_peers(&self, peers: BTreeMap<NodeId, Peer>);

    /// Tells where the holder of `key` may be, as a registry file or ticket said: one more address
    /// to try. It makes nobody a member.
    fn hint(&self, key: NodeKey, addresses: &[SocketAddr]) {
        let _unused = (key, addresses);
    }

    /// Replaces the nodes that run twice, as the leader says: the starts that it refuses are not to be
    /// linked here either. A transport whose members never run twice has nothing to heed.
    fn heed_twice(&self, twice: BTreeMap<NodeId, Twice>) {
        let _unused = twice;
    }

    /// How the link to each member is.
    fn links(&self) -> BTreeMap<NodeId, Link> {
        BTreeMap::new()
    }

    /// Sets who answers incoming messages and streams. Called once, before anything arrives.
    fn serve(&self, handler: Arc<dyn Inbound>);

    /// Sends `request` to a member and waits for its answer, at most `deadline`.
    async fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError>;

    /// Sends `request` to someone who need not be a member, known by key and address, over the
    /// join protocol: only [`Channel::Join`].
    async fn call_stranger(&self, to: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, LinkError>;

    /// Opens a stream to a member; `header` says what it is about.
    async fn open_stream(
        &self,
        to: NodeId,
        channel: Channel,
        header: Bytes,
        deadline: Duration,
    ) -> Result<Box<dyn Duplex>, LinkError>;

    /// Closes every link and the socket.
    async fn shutdown(&self);
}

/// Who answers what other members send.
#[async_trait]
pub trait Inbound: Send + Sync + 'static {
    /// Answers a member's message. An error's text reaches the sender as [`LinkError::Refused`].
    async fn call(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String>;

    /// Answers a stranger's message over the join protocol; `from` is proven, `address` observed.
    async fn stranger(
        &self,
        from: NodeKey,
        address: Option<SocketAddr>,
        request: Bytes,
    ) -> Result<Bytes, String>;

    /// Serves a member's stream.
    async fn stream(&self, from: NodeId, channel: Channel, header: Bytes, stream: Box<dyn Duplex>);

    /// A member's link came up from this address, perhaps a new one of its.
    fn linked(&self, from: NodeId, address: SocketAddr);

    /// A member runs twice, and one of the two was refused a link here.
    fn runs_twice(&self, node: NodeId, twice: Twice) {
        let _unused = (node, twice);
    }

    /// A member refused this node, whose start this is: another start of it is linked there.
    fn is_refused(&self, start: Start) {
        let _unused = start;
    }
}

/// Why something about a container failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// What was asked for is wrong or missing: another try alone will not help.
    #[error("{}", one_line(.0))]
    Invalid(String),
    /// There is no such container, image, process or log.
    #[error("{}", one_line(.0))]
    NotFound(String),
    /// The runtime, registry or disk is in trouble: try again later.
    #[error("{}", one_line(.0))]
    Unavailable(String),
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct PullProgress {
    /// Bytes here so far.
    pub bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub bytes_total: u64,
}

/// Told of a pull's progress, from any task.
pub type OnProgress = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// An image in the node's store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageInfo {
    /// The full reference, `docker.io/library/nginx:latest`.
    pub reference: String,
    /// The digest of its index or manifest.
    pub digest: String,
    /// The size of the blobs here, in bytes.
    pub bytes: u64,
    /// Whether somebody imported it under this name, rather than that a registry gave it.
    #[serde(default)]
    pub imported: bool,
}

/// What an import took of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportedImages {
    /// The images that are here now.
    pub images: Vec<ImageInfo>,
    /// Those that are for other platforms than the node's.
    pub passed_over: Vec<PassedOverImage>,
}

/// What a node has on disk; sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// How many images there are.
    pub images: u64,
    /// Images as registries send them.
    pub image_bytes: u64,
    /// Their layers unpacked.
    pub unpacked_bytes: u64,
    /// How many containers there are.
    pub containers: u64,
    /// What containers wrote onto their own root file systems.
    pub container_bytes: u64,
    /// Logs of containers.
    pub log_bytes: u64,
    /// The rest of the data directory: the stores.
    pub data_bytes: u64,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Whose container.
    pub replica: ReplicaId,
    /// Which attempt.
    pub attempt: u32,
    /// Its slot, for its hostname.
    pub slot: u32,
    /// The service's version it runs.
    pub version: u64,
    /// What runs.
    pub spec: Arc<ServiceSpec>,
    /// The volumes that it mounts, whose primary copies are here.
    pub volumes: BTreeMap<VolumeName, VolumeId>,
}

/// What is known of a started container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Its process, in the node's process namespace.
    pub pid: u32,
    /// Its address; absent on the host's network.
    pub address: Option<Ipv4Addr>,
}

/// What is known of a container, for `inspect` and `ps`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ContainerInfo {
    /// Its id.
    pub id: ContainerId,
    /// Its process; absent when it ended.
    pub pid: Option<u32>,
    /// The code its process ended with.
    pub exit_code: Option<u32>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// The full reference of its image.
    pub image: String,
    /// The digest of its image's manifest.
    pub image_digest: String,
    /// Where its log is.
    pub log_path: String,
    /// Its published ports.
    pub ports: Vec<PortSpec>,
}

/// Bytes as they come.
pub type Chunks = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A container that ended and was removed, and whose log is still here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EndedContainer {
    /// Whose.
    pub replica: ReplicaId,
    /// Which attempt.
    pub attempt: u32,
    /// The service's name.
    pub service: ServiceName,
    /// Its slot.
    pub slot: u32,
    /// The service's version it ran; 0 when that was not written down.
    #[serde(default)]
    pub version: u64,
    /// The full reference of its image.
    pub image: String,
    /// The code its process ended with.
    pub exit_code: u32,
    /// Whether it ended after the kernel killed its process, or another one in it, for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it was made, by the node's clock.
    #[serde(default)]
    pub created_at: Option<UtcMs>,
    /// When its process ended, by the node's clock.
    pub ended_at: UtcMs,
}

/// What a container wrote: a line, or a piece of one that is long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When, by the node's clock, to the nanosecond, RFC 3339.
    pub at: String,
    /// Whether to stderr rather than stdout.
    pub stderr: bool,
    /// The line as it was written, without its end: of no encoding that is known.
    pub bytes: Vec<u8>,
    /// Whether the line goes on in the next piece of the same stream.
    pub partial: bool,
    /// Whether it is said of the log, as that a part of it is gone, and the container did not write it.
    pub note: bool,
}

/// Which part of a log to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Whether to wait for more until the container ends.
    pub follow: bool,
    /// Only lines begun at this time or later, by the node's clock.
    pub since: Option<UtcMs>,
    /// Only lines begun at this time or earlier.
    pub until: Option<UtcMs>,
}

/// What to run in a running container.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct ExecConfig {
    /// The program and its arguments; not empty.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether its standard input is connected.
    #[serde(default)]
    pub stdin: bool,
    /// The terminal's width when the program starts; 0 when it is not known yet.
    #[serde(default)]
    pub columns: u16,
    /// The terminal's height when the program starts; 0 when it is not known yet.
    #[serde(default)]
    pub rows: u16,
    /// Environment variables added to the container's, `K=V`.
    #[serde(default)]
    pub environment: Vec<String>,
    /// The directory it starts in; the container's when absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// The user it runs as, `uid[:gid]`; the container's when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// A process started in a container.
#[async_trait]
pub trait ExecSession: Send + 'static {
    /// Its standard input, output and error; with a terminal all output is in the second. Taken
    /// once.
    fn take_io(&mut self) -> ExecIo;
    /// Tells its terminal's size.
    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), RuntimeError>;
    /// Waits for its end and gives its exit code. Cancel safe.
    async fn wait(&mut self) -> Result<u32, RuntimeError>;
}

/// A process's standard streams.
pub struct ExecIo {
    /// Where its input is written; absent when not connected.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Its output.
    pub stdout: Pin<Box<dyn AsyncRead + Send>>,
    /// Its error output; absent with a terminal.
    pub stderr: Option<Pin<Box<dyn AsyncRead + Send>>>,
}

/// Something a runtime saw by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's process ended.
    Exited {
        /// Whose.
        replica: ReplicaId,
        /// Which attempt.
        attempt: u32,
        /// With which code.
        code: u32,
        /// Whether the kernel killed it, or another process in the container, for want of memory before.
        oom_killed: bool,
    },
    /// An image got a name: it was pulled or imported, by whomever.
    ImageNamed,
    /// Events may have been missed, as after the runtime restarted: list again.
    Resync,
}

/// The containers of one node. Every method may be called again after an unknown outcome: what is
/// already so is success.
#[async_trait]
pub trait ContainerRuntime: Routing {
    /// Says which cluster and node the containers belong to, and which /24 they get addresses
    /// from. Called once, before any other method, when both are known.
    async fn attach(&self, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError>;

    /// Every container of this node, running or ended, with its address; containers without a
    /// process count as ended. Running ones are watched from here on.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// What happens from here on. One subscriber; a lost connection shows as
    /// [`RuntimeEvent::Resync`], never as an end.
    fn events(&self) -> Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;

    /// Creates, connects and starts a container whose image is here. No published port leads to it
    /// before [`ContainerRuntime::publish`] says so.
    async fn start(&self, config: &ContainerConfig) -> Result<Started, RuntimeError>;

    /// Whether a container's process runs.
    async fn state(&self, replica: ReplicaId, attempt: u32) -> Result<ObservedState, RuntimeError>;

    /// Makes the published ports of this node lead to these containers and to no others. What was
    /// said last holds, also after a restart of the daemon; connections that are established go on.
    async fn publish(&self, ready: &Ready) -> Result<(), RuntimeError>;

    /// Stops a container and removes everything of it but its log: no published port leads to it any
    /// more, then connections to it end, at most half of `timeout`, then come the image's STOPSIGNAL
    /// or SIGTERM and, when `timeout` is over, SIGKILL.
    async fn remove(&self, replica: ReplicaId, attempt: u32, timeout: Duration) -> Result<(), RuntimeError>;

    /// Probes a container once by HTTP: it is to answer 200 to 399 within `timeout`.
    ///
    /// # Errors
    /// What came instead, for people.
    async fn probe(&self, address: SocketAddr, path: &str, timeout: Duration) -> Result<(), String>;

    /// What is known of a container.
    async fn inspect(&self, replica: ReplicaId, attempt: u32) -> Result<ContainerInfo, RuntimeError>;

    /// The attempts of a replica of which there are logs, whether or not their containers are there.
    async fn log_attempts(&self, _replica: ReplicaId) -> Result<BTreeSet<u32>, RuntimeError> {
        Ok(BTreeSet::new())
    }

    /// What is at `path` in a running container, as the stream of [`crate::tree`].
    async fn read_tree(&self, replica: ReplicaId, attempt: u32, _path: &str) -> Result<Chunks, RuntimeError> {
        Err(RuntimeError::Invalid(format!("attempt {attempt} of replica {replica} has no files")))
    }

    /// Makes what such a stream says at `path` in a running container: as its entry `name` when there is a
    /// directory, which without a name takes the content of a directory.
    async fn write_tree(
        &self,
        replica: ReplicaId,
        attempt: u32,
        _path: &str,
        _name: Option<&str>,
        _chunks: Chunks,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid(format!("attempt {attempt} of replica {replica} has no files")))
    }

    /// Sends a signal, by name or number, to the process of a running container.
    async fn kill(&self, replica: ReplicaId, attempt: u32, _signal: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Invalid(format!("attempt {attempt} of replica {replica} takes no signals")))
    }

    /// Which of the volumes' sources are not on this machine.
    async fn missing_sources(&self, _volumes: &[MountSpec]) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Why this machine gives some of the volumes' sources to no container: a sentence for each.
    async fn refused_sources(&self, _volumes: &[MountSpec]) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    /// The containers that ended here and of which only the log is left, the last ended first.
    async fn ended(&self) -> Result<Vec<EndedContainer>, RuntimeError> {
        Ok(Vec::new())
    }

    /// A container's log, oldest line first, over rotated files.
    async fn logs(
        &self,
        replica: ReplicaId,
        attempt: u32,
        query: LogQuery,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>, RuntimeError>;

    /// Starts a process in a running container.
    async fn exec(
        &self,
        replica: ReplicaId,
        attempt: u32,
        config: &ExecConfig,
    ) -> Result<Box<dyn ExecSession>, RuntimeError>;

    /// What a reference stands for here; none when there is no image of that name.
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError>;

    /// The digest a reference stands for now, as its registry says.
    async fn resolve(&self, reference: &str) -> Result<String, RuntimeError>;

    /// Whether the image is here in full, unpacked for this platform.
    async fn has_image(&self, reference: &str, digest: Option<&str>) -> Result<bool, RuntimeError>;

    /// Fetches an image from its registry; by `digest` when given. Returns the digest of what the
    /// reference stands for here from now on.
    async fn pull(
        &self,
        reference: &str,
        digest: Option<&str>,
        progress: OnProgress,
    ) -> Result<String, RuntimeError>;

    /// Takes in every image of an OCI or Docker archive (tar, perhaps compressed) that is for this
    /// node's platform, under `name` when given.
    async fn import(
        &self,
        archive: Pin<Box<dyn AsyncRead + Send>>,
        name: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError>;

    /// Writes an image as an OCI archive that [`ContainerRuntime::import`] takes.
    async fn export(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError>;

    /// The images here.
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError>;

    /// Removes images by their full names, and what no other image and no container needs of them.
    /// Gives the bytes that this freed. Running containers go on.
    async fn remove_images(&self, names: &[String]) -> Result<u64, RuntimeError>;

    /// What is on disk.
    async fn disk_usage(&self) -> Result<DiskUsage, RuntimeError>;

    /// Stops and removes every container of this node and what it left on the machine: networks,
    /// rules, mounts. With `images`, also the image store.
    async fn purge(&self, images: bool) -> Result<(), RuntimeError>;
}

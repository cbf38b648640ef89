//! The daemon behind `blixard node`: builds the Linux platform, starts the node on it and serves
//! its API until it is told to stop. And what is left to do on a machine whose daemon is gone.

use std::error::Error as StdError;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::command::LEVEL;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::file::Registry;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::wire::Peer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, Access};
use crate::config::{BIND_PORT, Containerd, HttpListen, NodeConfig, NodeOptions};
use crate::context::NodeContext;
use crate::discovery::join::JoinStatus;
use crate::discovery::refresh::Refresher;
use crate::discovery::registry;
use crate::discovery::sources::Sources;
use crate::disk::LinuxDisk;
use crate::formation::{self, Wish};
use crate::handle::NodeHandle;
use crate::identity::{Identity, IdentityError};
use crate::linux::{LinuxClock, LinuxRandom, LinuxSpawner};
use crate::node::{Membership, NO_SUBNET, Node, NodeSettings};
use crate::platform::{Clock, ContainerRuntime, Platform, Transport};
use crate::raft::RaftConfig;
use crate::runtime::images::Registries;
use crate::runtime::{ContainerdChoice, ContainerdRuntime, RuntimeConfig};
use crate::transport::IrohTransport;

/// Why the daemon ended, or could not begin; its source says more.
pub type Error = Box<dyn StdError + Send + Sync>;

/// How long a removed node has to stop its containers before the daemon ends all the same.
const REMOVED_GRACE: Duration = Duration::from_secs(60);
/// How long the API waits for the container runtime before it serves without.
const RUNTIME_READY: Duration = Duration::from_secs(5);
const RUNTIME_POLL: Duration = Duration::from_millis(10);
/// How long a start waits for the process before it to let go of the data directory.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Runs a node until it is told to stop, on a runtime of its own.
///
/// # Errors
/// When an option is wrong, or the node cannot start.
pub fn run(options: NodeOptions) -> Result<ExitCode, Error> {
    let config = checked(options)?;
    crate::telemetry::init(&config.log, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(config));
    // Blocking work that hangs on a dead disk must not keep the daemon from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn checked(mut options: NodeOptions) -> Result<NodeConfig, Error> {
    options.merge_env(|name| std::env::var(name).ok());
    let faults = match options.check(rustix::process::geteuid().is_root()) {
        Ok(mut config) => {
            config.data_dir = std::path::absolute(&config.data_dir)?;
            return Ok(config);
        }
        Err(faults) => faults,
    };
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Err(lines.join("\n").into())
}

/// What the daemon builds before it belongs to a cluster.
struct Built {
    platform: Platform,
    identity: Identity,
    sources: Arc<Refresher>,
    has_sources: bool,
    facts: NodeFacts,
}

async fn serve(config: NodeConfig) -> Result<ExitCode, Error> {
    let mut stop = Stop::listen()?;
    // Cancel safety: what is built is only held; a private containerd that was started goes on.
    let built = tokio::select! {
        biased;
        built = build(&config) => built?,
        () = stop.once() => return Ok(ExitCode::SUCCESS),
    };
    let context = NodeContext::new(&built.platform);
    // Cancel safety: forming repeats its questions when the daemon starts again.
    let serving = context.clone().run(form_and_serve(config, built, context, stop.watch()));
    tokio::select! {
        biased;
        ended = serving => ended,
        () = stop.twice() => Ok(ExitCode::FAILURE),
    }
}

async fn build(config: &NodeConfig) -> Result<Built, Error> {
    let private = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir);
    private
        .map_err(|error| format!("cannot make the data directory {}: {error}", config.data_dir.display()))?;
    let disk = Arc::new(LinuxDisk::new(&config.data_dir));
    let identity = open_identity(&disk).await?;
    let targets = config.join.iter().map(|text| JoinTarget::parse(text)).collect::<Result<_, _>>()?;
    let sources = Sources::new(targets, None, Some(&config.data_dir));
    let has_sources = sources.configured();
    let registries = config.registries.as_deref().map(Registries::read).transpose()?.unwrap_or_default();
    let containers = ContainerdRuntime::connect(RuntimeConfig {
        data: config.data_dir.clone(),
        containerd: choice(&config.containerd),
        registries,
        logger: None,
        networks: None,
    });
    let containers = containers.await?;
    let bind = config.bind.map_or_else(default_bind, Ok)?;
    let rng = Arc::new(LinuxRandom);
    let transport =
        IrohTransport::bind(identity.secret_key(), bind, config.advertise.clone(), None, rng.clone()).await?;
    let facts = facts(config, transport.addresses())?;
    let platform = Platform {
        clock: Arc::new(LinuxClock),
        rng,
        spawner: Arc::new(LinuxSpawner),
        disk,
        transport,
        containers: Arc::new(containers),
    };
    Ok(Built { platform, identity, sources: Refresher::new(sources), has_sources, facts })
}

/// Opens the identity; waits for a daemon that was just killed to let go of it.
async fn open_identity(disk: &LinuxDisk) -> Result<Identity, IdentityError> {
    let end = LinuxClock.now() + LOCK_WAIT;
    loop {
        match Identity::load_or_create(disk, &LinuxRandom) {
            Err(IdentityError::InUse) if LinuxClock.now() < end => {
                LinuxClock.sleep_until(LinuxClock.now() + LOCK_POLL).await;
            }
            opened => return opened,
        }
    }
}

fn choice(containerd: &Containerd) -> ContainerdChoice {
    match containerd {
        Containerd::Auto => ContainerdChoice::Auto,
        Containerd::Private => ContainerdChoice::Private,
        Containerd::Socket(path) => ContainerdChoice::Socket(path.clone()),
    }
}

async fn form_and_serve(
    config: NodeConfig,
    built: Built,
    context: NodeContext,
    mut stop: watch::Receiver<bool>,
) -> Result<ExitCode, Error> {
    let Built { platform, mut identity, sources, has_sources, facts } = built;
    let wish = Wish {
        id: config.id,
        has_sources,
        bootstrap: config.bootstrap,
        facts: facts.clone(),
        subnets: config.subnets,
    };
    let known = identity.membership().is_some();
    let forming = formation::form(&platform, &mut identity, &sources, &wish, &tell_join);
    let membership = tokio::select! {
        biased;
        formed = forming => formed?,
        _ = stop.wait_for(|stopping| *stopping) => return Ok(ExitCode::SUCCESS),
    };
    write_registry(&config.data_dir, &identity, &membership, &platform)?;
    let settings = NodeSettings { facts, boot: identity.boots(), raft: raft_config()? };
    let node = Node::start(platform.clone(), membership.clone(), settings).await?;
    let handle = node.handle();
    context.spawn("discovery", sources.run(platform.clone()));
    runtime_ready(&platform).await;
    let mut serving = listen(&config, &handle, stop.clone()).await?;
    announce(&config, &identity, &membership, &handle, known);

    // Cancel safety: both only watch.
    let removed = tokio::select! {
        biased;
        _ = stop.wait_for(|stopping| *stopping) => false,
        () = removed(&handle) => true,
    };
    if removed {
        let left = handle.platform.containers.list().await.map_or(0, |left| left.len());
        match left {
            0 => println!("node {} was removed from its cluster: its containers are stopped", handle.id),
            _ => println!(
                "node {} was removed from its cluster; {left} of its containers are left: blixard node purge",
                handle.id
            ),
        }
    } else {
        println!(
            "stopping; containers go on, and the next start takes them up again (to stop them too: blixard node down)"
        );
        node.shutdown().await;
        // What was asked before is answered; the listeners' own grace bounds it.
        while serving.join_next().await.is_some() {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the runtime knows whose containers it has, so that the first question is not
/// answered with "not yet". A runtime in trouble keeps the API from serving only for a while.
async fn runtime_ready(platform: &Platform) {
    let deadline = platform.clock.now() + RUNTIME_READY;
    while platform.containers.list().await.is_err() && platform.clock.now() < deadline {
        platform.clock.sleep_until(platform.clock.now() + RUNTIME_POLL).await;
    }
}

/// Raft's settings: the defaults, but for the snapshot threshold that tests lower.
fn raft_config() -> Result<RaftConfig, Error> {
    let mut config = RaftConfig::default();
    if let Ok(entries) = std::env::var("BLIXARD_RAFT_SNAPSHOT_ENTRIES") {
        let parsed = entries.parse();
        config.snapshot_entries = parsed.map_err(|_| {
            format!("BLIXARD_RAFT_SNAPSHOT_ENTRIES: `{entries}` is not a number of log entries")
        })?;
        config.log_keep = config.log_keep.min(config.snapshot_entries / 10);
    }
    Ok(config)
}

fn tell_join(status: JoinStatus) {
    match status {
        JoinStatus::Tried { candidate, reason } => {
            tracing::warn!(peer.key = %candidate.key, addresses = ?candidate.addresses, err = reason, "not admitted yet; trying again");
        }
        JoinStatus::NoCandidates { problems } => {
            tracing::warn!(?problems, "nobody to join yet; reading the sources again soon");
        }
    }
}

fn own_peer(platform: &dyn Transport) -> Peer {
    Peer { key: platform.key(), addresses: platform.addresses(), relay_url: None }
}

fn write_registry(
    data_dir: &Path,
    identity: &Identity,
    membership: &Membership,
    platform: &Platform,
) -> Result<(), Error> {
    let Some(token) = identity.token() else { return Ok(()) };
    let registry = Registry {
        node: membership.node,
        peer: own_peer(&*platform.transport),
        cluster: membership.cluster,
        token,
    };
    registry::write(data_dir, &registry).map_err(|error| {
        format!("cannot write {}: {error}", data_dir.join(registry::REGISTRY_FILE).display()).into()
    })
}

/// Opens the API's listeners. They serve until the node stops.
async fn listen(
    config: &NodeConfig,
    handle: &NodeHandle,
    stop: watch::Receiver<bool>,
) -> Result<tokio::task::JoinSet<()>, Error> {
    let mut serving = tokio::task::JoinSet::new();
    let stopped = |mut stop: watch::Receiver<bool>| async move {
        // The sender lives as long as the daemon.
        stop.wait_for(|stopping| *stopping).await.ok();
    };
    let context = NodeContext::new(&handle.platform);
    let socket = api::UnixApi::bind(&config.socket()).await?;
    let router = api::router(handle.clone(), Access::Socket);
    serving.spawn(context.run(socket.serve(router, stopped(stop.clone()))));
    let (address, asked) = match config.http {
        HttpListen::Off => return Ok(serving),
        HttpListen::Asked(address) => (address, true),
        HttpListen::Default(address) => (address, false),
    };
    match api::TcpApi::bind(address).await {
        Ok(tcp) => {
            let router = api::router(handle.clone(), Access::Tcp);
            serving.spawn(context.run(tcp.serve(router, stopped(stop))));
        }
        Err(error) if asked => return Err(error.into()),
        Err(error) => tracing::warn!(err = %error, "the HTTP API is on the socket only"),
    }
    Ok(serving)
}

/// Says that the node is up, and on a cluster's first start how others join.
fn announce(
    config: &NodeConfig,
    identity: &Identity,
    membership: &Membership,
    handle: &NodeHandle,
    known: bool,
) {
    let (node, cluster) = (membership.node, membership.cluster);
    println!("node {node} of cluster {cluster} is up; its API is {}", config.socket().display());
    let (Some(token), false) = (identity.token(), known) else { return };
    let ticket = Ticket { cluster, peer: own_peer(&*handle.platform.transport), token };
    println!("to add a machine, run on it:\n\n  blixard node --join {ticket}\n");
    println!(
        "or give it a copy of {}; both admit whoever has them",
        config.data_dir.join(registry::REGISTRY_FILE).display()
    );
}

/// Waits until this node has been removed from the cluster, its containers are gone, and it leads
/// no more: a leader that was removed hands over first, and nobody else may be able to lead yet.
async fn removed(handle: &NodeHandle) {
    handle.removed().await;
    let clock = &handle.platform.clock;
    let end = clock.now() + REMOVED_GRACE;
    let gone = async || matches!(handle.platform.containers.list().await, Ok(left) if left.is_empty());
    let leads = || handle.raft().is_leader(handle.id);
    while clock.now() < end && (leads() || !gone().await) {
        clock.sleep_until(clock.now() + Duration::from_millis(200)).await;
    }
}

/// This machine's address on its default route. Nothing is sent: connecting a UDP socket only
/// chooses a route.
fn default_bind() -> Result<SocketAddr, Error> {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // RFC 5737's documentation range: nobody's.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    let address = probe().map_err(|error| {
        format!("this machine has no default route to tell its address by ({error}): use --bind IP")
    })?;
    Ok(SocketAddr::new(address.ip(), BIND_PORT))
}

fn facts(config: &NodeConfig, addresses: Vec<SocketAddr>) -> Result<NodeFacts, Error> {
    let host = rustix::system::uname();
    let name = config.name.clone().unwrap_or_else(|| host.nodename().to_string_lossy().into_owned());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(NodeFacts {
        name,
        addresses: addresses.into_iter().filter(|address| usable(address.ip())).collect(),
        labels: config.labels.clone(),
        cpu_millis: u64::try_from(cpus)? * 1000,
        memory_bytes: memory_bytes()?,
        arch: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned(),
        os: std::env::consts::OS.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: LEVEL,
        reserved_ports: Vec::new(),
    })
}

fn usable(address: IpAddr) -> bool {
    !address.is_unspecified()
}

fn memory_bytes() -> Result<u64, Error> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| "/proc/meminfo has no MemTotal in kB".into())
}

/// The signals that end the daemon: the first lets it say farewell, a second one does not.
struct Stop {
    sender: watch::Sender<bool>,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let (sender, _) = watch::channel(false);
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { sender, interrupt, terminate: signal(SignalKind::terminate())? })
    }

    fn watch(&self) -> watch::Receiver<bool> {
        self.sender.subscribe()
    }

    async fn once(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Tells whoever watches of the first signal and waits for the second.
    async fn twice(&mut self) {
        self.once().await;
        self.sender.send_replace(true);
        self.once().await;
    }
}

/// Removes everything a node left on this machine: containers, networks, rules, mounts, data. With
/// `images`, also the images. The daemon must not run.
///
/// # Errors
/// When the daemon runs, or something cannot be removed.
pub fn purge(options: NodeOptions, images: bool) -> Result<(), Error> {
    let config = checked(options)?;
    if !config.data_dir.exists() {
        return Err(
            format!("there is no data directory {}: nothing to remove", config.data_dir.display()).into()
        );
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        // Holding the identity keeps a daemon from starting meanwhile, and fails while one runs.
        let identity = Identity::load_or_create(&LinuxDisk::new(&config.data_dir), &LinuxRandom)?;
        let containers = ContainerdRuntime::connect(RuntimeConfig {
            data: config.data_dir.clone(),
            containerd: choice(&config.containerd),
            registries: Registries::default(),
            logger: None,
            networks: None,
        });
        let containers = containers.await?;
        if let Some(membership) = identity.membership() {
            containers.attach(membership.cluster, membership.node, NO_SUBNET).await?;
            containers.purge(images).await?;
        }
        containers.remove_containerd().await?;
        drop(identity);
        std::fs::remove_dir_all(&config.data_dir)
            .map_err(|error| format!("cannot remove {}: {error}", config.data_dir.display()))?;
        println!("removed everything of {}", config.data_dir.display());
        Ok(())
    })
}

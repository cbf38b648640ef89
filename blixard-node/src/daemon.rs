//! The daemon behind `blixard node`: builds the Linux platform, starts the node on it and serves
//! its API until it is told to stop.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::io::IsTerminal;
use std::iter;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::api::token::Secret;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, Access, Tls};
use crate::config::{Announce, Containerd, HttpListen, NodeConfig, NodeOptions, TlsFiles};
use crate::context::NodeContext;
use crate::database;
use crate::discovery::address::Introduction;
use crate::discovery::finder::Finder;
use crate::discovery::join::JoinLog;
use crate::discovery::registry;
use crate::discovery::sources::sources;
use crate::disk::LinuxDisk;
use crate::drivers::announce;
use crate::facts::{default_bind, facts};
use crate::formation::{self, Wish};
use crate::full_disk::while_full;
use crate::handle::NodeHandle;
use crate::identity::{Identity, IdentityError};
use crate::join_input;
use crate::join_token::read_token;
use crate::linux::{LinuxClock, LinuxRandom, LinuxSpawner};
use crate::mdns::{Interfaces, Mdns};
use crate::node::{Node, NodeSettings};
use crate::own_token::{self, OwnToken};
use crate::platform::{Clock, Platform, Transport};
use crate::raft::{self, OpenError, RaftConfig};
use crate::runtime::images::Registries;
use crate::runtime::{ContainerdChoice, ContainerdRuntime, RuntimeConfig};
use crate::telemetry::say;
use crate::transport::IrohTransport;
use crate::volumes::LinuxVolumes;

/// Why the daemon ended, or could not begin; its source says more.
pub type Error = Box<dyn StdError + Send + Sync>;

/// The daemon's exit code when starting it again cannot help: somebody must act. The unit file names
/// it, so that systemd does not. It is the system's for bad data (sysexits.h).
const EX_DATAERR: u8 = 65;
/// How many threads serve others.
const SERVING_THREADS: usize = 2;
/// How many threads read disks for them.
const SERVING_BLOCKING_THREADS: usize = 64;
/// How much those threads step back when the machine is busy: to about a third of the share of a thread
/// of the node's own.
const SERVING_NICE: i32 = 5;
/// How long a removed node has to stop its containers before the daemon ends all the same.
const REMOVED_GRACE: Duration = Duration::from_secs(60);
/// How long the API waits for the container runtime before it serves without.
const RUNTIME_READY: Duration = Duration::from_secs(5);
const RUNTIME_POLL: Duration = Duration::from_millis(10);
/// How long no leader is heard before the sources are read again, and between two such readings.
const SEEK_AFTER: Duration = Duration::from_secs(3);
/// How long a start waits for the process before it to let go of the data directory.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How eagerly the OOM killer takes this process, from -1000 to 1000.
pub(crate) const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// Almost never: what it holds is little, and who would restart the containers?
const DAEMON_OOM_SCORE_ADJ: &str = "-900";

/// Runs a node until it is told to stop, on a runtime of its own.
///
/// # Errors
/// When an option is wrong, or the node cannot start.
pub fn run(mut options: NodeOptions) -> Result<ExitCode, Error> {
    join_input::take(&mut options)
        .map_err(|error| format!("--join -: cannot read standard input: {error}"))?;
    let config = checked(options)?;
    api::check_path(&config.socket())?;
    crate::telemetry::init(&config.log, config.log_format)?;
    raise_open_files();
    keep_from_oom_killer();
    // Of whoever starts it: images would be unpacked for root alone under 0077. What is secret is
    // written with modes of its own.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    hush_guarded_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let apart = serving_runtime()?;
    let ended = runtime.block_on(serve(config, apart.handle().clone()));
    // Blocking work that hangs on a dead disk must not keep the daemon from ending.
    apart.shutdown_timeout(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// The runtime of what serves others: the HTTP API and images for members. However much they ask,
/// Raft and heartbeats go on: docs/adr/0013.
fn serving_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVING_THREADS)
        .max_blocking_threads(SERVING_BLOCKING_THREADS)
        .thread_name("blixard-serve")
        .on_thread_start(|| {
            // On Linux this is of the calling thread alone. Without it, it is only less fair.
            setpriority_process(None, SERVING_NICE).ok();
        })
        .enable_all()
        .build()
}

/// How a daemon ends that ended by `error`: 65 when starting it again cannot help.
pub fn exit_code(error: &(dyn StdError + 'static)) -> ExitCode {
    let is_final = error.downcast_ref::<OpenError>().is_some_and(OpenError::is_final)
        || matches!(error.downcast_ref(), Some(IdentityError::Damaged { .. } | IdentityError::Other { .. }))
        || error.is::<Unusable>();
    if is_final { ExitCode::from(EX_DATAERR) } else { ExitCode::FAILURE }
}

/// The stores became unusable while the daemon ran.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unusable(Arc<OpenError>);

/// A panic over a database becomes an error that says what to do: it is not shown as well.
fn hush_guarded_panics() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !database::is_guarded() {
            show(panic);
        }
    }));
}

/// Takes as many open files as may be had: a login shell gives 1,024, which connections alone can
/// fill.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(err = %error, "the limit of open files stays");
    }
}

/// Makes the kernel look elsewhere first when memory is short, unless somebody set it so already. The
/// private containerd inherits it; containers do not ([`crate::runtime`] sets theirs).
fn keep_from_oom_killer() {
    let set = || {
        if std::fs::read_to_string(OOM_SCORE_ADJ)?.trim() == "0" {
            std::fs::write(OOM_SCORE_ADJ, DAEMON_OOM_SCORE_ADJ)?;
        }
        Ok::<_, std::io::Error>(())
    };
    if let Err(error) = set() {
        tracing::debug!(err = %error, "the OOM killer sees the daemon as any other process");
    }
}

pub(crate) fn checked(mut options: NodeOptions) -> Result<NodeConfig, Error> {
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

/// Tells when others than its owner may look into the data directory: it holds secrets, and what
/// containers wrote.
fn warn_if_open(data_dir: &Path) {
    let Ok(metadata) = data_dir.metadata() else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let directory = data_dir.display();
        tracing::warn!(mode = %format_args!("{mode:o}"), "others may look into the data directory: chmod 700 {directory}");
    }
}

/// What the daemon builds before it belongs to a cluster.
struct Built {
    platform: Platform,
    runtime: Arc<ContainerdRuntime>,
    identity: Identity,
    sources: Arc<Finder>,
    /// A token to join by, besides those of the sources.
    token: Option<Secret>,
    /// Where links are accepted.
    bind: SocketAddr,
    facts: NodeFacts,
    /// The addresses that this machine is known to have.
    own: Vec<IpAddr>,
    /// What the API is served with on TCP.
    tls: Option<Tls>,
}

async fn serve(config: NodeConfig, apart: Handle) -> Result<ExitCode, Error> {
    let mut stop = Stop::listen()?;
    // Cancel safety: what is built is only held; a private containerd that was started goes on.
    let built = tokio::select! {
        biased;
        built = build(&config, &apart) => built?,
        () = stop.once() => return Ok(ExitCode::SUCCESS),
    };
    let context = NodeContext::new(&built.platform);
    let (transport, announcer) = (built.platform.transport.clone(), built.platform.announcer.clone());
    // Cancel safety: forming repeats its questions when the daemon starts again.
    let serving = context.clone().run(form_and_serve(config, built, context, apart, stop.watch()));
    let ended = tokio::select! {
        biased;
        ended = serving => ended,
        () = stop.twice() => return Ok(ExitCode::FAILURE),
    };
    // However it ended: members are told at once, instead of noticing by the silence. So is the local
    // network.
    announcer.announce(BTreeSet::new());
    transport.shutdown().await;
    ended
}

async fn build(config: &NodeConfig, apart: &Handle) -> Result<Built, Error> {
    let private = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir);
    private
        .map_err(|error| format!("cannot make the data directory {}: {error}", config.data_dir.display()))?;
    warn_if_open(&config.data_dir);
    let disk = Arc::new(LinuxDisk::new(&config.data_dir));
    let identity = while_full(&config.data_dir, async || open_identity(&disk).await).await?;
    let mut targets = config.join.clone();
    let token = match &config.token {
        // A member needs none: its file may be gone by now.
        Some(token) if identity.membership().is_none() => Some(read_token(token, &mut targets)?),
        _ => None,
    };
    if token.is_some() && targets.is_empty() {
        // Whoever gives a token means to join.
        targets.push(JoinTarget::Announced);
    }
    let sources = Finder::new(sources(targets, Some(&config.data_dir)));
    let registries = config.registries.as_deref().map(read_registries).transpose()?.unwrap_or_default();
    let runtime = RuntimeConfig {
        data: config.data_dir.clone(),
        containerd: choice(&config.containerd),
        registries,
        allow_paths: config.allow_paths.clone(),
        logger: None,
        networks: None,
    };
    let tls = config.http_tls.as_ref().map(read_tls).transpose()?;
    let bind = config.bind.map_or_else(default_bind, Ok)?;
    // Found out before a private containerd is started, which would be left behind.
    UdpSocket::bind(bind).map_err(|error| format!("cannot listen for links on {bind} (UDP): {error}"))?;
    let connecting = async || ContainerdRuntime::connect(runtime.clone()).await;
    let runtime = Arc::new(while_full(&config.data_dir, connecting).await?);
    let rng = Arc::new(LinuxRandom);
    let (key, boot) = (identity.secret_key(), identity.boots());
    let transport = IrohTransport::bind(key, boot, bind, config.advertise.clone(), None, rng.clone()).await?;
    let facts = facts(config, bind, transport.addresses())?;
    let own: Vec<IpAddr> = iter::once(bind.ip()).chain(facts.addresses.iter().map(SocketAddr::ip)).collect();
    let announcer = Arc::new(Mdns::new(Interfaces::of(&config.announce, &own), transport.key(), own.clone()));
    let platform = Platform {
        clock: Arc::new(LinuxClock),
        rng,
        spawner: Arc::new(LinuxSpawner::new(apart.clone())),
        disk,
        transport,
        announcer,
        containers: runtime.clone(),
        volumes: Arc::new(LinuxVolumes::new(&config.data_dir)),
    };
    Ok(Built { platform, runtime, identity, sources, token, bind, facts, own, tls })
}

fn read_tls(files: &TlsFiles) -> Result<Tls, Error> {
    let tls = Tls::read(&files.certificates, &files.key)?;
    if let Some(exposed) = api::exposed(&files.key)? {
        tracing::warn!("{exposed}");
    }
    Ok(tls)
}

fn read_registries(path: &Path) -> Result<Registries, Error> {
    let registries = Registries::read(path)?;
    if let Some(exposed) = registries.exposed(path) {
        tracing::warn!("{exposed}");
    }
    Ok(registries)
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

pub(crate) fn choice(containerd: &Containerd) -> ContainerdChoice {
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
    apart: Handle,
    mut stop: watch::Receiver<bool>,
) -> Result<ExitCode, Error> {
    let Built { platform, runtime, mut identity, sources, token, bind, facts, own, tls } = built;
    let wish = Wish {
        id: config.id,
        token,
        bootstrap: config.bootstrap,
        facts: facts.clone(),
        subnets: config.subnets,
        own,
    };
    let known = identity.membership().is_some();
    if !known && raft::has_log(&*platform.disk)? {
        let reason = format!("it names no cluster, and {} is a member's", raft::LOG_FILE);
        return Err(IdentityError::Damaged { reason }.into());
    }
    let settings = NodeSettings { facts, boot: identity.boots(), raft: raft_config()? };
    let data_dir = &config.data_dir;
    let starting = async {
        let log = JoinLog::default();
        let tell = |status| log.tell(status);
        let forming = async || formation::form(&platform, &mut identity, &sources, &wish, &tell).await;
        let membership = while_full(data_dir, forming).await?;
        let writing = async || registry::write_own(data_dir, identity.token(), &membership, &platform);
        while_full(data_dir, writing).await?;
        let opening = async || {
            if identity.has_log() {
                raft::check_log(&*platform.disk, membership.node)?;
            }
            let node = Node::start(platform.clone(), membership.clone(), settings.clone()).await?;
            Ok::<_, raft::OpenError>(node)
        };
        let node = while_full(data_dir, opening).await?;
        Ok::<_, Error>((node, membership))
    };
    // Cancel safety: what was kept of it is found again by the next start.
    let started = tokio::select! {
        biased;
        started = starting => Some(started),
        _ = stop.wait_for(|stopping| *stopping) => None,
    };
    if !matches!(started, Some(Ok(_))) && identity.membership().is_none() {
        // A machine whose node joined nothing is left as it was.
        if let Err(error) = runtime.remove_unused_containerd().await {
            tracing::warn!(err = %error, "the private containerd is left: blixard node purge removes it");
        }
    }
    let Some(started) = started else { return Ok(ExitCode::SUCCESS) };
    let (node, membership) = started?;
    let handle = node.handle();
    context.spawn("discovery", sources.clone().run(platform.clone()));
    context.spawn("seeking", seek(handle.clone(), sources.clone()));
    handle.set_finder(sources);
    if config.announce != Announce::Off {
        let own = registry::own(None, &membership, &platform);
        let introduction = Introduction::keep(context.clone(), bind, own);
        platform.spawner.spawn_apart("introduction", Box::pin(context.clone().run(introduction)));
        context.spawn("announce", announce::run(handle.clone(), bind.port()));
    }
    runtime_ready(&platform).await;
    let serving = while_full(data_dir, async || {
        identity.set_has_log()?;
        let opening = listen(config.clone(), handle.clone(), tls.clone(), stop.clone());
        // A listener belongs to the runtime that it is opened on.
        apart.spawn(opening).await?
    });
    let mut stopping = stop.clone();
    // Cancel safety: listeners that are dropped close.
    let mut serving = tokio::select! {
        biased;
        serving = serving => serving?,
        _ = stopping.wait_for(|stopping| *stopping) => tokio::task::JoinSet::new(),
    };
    // Cancel safety: a token that was made and not told expires.
    tokio::select! {
        biased;
        () = announce(&config, &handle, known) => {}
        _ = stop.wait_for(|stopping| *stopping) => {}
    }
    let own = OwnToken { handle: handle.clone(), identity, membership, data_dir: data_dir.clone() };
    context.spawn("own token", own.keep());

    // Cancel safety: all only watch.
    let removed = tokio::select! {
        biased;
        _ = stop.wait_for(|stopping| *stopping) => false,
        () = removed(&handle) => true,
        why = handle.unusable() => return Err(Unusable(why).into()),
    };
    if removed {
        let left = handle.platform.containers.list().await.map_or(0, |left| left.len());
        match left {
            0 => say(format_args!(
                "node {} was removed from its cluster: its containers are stopped; blixard node purge clears the machine",
                handle.id
            )),
            _ => say(format_args!(
                "node {} was removed from its cluster; {left} of its containers are left: blixard node purge",
                handle.id
            )),
        }
    } else {
        say(format_args!(
            "stopping; containers go on, and the next start takes them up again (to stop them too: blixard node down)"
        ));
        node.shutdown().await;
        // What was asked before is answered; the listeners' own grace bounds it.
        while serving.join_next().await.is_some() {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the sources read again while no leader is heard: what they said at the start may be old, as
/// when all machines got other addresses at once.
async fn seek(handle: NodeHandle, sources: Arc<Finder>) {
    loop {
        handle.leaderless(SEEK_AFTER).await;
        sources.demand();
    }
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

/// Opens the API's listeners. They serve until the node stops.
async fn listen(
    config: NodeConfig,
    handle: NodeHandle,
    tls: Option<Tls>,
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
    match api::TcpApi::bind(address, tls).await {
        Ok(tcp) => {
            let router = api::router(handle.clone(), tcp.access());
            serving.spawn(context.run(tcp.serve(router, stopped(stop))));
        }
        Err(error) if asked => return Err(error.into()),
        Err(error) => tracing::warn!(err = %error, "the HTTP API is on the socket only"),
    }
    Ok(serving)
}

/// Says that the node is up, and on its first start how others join. A ticket is for whoever sits at the
/// terminal: what else reads this output, such as a journal, keeps it.
async fn announce(config: &NodeConfig, handle: &NodeHandle, known: bool) {
    say(format_args!(
        "node {} of cluster {} is up; its API is {}",
        handle.id,
        handle.cluster,
        config.socket().display()
    ));
    if known {
        return;
    }
    let ticket = if std::io::stdout().is_terminal() { own_token::ticket(handle).await } else { None };
    say(format_args!("{}", invitation(ticket.as_ref(), &config.data_dir.join(registry::REGISTRY_FILE))));
}

/// How others join.
fn invitation(ticket: Option<&Ticket>, registry: &Path) -> String {
    let registry = registry.display();
    match ticket {
        Some(ticket) => format!(
            "to add a machine within a day, run on it `blixard node --join -` and paste\n\n{ticket}\n\nor give it a copy of {registry}; both admit whoever has them"
        ),
        None => format!(
            "to add a machine, run here:\n\n  blixard cluster token create\n\nor give it a copy of {registry}, which admits whoever has it"
        ),
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blixard_core::api::token::Secret;
    use blixard_core::discovery::ticket::Ticket;
    use blixard_core::id::{ClusterId, NodeKey, TokenId};
    use blixard_core::wire::Peer;

    use super::invitation;

    #[test]
    fn an_invitation_shows_a_ticket_to_a_terminal_alone() {
        let ticket = Ticket {
            cluster: ClusterId([4; 16]),
            peer: Peer { key: NodeKey([2; 32]), addresses: Vec::new(), relay_url: None },
            token: Secret { id: TokenId([5; 8]), secret: [6; 32] },
        };
        let file = Path::new("/d/node-registry.json");
        let shown = invitation(Some(&ticket), file);
        assert!(
            shown.contains(&format!("\n{ticket}\n")) && shown.contains("/d/node-registry.json"),
            "{shown}"
        );
        let kept = invitation(None, file);
        assert!(kept.contains("blixard cluster token create") && !kept.contains("bxt1"), "{kept}");
    }
}

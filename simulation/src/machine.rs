//! One machine: its disk, containers and clock, and the life of the daemon on it.
//!
//! A life begins as production's does: the identity is read, the cluster is joined or found again,
//! and the node starts, all in tasks that a crash ends wherever they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use blixard_core::api::token::Secret;
use blixard_core::cluster::SubnetRange;
use blixard_core::cluster::level::LEVEL;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::NodeId;
use blixard_core::wire::Peer;
use blixard_node::api::{self, Access};
use blixard_node::context::NodeContext;
use blixard_node::discovery::finder::Finder;
use blixard_node::discovery::sources::sources;
use blixard_node::drivers::announce;
use blixard_node::formation::{self, Wish};
use blixard_node::handle::NodeHandle;
use blixard_node::identity::{Identity, IdentityError};
use blixard_node::node::{Node, NodeSettings};
use blixard_node::platform::{Platform, Spawner, Transport, VolumeStore};
use blixard_node::raft::{self, RaftConfig};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use crate::checks::Checks;
use crate::containers::SimContainers;
use crate::disk::{Loss, SimDisk};
use crate::ether::{Ether, SimAnnouncer};
use crate::net::{Net, SimTransport};
use crate::random::Stream;
use crate::tasks::SimSpawner;
use crate::time::SimClock;
use crate::trace::Trace;

/// How far apart the ids of the nodes of one place are: more than there are machines.
const REBORN: u64 = 100;

/// The number of the machine that a node is on.
pub fn number_of(node: NodeId) -> u64 {
    node.0 % REBORN
}

/// A machine of a world.
pub struct Machine {
    /// Its number, which is also the node id that it asks for first.
    pub number: u64,
    /// Its disk.
    pub disk: SimDisk,
    /// Its containers.
    pub containers: SimContainers,
    /// Its clocks.
    pub clock: SimClock,
    random: Stream,
    net: Net,
    ether: Ether,
    trace: Trace,
    raft: RaftConfig,
    life: Mutex<Option<Life>>,
    lives: AtomicU64,
    /// How often another machine has taken the place of this one.
    rebirths: AtomicU64,
    /// Whether its node has been up since.
    joined: Arc<AtomicBool>,
    /// Whether its disk lied, and its node has said so and ended for good.
    given_up: AtomicBool,
}

/// What a machine holds of volumes: none, since nothing in a history asks for one.
struct SimVolumes;

impl VolumeStore for SimVolumes {}

/// One life of the daemon.
#[derive(Clone)]
struct Life {
    number: u64,
    spawner: SimSpawner,
    progress: Arc<Mutex<Progress>>,
    transport: Arc<Mutex<Option<Arc<SimTransport>>>>,
}

impl Life {
    /// Ends every task and takes the node off the network.
    fn end(&self) {
        self.spawner.crash();
        *lock(&self.progress) = Progress::Ended;
        if let Some(transport) = lock(&self.transport).take() {
            transport.unplug();
        }
    }
}

/// Told of a node that has come up.
pub type OnUp = Box<dyn FnOnce(Running, Option<Ticket>) + Send>;

/// How far a life has come.
#[derive(Default)]
enum Progress {
    #[default]
    Starting,
    Up(Box<Up>),
    Failed(String),
    Ended,
}

struct Up {
    node: Node,
    running: Running,
    ticket: Option<Ticket>,
}

/// A running node, for whoever calls or watches it.
#[derive(Clone)]
pub struct Running {
    /// Its machine's number.
    pub machine: u64,
    /// The node.
    pub handle: NodeHandle,
    /// Its API, as on its socket.
    pub router: Router,
    /// What its tasks run in.
    pub context: NodeContext,
    spawner: SimSpawner,
}

impl Running {
    /// Whether its tasks are held.
    pub fn is_paused(&self) -> bool {
        self.spawner.is_paused()
    }

    /// Whether this life is over.
    pub fn is_over(&self) -> bool {
        self.spawner.is_crashed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A machine that is off.
    pub fn new(
        number: u64,
        seed: u64,
        net: &Net,
        ether: &Ether,
        trace: &Trace,
        checks: &Arc<Checks>,
        raft: RaftConfig,
    ) -> Self {
        Self {
            number,
            disk: SimDisk::new(number, seed, trace.clone()),
            containers: SimContainers::new(number, seed, trace.clone(), checks.clone()),
            clock: SimClock::new(trace.start()),
            random: Stream::new(seed, &format!("node {number}")),
            net: net.clone(),
            ether: ether.clone(),
            trace: trace.clone(),
            raft,
            life: Mutex::default(),
            lives: AtomicU64::new(0),
            rebirths: AtomicU64::new(0),
            joined: Arc::default(),
            given_up: AtomicBool::new(false),
        }
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        lock(&self.life)
    }

    /// The id that its node asks for, and has once it is a member: no id is used twice.
    pub fn member(&self) -> NodeId {
        NodeId(self.number + REBORN * self.rebirths())
    }

    /// How often another machine has taken the place of this one.
    pub fn rebirths(&self) -> u64 {
        self.rebirths.load(Ordering::Relaxed)
    }

    /// Whether its node has been up, and so belongs to a cluster.
    pub fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Whether its node has ended for good: an init system does not start it again.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Its node has ended for good.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Another machine takes the place of this one: new disk, no containers, and a node that has
    /// to join. The daemon is killed.
    pub fn replace(&self) {
        self.crash(Loss::Power);
        self.disk.wipe();
        self.containers.wipe();
        self.rebirths.fetch_add(1, Ordering::Relaxed);
        self.joined.store(false, Ordering::Relaxed);
        self.given_up.store(false, Ordering::Relaxed);
        self.trace.say(self.number, "another machine takes its place");
    }

    /// Starts the daemon, which joins by `targets` when it belongs to no cluster yet, or founds one
    /// without any. `token` is what it has besides. Does nothing when a daemon runs or is still stopping,
    /// or has ended for good.
    pub fn start(&self, targets: Vec<JoinTarget>, token: Option<Secret>, on_up: OnUp) {
        let mut current = self.life();
        if current.is_some() || self.is_given_up() {
            return;
        }
        let number = self.lives.fetch_add(1, Ordering::Relaxed) + 1;
        self.trace.say(self.number, "daemon starts");
        self.containers.daemon_starts();
        let life = Life {
            number,
            spawner: SimSpawner::default(),
            progress: Arc::default(),
            transport: Arc::default(),
        };
        let starting = Starting {
            number: self.number,
            member: self.member(),
            disk: self.disk.clone(),
            containers: self.containers.clone(),
            clock: self.clock.clone(),
            random: self.random.clone(),
            net: self.net.clone(),
            ether: self.ether.clone(),
            raft: self.raft.clone(),
            life: life.clone(),
        };
        let (begun, trace, machine) = (life.clone(), self.trace.clone(), self.number);
        let joined = self.joined.clone();
        let task = async move {
            match starting.run(targets, token).await {
                Ok(up) => {
                    let (running, ticket) = (up.running.clone(), up.ticket.clone());
                    *lock(&begun.progress) = Progress::Up(Box::new(up));
                    joined.store(true, Ordering::Relaxed);
                    trace.say(machine, "daemon is up");
                    on_up(running, ticket);
                }
                Err(_) if begun.spawner.is_crashed() => {}
                Err(error) => {
                    let why = format!("{error:#}");
                    trace.say(machine, &format!("daemon fails: {why}"));
                    *lock(&begun.progress) = Progress::Failed(why);
                }
            }
        };
        Spawner::spawn(&life.spawner, "daemon", Box::pin(task));
        *current = Some(life);
    }

    fn with<T>(&self, take: impl FnOnce(&Progress) -> Option<T>) -> Option<T> {
        let life = self.life().clone().filter(|life| !life.spawner.is_crashed())?;
        take(&lock(&life.progress))
    }

    /// The node, once it runs.
    pub fn running(&self) -> Option<Running> {
        self.with(|progress| match progress {
            Progress::Up(up) => Some(up.running.clone()),
            _ => None,
        })
    }

    /// How many lives the daemon has had.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::Relaxed)
    }

    /// Which life of the daemon is under way, counted from 1, whether it has come up or not.
    pub fn current_life(&self) -> Option<u64> {
        self.life().as_ref().map(|life| life.number)
    }

    /// Why the daemon could not start or cannot go on, if that is so.
    pub fn failure(&self) -> Option<String> {
        self.with(|progress| match progress {
            Progress::Failed(why) => Some(why.clone()),
            Progress::Up(up) => up.running.handle.unusable().now_or_never().map(|why| why.to_string()),
            Progress::Starting | Progress::Ended => None,
        })
    }

    /// What others join by, once this machine's node runs.
    pub fn ticket(&self) -> Option<Ticket> {
        self.with(|progress| match progress {
            Progress::Up(up) => up.ticket.clone(),
            _ => None,
        })
    }

    /// Whether the process has died in an operation of the disk.
    pub fn has_died(&self) -> bool {
        self.life().as_ref().is_some_and(|life| life.spawner.is_crashed())
    }

    /// Holds the daemon where it is, or lets it go on.
    pub fn set_paused(&self, paused: bool) {
        if let Some(life) = &*self.life() {
            let words = if paused { "daemon is paused" } else { "daemon goes on" };
            self.trace.say(self.number, words);
            life.spawner.set_paused(paused);
        }
    }

    /// Ends the daemon without warning. With its machine's power go the containers.
    pub fn crash(&self, loss: Loss) {
        let life = self.life().take();
        let words = match loss {
            Loss::Process => "daemon is killed",
            Loss::Power => "machine loses power",
        };
        self.trace.say(self.number, words);
        if let Some(life) = life {
            life.end();
            self.disk.lose(loss);
            self.containers.unsubscribe();
        }
        if loss == Loss::Power {
            self.containers.power_off();
        }
    }

    /// Asks the daemon to stop, as SIGTERM does, and waits until it has; containers go on.
    pub async fn stop(&self) {
        let Some(life) = self.life().clone() else { return };
        self.trace.say(self.number, "daemon is asked to stop");
        let progress = std::mem::replace(&mut *lock(&life.progress), Progress::Ended);
        if let Progress::Up(up) = progress {
            // Its own tasks do the stopping, so that a crash meanwhile ends it too.
            let (done, stopped) = oneshot::channel();
            let context = up.running.context.clone();
            context.spawn("stop", async move {
                up.node.shutdown().await;
                done.send(()).ok();
            });
            // An error: it has crashed.
            stopped.await.ok();
        }
        let mut current = self.life();
        if current.as_ref().is_some_and(|current| current.number == life.number) {
            let died = life.spawner.is_crashed();
            life.end();
            if died {
                self.disk.lose(Loss::Process);
            } else {
                self.disk.release();
            }
            self.containers.unsubscribe();
            *current = None;
            self.trace.say(self.number, "daemon has stopped");
        }
    }
}

/// What a starting daemon has.
struct Starting {
    number: u64,
    member: NodeId,
    disk: SimDisk,
    containers: SimContainers,
    clock: SimClock,
    random: Stream,
    net: Net,
    ether: Ether,
    raft: RaftConfig,
    life: Life,
}

impl Starting {
    async fn run(self, targets: Vec<JoinTarget>, token: Option<Secret>) -> anyhow::Result<Up> {
        let spawner = self.life.spawner.clone();
        let disk = Arc::new(self.disk.of_life(spawner.clone()));
        let rng = Arc::new(self.random.clone());
        let mut identity = Identity::load_or_create(&*disk, &*rng)?;
        let transport = self.net.plug(identity.key(), self.number, spawner.clone());
        *lock(&self.life.transport) = Some(transport.clone());
        let facts = facts(self.number, transport.addresses());
        let platform = Platform {
            clock: Arc::new(self.clock),
            rng,
            spawner: Arc::new(spawner.clone()),
            disk,
            transport: transport.clone(),
            announcer: Arc::new(SimAnnouncer {
                ether: self.ether.clone(),
                net: self.net.clone(),
                machine: self.number,
            }),
            containers: Arc::new(self.containers),
            volumes: Arc::new(SimVolumes),
        };
        let context = NodeContext::new(&platform);
        transport.set_context(context.clone());
        let starting = async {
            let sources = Finder::new(sources(targets, None));
            let wish = Wish {
                id: Some(self.member),
                token,
                bootstrap: false,
                facts: facts.clone(),
                subnets: SubnetRange::default(),
                own: Vec::new(),
            };
            if identity.membership().is_none() && raft::has_log(&*platform.disk)? {
                let reason = "it names no cluster, and raft.wal is a member's".to_owned();
                return Err(IdentityError::Damaged { reason }.into());
            }
            let membership = formation::form(&platform, &mut identity, &sources, &wish, &|_| ()).await?;
            if identity.has_log() {
                raft::check_log(&*platform.disk, membership.node)?;
            }
            let settings = NodeSettings { facts, boot: identity.boots(), raft: self.raft };
            let node = Node::start(platform.clone(), membership.clone(), settings).await?;
            identity.set_has_log()?;
            context.spawn("discovery", sources.run(platform.clone()));
            context.spawn("announce", announce::run(node.handle(), transport.addresses()[0].port()));
            let router = api::router(node.handle(), Access::Socket);
            let peer = Peer { key: transport.key(), addresses: transport.addresses(), relay_url: None };
            let ticket = identity.token().map(|token| Ticket { cluster: membership.cluster, peer, token });
            anyhow::Ok((node, router, ticket))
        };
        let (node, router, ticket) = context.run(starting).await?;
        let running = Running { machine: self.number, handle: node.handle(), router, context, spawner };
        Ok(Up { node, running, ticket })
    }
}

fn facts(number: u64, addresses: Vec<SocketAddr>) -> NodeFacts {
    NodeFacts {
        name: format!("machine-{number}"),
        addresses,
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", number % 2))]),
        cpu_millis: 8_000,
        memory_bytes: 16 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: LEVEL,
        reserved_ports: Vec::new(),
    }
}

//! One history: a cluster forms, is used while things go wrong, heals and must settle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_node::raft::RaftConfig;

use crate::checks::{Violation, acknowledged, any_node_answers, members_agree_who_votes, settled};
use crate::clients::{CLIENTS, Clients, Done};
use crate::containers::ContainerCounts;
use crate::damage::damaged_state_is_mended;
use crate::disk::Loss;
use crate::faults::{Acted, Faults};
use crate::random::Stream;
use crate::trace::Show;
use crate::view;
use crate::world::World;

/// How long a cluster has to form.
const FORM_WITHIN: Duration = Duration::from_secs(60);
/// How long it has to settle once nothing goes wrong: longer than the longest back-off.
const SETTLE_WITHIN: Duration = Duration::from_secs(900);
/// How long a settled cluster has until Raft's configuration is as it should be.
const AGREE_WITHIN: Duration = Duration::from_secs(60);
/// How long a cluster must have stayed as it is to count as settled: longer than what was late when
/// it was healed takes to arrive and to be noticed, as a heartbeat in bad weather.
const QUIET: Duration = Duration::from_secs(8);
/// How long a settled cluster is watched: nothing may happen in it.
const REST: Duration = Duration::from_secs(20);
/// How long a machine is away from a cluster that has nothing else to do: until it is taken for
/// down, its replicas run elsewhere, and nothing more is written.
const AWAY: Duration = Duration::from_secs(30);
/// How long it has to be a member like the others again.
const RETURN_WITHIN: Duration = Duration::from_secs(60);
/// Longer than any history.
const FOR_EVER: Duration = Duration::from_secs(86_400 * 365);
/// How often it is looked whether what is waited for has come.
const LOOK: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What everything random is drawn from.
    pub seed: u64,
    /// How many machines.
    pub nodes: u64,
    /// For how many simulated minutes things go wrong.
    pub minutes: u64,
    /// Whether anything goes wrong at all.
    pub faults: bool,
    /// What becomes of the trace.
    pub show: Show,
    /// Stop at this simulated time, wherever the history is.
    pub until: Option<Duration>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// The hash of everything that happened.
    pub hash: String,
    /// How many events it covers.
    pub events: u64,
    /// The simulated time.
    pub elapsed: Duration,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
    /// How often each kind of fault acted.
    pub acted: Acted,
    /// What the clients did.
    pub clients: Done,
    /// The highest applied index, and the highest term with a leader.
    pub reached: (u64, u64),
    /// Messages that arrived, and that did not.
    pub messages: (u64, u64),
    /// How often daemons started.
    pub lives: u64,
    /// What happened to containers.
    pub containers: ContainerCounts,
    /// How long settling took.
    pub settled_in: Option<Duration>,
    /// Operations on services that clients share, how many of them were never answered, and of
    /// how many services no order was found in the steps allowed.
    pub shared: (u64, u64, u64),
    /// Whether a state was damaged in the end, and mended.
    pub damaged: bool,
    /// The simulated time in which things went wrong.
    pub faulty: Duration,
    /// The cluster as it was at [`Options::until`], for people.
    pub view: Option<String>,
    /// The trace as text, when it was to be kept.
    pub kept: Vec<String>,
}

/// Runs one history on a runtime of its own, on this thread.
///
/// # Panics
/// When the operating system gives no runtime.
pub fn run(options: Options) -> Report {
    let panics = crate::panics::watch();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    let mut report = runtime.block_on(history(options));
    if let Some(panic) = panics.taken() {
        let at = report.elapsed;
        report.violation = Some(Violation { invariant: "nothing_panics".to_owned(), detail: panic, at });
    }
    report
}

async fn history(options: Options) -> Report {
    let random = Stream::new(options.seed, "options");
    let raft = RaftConfig {
        snapshot_entries: 20 + random.below(400),
        log_keep: 1 + random.below(40),
        // From a unit of one block to one that a history fills now and then.
        log_place_bytes: (4 << 10) * (2 + random.below(30)),
        ..RaftConfig::default()
    };
    let faults = if options.faults { Faults::draw(&random) } else { Faults::none() };
    let world = World::new(options.seed, options.nodes, &raft, options.show);
    if options.faults {
        world.checks.look_at_disks();
    }
    let clients = Clients::new(world.clone(), 400 + random.below(4_000));
    let mut history = History {
        world: world.clone(),
        acted: Acted::new(),
        done: Done::default(),
        settled_in: None,
        undecided: 0,
        damaged: false,
    };
    let playing = history.play(options, faults, clients.clone());
    let end = world.trace.start() + options.until.unwrap_or(FOR_EVER);
    let stopped = tokio::time::timeout_at(end, playing).await.is_err();
    let view = stopped.then(|| view::of(&world));
    let (asked, lost) = clients.history().counts();
    world.end();
    let mut containers = ContainerCounts::default();
    for machine in &world.machines {
        containers.add(machine.containers.counts());
    }
    Report {
        hash: world.trace.hash(),
        events: world.trace.events(),
        elapsed: world.trace.elapsed(),
        violation: world.checks.first(),
        acted: history.acted,
        clients: history.done,
        reached: world.checks.reached(),
        messages: world.net.counts(),
        lives: world.machines.iter().map(crate::machine::Machine::lives).sum(),
        containers,
        settled_in: history.settled_in,
        shared: (asked, lost, history.undecided),
        damaged: history.damaged,
        faulty: Duration::from_secs(60 * options.minutes),
        view,
        kept: world.trace.take_kept(),
    }
}

struct History {
    world: Arc<World>,
    acted: Acted,
    done: Done,
    settled_in: Option<Duration>,
    undecided: u64,
    damaged: bool,
}

impl History {
    async fn play(&mut self, options: Options, faults: Faults, clients: Arc<Clients>) {
        let world = self.world.clone();
        if let Err(why) = wait(&world, FORM_WITHIN, || formed(&world)).await {
            return world.checks.violated("forms", why);
        }
        world.trace.say(0, "formed");
        let stopping = Arc::new(AtomicBool::new(false));
        let faults = tokio::spawn(faults.run(world.clone(), stopping.clone()));
        let writing: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(clients.clone().run(number))).collect();
        let end = tokio::time::Instant::now() + Duration::from_secs(60 * options.minutes);
        while tokio::time::Instant::now() < end && world.checks.first().is_none() {
            look(&world).await;
        }
        clients.stop();
        stopping.store(true, Ordering::Relaxed);
        if world.checks.first().is_some() {
            return;
        }
        // A panic in either shows in the report.
        self.acted = faults.await.unwrap_or_default();
        world.trace.say(0, "healed");
        for client in writing {
            let Ok(done) = client.await else { continue };
            self.done.add(done);
        }
        let began = world.trace.elapsed();
        let mut quiet = Quiet::default();
        if let Err(why) = wait(&world, SETTLE_WITHIN, || quiet.check(&world)).await {
            return world.checks.violated("settles", why);
        }
        self.settled_in = Some(world.trace.elapsed() - began);
        world.trace.say(0, "settled");
        if let Err(why) = wait(&world, AGREE_WITHIN, || members_agree_who_votes(&world)).await {
            return world.checks.violated("members_agree_who_votes", why);
        }
        clients.clone().read_all().await;
        if let Err(why) = clients.ask_all().await {
            return world.checks.violated("every_node_answers", why);
        }
        let searched = clients.history().check();
        match searched {
            Ok(unknown) => self.undecided = unknown,
            Err(why) => return world.checks.violated("histories_are_linearizable", why),
        }
        let Some(node) = world.running().into_iter().next() else { return };
        let state = node.handle.state();
        world.checks.settled(&world, &state);
        if let Err(why) = acknowledged(&state, &self.done.expected) {
            return world.checks.violated("acknowledged_writes_stay", why);
        }
        if let Err(why) = any_node_answers(&world, &state).await {
            return world.checks.violated("any_node_answers", why);
        }
        if let Err(why) = rests(&world, &state).await {
            return world.checks.violated("rests", why);
        }
        if options.faults
            && let Err(why) = returns(&world).await
        {
            return world.checks.violated("members_return", why);
        }
        if options.faults {
            match damaged_state_is_mended(&world).await {
                Ok(damaged) => self.damaged = damaged,
                Err(why) => return world.checks.violated("wrong_states_are_mended", why),
            }
            let mut quiet = Quiet::default();
            if let Err(why) = wait(&world, RETURN_WITHIN, || quiet.check(&world)).await {
                world.checks.violated("mended_members_return", why);
            }
        }
    }
}

/// `rests`: nothing happens in a settled cluster.
async fn rests(world: &World, state: &ClusterState) -> Result<(), String> {
    watch(world, REST).await;
    let Some(node) = world.running().into_iter().next() else { return Ok(()) };
    let after = node.handle.state();
    // A slot that failed is forgiven when its replica has run for long enough, and that is written.
    let forgives = state.services.values().any(|service| !service.backoff.is_empty());
    if after.applied == state.applied || forgives {
        return Ok(());
    }
    let (from, to) = (state.applied, after.applied);
    let events = after.events.iter().filter(|event| event.id.index > from);
    let events: Vec<String> = events.map(|event| format!("{event:?}")).collect();
    Err(format!("a settled cluster went from index {from} to {to}: {}", events.join("; ")))
}

/// `members_return`: a follower that was away comes back into a cluster in which nothing is written.
///
/// Shows a member that learns of its leader only from what is written (`run --seed 3 --nodes 5` of a
/// former version), and work that is neither kept nor ended.
async fn returns(world: &Arc<World>) -> Result<(), String> {
    let random = Stream::new(world.seed, "returning");
    let leader = world.leader();
    let followers: Vec<_> = world.machines.iter().filter(|machine| Some(machine.number) != leader).collect();
    let place = usize::try_from(random.below(followers.len().max(1) as u64)).expect("small");
    let Some(machine) = followers.get(place) else { return Ok(()) };
    machine.crash(if random.chance(500) { Loss::Power } else { Loss::Process });
    watch(world, AWAY).await;
    world.start(machine.number);
    let mut quiet = Quiet::default();
    let came = wait(world, RETURN_WITHIN, || quiet.check(world)).await;
    came.map_err(|why| format!("machine {} was away: {why}", machine.number))
}

/// Since when a cluster is settled at one index.
#[derive(Default)]
struct Quiet(Option<(u64, tokio::time::Instant)>);

impl Quiet {
    /// Whether it has been for [`QUIET`].
    fn check(&mut self, world: &World) -> Result<(), String> {
        let settled = settled(world);
        let (index, now) = (world.checks.reached().0, tokio::time::Instant::now());
        let since = self.0.filter(|(at, _)| *at == index && settled.is_ok()).map_or(now, |(_, since)| since);
        self.0 = Some((index, since));
        settled?;
        if since + QUIET <= now { Ok(()) } else { Err(format!("it goes on: it is at index {index}")) }
    }
}

/// Whether every machine's node is a member; starts what does not run.
fn formed(world: &Arc<World>) -> Result<(), String> {
    for machine in &world.machines {
        world.start(machine.number);
    }
    world.reap();
    settled(world)
}

/// Waits until `holds`; the last reason why not when it does not in time.
async fn wait(
    world: &World,
    within: Duration,
    mut holds: impl FnMut() -> Result<(), String>,
) -> Result<(), String> {
    let end = tokio::time::Instant::now() + within;
    loop {
        let why = match holds() {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if world.checks.first().is_some() || tokio::time::Instant::now() >= end {
            return Err(why);
        }
        look(world).await;
    }
}

/// Lets a time pass in which the checks look.
async fn watch(world: &World, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        look(world).await;
    }
}

/// The time between two looks, and a look.
async fn look(world: &World) {
    tokio::time::sleep(LOOK).await;
    world.checks.look_around(world);
    world.machines.iter().for_each(|machine| world.checks.look(machine));
}

//! What goes wrong in a world: drawn from the seed, each kind of fault by itself, so that faults
//! meet.
//!
//! Each seed draws which kinds it has at all, how often each comes and how long faults last, so
//! that some worlds see few kinds, and often (swarm testing: Groce et al., 2012).

mod act;
mod kind;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use self::kind::Fault;
use crate::net::Weather;
use crate::random::Stream;
use crate::world::World;

/// How often it is looked which daemons must be started again.
const INIT: Duration = Duration::from_millis(500);
/// The shortest drawn mean time between two faults of a kind, in milliseconds.
const GAP_MIN_MS: u64 = 12_000;
/// By how much it is longer at most.
const GAP_RANGE_MS: u64 = 90_000;
/// How often a drained node is activated until it is.
const ACTIVATE_TRIES_MAX: u32 = 100;

/// What may go wrong in a world, and how often.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Each kind with the mean time between two of it, in milliseconds.
    kinds: BTreeMap<Fault, u64>,
    /// The longest time a fault lasts, in milliseconds.
    length_ms: u64,
}

/// How often each kind acted.
pub type Acted = BTreeMap<Fault, u64>;

impl Faults {
    /// What a seed has go wrong.
    pub fn draw(random: &Stream) -> Self {
        let kept = 200 + random.below(800);
        let drawn = Fault::ALL.into_iter().filter(|_| random.chance(kept));
        let kinds = drawn.map(|fault| (fault, GAP_MIN_MS + random.below(GAP_RANGE_MS))).collect();
        Self { kinds, length_ms: 500 + random.below(15_000) }
    }

    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self { kinds: BTreeMap::new(), length_ms: 1 }
    }

    /// Has things go wrong until `stopping`; then everything is well again, and every daemon runs.
    pub async fn run(self, world: Arc<World>, stopping: Arc<AtomicBool>) -> Acted {
        let shared = Arc::new(Shared { world, stopping, inner: Mutex::default() });
        let init = tokio::spawn(start_again(shared.clone()));
        let mut running = Vec::new();
        for (fault, gap_ms) in self.kinds {
            let random = Stream::new(shared.world.seed, &format!("fault {fault:?}"));
            let acting = Acting { shared: shared.clone(), random, length_ms: self.length_ms };
            running.push(tokio::spawn(acting.repeat(fault, gap_ms)));
        }
        for task in running {
            // A panic in one shows in the report.
            task.await.ok();
        }
        init.await.ok();
        let random = Stream::new(shared.world.seed, "healing");
        let healing = Acting { shared: shared.clone(), random, length_ms: 1 };
        healing.heal().await;
        std::mem::take(&mut shared.lock().acted)
    }
}

/// What all kinds of fault share.
struct Shared {
    world: Arc<World>,
    stopping: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    acted: Acted,
    /// Machines that are off on purpose, and for how many reasons.
    off: BTreeMap<u64, u32>,
    /// Machines whose nodes take no replicas until they are activated.
    drained: BTreeSet<u64>,
    /// Machines whose nodes are to be no members any more.
    parting: BTreeSet<u64>,
    /// Whether a disk has lied: the disks of one machine may be lost, not of two.
    lied: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Starts every daemon that does not run and should.
    fn start_all(&self) {
        self.world.reap();
        for machine in &self.world.machines {
            if !self.lock().off.contains_key(&machine.number) {
                self.world.start(machine.number);
            }
        }
    }
}

/// Starts daemons that have ended, as an init system does.
async fn start_again(shared: Arc<Shared>) {
    while !shared.is_stopping() {
        tokio::time::sleep(INIT).await;
        shared.start_all();
    }
}

/// One kind of fault, acting.
struct Acting {
    shared: Arc<Shared>,
    random: Stream,
    length_ms: u64,
}

impl Acting {
    async fn repeat(self, fault: Fault, gap_ms: u64) {
        let mut wait_ms = self.random.below(gap_ms);
        loop {
            let end = tokio::time::Instant::now() + Duration::from_millis(wait_ms + 1);
            while tokio::time::Instant::now() < end {
                if self.shared.is_stopping() {
                    return;
                }
                tokio::time::sleep_until(end.min(tokio::time::Instant::now() + INIT)).await;
            }
            self.shared.world.trace.say(0, &format!("fault: {fault:?}"));
            if self.act(fault).await {
                *self.shared.lock().acted.entry(fault).or_default() += 1;
            }
            wait_ms = self.random.below(2 * gap_ms);
        }
    }

    fn world(&self) -> &World {
        &self.shared.world
    }

    fn machines(&self) -> u64 {
        self.world().machines.len() as u64
    }

    fn any(&self) -> u64 {
        self.random.below(self.machines()) + 1
    }

    fn leader(&self) -> u64 {
        self.world().leader().unwrap_or_else(|| self.any())
    }

    /// Waits for as long as a fault lasts.
    async fn last(&self) {
        tokio::time::sleep(Duration::from_millis(self.random.below(self.length_ms) + 1)).await;
    }

    /// Makes everything well that a fault may have left.
    async fn heal(&self) {
        let world = self.world();
        world.net.heal();
        world.net.set_weather(Weather::CALM);
        world.net.set_doubled(0);
        world.reap();
        for machine in &world.machines {
            machine.disk.set_full(false);
            machine.disk.set_failing(0);
            machine.disk.set_slowness(1);
            machine.disk.clear_fuse();
            machine.containers.set_down(false);
            machine.containers.end_troubles();
            machine.clock.set_drift_ppm(0);
            machine.set_paused(false);
            world.registries.mend(machine.number);
        }
        self.shared.lock().off.clear();
        self.shared.start_all();
        // First: a node that leaves gives its replicas to others, if they take any.
        self.activate_all().await;
        self.part_all().await;
        self.activate_all().await;
        self.shared.start_all();
    }

    /// Activates every drained node that is to stay.
    async fn activate_all(&self) {
        let stays = |inner: &Inner| inner.drained.difference(&inner.parting).copied().collect::<Vec<_>>();
        let drained = stays(&self.shared.lock());
        for number in drained {
            self.activate(number, ACTIVATE_TRIES_MAX).await;
        }
    }
}

//! What goes wrong in a world: drawn from the seed, one fault after another.
//!
//! Each seed draws which kinds it has at all, how often faults come and how long they last, so
//! that some worlds see only one kind, and often (swarm testing: Groce et al., 2012).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::Request;

use crate::clients::call;
use crate::containers::Trouble;
use crate::disk::Loss;
use crate::net::Weather;
use crate::random::Stream;
use crate::world::World;

/// How often a drained node is activated until it is.
const ACTIVATE_TRIES_MAX: u32 = 100;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A daemon is killed.
    Kill,
    /// The leader's daemon is killed.
    KillLeader,
    /// A daemon dies inside a disk operation.
    DieWriting,
    /// A machine loses power.
    PowerLoss,
    /// Every machine loses power.
    PowerLossOfAll,
    /// A daemon is stopped and started again.
    Restart,
    /// A daemon is held where it is and goes on later.
    Pause,
    /// A node is drained and activated again.
    Drain,
    /// A machine is cut off from the others.
    Isolation,
    /// The leader's machine is cut off from the others.
    IsolationOfLeader,
    /// One direction between two machines is cut.
    OneWayCut,
    /// The machines fall into two halves.
    Split,
    /// Messages are late, and some links fall.
    Weather,
    /// A disk is slow.
    SlowDisk,
    /// A disk is full.
    FullDisk,
    /// A wall clock jumps.
    ClockJump,
    /// A container's process ends.
    ContainerExit,
    /// The container runtime fails often.
    RuntimeTrouble,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::KillLeader,
        Self::DieWriting,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::Restart,
        Self::Pause,
        Self::Drain,
        Self::Isolation,
        Self::IsolationOfLeader,
        Self::OneWayCut,
        Self::Split,
        Self::Weather,
        Self::SlowDisk,
        Self::FullDisk,
        Self::ClockJump,
        Self::ContainerExit,
        Self::RuntimeTrouble,
    ];
}

/// What may go wrong in a world, and how often.
#[derive(Debug, Clone)]
pub struct Faults {
    kinds: Vec<Fault>,
    /// The longest time from one fault to the next, in milliseconds.
    gap_ms: u64,
    /// The longest time a fault lasts, in milliseconds.
    length_ms: u64,
}

/// How often each kind acted.
pub type Acted = BTreeMap<Fault, u64>;

impl Faults {
    /// What a seed has go wrong.
    pub fn draw(random: &Stream) -> Self {
        let kept = 200 + random.below(800);
        let kinds: Vec<Fault> = Fault::ALL.into_iter().filter(|_| random.chance(kept)).collect();
        Self { kinds, gap_ms: 2_000 + random.below(18_000), length_ms: 500 + random.below(15_000) }
    }

    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self { kinds: Vec::new(), gap_ms: 10_000, length_ms: 1 }
    }

    /// Has things go wrong until `stopping`; then everything is well again, and every daemon runs.
    pub async fn run(self, world: Arc<World>, stopping: Arc<AtomicBool>) -> Acted {
        let random = Stream::new(world.seed, "faults");
        let mut running =
            Running { world, random, faults: self, acted: Acted::new(), drained: BTreeSet::new() };
        while !stopping.load(Ordering::Relaxed) {
            let gap = running.random.below(running.faults.gap_ms) + 1;
            tokio::time::sleep(Duration::from_millis(gap)).await;
            running.world.reap();
            running.start_all();
            if !running.faults.kinds.is_empty() && !stopping.load(Ordering::Relaxed) {
                running.act().await;
            }
        }
        running.heal();
        for number in running.drained.clone() {
            running.activate(number, ACTIVATE_TRIES_MAX).await;
        }
        running.acted
    }
}

struct Running {
    world: Arc<World>,
    random: Stream,
    faults: Faults,
    acted: Acted,
    /// Machines whose nodes take no replicas until they are activated.
    drained: BTreeSet<u64>,
}

impl Running {
    /// Asks some node's API for a change.
    async fn ask(&self, path: &str) -> Option<()> {
        let nodes = self.world.running();
        let place = usize::try_from(self.random.below(nodes.len().max(1) as u64)).expect("small");
        let request = Request::post(path).body(Body::empty()).expect("it is well formed");
        let answer = call(nodes.get(place)?, request).await?;
        answer.status.is_success().then_some(())
    }

    async fn activate(&mut self, number: u64, tries_max: u32) {
        for _ in 0..tries_max {
            if self.ask(&format!("/v1/nodes/{number}/activate")).await.is_some() {
                self.drained.remove(&number);
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn machines(&self) -> u64 {
        self.world.machines.len() as u64
    }

    fn any(&self) -> u64 {
        self.random.below(self.machines()) + 1
    }

    fn leader(&self) -> u64 {
        self.world.leader().unwrap_or_else(|| self.any())
    }

    fn start_all(&self) {
        for number in 1..=self.machines() {
            self.world.start(number);
        }
    }

    async fn last(&self) {
        tokio::time::sleep(Duration::from_millis(self.random.below(self.faults.length_ms) + 1)).await;
    }

    /// Makes everything well that a fault may have left.
    fn heal(&self) {
        self.world.net.heal();
        self.world.net.set_weather(Weather::CALM);
        self.world.reap();
        for machine in &self.world.machines {
            machine.disk.set_full(false);
            machine.disk.set_slowness(1);
            machine.disk.clear_fuse();
            machine.containers.set_trouble(Trouble::default());
        }
        self.world.reap();
        self.start_all();
    }

    async fn act(&mut self) {
        let place = self.random.below(self.faults.kinds.len() as u64);
        let fault = self.faults.kinds[usize::try_from(place).expect("small")];
        self.world.trace.say(0, &format!("fault: {fault:?}"));
        *self.acted.entry(fault).or_default() += 1;
        match fault {
            Fault::Kill => self.crash(self.any(), Loss::Process).await,
            Fault::KillLeader => self.crash(self.leader(), Loss::Process).await,
            Fault::PowerLoss => self.crash(self.any(), Loss::Power).await,
            Fault::PowerLossOfAll => {
                for machine in &self.world.machines {
                    machine.crash(Loss::Power);
                }
                self.last().await;
            }
            Fault::DieWriting => {
                let machine = self.world.machine(self.any());
                machine.disk.set_fuse(self.random.below(300));
                self.last().await;
                machine.disk.clear_fuse();
                self.world.reap();
            }
            Fault::Restart => {
                self.world.machine(self.any()).stop().await;
                self.last().await;
            }
            Fault::Pause => {
                let machine = self.world.machine(self.any());
                machine.set_paused(true);
                self.last().await;
                machine.set_paused(false);
            }
            Fault::Drain => {
                let number = self.any();
                let asked = self.ask(&format!("/v1/nodes/{number}/drain")).await;
                if asked.is_some() {
                    self.drained.insert(number);
                    self.last().await;
                    self.activate(number, 1).await;
                }
            }
            Fault::Isolation => self.isolate(self.any()).await,
            Fault::IsolationOfLeader => self.isolate(self.leader()).await,
            Fault::OneWayCut => {
                let (from, to) = (self.any(), self.any());
                if from != to {
                    self.cut(|a, b| (a, b) == (from, to)).await;
                }
            }
            Fault::Split => {
                let sides = self.random.below(1 << self.machines());
                self.cut(|a, b| (sides >> a & 1) != (sides >> b & 1)).await;
            }
            Fault::Weather => {
                self.world.net.set_weather(Weather {
                    delay_us: 1_000 + self.random.below(40_000),
                    spikes: self.random.below(50),
                    spike_ms: 1 + self.random.below(2_000),
                    loss: self.random.below(100),
                });
                self.last().await;
                self.world.net.set_weather(Weather::CALM);
            }
            Fault::SlowDisk => {
                let machine = self.world.machine(self.any());
                machine.disk.set_slowness(5 + self.random.below(500));
                self.last().await;
                machine.disk.set_slowness(1);
            }
            Fault::FullDisk => {
                let machine = self.world.machine(self.any());
                machine.disk.set_full(true);
                self.last().await;
                machine.disk.set_full(false);
            }
            Fault::ClockJump => {
                let skew = i64::try_from(self.random.below(120_000)).expect("small") - 60_000;
                self.world.machine(self.any()).clock.set_skew_ms(skew);
            }
            Fault::ContainerExit => self.exit_container(),
            Fault::RuntimeTrouble => {
                let machine = self.world.machine(self.any());
                machine.containers.set_trouble(Trouble {
                    pull: self.random.below(500),
                    start: self.random.below(500),
                    remove: self.random.below(500),
                });
                self.last().await;
                machine.containers.set_trouble(Trouble::default());
            }
        }
    }

    async fn crash(&self, number: u64, loss: Loss) {
        self.world.machine(number).crash(loss);
        self.last().await;
    }

    async fn isolate(&self, number: u64) {
        self.cut(|from, to| (from == number) != (to == number)).await;
    }

    /// Cuts the directions that `cuts` names, for a while.
    async fn cut(&self, cuts: impl Fn(u64, u64) -> bool) {
        for from in 1..=self.machines() {
            for to in 1..=self.machines() {
                if cuts(from, to) {
                    self.world.net.set_cut(from, to, true);
                }
            }
        }
        self.last().await;
        self.world.net.heal();
    }

    fn exit_container(&self) {
        let machine = self.world.machine(self.any());
        let running = machine.containers.running();
        if !running.is_empty() {
            let place = self.random.below(running.len() as u64);
            let (replica, attempt, _) = running[usize::try_from(place).expect("small")];
            machine.containers.exit(replica, attempt, u32::try_from(self.random.below(3)).expect("small"));
        }
    }
}

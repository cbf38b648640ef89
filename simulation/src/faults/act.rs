//! What each kind of fault does.

use std::time::Duration;

use super::{Acting, Fault};
use crate::containers::Trouble;
use crate::disk::Loss;
use crate::machine::Machine;
use crate::net::Weather;
use crate::registries::Harm;

/// The most that a clock gains or loses: far more than a real one does.
const DRIFT_PPM_MAX: u64 = 20_000;

impl Acting {
    /// Has a fault act until it is over; false when there was nothing that it could act on.
    pub(super) async fn act(&self, fault: Fault) -> bool {
        match fault {
            Fault::Kill => self.crash(&[self.any()], Loss::Process).await,
            Fault::KillLeader => self.crash(&[self.leader()], Loss::Process).await,
            Fault::PowerLoss => self.crash(&[self.any()], Loss::Power).await,
            Fault::PowerLossOfAll => {
                let all: Vec<u64> = (1..=self.machines()).collect();
                self.crash(&all, Loss::Power).await
            }
            Fault::DieWriting => self.die_writing().await,
            Fault::Restart => self.restart(self.any()).await,
            Fault::RollingRestart => self.restart_all().await,
            Fault::Pause => {
                let machine = self.world().machine(self.any());
                machine.set_paused(true);
                self.last().await;
                machine.set_paused(false);
                true
            }
            Fault::Drain => self.drain(self.any()).await,
            Fault::Leave => self.leave(self.any()).await,
            Fault::Removal => self.remove(self.any()).await,
            Fault::Isolation => self.isolate(self.any()).await,
            Fault::IsolationOfLeader => self.isolate(self.leader()).await,
            Fault::OneWayCut => {
                let (from, to) = (self.any(), self.any());
                self.cut(|a, b| from != to && (a, b) == (from, to)).await
            }
            Fault::Split => {
                let sides = self.random.below(1 << self.machines());
                self.cut(|a, b| (sides >> a & 1) != (sides >> b & 1)).await
            }
            Fault::Flapping => self.flap(self.any()).await,
            Fault::Weather => {
                self.world().net.set_weather(Weather {
                    delay_us: 1_000 + self.random.below(40_000),
                    spikes: self.random.below(50),
                    spike_ms: 1 + self.random.below(2_000),
                    loss: self.random.below(100),
                });
                self.last().await;
                self.world().net.set_weather(Weather::CALM);
                true
            }
            Fault::Doubling => {
                self.world().net.set_doubled(1 + self.random.below(300));
                self.last().await;
                self.world().net.set_doubled(0);
                true
            }
            Fault::SlowDisk => {
                let machine = self.world().machine(self.any());
                machine.disk.set_slowness(5 + self.random.below(500));
                self.last().await;
                machine.disk.set_slowness(1);
                true
            }
            Fault::FullDisk => {
                let machine = self.world().machine(self.any());
                machine.disk.set_full(true);
                self.last().await;
                machine.disk.set_full(false);
                true
            }
            Fault::FailingDisk => {
                let machine = self.world().machine(self.any());
                machine.disk.set_failing(1 + self.random.below(200));
                self.last().await;
                machine.disk.set_failing(0);
                true
            }
            Fault::LyingDisk => self.lie(self.any()).await,
            Fault::ClockJump => {
                let skew = i64::try_from(self.random.below(120_000)).expect("small") - 60_000;
                self.world().machine(self.any()).clock.set_skew_ms(skew);
                true
            }
            Fault::ClockDrift => {
                let drift = i32::try_from(self.random.below(2 * DRIFT_PPM_MAX)).expect("small");
                let clock = &self.world().machine(self.any()).clock;
                clock.set_drift_ppm(drift - i32::try_from(DRIFT_PPM_MAX).expect("small"));
                self.last().await;
                clock.set_drift_ppm(0);
                true
            }
            Fault::ContainerExit => self.exit_container(),
            Fault::RuntimeRestart => {
                let machine = self.world().machine(self.any());
                machine.containers.set_down(true);
                if self.random.chance(500) {
                    // Nobody tells of it.
                    self.exit_container_of(machine);
                }
                self.last().await;
                machine.containers.set_down(false);
                true
            }
            Fault::PullTrouble => self.trouble(|often| Trouble { pull: often(), ..Trouble::default() }).await,
            Fault::StartTrouble => {
                self.trouble(|often| Trouble { start: often(), ..Trouble::default() }).await
            }
            Fault::RemoveTrouble => {
                self.trouble(|often| Trouble { remove: often(), ..Trouble::default() }).await
            }
            Fault::SlowRuntime => self.trouble(|often| Trouble { slow: often(), ..Trouble::default() }).await,
            Fault::CrashLoop => self.trouble(|often| Trouble { ends: often(), ..Trouble::default() }).await,
            Fault::RuntimeTrouble => {
                // At least so often that a start and the removal of what it left fail together.
                let both = |often: &dyn Fn() -> u64| 300 + often();
                self.trouble(|often| Trouble {
                    start: both(often),
                    remove: both(often),
                    ..Trouble::default()
                })
                .await
            }
            Fault::RegistryMissing => self.harm(Harm::Missing).await,
            Fault::RegistryStale => self.harm(Harm::Stale).await,
            Fault::RegistryMalformed => self.harm(Harm::Malformed).await,
            Fault::RegistryStranger => self.harm(Harm::Stranger).await,
        }
    }

    /// Keeps machines off until what `work` does is done.
    pub(super) async fn off<T>(&self, numbers: &[u64], work: impl Future<Output = T>) -> T {
        for number in numbers {
            *self.shared.lock().off.entry(*number).or_default() += 1;
        }
        let done = work.await;
        for number in numbers {
            let mut inner = self.shared.lock();
            let reasons = inner.off.entry(*number).or_default();
            *reasons = reasons.saturating_sub(1);
            if *reasons == 0 {
                inner.off.remove(number);
            }
        }
        done
    }

    async fn crash(&self, numbers: &[u64], loss: Loss) -> bool {
        let mut ended = false;
        for number in numbers {
            let machine = self.world().machine(*number);
            ended |= machine.current_life().is_some();
            machine.crash(loss);
        }
        self.off(numbers, self.last()).await;
        ended
    }

    async fn die_writing(&self) -> bool {
        let machine = self.world().machine(self.any());
        let life = machine.current_life();
        machine.disk.set_fuse(self.random.below(300));
        self.last().await;
        machine.disk.clear_fuse();
        life.is_some() && (machine.has_died() || machine.current_life() != life)
    }

    async fn restart(&self, number: u64) -> bool {
        let machine = self.world().machine(number);
        let runs = machine.running().is_some();
        let work = async {
            machine.stop().await;
            self.last().await;
        };
        self.off(&[number], work).await;
        runs
    }

    async fn restart_all(&self) -> bool {
        let mut all = true;
        for number in 1..=self.machines() {
            let machine = self.world().machine(number);
            all &= machine.running().is_some();
            let work = async {
                machine.stop().await;
                tokio::time::sleep(Duration::from_millis(self.random.below(500) + 1)).await;
            };
            self.off(&[number], work).await;
            self.shared.start_all();
            tokio::time::sleep(Duration::from_millis(500 + self.random.below(3_000))).await;
        }
        all
    }

    async fn isolate(&self, number: u64) -> bool {
        self.cut(|from, to| (from == number) != (to == number)).await
    }

    fn pairs(&self, cuts: impl Fn(u64, u64) -> bool) -> Vec<(u64, u64)> {
        let all = (1..=self.machines()).flat_map(|from| (1..=self.machines()).map(move |to| (from, to)));
        all.filter(|(from, to)| from != to && cuts(*from, *to)).collect()
    }

    fn set_cut(&self, pairs: &[(u64, u64)], cut: bool) {
        for (from, to) in pairs {
            self.world().net.set_cut(*from, *to, cut);
        }
    }

    /// Cuts the directions that `cuts` names, for a while; false when it names none.
    async fn cut(&self, cuts: impl Fn(u64, u64) -> bool) -> bool {
        let pairs = self.pairs(cuts);
        self.set_cut(&pairs, true);
        if !pairs.is_empty() {
            self.last().await;
        }
        self.set_cut(&pairs, false);
        !pairs.is_empty()
    }

    async fn flap(&self, number: u64) -> bool {
        let pairs = match self.random.below(3) {
            0 => self.pairs(|from, _| from == number),
            1 => self.pairs(|_, to| to == number),
            _ => self.pairs(|from, to| from == number || to == number),
        };
        let period_ms = 50 + self.random.below(1_500);
        let end = tokio::time::Instant::now() + Duration::from_millis(self.random.below(self.length_ms) + 1);
        let mut cut = false;
        while tokio::time::Instant::now() < end {
            cut = !cut;
            self.set_cut(&pairs, cut);
            tokio::time::sleep(Duration::from_millis(self.random.below(period_ms) + 1)).await;
        }
        if cut {
            self.set_cut(&pairs, false);
        }
        !pairs.is_empty()
    }

    fn exit_container(&self) -> bool {
        self.exit_container_of(self.world().machine(self.any()))
    }

    fn exit_container_of(&self, machine: &Machine) -> bool {
        let running = machine.containers.running();
        if running.is_empty() {
            return false;
        }
        let place = self.random.below(running.len() as u64);
        let (replica, attempt, _) = running[usize::try_from(place).expect("small")];
        machine.containers.exit(replica, attempt, u32::try_from(self.random.below(3)).expect("small"));
        true
    }

    /// Has calls of a machine's runtime fail, drawing how often.
    async fn trouble(&self, draw: impl FnOnce(&dyn Fn() -> u64) -> Trouble) -> bool {
        let containers = &self.world().machine(self.any()).containers;
        let number = containers.begin_trouble(draw(&|| 1 + self.random.below(700)));
        self.last().await;
        containers.end_trouble(number) > 0
    }

    async fn harm(&self, harm: Harm) -> bool {
        let number = self.any();
        if !self.world().registries.harm(number, harm) {
            return false;
        }
        self.last().await;
        self.world().registries.mend(number);
        true
    }
}

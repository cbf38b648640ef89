//! Many histories: each seed in a world of its own, several at a time, each on its own thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::faults::{Acted, Fault};
use crate::scenario::{self, Options, Report};
use crate::trace::Show;

/// From how many seeds on a sweep must have seen everything.
pub const SEEDS_MIN: u64 = 100;
/// The fewest crashes a simulated minute.
const CRASHES_MIN: f64 = 1.0;
/// The fewest partitions a simulated minute.
const PARTITIONS_MIN: f64 = 1.0;
/// The fewest acknowledged operations a simulated minute: a cluster that is never there proves
/// nothing.
const OPERATIONS_MIN: f64 = 50.0;

/// The sum of many histories.
#[derive(Debug, Default)]
pub struct Totals {
    /// How many ran.
    pub seeds: u64,
    /// The simulated time.
    pub simulated: Duration,
    /// The simulated time in which things went wrong.
    pub faulty: Duration,
    /// How often each kind of fault acted.
    pub acted: Acted,
    /// Operations on services that clients share, how many of them were never answered, and of
    /// how many services no order was found in the steps allowed.
    pub shared: (u64, u64, u64),
    /// How many machines each has.
    pub nodes: u64,
    /// How many states were damaged, and mended.
    pub damaged: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads confirmed.
    pub reads: u64,
    /// Tries that got no answer.
    pub unanswered: u64,
    /// How often daemons started.
    pub lives: u64,
    /// Seeds that failed, and how.
    pub failed: BTreeMap<u64, String>,
}

impl Totals {
    fn add(&mut self, seed: u64, report: &Report) {
        self.seeds += 1;
        self.simulated += report.elapsed;
        self.faulty += report.faulty;
        for (fault, count) in &report.acted {
            *self.acted.entry(*fault).or_default() += count;
        }
        self.writes += report.clients.writes;
        self.reads += report.clients.reads;
        self.unanswered += report.clients.unanswered;
        self.lives += report.lives;
        self.damaged += u64::from(report.damaged);
        let (asked, lost, undecided) = report.shared;
        self.shared = (self.shared.0 + asked, self.shared.1 + lost, self.shared.2 + undecided);
        if let Some(violation) = &report.violation {
            self.failed.insert(seed, violation.to_string());
        }
    }
}

impl Totals {
    /// Crashes, partitions and acknowledged operations for each simulated minute in which things
    /// went wrong.
    pub fn a_minute(&self) -> [f64; 3] {
        let sum = |is: fn(Fault) -> bool| -> u64 {
            self.acted.iter().filter(|(fault, _)| is(**fault)).map(|(_, count)| count).sum()
        };
        let minutes = self.faulty.as_secs_f64() / 60.0;
        #[expect(clippy::cast_precision_loss, reason = "they are shown and compared with small numbers")]
        let a_minute = |count: u64| if minutes > 0.0 { count as f64 / minutes } else { 0.0 };
        [sum(Fault::is_crash), sum(Fault::is_partition), self.writes + self.reads].map(a_minute)
    }

    /// Why these histories prove too little, when they are many: which faults never acted, and
    /// what happened too seldom.
    pub fn lacks(&self) -> Vec<String> {
        if self.seeds < SEEDS_MIN {
            return Vec::new();
        }
        let idle =
            Fault::ALL.into_iter().filter(|fault| self.acted.get(fault).is_none_or(|count| *count == 0));
        let mut lacks: Vec<String> = idle.map(|fault| format!("{fault:?} never acted")).collect();
        if self.nodes >= 3 && self.damaged == 0 {
            lacks.push("no state was damaged".to_owned());
        }
        let [crashes, partitions, operations] = self.a_minute();
        for (what, found, least) in [
            ("crashes", crashes, CRASHES_MIN),
            ("partitions", partitions, PARTITIONS_MIN),
            ("acknowledged operations", operations, OPERATIONS_MIN),
        ] {
            if found < least {
                lacks.push(format!("{found:.2} {what} a simulated minute; {least} are the least"));
            }
        }
        lacks
    }
}

/// Runs the histories of `seeds`, `jobs` at a time, until all have run or `go_on` says no;
/// `each` is told of each that ended, in the order in which they end.
pub fn sweep(
    seeds: std::ops::Range<u64>,
    options: Options,
    jobs: usize,
    go_on: impl Fn() -> bool + Sync,
    mut each: impl FnMut(u64, &Report),
) -> Totals {
    let next = AtomicU64::new(seeds.start);
    let (done, reports) = mpsc::channel();
    let mut totals = Totals { nodes: options.nodes, ..Totals::default() };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (next, done, go_on, end) = (&next, done.clone(), &go_on, seeds.end);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || !go_on() {
                        return;
                    }
                    let report = scenario::run(Options { seed, ..options });
                    // The receiver lives as long as this scope.
                    done.send((seed, report)).ok();
                }
            });
        }
        drop(done);
        for (seed, report) in reports {
            each(seed, &report);
            totals.add(seed, &report);
        }
    });
    totals
}

/// Runs one seed twice: the hash, or where the two histories part.
///
/// # Errors
/// The first event that differs, in both, with what led there.
pub fn twice(options: Options) -> Result<Report, String> {
    let (first, second) = (scenario::run(options), scenario::run(options));
    if first.hash == second.hash && first.events == second.events {
        return Ok(first);
    }
    let keep = Options { show: Show::Keep, ..options };
    let (first, second) = (scenario::run(keep), scenario::run(keep));
    let parts = first.kept.iter().zip(&second.kept).position(|(a, b)| a != b);
    let Some(at) = parts else {
        return Err(format!(
            "seed {}: the hashes differ, and when the events were kept, {} and {} of them agreed",
            options.seed,
            first.kept.len(),
            second.kept.len()
        ));
    };
    let before = first.kept[at.saturating_sub(5)..at].join("\n");
    Err(format!(
        "seed {} parts at event {at}, after\n{before}\nfirst:  {}\nsecond: {}",
        options.seed, first.kept[at], second.kept[at]
    ))
}

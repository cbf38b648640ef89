//! Many histories: each seed in a world of its own, several at a time, each on its own thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::scenario::{self, Options, Report};
use crate::trace::Show;

/// The sum of many histories.
#[derive(Debug, Default)]
pub struct Totals {
    /// How many ran.
    pub seeds: u64,
    /// The simulated time.
    pub simulated: Duration,
    /// The simulated time in which things went wrong.
    pub faulty: Duration,
    /// How often each kind of fault acted, by name.
    pub acted: BTreeMap<String, u64>,
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
            *self.acted.entry(format!("{fault:?}")).or_default() += count;
        }
        self.writes += report.clients.writes;
        self.reads += report.clients.reads;
        self.unanswered += report.clients.unanswered;
        self.lives += report.lives;
        if let Some(violation) = &report.violation {
            self.failed.insert(seed, violation.to_string());
        }
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
    let mut totals = Totals::default();
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

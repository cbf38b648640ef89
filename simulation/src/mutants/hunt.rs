//! Runs the seeds of one planted bug, each in a process of its own, several at a time.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{CALM_SEEDS, Mutant, REPEATS, Search};

/// How long one seed may take: a bug may keep a world busy for ever.
const SEED_WITHIN: Duration = Duration::from_secs(100);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// What came of a planted bug.
pub(super) enum Outcome {
    /// A named invariant fired.
    Caught {
        /// Which.
        invariant: String,
        /// In which seed, counted from 1.
        seed: u64,
        /// What it said.
        detail: String,
    },
    /// None did. What ended seeds otherwise, and the first such seed.
    Missed { others: BTreeMap<String, u64> },
    /// It cannot be looked for.
    Invalid(String),
}

impl Outcome {
    pub(super) fn seeds_needed(&self) -> Option<u64> {
        match self {
            Self::Caught { seed, .. } => Some(*seed),
            Self::Missed { .. } | Self::Invalid(_) => None,
        }
    }
}

/// The search for one planted bug.
pub(super) struct Hunt<'a> {
    /// The simulator with the bug in it.
    program: PathBuf,
    /// The bug.
    mutant: &'a Mutant,
    /// How to search.
    search: Search,
    /// The lowest seed known to show the bug: later ones are not needed.
    needed: AtomicU64,
}

/// How one seed ended.
struct End {
    seed: u64,
    /// The invariant that did not hold, and what it said.
    violation: Option<(String, String)>,
}

impl<'a> Hunt<'a> {
    pub(super) fn new(program: PathBuf, mutant: &'a Mutant, search: Search) -> Self {
        Self { program, mutant, search, needed: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn run(&self) -> Outcome {
        let mut failed = Vec::new();
        self.seeds(
            if self.mutant.calm { CALM_SEEDS } else { 0 },
            |seed| self.once(seed, &["--calm"]),
            |end| {
                failed.extend(
                    end.violation.map(|(name, detail)| format!("seed {}: {name}: {detail}", end.seed)),
                );
                true
            },
        );
        if let Some(first) = failed.first() {
            return Outcome::Invalid(format!("it does not need faults to show: {first}"));
        }
        let (mut caught, mut others): (Option<(u64, String, String)>, _) = (None, BTreeMap::new());
        let twice = self.mutant.fires.iter().any(|name| name == REPEATS);
        let work = |seed| if twice { self.twice(seed) } else { self.once(seed, &[]) };
        self.seeds(self.search.seeds, work, |end| {
            let Some((name, detail)) = end.violation else { return true };
            if !self.mutant.fires.contains(&name) {
                others.entry(format!("{name}: {detail}")).or_insert(end.seed);
            } else if caught.as_ref().is_none_or(|(seed, ..)| end.seed < *seed) {
                self.needed.store(end.seed, Ordering::Relaxed);
                caught = Some((end.seed, name, detail));
            }
            caught.is_none()
        });
        match caught {
            Some((seed, invariant, detail)) => Outcome::Caught { invariant, seed, detail },
            None => Outcome::Missed { others },
        }
    }

    /// Runs seeds from 1 in order, several at a time, and tells `each` how they ended, until it
    /// says no; those under way are told of still.
    fn seeds(
        &self,
        count: u64,
        work: impl Fn(u64) -> anyhow::Result<End> + Sync,
        mut each: impl FnMut(End) -> bool,
    ) {
        let next = AtomicU64::new(1);
        let (done, ends) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.search.jobs {
                let (next, done, work) = (&next, done.clone(), &work);
                scope.spawn(move || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed > count {
                            return;
                        }
                        let end = work(seed).unwrap_or_else(|error| End {
                            seed,
                            violation: Some(("nothing".to_owned(), format!("{error:#}"))),
                        });
                        // The receiver lives as long as this scope.
                        done.send(end).ok();
                    }
                });
            }
            drop(done);
            for end in ends {
                if !each(end) {
                    next.store(count + 1, Ordering::Relaxed);
                }
            }
        });
    }

    fn once(&self, seed: u64, options: &[&str]) -> anyhow::Result<End> {
        let text = self.simulate(seed, options)?;
        let violation = text.lines().find_map(|line| line.strip_prefix("FAILED: "));
        let held = text.lines().any(|line| line == "every invariant held");
        anyhow::ensure!(held || violation.is_some(), "it said no more than\n{text}");
        Ok(End { seed, violation: violation.map(split) })
    }

    /// A violation in either run is not what is looked for here.
    fn twice(&self, seed: u64) -> anyhow::Result<End> {
        let (first, second) = (self.simulate(seed, &[])?, self.simulate(seed, &[])?);
        let hash =
            |text: &str| text.lines().find_map(|line| line.strip_prefix("trace hash: ").map(str::to_owned));
        let (first, second) = (hash(&first).context("no hash")?, hash(&second).context("no hash")?);
        let detail = || format!("the hashes are {} and {}", &first[..12], &second[..12]);
        Ok(End { seed, violation: (first != second).then(|| (REPEATS.to_owned(), detail())) })
    }

    /// What the simulator prints of a seed.
    fn simulate(&self, seed: u64, options: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["run", "--seed", &seed.to_string(), "--nodes", &self.mutant.nodes.to_string()]);
        command.args(["--minutes", &self.search.minutes.to_string()]).args(options);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot run the simulator")?;
        wait(&mut child, seed, &self.needed)?;
        let mut text = String::new();
        child.stdout.take().context("its output is piped")?.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Waits for a child, which writes less than a pipe holds, or ends it: when it takes too long, or
/// seeds up to `needed` are all that is needed.
fn wait(child: &mut Child, seed: u64, needed: &AtomicU64) -> anyhow::Result<()> {
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        let late = began.elapsed() > SEED_WITHIN;
        if late || seed > needed.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            let why =
                if late { format!("took more than {SEED_WITHIN:?}") } else { "is not needed".to_owned() };
            anyhow::bail!("seed {seed} {why}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// `name at 1.234 s: detail` as name and the rest.
fn split(violation: &str) -> (String, String) {
    let (name, rest) = violation.split_once(' ').unwrap_or((violation, ""));
    (name.to_owned(), rest.to_owned())
}

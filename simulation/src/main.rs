//! `simulation`: runs worlds from the command line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use simulation::mutants::{self, Search};
use simulation::scenario::{self, Options, Report};
use simulation::sweep::{Totals, sweep, twice};
use simulation::trace::Show;

/// Runs the production node in simulated worlds, each a function of its seed.
#[derive(Parser)]
#[command(name = "simulation")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one history and prints its summary and the hash of its trace.
    Run {
        /// The number the history is drawn from.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        world: WorldArguments,
        /// Print every event to stderr.
        #[arg(long)]
        trace: bool,
        /// Stop after so many simulated seconds, and print the cluster as it is then.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        until: Option<Duration>,
    },
    /// Runs many histories and lists those that failed, each with the command that repeats it.
    Sweep {
        /// How many seeds; with --wall, at most so many.
        #[arg(long, required_unless_present = "wall", value_parser = clap::value_parser!(u64).range(1..))]
        seeds: Option<u64>,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        start: u64,
        /// How many at a time; by default one for each processor.
        #[arg(long)]
        jobs: Option<std::num::NonZeroUsize>,
        /// Begin no more seeds after so many seconds.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        wall: Option<u64>,
        #[command(flatten)]
        world: WorldArguments,
    },
    /// Plants bugs in a scratch copy of the sources: each must be caught by the invariant it names.
    Mutants {
        /// Only those whose name contains this; may be repeated.
        #[arg(long)]
        only: Vec<String>,
        /// How many seeds at a time.
        #[arg(long, default_value = "2")]
        jobs: std::num::NonZeroUsize,
        /// After how many seeds a bug counts as not caught.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// For how many simulated minutes things go wrong in each.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10))]
        minutes: u64,
        /// Only check that the patches still apply.
        #[arg(long)]
        check: bool,
    },
    /// Runs each seed twice: both histories must be the same.
    Meta {
        /// How many seeds, from 1.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        #[command(flatten)]
        world: WorldArguments,
    },
}

#[derive(Args, Clone, Copy)]
struct WorldArguments {
    /// How many machines.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// For how many simulated minutes things go wrong.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Nothing goes wrong.
    #[arg(long)]
    calm: bool,
}

impl WorldArguments {
    fn options(self, seed: u64, show: Show) -> Options {
        Options { seed, nodes: self.nodes, minutes: self.minutes, faults: !self.calm, show, until: None }
    }

    /// The command that runs one seed as here.
    fn command(self, seed: u64) -> String {
        let calm = if self.calm { " --calm" } else { "" };
        format!(
            "cargo run -p simulation --release -- run --seed {seed} --nodes {} --minutes {}{calm}",
            self.nodes, self.minutes
        )
    }
}

/// Writes the nodes' own log to stderr when `RUST_LOG` asks for it.
fn log() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
}

fn main() -> ExitCode {
    log();
    let good = match Arguments::parse().command {
        Command::Run { seed, world, trace, until } => run(seed, world, trace, until),
        Command::Sweep { seeds, start, jobs, wall, world } => {
            let all = std::thread::available_parallelism().map_or(1, usize::from);
            let end = seeds.map_or(u64::MAX, |seeds| start.saturating_add(seeds));
            run_sweep(start..end, jobs.map_or(all, usize::from), wall, world)
        }
        Command::Mutants { only, jobs, seeds, minutes, check } => {
            let search = Search { jobs: jobs.get(), seeds, minutes };
            run_mutants(&only, search, check).unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                false
            })
        }
        Command::Meta { seeds, world } => run_meta(seeds, world),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads a time in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("nothing has happened yet".to_owned()) } else { Ok(time) }
}

fn run(seed: u64, world: WorldArguments, trace: bool, until: Option<Duration>) -> bool {
    let show = if trace { Show::Print } else { Show::Hash };
    let began = Instant::now();
    let report = scenario::run(Options { until, ..world.options(seed, show) });
    if let Some(view) = &report.view {
        print!("{view}");
    } else if let Some(until) = until {
        eprintln!("the history ended before {:.1} s", until.as_secs_f64());
    }
    summary(seed, world, &report, began.elapsed());
    println!("trace hash: {}", report.hash);
    report.violation.is_none()
}

fn summary(seed: u64, world: WorldArguments, report: &Report, took: Duration) {
    let (delivered, lost) = report.messages;
    let (index, term) = report.reached;
    println!("seed {seed}: {} nodes, {:.1} s simulated", world.nodes, report.elapsed.as_secs_f64());
    eprintln!(
        "{:.1} s taken, {:.0} simulated seconds a second",
        took.as_secs_f64(),
        report.elapsed.as_secs_f64() / took.as_secs_f64()
    );
    println!("events {}, messages {delivered}, lost or cut {lost}", report.events);
    println!("log index {index}, term {term}, daemons started {}", report.lives);
    let clients = &report.clients;
    println!(
        "writes acknowledged {}, refused {}, tries unanswered {}, reads confirmed {}",
        clients.writes, clients.refused, clients.unanswered, clients.reads
    );
    let containers = report.containers;
    println!(
        "containers started {}, exited {}, runtime failures {}",
        containers.started, containers.exited, containers.failed
    );
    let faults: Vec<String> =
        report.acted.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("faults: {}", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") });
    if let Some(settled) = report.settled_in {
        println!("settled {:.1} s after healing", settled.as_secs_f64());
    }
    let (asked, lost, undecided) = report.shared;
    println!("shared operations {asked}, never answered {lost}, services not decided {undecided}");
    if report.damaged {
        println!("a state was damaged in the end, and mended");
    }
    match &report.violation {
        Some(violation) => println!("FAILED: {violation}"),
        None => println!("every invariant held"),
    }
}

/// Shows how far a sweep is: of how many seeds, unless only time ends it.
fn progress(seeds: Option<u64>) -> ProgressBar {
    let (bar, template) = match seeds {
        Some(seeds) => (ProgressBar::new(seeds), "{wide_bar} {pos}/{len} seeds, {msg} {eta}"),
        None => (ProgressBar::no_length(), "{pos} seeds, {msg} {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message("0 failed,")
}

fn run_sweep(seeds: std::ops::Range<u64>, jobs: usize, wall: Option<u64>, world: WorldArguments) -> bool {
    let began = Instant::now();
    let bar = progress((seeds.end < u64::MAX).then(|| seeds.end - seeds.start));
    println!("seeds from {}, {jobs} at a time", seeds.start);
    let go_on = || wall.is_none_or(|seconds| began.elapsed() < Duration::from_secs(seconds));
    let mut failed = 0;
    let totals = sweep(seeds, world.options(0, Show::Hash), jobs, go_on, |seed, report| {
        bar.inc(1);
        if let Some(violation) = &report.violation {
            failed += 1;
            bar.set_message(format!("{failed} failed,"));
            bar.suspend(|| println!("seed {seed} FAILED: {violation}\n  {}", world.command(seed)));
        }
    });
    bar.finish_and_clear();
    print_totals(&totals, began.elapsed());
    let lacks = if world.calm { Vec::new() } else { totals.lacks() };
    for lack in &lacks {
        println!("FAILED: {lack}");
    }
    println!("sweep: {} seeds, {} failed", totals.seeds, totals.failed.len());
    totals.failed.is_empty() && lacks.is_empty()
}

fn print_totals(totals: &Totals, took: Duration) {
    let faults: Vec<String> =
        totals.acted.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    let [crashes, partitions, operations] = totals.a_minute();
    println!(
        "a minute of faults: {crashes:.2} crashes, {partitions:.2} partitions, {operations:.0} operations acknowledged"
    );
    println!(
        "{:.1} simulated hours in {:.0} s; {} writes acknowledged, {} tries unanswered, {} reads confirmed, {} daemon starts",
        totals.simulated.as_secs_f64() / 3600.0,
        took.as_secs_f64(),
        totals.writes,
        totals.unanswered,
        totals.reads,
        totals.lives
    );
    println!(
        "histories: {} operations on shared services, {} never answered; {} services not decided; {} wrong states mended",
        totals.shared.0, totals.shared.1, totals.shared.2, totals.damaged
    );
}

fn run_meta(seeds: u64, world: WorldArguments) -> bool {
    let mut divergent = 0;
    for seed in 1..=seeds {
        match twice(world.options(seed, Show::Hash)) {
            Ok(report) => println!("seed {seed}: {} events, {}", report.events, report.hash),
            Err(parted) => {
                divergent += 1;
                println!("{parted}");
            }
        }
    }
    println!("meta: {seeds} seeds, {divergent} divergent");
    divergent == 0
}

fn run_mutants(only: &[String], search: Search, check: bool) -> anyhow::Result<bool> {
    let mut mutants = mutants::all()?;
    for part in only {
        let known = mutants.iter().any(|mutant| mutant.name.contains(part));
        anyhow::ensure!(known, "no planted bug's name contains `{part}`");
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part));
    mutants.retain(|mutant| wanted(&mutant.name));
    if check {
        mutants::check(&mutants)?;
        println!("mutants: {} patches apply", mutants.len());
        return Ok(true);
    }
    mutants::run(&mutants, search)
}

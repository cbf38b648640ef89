//! `make bench`: measures what blixard takes and what stands beside it, prints a table and writes
//! docs/benchmarks.md.
//!
//! Every row starts what it needs on hosts of its own, network namespaces of this machine, and
//! removes it again, also when interrupted. Any failure ends the program with another code than 0.

mod api;
mod bare;
mod cold;
mod commit;
mod disk;
mod etcd;
mod failover;
mod hostile;
mod idle;
mod load;
mod no_containers;
mod raft;
mod report;
mod sample;
mod start;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blixard_tests::cleanup;

use crate::report::Section;

/// The program's own: Raft is measured in this process.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELP: &str = "Measures blixard and writes docs/benchmarks.md.

Usage: bench [--quick] [--only ROW]... [--output FILE]

  --quick        fewer repetitions: two minutes instead of seven
  --only ROW     only this row; may be repeated; prints, and writes only with --output
  --output FILE  write there instead of docs/benchmarks.md

Rows:";

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Whether little is, for development.
    pub(crate) quick: bool,
    /// Rounds of load, in turns with the peer.
    pub(crate) rounds: u32,
    /// The length of a round.
    pub(crate) round: Duration,
    /// Starts of one replica.
    pub(crate) starts: u32,
    /// Kills of a leader, and of a worker.
    pub(crate) kills: u32,
    /// How long nodes idle.
    pub(crate) idle: Duration,
    /// Starts of a node alone.
    pub(crate) cold_starts: u32,
}

impl Plan {
    fn new(quick: bool) -> Self {
        if quick {
            let (round, idle) = (Duration::from_secs(2), Duration::from_secs(5));
            Self { quick, rounds: 1, round, starts: 5, kills: 2, idle, cold_starts: 1 }
        } else {
            let (round, idle) = (Duration::from_secs(5), Duration::from_secs(60));
            Self { quick, rounds: 3, round, starts: 30, kills: 20, idle, cold_starts: 5 }
        }
    }
}

type Measure = fn(&Plan) -> Result<Vec<Section>>;

/// The rows, in the order of the document.
const ROWS: [(&str, Measure); 7] = [
    ("commit", commit::measure),
    ("raft", raft::measure),
    ("start", start::measure),
    ("failover", failover::measure),
    ("idle", idle::measure),
    ("cold", cold::measure),
    ("hostile", hostile::measure),
];

struct Options {
    plan: Plan,
    only: Vec<String>,
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1))
        .and_then(|options| options.map_or(Ok(()), |options| run(&options)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for; nothing when it asked for help, which is printed.
fn options(mut words: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let (mut quick, mut only, mut output) = (false, Vec::new(), None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--only" => {
                let row = words.next().context("--only needs a row")?;
                if !ROWS.iter().any(|(name, _)| *name == row) {
                    bail!("there is no row `{row}`: {}", row_names());
                }
                only.push(row);
            }
            "--output" => output = Some(words.next().context("--output needs a file")?.into()),
            "--help" | "-h" => {
                println!("{HELP} {}", row_names());
                return Ok(None);
            }
            other => bail!("unknown argument `{other}`: see --help"),
        }
    }
    Ok(Some(Options { plan: Plan::new(quick), only, output }))
}

fn row_names() -> String {
    ROWS.map(|(name, _)| name).join(", ")
}

fn run(options: &Options) -> Result<()> {
    cleanup::on_interrupt()?;
    cleanup::sweep();
    disk::check(&std::env::temp_dir())?;
    if !rustix::process::geteuid().is_root() {
        bail!("namespaces and containers need root");
    }
    let machine = machine()?;
    println!("{machine}\n");
    let mut sections = Vec::new();
    for (name, measure) in ROWS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let begun = Instant::now();
        eprintln!("measuring {name} ...");
        let measured = measure(&options.plan).with_context(|| format!("row {name}"))?;
        eprintln!("measured {name} in {:.0} s\n", begun.elapsed().as_secs_f64());
        measured.iter().for_each(|section| println!("{}", report::table(section)));
        sections.extend(measured);
    }
    let whole = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/benchmarks.md");
    let file = match &options.output {
        Some(file) => file.clone(),
        None if options.only.is_empty() => whole(),
        None => return Ok(()),
    };
    std::fs::write(&file, report::document(&machine, options.plan.quick, &sections))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("written to {}", file.display());
    Ok(())
}

/// What the figures were measured on, in a sentence.
fn machine() -> Result<String> {
    let kernel = rustix::system::uname();
    let cpus = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory =
        memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).context("no MemTotal")?;
    // The rows that need a peer say so themselves.
    let peers = ["containerd", "etcd"].map(|peer| version(peer, "--version").unwrap_or(format!("no {peer}")));
    let versions = peers.join("; ");
    Ok(format!(
        "Machine: Linux {}, {cpus} CPUs, {} GiB of memory. Peers: {versions}.",
        kernel.release().to_string_lossy(),
        (memory + (1 << 19)) >> 20
    ))
}

/// The first line of what a program says of its version, without its commit.
fn version(program: &str, argument: &str) -> Result<String> {
    let text = blixard_tests::command::run(program, &[argument])?;
    let line = text.lines().next().unwrap_or_default();
    let kept = line
        .split_whitespace()
        .filter(|word| !(word.len() == 40 && word.chars().all(|c| c.is_ascii_hexdigit())));
    Ok(kept.collect::<Vec<_>>().join(" "))
}

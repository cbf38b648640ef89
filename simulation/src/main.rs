//! `simulation`: runs worlds from the command line.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use simulation::scenario::{self, Options, Report};
use simulation::trace::Show;

/// Runs the production node in simulated worlds.
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
        /// How many machines.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
        nodes: u64,
        /// For how many simulated minutes things go wrong.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
        minutes: u64,
        /// Nothing goes wrong.
        #[arg(long)]
        calm: bool,
        /// Print every event to stderr.
        #[arg(long)]
        trace: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seed, nodes, minutes, calm, trace } => {
            let show = if trace { Show::Print } else { Show::Hash };
            let began = Instant::now();
            let report = scenario::run(Options { seed, nodes, minutes, faults: !calm, show });
            summary(&report, began);
            println!("trace hash: {}", report.hash);
            if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

fn summary(report: &Report, began: Instant) {
    println!("{report:#?} {:?}", began.elapsed());
}

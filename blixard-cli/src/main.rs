//! The `blixard` binary: `blixard node` runs the daemon, everything else asks one over its API.

mod args;
mod bundle;
mod cli;
mod client;
mod commands;
#[cfg(test)]
mod documents;
mod failure;
#[cfg(test)]
mod manual;
mod render;
mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

/// A commit allocates and frees much, on several threads; glibc's gives memory back and takes it
/// again all the time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code for arguments that are none, as clap has it.
const MISUSED: u8 = 2;
/// The exit code of a command that failed.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // Containers wait for their logger: it comes before anything else is read.
    if let Some(code) = blixard_node::runtime::logger::dispatch() {
        return code;
    }
    commands::completion::answer();
    match Cli::try_parse() {
        Ok(cli) => commands::dispatch(cli).unwrap_or_else(|error| report(&error)),
        Err(error) => misused(&error),
    }
}

/// What clap says about arguments that are none, help among it; of an unknown command, how the same
/// is called here.
fn misused(error: &clap::Error) -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match words::unknown_command(error, &arguments) {
        Some(failure) => {
            report(&failure.into());
            ExitCode::from(MISUSED)
        }
        None => error.exit(),
    }
}

/// Says on stderr what failed and what to try.
fn report(error: &anyhow::Error) -> ExitCode {
    if failure::is_output_closed(error) {
        return ExitCode::SUCCESS;
    }
    // Nothing is left to be done when stderr is closed as well.
    drop(std::io::stderr().write_all(failure::text(error, render::color::stderr()).as_bytes()));
    ExitCode::from(exit_code(error))
}

/// The exit code of a command that failed so.
fn exit_code(error: &anyhow::Error) -> u8 {
    if failure::cause(error) == Some(failure::Cause::Misuse) { MISUSED } else { FAILED }
}

//! A program that is nothing but a container's logger, for tests that run containers.

use std::process::ExitCode;

fn main() -> ExitCode {
    blixard_node::runtime::logger::dispatch().unwrap_or(ExitCode::FAILURE)
}

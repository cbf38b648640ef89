//! `make soak`: a service under requests for two minutes while everything is done to it that a
//! user does. Ends with 1 when a request failed on a node that had a ready replica.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use blixard_tests::cluster::Cluster;
use blixard_tests::{capability, cleanup, soak};

const AT_LEAST: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("soak: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    cleanup::on_interrupt()?;
    capability::check()?;
    let mut line = String::new();
    Cluster::formed(3)?.check(|cluster| {
        let verdict = soak::soak(cluster, AT_LEAST, &|step| println!("* {step}"))?;
        verdict.check()?;
        line = format!("soak: ok {verdict}");
        Ok(())
    })?;
    Ok(line)
}

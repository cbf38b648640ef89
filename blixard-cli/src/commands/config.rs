//! `blixard config`

use std::path::PathBuf;
use std::process::ExitCode;

use blixard_core::bundle::to_bundle;
use blixard_core::id::ServiceName;

use crate::{bundle, render};

/// Check a bundle and print what it means, every default written out
///
/// Reports everything that is wrong with it, and exits with 1 when there is an error. Asks no node,
/// so what only a cluster knows (whose a port is, which images there are) is not checked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard config web.bun\n  blixard config web.bun > /dev/null && echo fine"
)]
pub(crate) struct Args {
    /// The bundle, or - for standard input
    #[arg(value_name = "FILE.bun")]
    file: PathBuf,
    /// The service's name, instead of the bundle's
    #[arg(short, long)]
    name: Option<ServiceName>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let spec = bundle::load(&args.file, args.name.as_ref())?;
    render::print(&to_bundle(&spec))?;
    Ok(ExitCode::SUCCESS)
}

//! `blixard man`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::render;

/// Write the manual pages into a directory
///
/// One page for each command: blixard.1, blixard-run.1, and so on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard man /usr/local/share/man/man1 && man blixard-run")]
pub(crate) struct Args {
    /// The directory, which is made when it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    write_pages(&args.directory)?;
    render::line(&format!("manual pages are in {}", args.directory.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(directory: &Path) -> anyhow::Result<()> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {shown}"))?;
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("cannot write manual pages to {shown}"))
}

#[cfg(test)]
mod tests {
    use super::write_pages;

    #[test]
    fn every_command_has_a_page_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        write_pages(&directory.path().join("man1")).unwrap();
        let page = |name: &str| {
            let path = directory.path().join("man1").join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert!(page("blixard.1").contains("blixard\\-run(1)"), "{}", page("blixard.1"));
        assert!(page("blixard-run.1").contains("blixard run web.bun"));
        page("blixard-cluster-token-create.1");
    }
}

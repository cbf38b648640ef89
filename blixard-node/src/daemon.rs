//! The daemon behind `blixard node`, and what is left to do on a machine whose daemon is gone.

use std::process::ExitCode;

use crate::config::NodeOptions;

/// Why the daemon ended, or could not begin; its source says more.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Runs a node until it is told to stop, on a runtime of its own.
///
/// # Errors
/// When an option is wrong, or the node cannot start.
pub fn run(options: NodeOptions) -> Result<ExitCode, Error> {
    unimplemented!("{options:?}")
}

/// Removes everything a node left on this machine: containers, networks, rules, mounts, data. With
/// `images`, also the images. The daemon must not run.
///
/// # Errors
/// When the daemon runs, or something cannot be removed.
pub fn purge(options: NodeOptions, images: bool) -> Result<(), Error> {
    unimplemented!("{options:?} {images}")
}

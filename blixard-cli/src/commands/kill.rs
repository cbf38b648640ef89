//! `blixard kill`

use std::process::ExitCode;

use http::Method;

use crate::client::{Client, segment};
use crate::{failure, render};

/// Send a signal to the process of a container, on whichever node it is
///
/// SIGKILL unless another is named. What becomes of a container that ends by it is its service's to say:
/// with most restart policies it starts again. To end it for good: `blixard stop`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard kill web-0\n  blixard kill -s HUP web\n  blixard kill -s 10 3f2a9c"
)]
pub(crate) struct Args {
    /// Which signal: SIGHUP, HUP or 1
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL", allow_negative_numbers = true)]
    signal: String,
    /// Replicas such as web-0, services with one replica, or container ids or prefixes
    #[arg(value_name = "NAME|ID", required = true)]
    targets: Vec<String>,
}

pub(crate) async fn kill(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let mut errors = Vec::new();
    for target in &args.targets {
        let path = format!("/v1/replicas/{}/kill?signal={}", segment(target), segment(&args.signal));
        match client.act(Method::POST, &path).await {
            Ok(()) => render::line(target)?,
            Err(error) => errors.push(error),
        }
    }
    failure::last(errors)
}

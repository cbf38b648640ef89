//! `blixard run`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::service::{SubmitAnswer, SubmitRequest};
use blixard_core::id::ServiceName;
use blixard_core::spec::ServiceSpec;

use crate::args::time;
use crate::bundle;
use crate::client::Client;
use crate::commands::rollout::{Limit, Rollout};
use crate::render;

/// Run a bundle: submit it to the cluster and wait until it runs
///
/// Waits, with progress, until every replica of it is proven: it has run, and been healthy when it
/// has a health check, for the bundle's min_healthy_time. After the deadline, or when a replica ended
/// for good, it says what is missing and why and exits with 1; the cluster goes on trying. The same
/// bundle again changes nothing; a changed one replaces the service's replicas one by one, each once
/// the one before it is proven, unless only their bounds changed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard run web.bun\n  blixard run -d --name shop web.bun\n  cat web.bun | blixard run -n web -"
)]
pub(crate) struct Args {
    /// The bundle, or - for standard input
    #[arg(value_name = "FILE.bun")]
    file: PathBuf,
    /// Do not wait: print the service's name once the cluster has taken it
    #[arg(short, long)]
    detach: bool,
    /// The service's name, instead of the bundle's
    #[arg(short, long)]
    name: Option<ServiceName>,
    /// How long it may take in all, in seconds or as 1m30s
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

/// Reads the bundle: what is wrong with it is said before any node is asked.
///
/// # Errors
/// When it does not describe a service.
pub(crate) fn read(args: &Args) -> anyhow::Result<ServiceSpec> {
    bundle::load(&args.file, args.name.as_ref())
}

pub(crate) async fn run(client: &Client, args: Args, spec: ServiceSpec) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.timeout);
    let submitted = limit.answer(client, submit(client, spec)).await?;
    if args.detach {
        render::line(submitted.name.as_str())?;
        return Ok(ExitCode::SUCCESS);
    }
    let SubmitAnswer { name, version, index, .. } = &submitted;
    Rollout { name, version: Some(*version), index: *index }.wait(client, limit).await
}

async fn submit(client: &Client, spec: ServiceSpec) -> anyhow::Result<SubmitAnswer> {
    let answer: SubmitAnswer = client.post("/v1/services", &SubmitRequest { request_id: None, spec }).await?;
    for warning in &answer.warnings {
        render::warn(warning);
    }
    if !answer.changed {
        render::note(&format!("{} is unchanged at version {}", answer.name, answer.version));
    }
    Ok(answer)
}

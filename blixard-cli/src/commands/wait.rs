//! `blixard wait`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
use blixard_core::cluster::Phase;
use http::StatusCode;
use tokio::time::sleep;

use super::ps::ended;
use crate::client::{Client, segment};
use crate::failure::{self, Cause, Failure};
use crate::render;

/// How often it is looked whether a container has ended.
const LOOK: Duration = Duration::from_millis(300);

/// Wait until containers end, and print the codes they end with
///
/// One code a line, in the order of the names. A container that has ended already, and waits to be started
/// again or is gone, has its code at once. Of one that restarts, the end of the container that runs now is
/// waited for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard wait job\n  blixard wait web-0 3f2a9c")]
pub(crate) struct Args {
    /// Replicas such as web-0, services with one replica, or container ids or prefixes
    #[arg(value_name = "NAME|ID", required = true)]
    targets: Vec<String>,
}

pub(crate) async fn wait(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let mut errors = Vec::new();
    for target in &args.targets {
        let waited = async {
            let detail: ReplicaDetail = client.get(&format!("/v1/replicas/{}", segment(target))).await?;
            end(client, detail.row).await
        };
        match waited.await {
            Ok(code) => render::line(&code.to_string())?,
            Err(error) => errors.push(error),
        }
    }
    failure::last(errors)
}

/// The code with which the container of `first` ends.
async fn end(client: &Client, first: ReplicaRow) -> anyhow::Result<u32> {
    let mut row = Some(first.clone());
    loop {
        match &row {
            Some(row) if row.attempt == first.attempt => {
                let over = row.phase.is_some_and(|phase| phase >= Phase::Waiting);
                if let Some(code) = row.exit_code.filter(|_| over) {
                    return Ok(code);
                }
                if over && row.phase != Some(Phase::Waiting) {
                    let error = format!("{} ended without a code", row.name);
                    return Err(Failure::new(error, row.message.clone()).into());
                }
            }
            // It was started again, or is gone: what is left of it says how it ended.
            _ => {
                let gone = ended(client).await?;
                let own = gone.into_iter().find(|row| row.container_id == first.container_id);
                if let Some(code) = own.and_then(|row| row.exit_code) {
                    return Ok(code);
                }
                let error = format!("{} is gone, and nothing says with which code it ended", first.name);
                return Err(Failure::new(error, "`blixard events` shows what happened").into());
            }
        }
        sleep(LOOK).await;
        row = match client.get::<List<ReplicaRow>>("/v1/replicas?all=true").await {
            Ok(list) => list.items.into_iter().find(|row| row.replica == first.replica),
            // The node, or its cluster, may be back soon.
            Err(error) if is_away(&error) => row,
            Err(error) => return Err(error),
        };
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    matches!(
        failure::cause(error),
        None | Some(Cause::NotReached | Cause::Refused(StatusCode::SERVICE_UNAVAILABLE))
    )
}

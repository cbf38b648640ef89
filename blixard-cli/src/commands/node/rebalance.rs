//! `blixard node rebalance`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::node::MoveRow;
use tokio::time::Instant;

use crate::args::time;
use crate::client::Client;
use crate::commands::restart;
use crate::failure::Failure;
use crate::render::{self, text};

/// What to do, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
    /// How long all of it may take, in seconds or as 1m30s
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

pub(super) async fn rebalance(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + args.timeout;
    let planned = moves(client).await?;
    if args.dry_run {
        for row in &planned {
            render::line(&line(row))?;
        }
    }
    if planned.is_empty() {
        render::note("the nodes are as even as constraints and room allow");
    }
    if args.dry_run || planned.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    // Each is asked for anew: what was planned first may no longer hold.
    for _ in 0..planned.len() {
        let Some(next) = moves(client).await?.into_iter().next() else { break };
        let rows = restart::rows(client).await?;
        let Some(old) = rows.iter().find(|row| row.replica == Some(next.replica)) else { continue };
        render::line(&line(&next))?;
        restart::replace(client, old, deadline).await?;
    }
    let left = moves(client).await?.len();
    if left > 0 {
        let error = format!("{} would still even out the nodes", text::plural(left, "move"));
        return Err(Failure::new(error, "something changed meanwhile: `blixard node rebalance` again").into());
    }
    Ok(ExitCode::SUCCESS)
}

async fn moves(client: &Client) -> anyhow::Result<Vec<MoveRow>> {
    Ok(client.get::<List<MoveRow>>("/v1/rebalance").await?.items)
}

fn line(row: &MoveRow) -> String {
    format!("{} from node {} to node {}", row.name, row.from, row.to)
}

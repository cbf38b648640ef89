//! `blixard node rebalance`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::node::MoveRow;

use crate::args::time;
use crate::client::Client;
use crate::commands::restart;
use crate::commands::rollout::Limit;
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
    let limit = Limit::of(args.timeout);
    let planned = limit.answer(client, moves(client)).await?;
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
    let mut tried = BTreeSet::new();
    for _ in 0..planned.len() {
        // One that did not come to where it was to go, as when it cannot start there, is left where it is.
        let is_new = |row: &MoveRow| !tried.contains(&row.name);
        let Some(next) = limit.answer(client, moves(client)).await?.into_iter().find(is_new) else { break };
        tried.insert(next.name.clone());
        let rows = limit.answer(client, restart::rows(client)).await?;
        let Some(old) = rows.iter().find(|row| row.replica == Some(next.replica)) else { continue };
        render::line(&line(&next))?;
        restart::replace(client, old, limit).await?;
    }
    let left = limit.answer(client, moves(client)).await?;
    let left = left.iter().filter(|row| !tried.contains(&row.name)).count();
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

//! `blixard ps`

use std::process::ExitCode;

use blixard_core::api::List;
use blixard_core::api::replica::ReplicaRow;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::render::{self, color, replica, text};

/// List the containers of the whole cluster
///
/// Shows one line for each container, and one for each replica that waits for a place, with the
/// reason; `blixard service inspect` has long reasons in full. The same from any node.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard ps\n  blixard ps -a -o json\n  blixard ps -q | xargs -n1 blixard inspect"
)]
pub(crate) struct Args {
    /// Also containers that ended
    #[arg(short, long)]
    all: bool,
    /// Only container ids, one a line
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn ps(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let path = if args.all { "/v1/replicas?all=true" } else { "/v1/replicas" };
    let list: List<ReplicaRow> = client.get(path).await?;
    if args.quiet {
        for id in list.items.iter().filter_map(|row| row.container_id.as_ref()) {
            render::line(id.short())?;
        }
    } else if args.output.output == Output::Json {
        render::json(&list.items)?;
    } else {
        render::print(&replica::short_table(&list.items, text::now(), color::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

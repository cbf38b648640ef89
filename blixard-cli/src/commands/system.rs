//! `blixard system`

use std::process::ExitCode;

use blixard_core::api::image::DiskUsageList;
use clap::Subcommand;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::render::table::Table;
use crate::render::{self, color, text};

/// See what the nodes have on disk
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard system df")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what images, containers, logs and stores take on each node's disk
    ///
    /// `blixard image prune` frees what IMAGES and UNPACKED hold of images that no service needs.
    #[command(after_help = "Example:\n  blixard system df\n  blixard system df -o json")]
    Df(OutputArgs),
}

pub(crate) async fn system(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let Command::Df(output) = args.command;
    let list: DiskUsageList = client.get("/v1/system/df").await?;
    if !list.unreachable.is_empty() {
        let ids: Vec<String> = list.unreachable.iter().map(ToString::to_string).collect();
        render::warn(&format!("without nodes that do not answer: {}", ids.join(", ")));
    }
    if output.output == Output::Json {
        render::json(&list.items)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = ["NODE", "IMAGES", "SIZE", "UNPACKED", "CONTAINERS", "WRITTEN", "LOGS", "STORES"];
    let mut table = Table::new(&columns, color::stdout());
    for row in &list.items {
        table.row([
            row.node.to_string(),
            row.images.to_string(),
            text::bytes(row.image_bytes),
            text::bytes(row.unpacked_bytes),
            row.containers.to_string(),
            text::bytes(row.container_bytes),
            text::bytes(row.log_bytes),
            text::bytes(row.data_bytes),
        ]);
    }
    render::print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}

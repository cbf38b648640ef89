//! `blixard volume`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use blixard_core::api::volume::{VolumeCopyRow, VolumeRow};
use blixard_core::api::{List, WriteAnswer};
use blixard_core::cluster::volume::VersionId;
use blixard_core::id::NodeId;
use clap::Subcommand;

use crate::args::{Output, OutputArgs, time};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::render::color::{self, Paint};
use crate::render::table::Table;
use crate::render::{self, text};

/// How often it is looked whether copies are up to date.
const LOOK: Duration = Duration::from_millis(200);

/// List, show, publish and remove volumes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard volume ls\n  blixard volume sync pgdata --wait")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the volumes
    #[command(
        visible_alias = "list",
        after_help = "Example:\n  blixard volume ls\n  blixard volume ls -o json"
    )]
    Ls(OutputArgs),
    /// Show one volume: where it is, and which version each node holds
    #[command(
        after_help = "Example:\n  blixard volume inspect pgdata\n  blixard volume inspect pgdata -o json"
    )]
    Inspect {
        /// The volume
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Publish what a volume holds now, for its copies to follow
    ///
    /// That happens by itself every two seconds. With --wait, what the volume held when this was called is
    /// on the disks of as many nodes once it returns: the loss of all others but one loses nothing of it.
    #[command(
        after_help = "Example:\n  blixard volume sync pgdata --wait\n  blixard volume sync pgdata --wait --copies 3"
    )]
    Sync {
        /// The volume
        name: String,
        /// Wait until its copies hold it
        #[arg(short, long)]
        wait: bool,
        /// How many nodes are to hold it, the primary's among them [default: two, or all there are]
        #[arg(long, requires = "wait", value_parser = clap::value_parser!(u32).range(1..))]
        copies: Option<u32>,
        /// Publish it also when most of its files are gone
        #[arg(long)]
        accept_deletes: bool,
        /// How long it may take in all, in seconds or as 1m30s
        #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
        timeout: Duration,
    },
    /// Remove volumes that no service mounts, and every copy of them
    #[command(visible_alias = "remove", after_help = "Example:\n  blixard volume rm pgdata")]
    Rm {
        /// The volumes
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(crate) async fn volume(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Ls(output) => {
            let list: List<VolumeRow> = client.get("/v1/volumes").await?;
            match output.output {
                Output::Json => render::json(&list.items)?,
                Output::Table => render::print(&table(&list.items, color::stdout()))?,
            }
        }
        Command::Inspect { name, output } => {
            let row: VolumeRow = client.get(&format!("/v1/volumes/{}", segment(&name))).await?;
            match output.output {
                Output::Json => render::json(&row)?,
                Output::Table => render::print(&detail(&row, text::now(), color::stdout()))?,
            }
        }
        Command::Sync { name, wait, copies, accept_deletes, timeout } => {
            let give_up = Instant::now() + timeout;
            let query = if accept_deletes { "?accept_deletes=true" } else { "" };
            let path = format!("/v1/volumes/{}/sync{query}", segment(&name));
            let row: VolumeRow = client.post_empty(&path).await?;
            if wait {
                // A cluster of one node has no other that could.
                let all = (row.wanted as usize).min(row.copies.len());
                let copies = copies.map_or(all, |copies| copies as usize);
                return wait_for(client, row, copies, give_up).await;
            }
            render::line(&format!("{name}: {}", version(&row)))?;
        }
        Command::Rm { names } => {
            for name in names {
                let answer: WriteAnswer = client.delete(&format!("/v1/volumes/{}", segment(&name))).await?;
                render::warnings(&answer);
                render::line(&name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until so many nodes hold the version that was just published.
async fn wait_for(
    client: &Client,
    mut row: VolumeRow,
    copies: usize,
    give_up: Instant,
) -> anyhow::Result<ExitCode> {
    let (name, wanted) = (row.name.clone(), row.version.map(|version| version.id));
    let (published, epoch) = (version(&row), row.epoch);
    loop {
        if row.epoch != epoch {
            let error = format!("another node took over volume `{name}` while it was waited for");
            return Err(Failure::new(error, "publish it again: `blixard volume sync NAME --wait`").into());
        }
        let held = row.copies.iter().filter(|copy| holds(copy, wanted)).count();
        if held >= copies {
            render::line(&format!("{name}: {published} on {}", text::plural(held, "node")))?;
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= give_up {
            let hold = if held == 1 { "holds" } else { "hold" };
            let nodes = text::plural(held, "node");
            let error = format!("{nodes} {hold} {published} of volume `{name}`, not {copies}");
            let trouble = row
                .copies
                .iter()
                .filter_map(|copy| Some(format!("node {}: {}", copy.node, copy.trouble.as_ref()?)));
            let hint = trouble.chain(["`blixard volume inspect NAME` shows who lacks it".to_owned()]).next();
            return Err(Failure::new(error, hint.unwrap_or_default()).into());
        }
        tokio::time::sleep(LOOK).await;
        row = client.get(&format!("/v1/volumes/{}", segment(name.as_str()))).await?;
    }
}

fn holds(copy: &VolumeCopyRow, wanted: Option<VersionId>) -> bool {
    wanted.is_some() && copy.version.map(|version| version.id) >= wanted
}

fn version(row: &VolumeRow) -> String {
    row.version.map_or("no version yet".to_owned(), |version| format!("version {}", version.id))
}

fn node(node: Option<NodeId>) -> String {
    node.map_or("-".to_owned(), |node| node.to_string())
}

fn table(rows: &[VolumeRow], paint: Paint) -> String {
    let mut table = Table::new(&["NAME", "PRIMARY", "COPIES", "VERSION", "FILES", "SIZE", "SERVICES"], paint);
    for row in rows {
        let newest = row.version.map(|version| version.id);
        let current = row.copies.iter().filter(|copy| holds(copy, newest)).count();
        let services: Vec<&str> = row.services.iter().map(|service| service.as_str()).collect();
        table.row([
            row.name.to_string(),
            node(row.primary),
            format!("{current}/{}", row.wanted),
            newest.map_or("-".to_owned(), |id| id.to_string()),
            row.version.map_or("-".to_owned(), |version| version.files.to_string()),
            row.version.map_or("-".to_owned(), |version| text::bytes(version.bytes)),
            services.join(","),
        ]);
    }
    table.render()
}

fn detail(row: &VolumeRow, now: blixard_core::time::UtcMs, paint: Paint) -> String {
    let services: Vec<&str> = row.services.iter().map(|service| service.as_str()).collect();
    let read = row.version.map_or("never".to_owned(), |version| text::ago(now, version.at));
    let mut out = format!(
        "name:        {}\nid:          {}\nservices:    {}\nprimary:     {}\nepoch:       {}\nversion:     {}\npublished:   {read}\nconsistency: file by file, as they were read: no copy of a running database is sound\n\n",
        row.name,
        row.id,
        if services.is_empty() { "-".to_owned() } else { services.join(", ") },
        node(row.primary),
        row.epoch,
        row.version.map_or("-".to_owned(), |version| version.id.to_string()),
    );
    let mut table = Table::new(&["NODE", "ROLE", "VERSION", "FILES", "SIZE", "BEHIND", "TROUBLE"], paint);
    for copy in &row.copies {
        let primary = row.primary == Some(copy.node);
        table.row([
            copy.node.to_string(),
            if primary { "primary" } else { "copy" }.to_owned(),
            copy.version.map_or("-".to_owned(), |version| version.id.to_string()),
            copy.version.map_or("-".to_owned(), |version| version.files.to_string()),
            copy.version.map_or("-".to_owned(), |version| text::bytes(version.bytes)),
            behind(row, copy),
            copy.trouble.clone().unwrap_or_default(),
        ]);
    }
    out.push_str(&table.render());
    out
}

/// How far a copy is behind what was published.
fn behind(row: &VolumeRow, copy: &VolumeCopyRow) -> String {
    match (row.version, copy.version) {
        (None, _) => "-".to_owned(),
        (Some(newest), Some(held)) if held.id >= newest.id => "-".to_owned(),
        (Some(newest), Some(held)) => {
            let seconds = newest.at.since(held.at).as_secs();
            let versions = newest.id.seq.saturating_sub(held.id.seq);
            let versions = text::plural(usize::try_from(versions).unwrap_or(usize::MAX), "version");
            format!("{versions}, {seconds} s")
        }
        (Some(_), None) => "all of it".to_owned(),
    }
}

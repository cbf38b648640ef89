//! Emptying a node: `drain`, `leave` and `down`, and waiting until its containers are gone.

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::node::{DownAnswer, NodeView};
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::{Health, List, WriteAnswer};
use blixard_core::cluster::Phase;
use blixard_core::id::NodeId;
use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::args::WaitArgs;
use crate::client::{Client, segment};
use crate::failure::{self, Cause, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often it is looked whether the containers are gone.
const REFRESH: Duration = Duration::from_millis(300);

/// Which node, and how long to wait.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's number or name
    #[arg(value_name = "ID")]
    node: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// When the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Empty,
    Removed,
}

pub(super) async fn drain(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let node = find(client, &args.node).await?;
    let _: WriteAnswer = client.post_empty(&format!("/v1/nodes/{node}/drain")).await?;
    wait(client, node, Until::Empty, args.wait).await?;
    render::line(&args.node)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn leave(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let node = find(client, &args.node).await?;
    let asked: Health = client.get("/v1/health").await?;
    let _: WriteAnswer = client.post_empty(&format!("/v1/nodes/{node}/leave")).await?;
    if asked.node == node {
        // The others stop talking to it when they remove it, and its daemon ends.
        client.expect_old_answers();
        match wait(client, node, Until::Removed, args.wait).await {
            Err(error) if !is_answer(&error) => {
                render::note("its daemon has ended, as one does that has left")
            }
            waited => waited?,
        }
    } else {
        wait(client, node, Until::Removed, args.wait).await?;
    }
    render::line(&args.node)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn down(client: &Client, args: WaitArgs) -> anyhow::Result<ExitCode> {
    let answer: DownAnswer = client.post_empty("/v1/node/down").await?;
    wait(client, answer.node, Until::Empty, args).await?;
    let stopped = text::plural(answer.stopping.len(), "container");
    render::line(&format!("node {}: {stopped} stopped", answer.node))?;
    render::note(&format!("it takes containers again after `blixard node activate {}`", answer.node));
    Ok(ExitCode::SUCCESS)
}

async fn find(client: &Client, node: &str) -> anyhow::Result<NodeId> {
    let view: NodeView = client.get(&format!("/v1/nodes/{}", segment(node))).await?;
    Ok(view.id)
}

/// Whether an error is something that a node said, or this command found; not that none answers.
fn is_answer(error: &anyhow::Error) -> bool {
    match failure::cause(error) {
        Some(Cause::Refused(_) | Cause::Command) => true,
        Some(Cause::NotReached) => false,
        None => error.downcast_ref::<hyper::Error>().is_none(),
    }
}

async fn wait(client: &Client, node: NodeId, until: Until, args: WaitArgs) -> anyhow::Result<()> {
    if args.detach {
        return Ok(());
    }
    let deadline = Instant::now() + args.timeout;
    let mut progress = Progress::new();
    loop {
        let rows: List<ReplicaRow> = client.get("/v1/replicas?all=true").await?;
        let left: Vec<&ReplicaRow> = rows.items.iter().filter(|row| occupies(row, node)).collect();
        let over = match until {
            Until::Empty => left.is_empty(),
            Until::Removed => is_removed(client, node).await?,
        };
        if over {
            return Ok(());
        }
        let shown: Vec<Item> = left.iter().map(|row| item(row)).collect();
        progress.show(&shown);
        if Instant::now() >= deadline {
            drop(progress);
            return Err(late(node, &left, &rows.items, args.timeout.as_secs()).into());
        }
        sleep(REFRESH).await;
    }
}

/// Whether a row's container is still on the node.
fn occupies(row: &ReplicaRow, node: NodeId) -> bool {
    row.node == Some(node) && row.phase.is_some_and(|phase| phase < Phase::Completed)
}

async fn is_removed(client: &Client, node: NodeId) -> anyhow::Result<bool> {
    match client.get::<NodeView>(&format!("/v1/nodes/{node}")).await {
        Ok(_) => Ok(false),
        Err(error) => match failure::cause(&error) {
            Some(Cause::Refused(StatusCode::NOT_FOUND)) => Ok(true),
            // It is unknown to a node whose state may be old.
            Some(Cause::Refused(StatusCode::SERVICE_UNAVAILABLE)) => Ok(false),
            _ => Err(error),
        },
    }
}

fn item(row: &ReplicaRow) -> Item {
    let mut row = row.clone();
    row.since = None;
    let id = row.container_id.as_ref().map(|id| format!(" {}", id.short())).unwrap_or_default();
    Item { key: format!("{}{id}", row.name), text: replica::status(&row, text::now()), bytes: None }
}

/// What is still on the node, and what waits for a place elsewhere.
fn late(node: NodeId, left: &[&ReplicaRow], all: &[ReplicaRow], seconds: u64) -> Failure {
    let waiting = all.iter().filter(|row| row.phase.is_none());
    let details = left.iter().copied().chain(waiting).map(|row| {
        let item = item(row);
        format!("{}: {}", item.key, item.text)
    });
    let error = match left.len() {
        0 => format!("node {node} is empty and still a member after {seconds} s"),
        count => format!("node {node} still has {} after {seconds} s", text::plural(count, "container")),
    };
    let hint = format!("they go on moving; `blixard node activate {node}` keeps them there");
    Failure::new(error, hint).with_details(details.collect())
}

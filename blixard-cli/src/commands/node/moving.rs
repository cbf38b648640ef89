//! Emptying a node: `drain`, `leave` and `down`, and waiting until its containers are gone.

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::node::{DownAnswer, NodeView};
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::{Health, List, WriteAnswer};
use blixard_core::cluster::{Desired, NodeStatus, Phase};
use blixard_core::id::NodeId;
use http::StatusCode;
use tokio::time::{sleep, timeout};

use crate::args::WaitArgs;
use crate::client::{Client, segment};
use crate::commands::rollout::Limit;
use crate::failure::{self, Cause, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often it is looked whether the containers are gone.
const REFRESH: Duration = Duration::from_millis(300);
/// How long it is looked for why they are not, once the limit has passed.
const LAST_LOOK: Duration = Duration::from_millis(500);

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
    let limit = Limit::of(args.wait.timeout);
    let node = limit.answer(client, find(client, &args.node)).await?;
    let path = format!("/v1/nodes/{node}/drain");
    let _: WriteAnswer = limit.answer(client, client.post_empty(&path)).await?;
    wait(client, node, Until::Empty, args.wait, limit).await?;
    render::line(&args.node)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn leave(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.wait.timeout);
    let node = limit.answer(client, find(client, &args.node)).await?;
    let asked: Health = limit.answer(client, client.get("/v1/health")).await?;
    let path = format!("/v1/nodes/{node}/leave");
    let _: WriteAnswer = limit.answer(client, client.post_empty(&path)).await?;
    if asked.node == node {
        // The others stop talking to it when they remove it, and its daemon ends.
        client.expect_old_answers();
        match wait(client, node, Until::Removed, args.wait, limit).await {
            Err(error) if !is_answer(&error) => {
                render::note("its daemon has ended, as one does that has left")
            }
            waited => waited?,
        }
    } else {
        wait(client, node, Until::Removed, args.wait, limit).await?;
    }
    render::line(&args.node)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn down(client: &Client, args: WaitArgs) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.timeout);
    let answer: DownAnswer = limit.answer(client, client.post_empty("/v1/node/down")).await?;
    wait(client, answer.node, Until::Empty, args, limit).await?;
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
        Some(Cause::Refused(_) | Cause::Command | Cause::Misuse) => true,
        Some(Cause::NotReached) => false,
        None => error.downcast_ref::<hyper::Error>().is_none(),
    }
}

async fn wait(
    client: &Client,
    node: NodeId,
    until: Until,
    args: WaitArgs,
    limit: Limit,
) -> anyhow::Result<()> {
    if args.detach {
        return Ok(());
    }
    let mut progress = Progress::new();
    loop {
        let rows: List<ReplicaRow> = limit.answer(client, client.get("/v1/replicas?all=true")).await?;
        let left: Vec<&ReplicaRow> = rows.items.iter().filter(|row| occupies(row, node)).collect();
        let over = match until {
            Until::Empty => left.is_empty(),
            Until::Removed => limit.answer(client, is_removed(client, node)).await?,
        };
        if over {
            return Ok(());
        }
        let shown: Vec<Item> = left.iter().map(|row| item(row)).collect();
        progress.show(&shown);
        if limit.is_over() {
            drop(progress);
            let seconds = args.timeout.as_secs();
            // It may be gone by now, which is no reason to say less.
            let path = format!("/v1/nodes/{node}");
            let view = timeout(LAST_LOOK, client.get::<NodeView>(&path)).await;
            let down = matches!(view, Ok(Ok(view)) if view.status == NodeStatus::Down);
            return Err(late(node, down, &left, &rows.items, seconds).into());
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

/// What is still on the node, what it waits for, and what waits for a place elsewhere.
fn late(node: NodeId, down: bool, left: &[&ReplicaRow], all: &[ReplicaRow], seconds: u64) -> Failure {
    let unproven: Vec<&ReplicaRow> = left.iter().filter_map(|row| unproven_successor(row, all)).collect();
    let waiting = all.iter().filter(|row| row.phase.is_none());
    let elsewhere = unproven.iter().copied().filter(|row| row.phase.is_some() && !occupies(row, node));
    let details = left.iter().copied().chain(elsewhere).chain(waiting).map(|row| {
        let item = item(row);
        format!("{}: {}", item.key, item.text)
    });
    let error = match left.len() {
        0 => format!("node {node} is empty and still a member after {seconds} s"),
        count => format!("node {node} still has {} after {seconds} s", text::plural(count, "container")),
    };
    let keeps = format!("`blixard node activate {node}` keeps them there");
    let is_held = |row: &&ReplicaRow| {
        row.blocked.is_some() || unproven_successor(row, all).is_some_and(|other| other.blocked.is_some())
    };
    let hint = match unproven.iter().filter(|_| !down).find(|row| row.blocked.is_none()) {
        Some(row) => format!(
            "version {} of `{}` is not proven, and the old one runs on: `blixard service rollback {}` goes back \
             to it; {keeps}",
            row.version, row.service, row.service
        ),
        None if left.is_empty() => "it is removed once it votes no more: `blixard node ls`".to_owned(),
        None if down => format!(
            "node {node} is down, and nothing moves off it: what is lost starts elsewhere where it can, and is \
             kept here until the node is back; `blixard node rm {node} --force` removes a node that is dead"
        ),
        None if left.iter().all(is_held) => {
            format!("they move once what holds them is over; {keeps}")
        }
        None => format!("they go on moving; {keeps}"),
    };
    Failure::new(error, hint).with_details(details.collect())
}

/// What supersedes a replica of an older version and is not proven: until it is, the old one runs on.
fn unproven_successor<'a>(old: &ReplicaRow, all: &'a [ReplicaRow]) -> Option<&'a ReplicaRow> {
    let holds = |row: &&ReplicaRow| {
        (&row.service, row.slot) == (&old.service, old.slot)
            && (row.phase.is_none() || row.desired == Some(Desired::Run) && !row.lost)
    };
    let superseded = old.desired == Some(Desired::Retire) && !old.current;
    all.iter().filter(|_| superseded).find(holds).filter(|row| row.version > old.version && !row.proven)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, change: &[(&str, serde_json::Value)]) -> ReplicaRow {
        let mut row = serde_json::json!({
            "container_id": "0123456789abcdef", "name": name, "replica": 1, "service": "sd", "slot": 0,
            "version": 1, "node": 1, "node_name": "box1", "image": "image", "phase": "running",
            "desired": "run", "ready": true, "proven": true, "healthy": null, "lost": false, "attempt": 0,
            "exit_code": null, "message": "", "since": null, "created_at": null, "address": null,
            "node_address": null, "ports": []
        });
        for (key, value) in change {
            row[*key] = value.clone();
        }
        serde_json::from_value(row).expect("a row")
    }

    fn hint(all: &[ReplicaRow]) -> String {
        let left: Vec<&ReplicaRow> = all.iter().filter(|row| occupies(row, NodeId(1))).collect();
        late(NodeId(1), false, &left, all, 20).body.hint
    }

    #[test]
    fn what_waits_for_a_version_that_is_not_proven_says_so() {
        let old = || row("sd-0", &[("desired", "retire".into())]);
        let new = |change: &[(&str, serde_json::Value)]| {
            let mut all = vec![("version", 2.into()), ("node", 2.into()), ("phase", "waiting".into())];
            all.extend([("proven", false.into()), ("ready", false.into()), ("exit_code", 1.into())]);
            all.extend(change.iter().cloned());
            row("sd-0", &all)
        };
        let moving = "they go on moving; `blixard node activate 1` keeps them there";
        let unproven = "version 2 of `sd` is not proven, and the old one runs on: \
             `blixard service rollback sd` goes back to it; `blixard node activate 1` keeps them there";
        assert_eq!(hint(&[old(), new(&[])]), unproven);
        assert_eq!(hint(&[old(), new(&[("phase", serde_json::Value::Null)])]), unproven);
        assert_eq!(hint(&[old(), new(&[("version", 1.into())])]), moving, "it stands in");
        assert_eq!(hint(&[old(), new(&[("proven", true.into())])]), moving);
        assert_eq!(hint(&[row("sd-0", &[])]), moving);
        let all = [old(), new(&[])];
        let told = late(NodeId(1), false, &[&all[0]], &all, 20);
        assert_eq!(told.body.error, "node 1 still has 1 container after 20 s");
        let said = ["sd-0 0123456789ab: Up, being replaced", "sd-0 0123456789ab: Restarting (1)"];
        assert_eq!(told.body.details, said);
    }

    #[tokio::test]
    async fn nothing_is_said_to_move_off_a_node_that_is_down() {
        let told = async |status: &str, rows: Vec<serde_json::Value>, until| {
            let mut node = crate::commands::node::tests::view(2);
            node["status"] = status.into();
            let replicas = serde_json::json!({ "items": rows });
            let answers =
                vec![("/v1/replicas", 200, replicas.to_string()), ("/v1/nodes/2", 200, node.to_string())];
            let canned = crate::client::canned::Canned::new(answers);
            let args = WaitArgs { detach: false, timeout: Duration::ZERO };
            let limit = Limit::of(args.timeout);
            let error = wait(&canned.client, NodeId(2), until, args, limit).await.unwrap_err();
            crate::failure::text(&error, crate::render::color::Paint::Plain)
        };
        let row = |lost: bool| {
            let change = [("node", 2.into()), ("lost", lost.into()), ("ready", (!lost).into())];
            serde_json::to_value(row("sd-0", &change)).unwrap()
        };
        for until in [Until::Empty, Until::Removed] {
            let down = told("down", vec![row(true)], until).await;
            assert!(!down.contains("moving") && !down.contains("keeps them there"), "{down}");
            assert!(down.contains("node 2 is down") && down.contains("node rm 2 --force"), "{down}");
            let up = told("up", vec![row(false)], until).await;
            assert!(up.contains("they go on moving"), "{up}");
        }
        let empty = told("up", Vec::new(), Until::Removed).await;
        assert!(!empty.contains("moving") && empty.contains("still a member"), "{empty}");
    }

    #[test]
    fn what_cannot_move_is_not_said_to_go_on_moving() {
        let blocked = row("sd-0", &[("blocked", "cannot move off node 1: no node fits".into())]);
        let expect = "they move once what holds them is over; `blixard node activate 1` keeps them there";
        assert_eq!(hint(std::slice::from_ref(&blocked)), expect);
        let unproven = ReplicaRow { version: 2, proven: false, ..blocked.clone() };
        let old = row("sd-0", &[("desired", "retire".into())]);
        assert_eq!(hint(&[old, unproven]), expect);
    }
}

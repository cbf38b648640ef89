//! `blixard restart`, and replacing one container after another, which `node rebalance` does too.

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::{List, WriteAnswer};
use blixard_core::cluster::{Desired, Phase};
use blixard_core::id::ReplicaId;
use tokio::time::sleep;

use crate::args::time;
use crate::client::{Client, segment};
use crate::commands::rollout::{Limit, last_lines};
use crate::failure::{self, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often it is looked how far a replacement is.
const REFRESH: Duration = Duration::from_millis(200);

/// Start containers anew, one after another
///
/// Each container of a service is replaced by a new one of the same version: the new one starts, and
/// once it runs (and is healthy, where that is checked) the old one stops. Where the two cannot be
/// together (a volume that both would write, the host's network, too little room) the old one stops
/// first. When a replacement does not come up in time the rest is left as it is.
///
/// For new images or settings there is `blixard run FILE.bun`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard restart web\n  blixard restart web-0\n  blixard restart web db")]
pub(crate) struct Args {
    /// Services, replicas such as web-0, or container ids or prefixes of at least 4 digits
    #[arg(value_name = "NAME|ID", required = true)]
    targets: Vec<String>,
    /// How long all of it may take, in seconds or as 1m30s
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

pub(crate) async fn restart(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.timeout);
    let mut errors = Vec::new();
    for target in &args.targets {
        match restart_one(client, target, limit).await {
            Ok(()) => render::line(target)?,
            Err(error) => errors.push(error),
        }
    }
    failure::last(errors)
}

async fn restart_one(client: &Client, target: &str, limit: Limit) -> anyhow::Result<()> {
    let rows = limit.answer(client, rows(client)).await?;
    let meant = |row: &&ReplicaRow| {
        let id = row.container_id.as_ref();
        row.service.as_str() == target
            || row.name == target
            || target.len() >= 4 && id.is_some_and(|id| id.0.starts_with(target))
    };
    let meant: Vec<&ReplicaRow> = rows.iter().filter(meant).collect();
    if meant.is_empty() {
        // Whether there is no such service, or one that is stopped, its node knows.
        let path = format!("/v1/services/{}", segment(target));
        let _: serde_json::Value = limit.answer(client, client.get(&path)).await?;
        let error = format!("`{}` has no container", text::printable(target));
        return Err(Failure::new(error, format!("`blixard start {target}` starts a stopped service")).into());
    }
    for row in meant.into_iter().filter(|row| row.desired == Some(Desired::Run)) {
        replace(client, row, limit).await?;
    }
    Ok(())
}

/// Every replica of the cluster, as far as the node that is asked knows.
pub(super) async fn rows(client: &Client) -> anyhow::Result<Vec<ReplicaRow>> {
    Ok(client.get::<List<ReplicaRow>>("/v1/replicas?all=true").await?.items)
}

/// Replaces one container, and waits until another is ready in its place and it is gone.
pub(super) async fn replace(client: &Client, old: &ReplicaRow, limit: Limit) -> anyhow::Result<()> {
    let (Some(number), Some(id)) = (old.replica, &old.container_id) else { return Ok(()) };
    // By its whole id: its name is soon another's.
    let path = format!("/v1/replicas/{}/replace", id.0);
    let answer: WriteAnswer = limit.answer(client, client.post_empty(&path)).await?;
    render::warnings(&answer);
    let mut progress = Progress::new();
    loop {
        let rows = limit.answer(client, rows(client)).await;
        // A node that restarts is soon back: what it was told is done meanwhile.
        if let Ok(rows) = &rows {
            match outcome(rows, old, number) {
                Some(Ended::Replaced) => return Ok(()),
                Some(Ended::Failed(new)) => {
                    drop(progress);
                    return Err(failed(client, new).await);
                }
                None => progress.show(&items(rows, old)),
            }
        }
        if limit.is_over() {
            drop(progress);
            let error = format!("{} is not replaced in time", old.name);
            let details = rows.iter().flatten().filter(|row| is_beside(row, old)).map(describe).collect();
            let hint = format!("the cluster goes on with it: `blixard service inspect {}`", old.service);
            return Err(Failure::new(error, hint).with_details(details).into());
        }
        sleep(REFRESH).await;
    }
}

fn is_beside(row: &ReplicaRow, old: &ReplicaRow) -> bool {
    row.service == old.service && row.slot == old.slot
}

/// What came of a replacement.
#[derive(Debug, PartialEq)]
enum Ended<'a> {
    /// The old one is gone, and another is ready in its slot or has done its work.
    Replaced,
    /// The new one failed and is left as it ended.
    Failed(&'a ReplicaRow),
}

fn outcome<'a>(rows: &'a [ReplicaRow], old: &ReplicaRow, number: ReplicaId) -> Option<Ended<'a>> {
    let beside = || rows.iter().filter(|row| is_beside(row, old) && row.replica != Some(number));
    let failed =
        |row: &&ReplicaRow| row.over && row.phase == Some(Phase::Failed) && row.desired == Some(Desired::Run);
    if let Some(new) = beside().find(failed) {
        return Some(Ended::Failed(new));
    }
    let gone = rows.iter().all(|row| row.replica != Some(number));
    (gone && beside().any(|row| row.ready)).then_some(Ended::Replaced)
}

/// What is said of a replacement that failed, with the last lines that it wrote.
async fn failed(client: &Client, new: &ReplicaRow) -> anyhow::Error {
    let error = format!("the new {} ended, and is not started again: {}", new.name, describe(new));
    let details = last_lines(client, new).await;
    let hint =
        format!("`blixard start {}` starts it anew, `blixard logs {}` shows more", new.service, new.name);
    Failure::new(error, hint).with_details(details).into()
}

fn items(rows: &[ReplicaRow], old: &ReplicaRow) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for row in rows.iter().filter(|row| is_beside(row, old)) {
        let id = row.container_id.as_ref().map(|id| format!(" {}", id.short())).unwrap_or_default();
        items.push(Item { key: format!("{}{id}", row.name), text: describe(row), bytes: None });
    }
    items
}

fn describe(row: &ReplicaRow) -> String {
    let row = ReplicaRow { since: None, ..row.clone() };
    format!("node {}: {}", replica::node(&row), replica::status(&row, text::now()))
}

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::ReplicaRow;
    use blixard_core::cluster::{Desired, Phase};
    use blixard_core::id::ReplicaId;

    use super::{Ended, outcome};

    fn row(replica: u64, slot: u32, ready: bool) -> ReplicaRow {
        serde_json::from_value(serde_json::json!({
            "container_id": format!("{replica:064}"), "name": format!("web-{slot}"), "replica": replica,
            "service": "web", "slot": slot, "version": 1, "node": 1, "node_name": "box1", "image": "nginx",
            "phase": "running", "desired": "run", "ready": ready, "healthy": null, "lost": false,
            "attempt": 0, "exit_code": null, "message": "", "since": 0, "created_at": 0,
            "address": null, "node_address": null, "ports": []
        }))
        .unwrap()
    }

    #[test]
    fn a_container_is_replaced_when_it_is_gone_and_another_is_ready_in_its_slot() {
        let old = row(1, 0, true);
        let check = |rows: &[ReplicaRow], expect: Option<Ended>| {
            assert_eq!(outcome(rows, &old, ReplicaId(1)), expect, "{rows:?}");
        };
        check(&[row(1, 0, true), row(2, 1, true)], None);
        check(&[row(1, 0, true), row(3, 0, true)], None);
        check(&[row(3, 0, false), row(2, 1, true)], None);
        check(&[], None);
        check(&[row(3, 0, true)], Some(Ended::Replaced));

        let mut ended = row(3, 0, false);
        (ended.over, ended.phase) = (true, Some(Phase::Failed));
        check(&[row(1, 0, true), ended.clone()], Some(Ended::Failed(&ended)));
        check(std::slice::from_ref(&ended), Some(Ended::Failed(&ended)));
        // One that the cluster does not keep says nothing of the next.
        ended.desired = Some(Desired::Stop);
        check(&[ended], None);
    }
}

//! `blixard inspect`

use std::process::ExitCode;

use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
use blixard_core::api::service::ServiceDetail;
use blixard_core::id::{ContainerId, NodeId, ReplicaId};
use blixard_core::time::UtcMs;
use serde::Serialize;

use super::ps::ended;
use super::rollout::last_lines;
use crate::client::{Client, segment};
use crate::failure::{self, Cause};
use crate::render;

/// How many earlier containers are shown, the last ended first.
const EARLIER_MAX: usize = 5;

/// Show everything known of a container or service, as JSON
///
/// For a container that is the API's answer, and in `earlier` the containers before it in its place, its
/// own earlier attempts among them, as long as their logs are kept: how each ended, when, and the last
/// lines it wrote.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard inspect web\n  blixard inspect web-0\n  blixard inspect 3f2a9c")]
pub(crate) struct Args {
    /// A service, a replica such as web-0, or a container id or prefix of at least 4 digits
    #[arg(value_name = "NAME|ID")]
    target: String,
}

pub(crate) async fn inspect(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let target = segment(&args.target);
    match client.get::<ServiceDetail>(&format!("/v1/services/{target}")).await {
        Ok(detail) => render::json(&detail)?,
        Err(error) if failure::cause(&error).is_some_and(Cause::may_be_no_service) => {
            let detail: ReplicaDetail = client.get(&format!("/v1/replicas/{target}")).await?;
            let earlier = earlier(client, &detail.row).await;
            render::json(&Container { detail, earlier })?;
        }
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

/// A container, and those before it in its place.
#[derive(Serialize)]
struct Container {
    #[serde(flatten)]
    detail: ReplicaDetail,
    earlier: Vec<Earlier>,
}

/// A container that ended.
#[derive(Serialize)]
struct Earlier {
    container_id: Option<ContainerId>,
    replica: Option<ReplicaId>,
    attempt: u32,
    version: u64,
    node: Option<NodeId>,
    exit_code: Option<u32>,
    oom_killed: bool,
    /// What else is known of its end.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    ended_at: Option<UtcMs>,
    last_lines: Vec<String>,
}

/// What is known of those before `row`: nothing when the nodes do not tell.
async fn earlier(client: &Client, row: &ReplicaRow) -> Vec<Earlier> {
    let mut earlier = Vec::new();
    for ended in before(&ended(client).await.unwrap_or_default(), row).take(EARLIER_MAX) {
        earlier.push(Earlier {
            container_id: ended.container_id.clone(),
            replica: ended.replica,
            attempt: ended.attempt,
            version: ended.version,
            node: ended.node,
            exit_code: ended.exit_code,
            oom_killed: ended.oom_killed,
            message: ended.message.clone(),
            ended_at: ended.since,
            last_lines: last_lines(client, ended).await,
        });
    }
    earlier
}

/// Those of `ended` that were in the place of `row` before it, in the order of `ended`.
fn before<'a>(ended: &'a [ReplicaRow], row: &ReplicaRow) -> impl Iterator<Item = &'a ReplicaRow> {
    let place = (row.service.clone(), row.slot, (row.replica, row.attempt));
    ended.iter().filter(move |ended| {
        (&ended.service, ended.slot) == (&place.0, place.1) && (ended.replica, ended.attempt) < place.2
    })
}

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::ReplicaRow;

    use super::before;

    #[test]
    fn earlier_containers_are_those_of_the_same_place() {
        let row = |service: &str, slot: u32, replica: u64, attempt: u32| -> ReplicaRow {
            serde_json::from_value(serde_json::json!({
                "container_id": "0123456789abcdef", "name": format!("{service}-{slot}"), "replica": replica,
                "service": service, "slot": slot, "version": 2, "node": 3, "node_name": "box3",
                "image": "nginx:1", "phase": "gone", "desired": null, "ready": false, "healthy": null,
                "lost": false, "attempt": attempt, "exit_code": 1, "message": "", "since": 1,
                "created_at": 1, "address": null, "node_address": null, "ports": []
            }))
            .unwrap()
        };
        let ended = [
            row("web", 0, 9, 3),
            row("web", 0, 9, 2),
            row("web", 1, 8, 0),
            row("web", 0, 7, 4),
            row("db", 0, 6, 0),
        ];
        let found = |of: &ReplicaRow| {
            before(&ended, of).map(|row| (row.replica.unwrap().0, row.attempt)).collect::<Vec<_>>()
        };
        assert_eq!(found(&row("web", 0, 9, 3)), [(9, 2), (7, 4)], "itself is not before it");
        assert_eq!(found(&row("web", 0, 12, 0)), [(9, 3), (9, 2), (7, 4)]);
        assert_eq!(found(&row("web", 1, 3, 0)), []);
    }
}

//! `blixard service`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::service::{
    RollbackRequest, ScaleRequest, ServiceDetail, ServiceRow, ServiceState, SubmitAnswer, VersionState,
    VersionView,
};
use blixard_core::api::{List, WriteAnswer};
use blixard_core::id::ServiceName;
use clap::Subcommand;

use crate::args::{Output, OutputArgs, time};
use crate::client::{Client, segment};
use crate::commands::rollout::{Limit, Rollout};
use crate::render::color::{self, Paint, Style};
use crate::render::table::Table;
use crate::render::{self, replica, text};

/// List, show, scale and roll back services
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard service ls\n  blixard service scale web 3")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the services
    #[command(
        visible_alias = "list",
        after_help = "Example:\n  blixard service ls\n  blixard service ls -o json"
    )]
    Ls(OutputArgs),
    /// Show one service: its versions, its replicas, and why some wait
    #[command(after_help = "Example:\n  blixard service inspect web\n  blixard service inspect web -o json")]
    Inspect {
        /// The service
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the versions of a service that are kept, newest first, and what became of each
    #[command(after_help = "Example:\n  blixard service history web\n  blixard service history web -o json")]
    History {
        /// The service
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Go back to what an earlier version of a service ran, as a new version
    ///
    /// How many replicas there are stays as it is. Waits as `blixard run` does.
    #[command(after_help = "Example:\n  blixard service rollback web\n  blixard service rollback web 3")]
    Rollback {
        /// The service
        name: ServiceName,
        /// The version [default: the newest before the current one that was proven]
        version: Option<u64>,
        /// Do not wait until it runs
        #[arg(short, long)]
        detach: bool,
        /// How long it may take in all, in seconds or as 1m30s
        #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
        timeout: Duration,
    },
    /// Set how many replicas a service keeps, within the bounds of its bundle
    #[command(after_help = "Example:\n  blixard service scale web 3")]
    Scale {
        /// The service
        name: String,
        /// How many
        #[arg(allow_negative_numbers = true)]
        replicas: u32,
    },
}

pub(crate) async fn service(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Ls(output) => list(client, output).await,
        Command::Inspect { name, output } => inspect(client, &name, output).await,
        Command::History { name, output } => history(client, &name, output).await,
        Command::Rollback { name, version, detach, timeout } => {
            let limit = Limit::of(timeout);
            let answer = limit.answer(client, rollback(client, &name, version)).await?;
            if detach {
                render::line(name.as_str())?;
                return Ok(ExitCode::SUCCESS);
            }
            let rollout = Rollout { name: &name, version: Some(answer.version), index: answer.index };
            rollout.wait(client, limit).await
        }
        Command::Scale { name, replicas } => {
            let path = format!("/v1/services/{}/scale", segment(&name));
            let answer: WriteAnswer = client.post(&path, &ScaleRequest { replicas }).await?;
            render::warnings(&answer);
            render::line(&format!("{name}: {} wanted", text::plural(replicas as usize, "replica")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(client: &Client, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let list: List<ServiceRow> = client.get("/v1/services").await?;
    match output.output {
        Output::Json => render::json(&list.items)?,
        Output::Table => render::print(&table(&list.items, text::now(), color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rollback(client: &Client, name: &ServiceName, version: Option<u64>) -> anyhow::Result<SubmitAnswer> {
    let path = format!("/v1/services/{name}/rollback");
    let answer: SubmitAnswer = client.post(&path, &RollbackRequest { version }).await?;
    if answer.changed {
        render::note(&format!("{name} is now version {}", answer.version));
    } else {
        render::note(&format!("{name} is unchanged at version {}", answer.version));
    }
    Ok(answer)
}

async fn history(client: &Client, name: &str, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let detail: ServiceDetail = client.get(&format!("/v1/services/{}", segment(name))).await?;
    let newest_first: Vec<VersionView> = detail.versions.into_iter().rev().collect();
    match output.output {
        Output::Json => render::json(&newest_first)?,
        Output::Table => render::print(&versions(&newest_first, text::now(), color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn versions(rows: &[VersionView], now: blixard_core::time::UtcMs, paint: Paint) -> String {
    let mut table = Table::new(&["VERSION", "STATE", "SUBMITTED", "WHO", "IMAGE", "DIGEST", "NOTE"], paint);
    for version in rows {
        let back = version.rollback_of.map(|old| format!("rollback to {old}"));
        let failure = version.failure.as_ref().map(|failure| text::printable(&failure.message));
        let notes: Vec<String> = back.into_iter().chain(failure).collect();
        table.row([
            version.version.to_string(),
            version_state(version.state).to_owned(),
            text::ago(now, version.submitted_at),
            version.by.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            text::image(&version.spec.image.reference),
            version.spec.image.digest.as_deref().map_or("-", text::short_digest).to_owned(),
            notes.join("; "),
        ]);
    }
    table.render()
}

fn version_state(state: VersionState) -> &'static str {
    match state {
        VersionState::Current => "current",
        VersionState::Starting => "starting",
        VersionState::Failing => "failing",
        VersionState::Superseded => "superseded",
        VersionState::Failed => "failed",
    }
}

fn table(rows: &[ServiceRow], now: blixard_core::time::UtcMs, paint: Paint) -> String {
    let mut table = Table::new(
        &["NAME", "STATE", "READY", "UPDATED", "MIN..MAX", "IMAGE", "PORTS", "VERSION", "CREATED"],
        paint,
    );
    for row in rows {
        table.row([
            row.name.to_string(),
            state_name(row.state).to_owned(),
            ready(row),
            // What is ready for a moment between two failures is no update.
            format!("{}/{}", row.proven, row.desired),
            format!("{}..{}", row.min, row.max),
            text::image(&row.image),
            ports(row),
            row.version.to_string(),
            text::ago(now, row.created_at),
        ]);
        table.style(1, Some(state_style(row.state)));
    }
    table.render()
}

/// How many are ready, and how many lost.
fn ready(row: &ServiceRow) -> String {
    let lost = if row.lost == 0 { String::new() } else { format!(", {} lost", row.lost) };
    format!("{}/{}{lost}", row.ready, row.desired)
}

fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Running => "running",
        ServiceState::Pending => "pending",
        ServiceState::Updating => "updating",
        ServiceState::Completed => "completed",
        ServiceState::Failed => "failed",
        ServiceState::Stopped => "stopped",
        ServiceState::Removing => "removing",
    }
}

fn state_style(state: ServiceState) -> Style {
    match state {
        ServiceState::Running => Style::Green,
        ServiceState::Pending | ServiceState::Updating => Style::Yellow,
        ServiceState::Failed => Style::Red,
        ServiceState::Completed | ServiceState::Stopped | ServiceState::Removing => Style::Dim,
    }
}

fn ports(row: &ServiceRow) -> String {
    let ports = row.ports.iter().map(|port| match port.host_port {
        Some(host_port) => {
            let host = port.host_ip.map(|address| format!("{address}:")).unwrap_or_default();
            format!("{host}{host_port}->{}/{}", port.container_port, port.protocol)
        }
        None => format!("{}/{}", port.container_port, port.protocol),
    });
    ports.collect::<Vec<_>>().join(", ")
}

async fn inspect(client: &Client, name: &str, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let detail: ServiceDetail = client.get(&format!("/v1/services/{}", segment(name))).await?;
    match output.output {
        Output::Json => render::json(&detail)?,
        Output::Table => render::print(&describe(&detail, text::now(), color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(detail: &ServiceDetail, now: blixard_core::time::UtcMs, paint: Paint) -> String {
    let mut text = table(std::slice::from_ref(&detail.row), now, paint);
    text.push('\n');
    text.push_str(&replica::table(&detail.replicas, now, paint));
    for slot in &detail.pending {
        let again = match slot.not_before {
            Some(then) if then > now => format!(" (again in {})", text::until(now, then)),
            _ => String::new(),
        };
        let line =
            format!("{}-{} waits: {}{again}", detail.row.name, slot.slot, text::printable(&slot.reason));
        text.push_str(&paint.apply(Style::Yellow, &line));
        text.push('\n');
    }
    text.push('\n');
    let newest_first: Vec<VersionView> = detail.versions.iter().rev().cloned().collect();
    text.push_str(&versions(&newest_first, now, paint));
    text
}

#[cfg(test)]
mod tests {
    use blixard_core::api::service::ServiceRow;
    use blixard_core::time::UtcMs;

    use crate::render::color::Paint;

    #[test]
    fn service_ls_looks_like_this() {
        let row: ServiceRow = serde_json::from_value(serde_json::json!({
            "name": "web", "state": "updating", "ready": 2, "updated": 1, "proven": 0, "lost": 1, "desired": 3, "min": 2, "max": 5,
            "image": "nginx:1", "ports": [{"container_port": 80, "host_port": 8080}],
            "version": 3, "created_at": 0
        }))
        .unwrap();
        assert_eq!(
            super::table(&[row], UtcMs(120_000), Paint::Plain),
            "\
NAME   STATE      READY         UPDATED   MIN..MAX   IMAGE     PORTS          VERSION   CREATED
web    updating   2/3, 1 lost   0/3       2..5       nginx:1   8080->80/tcp   3         2 minutes ago
"
        );
    }

    #[test]
    fn history_says_what_became_of_each_version() {
        let spec = serde_json::json!({"name": "web", "image": {"reference": "nginx:1"}});
        let rows = serde_json::from_value::<Vec<super::VersionView>>(serde_json::json!([
            {"version": 3, "submitted_at": 60_000, "spec": spec, "state": "current", "rollback_of": 1, "by": {"token": {"id": "0505050505050505"}}},
            {"version": 2, "submitted_at": 0, "spec": spec, "state": "failed",
             "failure": {"at": 0, "message": "web-0 on node 1: exited with code 3"}}
        ]))
        .unwrap();
        assert_eq!(
            super::versions(&rows, UtcMs(120_000), Paint::Plain),
            "\
VERSION   STATE     SUBMITTED            WHO                      IMAGE     DIGEST   NOTE
3         current   About a minute ago   token 0505050505050505   nginx:1   -        rollback to 1
2         failed    2 minutes ago        -                        nginx:1   -        web-0 on node 1: exited with code 3
"
        );
    }
}

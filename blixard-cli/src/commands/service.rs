//! `blixard service`, `stop`, `start`, `rm`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
use blixard_core::api::service::{ScaleRequest, ServiceDetail, ServiceRow, ServiceState};
use blixard_core::api::{List, WriteAnswer};
use clap::Subcommand;
use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::cli::{Output, OutputArgs, time};
use crate::client::{Client, segment};
use crate::failure::{self, Cause, Failure};
use crate::render::color::{self, Paint, Style};
use crate::render::progress::{Item, Progress};
use crate::render::table::Table;
use crate::render::{self, replica, text};

/// How often it is looked whether a removed service is gone.
const REFRESH: Duration = Duration::from_millis(200);

/// List, show and scale services
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
    /// Set how many replicas a service keeps, within the bounds of its bundle
    #[command(after_help = "Example:\n  blixard service scale web 3")]
    Scale {
        /// The service
        name: String,
        /// How many
        replicas: u32,
    },
}

pub(crate) async fn service(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Ls(output) => list(client, output).await,
        Command::Inspect { name, output } => inspect(client, &name, output).await,
        Command::Scale { name, replicas } => {
            let path = format!("/v1/services/{}/scale", segment(&name));
            let answer: WriteAnswer = client.post(&path, &ScaleRequest { replicas }).await?;
            warn(&answer);
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

fn table(rows: &[ServiceRow], now: blixard_core::time::UtcMs, paint: Paint) -> String {
    let mut table =
        Table::new(&["NAME", "STATE", "READY", "MIN..MAX", "IMAGE", "PORTS", "VERSION", "CREATED"], paint);
    for row in rows {
        table.row([
            row.name.to_string(),
            state_name(row.state).to_owned(),
            format!("{}/{}", row.ready, row.desired),
            format!("{}..{}", row.min, row.max),
            text::printable(&row.image),
            ports(row),
            row.version.to_string(),
            text::ago(now, row.created_at),
        ]);
        table.style(1, Some(state_style(row.state)));
    }
    table.render()
}

fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Running => "running",
        ServiceState::Pending => "pending",
        ServiceState::Stopped => "stopped",
        ServiceState::Removing => "removing",
    }
}

fn state_style(state: ServiceState) -> Style {
    match state {
        ServiceState::Running => Style::Green,
        ServiceState::Pending => Style::Yellow,
        ServiceState::Stopped | ServiceState::Removing => Style::Dim,
    }
}

fn ports(row: &ServiceRow) -> String {
    let ports = row.ports.iter().map(|port| match port.host_port {
        Some(host_port) => format!("{host_port}->{}/{}", port.container_port, port.protocol),
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
    let mut versions = Table::new(&["VERSION", "SUBMITTED", "IMAGE", "DIGEST"], paint);
    for version in detail.versions.iter().rev() {
        versions.row([
            version.version.to_string(),
            text::ago(now, version.submitted_at),
            text::printable(&version.spec.image.reference),
            version.spec.image.digest.as_deref().map_or("-", text::short_digest).to_owned(),
        ]);
    }
    text.push_str(&versions.render());
    text
}

/// Stop a service, or one container
///
/// A service keeps its definition and starts again with `blixard start`. A container that is
/// stopped by its id is replaced by its service. Each process gets SIGTERM (or the image's stop
/// signal), then SIGKILL after the bundle's stop_timeout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard stop web\n  blixard stop 3f2a9c")]
pub(crate) struct StopArgs {
    /// A service, a replica such as web-0, or a container id or prefix of at least 4 digits
    #[arg(value_name = "NAME|ID")]
    target: String,
}

pub(crate) async fn stop(client: &Client, args: StopArgs) -> anyhow::Result<ExitCode> {
    let target = segment(&args.target);
    match client.post_empty::<WriteAnswer>(&format!("/v1/services/{target}/stop")).await {
        Ok(answer) => warn(&answer),
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
            let answer: WriteAnswer = client.post_empty(&format!("/v1/replicas/{target}/stop")).await?;
            warn(&answer);
            render::note("its service starts another in its place; `blixard stop NAME` stops a service");
        }
        Err(error) => return Err(error),
    }
    render::line(&args.target)?;
    Ok(ExitCode::SUCCESS)
}

/// Start a stopped service again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard start web")]
pub(crate) struct StartArgs {
    /// The service
    name: String,
}

pub(crate) async fn start(client: &Client, args: StartArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/services/{}/start", segment(&args.name));
    let answer: WriteAnswer = client.post_empty(&path).await?;
    warn(&answer);
    render::line(&args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// Stop a service and remove it
///
/// Waits until its containers are gone and the name is free again; those on a node that is down go
/// when the node is back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard rm web\n  blixard rm -d web")]
pub(crate) struct RemoveArgs {
    /// The service
    name: String,
    /// Do not wait until its containers are gone
    #[arg(short, long)]
    detach: bool,
    /// How long to wait, in seconds or as 1m30s
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

pub(crate) async fn remove(client: &Client, args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/services/{}", segment(&args.name));
    let answer: WriteAnswer = match client.delete(&path).await {
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
            return Err(no_service(client, &args.name).await.unwrap_or(error));
        }
        answer => answer?,
    };
    warn(&answer);
    if !args.detach {
        wait_gone(client, &args, &path).await?;
    }
    render::line(&args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// What to say to someone who named a container where a service is meant.
async fn no_service(client: &Client, name: &str) -> Option<anyhow::Error> {
    let found: ReplicaDetail = client.get(&format!("/v1/replicas/{}", segment(name))).await.ok()?;
    let service = found.row.service;
    let hint = format!(
        "`blixard stop {name}` has it replaced, `blixard service scale` makes them fewer, `blixard rm {service}` removes all"
    );
    Some(Failure::new(format!("`{name}` is a container of service `{service}`"), hint).into())
}

async fn wait_gone(client: &Client, args: &RemoveArgs, path: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    let mut progress = Progress::new();
    loop {
        let detail = match client.get::<ServiceDetail>(path).await {
            Ok(detail) => detail,
            Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // Nobody waits for a machine that is down.
        if detail.replicas.iter().all(|row| row.lost) && !detail.replicas.is_empty() {
            drop(progress);
            for row in &detail.replicas {
                render::note(&format!("{} goes once node {} is back", row.name, replica::node(row)));
            }
            return Ok(());
        }
        let shown = detail.replicas.iter().map(|row| {
            let row = ReplicaRow { since: None, ..row.clone() };
            Item { key: row.name.clone(), text: replica::status(&row, text::now()), bytes: None }
        });
        progress.show(&shown.collect::<Vec<_>>());
        if Instant::now() >= deadline {
            let left = text::plural(detail.replicas.len(), "container");
            let error = format!("{} still has {left} after {} s", args.name, args.timeout.as_secs());
            return Err(Failure::new(error, "they go on stopping: `blixard ps -a` shows how").into());
        }
        sleep(REFRESH).await;
    }
}

fn warn(answer: &WriteAnswer) {
    for warning in &answer.warnings {
        render::warn(warning);
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::api::service::ServiceRow;
    use blixard_core::time::UtcMs;

    use crate::render::color::Paint;

    #[test]
    fn service_ls_looks_like_this() {
        let row: ServiceRow = serde_json::from_value(serde_json::json!({
            "name": "web", "state": "pending", "ready": 1, "desired": 2, "min": 2, "max": 5,
            "image": "nginx:1", "ports": [{"container_port": 80, "host_port": 8080}],
            "version": 3, "created_at": 0
        }))
        .unwrap();
        assert_eq!(
            super::table(&[row], UtcMs(120_000), Paint::Plain),
            "\
NAME   STATE     READY   MIN..MAX   IMAGE     PORTS          VERSION   CREATED
web    pending   1/2     2..5       nginx:1   8080->80/tcp   3         2 minutes ago
"
        );
    }
}

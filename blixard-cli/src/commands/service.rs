//! `blixard service`

use std::process::ExitCode;

use blixard_core::api::service::{ScaleRequest, ServiceDetail, ServiceRow, ServiceState};
use blixard_core::api::{List, WriteAnswer};
use clap::Subcommand;

use crate::args::{Output, OutputArgs};
use crate::client::{Client, segment};
use crate::render::color::{self, Paint, Style};
use crate::render::table::Table;
use crate::render::{self, replica, text};

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

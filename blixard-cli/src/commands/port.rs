//! `blixard port`

use std::process::ExitCode;

use blixard_core::api::List;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::cluster::Phase;
use blixard_core::spec::{PortSpec, Protocol};
use http::StatusCode;
use serde::Serialize;

use crate::args::{Output, OutputArgs};
use crate::client::{Client, segment};
use crate::failure::{self, Cause, Failure};
use crate::render::table::Table;
use crate::render::{self, color, replica, text};

/// Show where published ports are reached
///
/// One line for each published port of each container that runs: a node's address, by which that
/// port is reached from outside. With a container's port, only the addresses, one a line.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard port web\n  blixard port web 80\n  curl http://$(blixard port web 80 | head -1)/"
)]
pub(crate) struct Args {
    /// A service, a replica such as web-0, or a container id or prefix of at least 4 digits
    #[arg(value_name = "NAME|ID")]
    target: String,
    /// Only this port of the container
    #[arg(value_name = "PORT[/udp]", value_parser = container_port)]
    port: Option<(u16, Protocol)>,
    #[command(flatten)]
    output: OutputArgs,
}

fn container_port(text: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let port = port.parse().ok().filter(|port| *port > 0);
    port.map(|port| (port, protocol))
        .ok_or_else(|| "give a port from 1 to 65535, such as 80 or 53/udp".to_owned())
}

/// One published port of one container.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Published {
    name: String,
    container_port: u16,
    protocol: String,
    /// `IP:PORT`.
    address: String,
    node: String,
    ready: bool,
}

pub(crate) async fn port(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let rows: List<ReplicaRow> = client.get("/v1/replicas").await?;
    let meant = |row: &&ReplicaRow| {
        let id = row.container_id.as_ref();
        row.service.as_str() == args.target
            || row.name == args.target
            || args.target.len() >= 4 && id.is_some_and(|id| id.0.starts_with(&args.target))
    };
    let rows: Vec<&ReplicaRow> = rows.items.iter().filter(meant).collect();
    if rows.is_empty() {
        // Whether it is there at all, or has ended, its node knows. Of several that ended none runs.
        let path = format!("/v1/replicas/{}", segment(&args.target));
        if let Err(error) = client.get::<serde_json::Value>(&path).await
            && failure::cause(&error) != Some(Cause::Refused(StatusCode::CONFLICT))
        {
            return Err(error);
        }
        let error = format!("no container of `{}` runs", text::printable(&args.target));
        let hint = "`blixard ps -a` lists those that ended, `blixard start NAME` starts a stopped service";
        return Err(Failure::new(error, hint).into());
    }
    let found = published(&rows, args.port);
    match (args.output.output, args.port) {
        (Output::Json, _) => render::json(&found)?,
        (Output::Table, Some(_)) => {
            for port in &found {
                render::line(&port.address)?;
            }
        }
        (Output::Table, None) => render::print(&table(&found))?,
    }
    if found.is_empty() {
        let hint = "`blixard ps` shows states and ports; a bundle publishes by `host_port`";
        return Err(Failure::new(why_none(&args.target, &rows, args.port), hint).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Why no published port of `target`'s containers can be shown.
fn why_none(target: &str, rows: &[&ReplicaRow], only: Option<(u16, Protocol)>) -> String {
    match only {
        _ if !rows.iter().any(|row| runs(row)) => {
            let known = if rows.iter().any(|row| row.lost) { "is known to run now" } else { "runs" };
            format!("no container of `{target}` {known}")
        }
        Some((port, protocol)) => format!("`{target}` publishes no port for {port}/{protocol}"),
        None => format!("`{target}` publishes no port"),
    }
}

/// Whether a container runs, as far as is known.
fn runs(row: &ReplicaRow) -> bool {
    row.phase == Some(Phase::Running) && !row.lost
}

/// The published ports of the containers that run.
fn published(rows: &[&ReplicaRow], only: Option<(u16, Protocol)>) -> Vec<Published> {
    let mut found = Vec::new();
    for row in rows.iter().filter(|row| runs(row)) {
        let Some(node_address) = &row.node_address else { continue };
        let asked = |port: &&PortSpec| only.is_none_or(|only| only == (port.container_port, port.protocol));
        for port in row.ports.iter().filter(asked) {
            // On the node's own network a container has no address of its own.
            let host_port = port.host_port.or_else(|| row.address.is_none().then_some(port.container_port));
            let Some(host_port) = host_port else { continue };
            let host = match port.host_ip {
                Some(address) => address.to_string(),
                None if node_address.contains(':') => format!("[{node_address}]"),
                None => node_address.clone(),
            };
            found.push(Published {
                name: row.name.clone(),
                container_port: port.container_port,
                protocol: port.protocol.to_string(),
                address: format!("{host}:{host_port}"),
                node: replica::node(row),
                ready: row.ready,
            });
        }
    }
    found
}

fn table(found: &[Published]) -> String {
    let mut table = Table::new(&["NAME", "PORT", "ADDRESS", "NODE", "READY"], color::stdout());
    for port in found {
        table.row([
            port.name.clone(),
            format!("{}/{}", port.container_port, port.protocol),
            port.address.clone(),
            port.node.clone(),
            if port.ready { "yes" } else { "no" }.to_owned(),
        ]);
    }
    if found.is_empty() { String::new() } else { table.render() }
}

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::ReplicaRow;
    use blixard_core::spec::Protocol;

    use super::{container_port, published, table, why_none};

    fn row(edit: impl FnOnce(&mut serde_json::Value)) -> ReplicaRow {
        let mut row = serde_json::json!({
            "container_id": "0123456789abcdef", "name": "web-0", "replica": 1, "service": "web",
            "slot": 0, "version": 1, "node": 1, "node_name": "box1", "image": "nginx",
            "phase": "running", "desired": "run", "ready": true, "healthy": null, "lost": false,
            "attempt": 0, "exit_code": null, "message": "", "since": 0, "created_at": 0,
            "address": "10.210.1.2", "node_address": "10.77.0.1",
            "ports": [{"container_port": 80, "host_port": 8080}, {"container_port": 53, "protocol": "udp"}]
        });
        edit(&mut row);
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn a_port_that_is_published_on_one_address_is_shown_there() {
        let row = row(|row| row["ports"][0]["host_ip"] = "127.0.0.1".into());
        assert_eq!(published(&[&row], None)[0].address, "127.0.0.1:8080");
    }

    #[test]
    fn published_ports_look_like_this() {
        let (first, second) =
            (row(|_| {}), row(|row| (row["name"], row["ready"]) = ("web-1".into(), false.into())));
        assert_eq!(
            table(&published(&[&first, &second], None)),
            "\
NAME    PORT     ADDRESS          NODE       READY
web-0   80/tcp   10.77.0.1:8080   1 (box1)   yes
web-1   80/tcp   10.77.0.1:8080   1 (box1)   no
"
        );
    }

    #[test]
    fn only_what_can_be_reached_is_shown() {
        let check = |edit: fn(&mut serde_json::Value), only, expect: &[&str]| {
            let row = row(edit);
            let addresses: Vec<String> =
                published(&[&row], only).into_iter().map(|port| port.address).collect();
            assert_eq!(addresses, expect);
        };
        check(|_| {}, Some((80, Protocol::Tcp)), &["10.77.0.1:8080"]);
        check(|_| {}, Some((53, Protocol::Udp)), &[]);
        check(|row| row["phase"] = "starting".into(), None, &[]);
        check(|row| row["lost"] = true.into(), None, &[]);
        check(|row| row["node_address"] = "fd00::1".into(), None, &["[fd00::1]:8080"]);
        check(|row| row["address"] = serde_json::Value::Null, None, &["10.77.0.1:8080", "10.77.0.1:53"]);
    }

    #[test]
    fn what_does_not_run_is_not_said_to_publish_nothing() {
        let check = |edits: &[fn(&mut serde_json::Value)], only, expect: &str| {
            let rows: Vec<ReplicaRow> = edits.iter().map(row).collect();
            let rows: Vec<&ReplicaRow> = rows.iter().collect();
            assert_eq!(why_none("web", &rows, only), expect);
        };
        let lost = |row: &mut serde_json::Value| row["lost"] = true.into();
        let starts = |row: &mut serde_json::Value| row["phase"] = "starting".into();
        let bare = |row: &mut serde_json::Value| row["ports"] = serde_json::json!([]);
        check(&[starts], None, "no container of `web` runs");
        check(&[lost], None, "no container of `web` is known to run now");
        check(&[lost, starts], Some((80, Protocol::Tcp)), "no container of `web` is known to run now");
        check(&[bare], None, "`web` publishes no port");
        check(&[|_| {}], Some((53, Protocol::Udp)), "`web` publishes no port for 53/udp");
    }

    #[test]
    fn a_containers_port_has_a_protocol() {
        assert_eq!(container_port("80"), Ok((80, Protocol::Tcp)));
        assert_eq!(container_port("53/udp"), Ok((53, Protocol::Udp)));
        for wrong in ["0", "70000", "http", "80/sctp", ""] {
            assert!(container_port(wrong).is_err(), "{wrong}");
        }
    }
}

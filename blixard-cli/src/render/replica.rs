//! A container's row: its status and ports in words.

use std::net::Ipv4Addr;

use blixard_core::api::replica::ReplicaRow;
use blixard_core::cluster::{Desired, Phase};
use blixard_core::id::ContainerId;
use blixard_core::spec::PortSpec;
use blixard_core::time::UtcMs;

use super::color::{Paint, Style};
use super::table::Table;
use super::text::{about, ago, image, printable, shorten, told_from};

/// How much of a status `ps` shows, in characters.
const STATUS_CHARS_MAX: usize = 80;

/// The table of `ps`, with each status on one line, no wider than `columns`; `service inspect`,
/// `--no-trunc` and `-o json` have all of it.
pub(crate) fn short_table(rows: &[ReplicaRow], now: UtcMs, paint: Paint, columns: Option<usize>) -> String {
    let table = table_of(rows, paint, |row| shorten(&status(row, now), STATUS_CHARS_MAX), false, now);
    table.fit(columns, &["CREATED", "IMAGE", "PORTS", "VERSION", "CONTAINER ID", "NODE"], "STATUS").render()
}

/// The same table with nothing cut.
pub(crate) fn long_table(rows: &[ReplicaRow], now: UtcMs, paint: Paint) -> String {
    table_of(rows, paint, |row| status(row, now), true, now).render()
}

/// The same table with all that is known of each status.
pub(crate) fn table(rows: &[ReplicaRow], now: UtcMs, paint: Paint) -> String {
    table_of(rows, paint, |row| status(row, now), false, now).render()
}

fn table_of(
    rows: &[ReplicaRow],
    paint: Paint,
    status: impl Fn(&ReplicaRow) -> String,
    whole_ids: bool,
    now: UtcMs,
) -> Table {
    let headings = ["CONTAINER ID", "NAME", "VERSION", "IMAGE", "STATUS", "PORTS", "CREATED", "NODE"];
    let mut table = Table::new(&headings, paint);
    let id = |id: &ContainerId| if whole_ids { id.0.clone() } else { id.short().to_owned() };
    for row in rows {
        table.row([
            row.container_id.as_ref().map_or_else(|| "-".to_owned(), id),
            row.name.clone(),
            row.version.to_string(),
            image(&row.image),
            status(row),
            ports(row),
            row.created_at.map_or_else(|| "-".to_owned(), |then| ago(now, then)),
            node(row),
        ]);
        table.style(4, style(row));
    }
    table
}

/// Which node, by number and name.
pub(crate) fn node(row: &ReplicaRow) -> String {
    match (row.node, &row.node_name) {
        (Some(id), Some(name)) => format!("{id} ({})", printable(name)),
        (Some(id), None) => id.to_string(),
        (None, _) => "-".to_owned(),
    }
}

/// How a container is doing, in words.
pub(crate) fn status(row: &ReplicaRow, now: UtcMs) -> String {
    let message = told_from(&printable(&row.message), now);
    let with_message = |text: &str| {
        if message.is_empty() { text.to_owned() } else { format!("{text}: {message}") }
    };
    let Some(phase) = row.phase else { return with_message("Pending") };
    if row.lost {
        return "Lost: its node is down".to_owned();
    }
    let since = row.since.filter(|since| since.0 > 0);
    let ended = |word: &str| {
        let code = row.exit_code.map(|code| format!(" ({code})")).unwrap_or_default();
        let when = since.map(|then| format!(" {}", ago(now, then).to_lowercase())).unwrap_or_default();
        format!("{word}{code}{when}")
    };
    let text = match phase {
        Phase::Assigned => with_message("Assigned"),
        Phase::Pulling => match row.progress {
            Some(progress) if progress.bytes_total > 0 => {
                format!("Pulling {}%", progress.bytes.saturating_mul(100) / progress.bytes_total)
            }
            _ => with_message("Pulling"),
        },
        Phase::Starting => with_message("Starting"),
        Phase::Running => {
            let up = since.map(|then| format!(" {}", about(now.since(then)).to_lowercase()));
            let health = match row.healthy {
                Some(true) => " (healthy)",
                Some(false) => " (unhealthy)",
                None if !row.ready && row.desired == Some(Desired::Run) => " (health: starting)",
                None => "",
            };
            format!("Up{}{health}", up.unwrap_or_default())
        }
        Phase::Stopping => "Stopping".to_owned(),
        Phase::Waiting => with_message(&ended("Restarting")),
        Phase::Completed => ended("Completed"),
        Phase::Failed => with_message(&ended("Failed")),
        Phase::Gone if row.exit_code.is_some() => with_message(&ended("Exited")),
        Phase::Gone => "Gone".to_owned(),
    };
    let text = match &row.blocked {
        Some(why) => format!("{text}; {}", printable(why)),
        None => text,
    };
    match row.desired {
        Some(Desired::Retire) if !phase.is_final() => format!("{text}, being replaced"),
        Some(Desired::Stop) if phase < Phase::Stopping => format!("{text}, to be stopped"),
        _ => text,
    }
}

fn style(row: &ReplicaRow) -> Option<Style> {
    match row.phase {
        Some(Phase::Running) if row.ready => Some(Style::Green),
        Some(Phase::Failed) => Some(Style::Red),
        _ if row.lost => Some(Style::Red),
        Some(Phase::Completed | Phase::Gone) => Some(Style::Dim),
        _ => Some(Style::Yellow),
    }
}

/// Its ports: `10.77.0.1:8080->80/tcp`. A node known by an address of IPv6 shows none of its own:
/// published ports answer on IPv4 alone.
pub(crate) fn ports(row: &ReplicaRow) -> String {
    let ports = row.ports.iter().map(|port| match port.host_port {
        Some(host_port) => {
            let host = host(row, port).map_or_else(|| "*".to_owned(), |address| address.to_string());
            format!("{host}:{host_port}->{}/{}", port.container_port, port.protocol)
        }
        None => format!("{}/{}", port.container_port, port.protocol),
    });
    ports.collect::<Vec<_>>().join(", ")
}

/// The address that a published port of it answers on, as far as known.
pub(crate) fn host(row: &ReplicaRow, port: &PortSpec) -> Option<Ipv4Addr> {
    port.host_ip.or_else(|| row.node_address.as_ref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::{Progress, ReplicaRow};
    use blixard_core::cluster::{Desired, Phase};
    use blixard_core::time::UtcMs;

    use super::{ports, short_table, status, table};
    use crate::render::color::Paint;

    const NOW: UtcMs = UtcMs(1_000_000);

    fn row(edit: impl FnOnce(&mut ReplicaRow)) -> ReplicaRow {
        let mut row: ReplicaRow = serde_json::from_value(serde_json::json!({
            "container_id": "0123456789abcdef", "name": "web-0", "replica": 1, "service": "web",
            "slot": 0, "version": 1, "node": 1, "node_name": "box1", "image": "nginx",
            "phase": "running", "desired": "run", "ready": true, "healthy": null, "lost": false,
            "attempt": 0, "exit_code": null, "message": "", "since": 820_000, "created_at": 700_000,
            "address": "10.210.1.2", "node_address": "10.77.0.1",
            "ports": [{"container_port": 80, "host_port": 8080}, {"container_port": 53, "protocol": "udp"}]
        }))
        .unwrap();
        edit(&mut row);
        row
    }

    #[test]
    fn a_status_says_how_long_and_why() {
        let check = |edit: fn(&mut ReplicaRow), expect: &str| {
            assert_eq!(status(&row(edit), NOW), expect);
        };
        check(|_| {}, "Up 3 minutes");
        check(|row| row.healthy = Some(true), "Up 3 minutes (healthy)");
        check(|row| (row.healthy, row.ready) = (Some(false), false), "Up 3 minutes (unhealthy)");
        check(|row| row.ready = false, "Up 3 minutes (health: starting)");
        check(|row| row.desired = Some(Desired::Retire), "Up 3 minutes, being replaced");
        check(|row| (row.desired, row.ready) = (Some(Desired::Stop), false), "Up 3 minutes, to be stopped");
        check(|row| row.blocked = Some("cannot move".into()), "Up 3 minutes; cannot move");
        check(|row| row.lost = true, "Lost: its node is down");
        check(|row| row.phase = Some(Phase::Pulling), "Pulling");
        check(
            |row| {
                row.phase = Some(Phase::Pulling);
                row.progress = Some(Progress { bytes: 50, bytes_total: 200 });
            },
            "Pulling 25%",
        );
        check(
            |row| {
                row.phase = Some(Phase::Waiting);
                row.exit_code = Some(1);
                row.message = "again in 4 s".into();
            },
            "Restarting (1) 3 minutes ago: again in 4 s",
        );
        check(
            |row| (row.phase, row.exit_code) = (Some(Phase::Completed), Some(0)),
            "Completed (0) 3 minutes ago",
        );
        check(
            |row| {
                row.phase = Some(Phase::Waiting);
                row.exit_code = Some(137);
                row.message = format!("killed; starting again at {}", UtcMs(1_003_500));
            },
            "Restarting (137) 3 minutes ago: killed; starting again in 4 s",
        );
        check(
            |row| (row.phase, row.exit_code) = (Some(Phase::Gone), Some(137)),
            "Exited (137) 3 minutes ago",
        );
        check(|row| row.phase = Some(Phase::Gone), "Gone");
        check(
            |row| {
                row.phase = Some(Phase::Failed);
                row.message = "no such command".into();
            },
            "Failed 3 minutes ago: no such command",
        );
        check(
            |row| {
                row.phase = None;
                row.message = "port 80 is taken".into();
            },
            "Pending: port 80 is taken",
        );
    }

    #[test]
    fn a_port_is_shown_where_it_answers() {
        let check = |edit: fn(&mut ReplicaRow), expect: &str| assert_eq!(ports(&row(edit)), expect);
        check(|_| {}, "10.77.0.1:8080->80/tcp, 53/udp");
        check(|row| row.node_address = Some("fd00::1".into()), "*:8080->80/tcp, 53/udp");
        check(|row| row.ports[0].host_ip = Some([127, 0, 0, 1].into()), "127.0.0.1:8080->80/tcp, 53/udp");
    }

    #[test]
    fn ps_looks_like_this() {
        let rows = [
            row(|_| {}),
            row(|row| {
                (row.container_id, row.replica, row.node, row.phase) = (None, None, None, None);
                (row.since, row.created_at, row.node_name, row.node_address) = (None, None, None, None);
                row.name = "web-1".into();
                row.message = "no node has disk=ssd".into();
                row.ready = false;
            }),
        ];
        let expect = "\
CONTAINER ID   NAME    VERSION   IMAGE          STATUS                          PORTS                            CREATED         NODE
0123456789ab   web-0   1         nginx:latest   Up 3 minutes                    10.77.0.1:8080->80/tcp, 53/udp   5 minutes ago   1 (box1)
-              web-1   1         nginx:latest   Pending: no node has disk=ssd   *:8080->80/tcp, 53/udp           -               -
";
        assert_eq!(table(&rows, NOW, Paint::Plain), expect);
        let narrow = "\
NAME    STATUS                          NODE
web-0   Up 3 minutes                    1 (box1)
web-1   Pending: no node has disk=ssd   -
";
        assert_eq!(short_table(&rows, NOW, Paint::Plain, Some(60)), narrow);
        assert!(table(&rows, NOW, Paint::Colored).contains("\x1b[32mUp 3 minutes\x1b[0m"));
    }
}

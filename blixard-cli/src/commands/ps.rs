//! `blixard ps`

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::image_reference::ImageReference;
use http::StatusCode;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::commands::node;
use crate::failure::{self, Cause, Failure};
use crate::render::{self, color, replica, terminal, text};

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(1);
/// Puts the cursor into a terminal's upper left corner and clears what is behind it (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

/// List the containers of the whole cluster
///
/// Shows one line for each container, also for one that ended for good and is not started again, and one
/// for each replica that waits for a place, with the reason. A terminal that is too narrow gets fewer
/// columns; --no-trunc shows everything in full. With -a also containers that ended lately and were
/// started again, replaced or stopped, with how they ended. The same from any node.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard ps\n  blixard ps -a web\n  blixard ps --filter node=2 --filter status=running\n  blixard ps --watch\n  blixard ps -q | xargs -n1 blixard inspect"
)]
pub(crate) struct Args {
    /// Only containers of these services
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    /// Also containers that ended, and were started again, replaced or stopped
    #[arg(short, long)]
    all: bool,
    /// Only container ids, one a line
    #[arg(short, long)]
    quiet: bool,
    /// Only containers of which this holds: service, name, node, status, version, image, health or id
    /// (repeatable; of several with one key, one has to hold)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// Show ids, statuses and names in full
    #[arg(long)]
    no_trunc: bool,
    /// Go on, and show what changes, until interrupted
    #[arg(short, long, conflicts_with = "quiet")]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a container is asked for by `--filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Service,
    Name,
    Node,
    Status,
    Version,
    Image,
    Health,
    Id,
}

impl Key {
    pub(super) const ALL: [(&str, Self); 8] = [
        ("service", Self::Service),
        ("name", Self::Name),
        ("node", Self::Node),
        ("status", Self::Status),
        ("version", Self::Version),
        ("image", Self::Image),
        ("health", Self::Health),
        ("id", Self::Id),
    ];

    fn holds(self, row: &ReplicaRow, value: &str) -> bool {
        match self {
            Self::Service => row.service.as_str() == value,
            Self::Name => row.name == value,
            Self::Node => {
                let number = row.node.is_some_and(|node| node.to_string() == value);
                number || row.node_name.as_deref() == Some(value)
            }
            Self::Status => status(row) == value,
            Self::Version => row.version.to_string() == value,
            Self::Image => is_image(&row.image, value),
            Self::Health => match row.healthy {
                Some(true) => value == "healthy",
                Some(false) => value == "unhealthy",
                None => value == "none",
            },
            Self::Id => row.container_id.as_ref().is_some_and(|id| id.0.starts_with(value)),
        }
    }
}

/// Whether an image is the one that is named, or one of that name when no tag or digest is named.
fn is_image(image: &str, named: &str) -> bool {
    let parse = |text: &str| text.parse::<ImageReference>().ok();
    let (Some(image), Some(wanted)) = (parse(image), parse(named)) else { return image == named };
    let of_name = image.registry() == wanted.registry() && image.repository() == wanted.repository();
    let names_one = named.contains('@') || named.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if names_one { image == wanted } else { of_name }
}

/// Every word that [`status`] may be.
pub(super) const STATUSES: [&str; 11] = [
    "pending",
    "assigned",
    "pulling",
    "starting",
    "running",
    "waiting",
    "stopping",
    "completed",
    "failed",
    "gone",
    "lost",
];

/// Every word for what its health check says.
pub(super) const HEALTHS: [&str; 3] = ["healthy", "unhealthy", "none"];

/// The word for how a container is doing that `--filter status=` takes.
fn status(row: &ReplicaRow) -> String {
    match row.phase {
        _ if row.lost => "lost".to_owned(),
        None => "pending".to_owned(),
        Some(phase) => format!("{phase:?}").to_lowercase(),
    }
}

#[derive(Debug, Clone)]
struct Filter {
    key: Key,
    value: String,
}

fn filter(text: &str) -> Result<Filter, String> {
    let names = || Key::ALL.map(|(name, _)| name).join(", ");
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("write KEY=VALUE; keys are {}", names()))?;
    let key = Key::ALL.iter().find(|(known, _)| *known == name).map(|(_, key)| *key);
    let key = key.ok_or_else(|| format!("`{name}` is none of the keys {}", names()))?;
    let known: &[&str] = match key {
        Key::Status => &STATUSES,
        Key::Health => &HEALTHS,
        _ => &[],
    };
    if !known.is_empty() && !known.contains(&value) {
        return Err(format!("`{value}` is none of {}", known.join(", ")));
    }
    Ok(Filter { key, value: value.to_owned() })
}

/// Whether a row is asked for: each key that is given has a value that holds.
fn passes(row: &ReplicaRow, filters: &[Filter]) -> bool {
    let keys: BTreeSet<Key> = filters.iter().map(|filter| filter.key).collect();
    keys.into_iter()
        .all(|key| filters.iter().any(|filter| filter.key == key && key.holds(row, &filter.value)))
}

pub(crate) async fn ps(client: &Client, mut args: Args) -> anyhow::Result<ExitCode> {
    let services = std::mem::take(&mut args.services);
    let named: Vec<Filter> =
        services.iter().map(|name| Filter { key: Key::Service, value: name.clone() }).collect();
    let mut shown = None;
    let mut first = true;
    loop {
        let rows = rows(client, args.all).await?;
        if std::mem::take(&mut first) {
            known_nodes(client, &rows, &args.filter).await?;
        }
        let rows: Vec<ReplicaRow> =
            rows.into_iter().filter(|row| passes(row, &named) && passes(row, &args.filter)).collect();
        if !args.watch {
            let is_shown = |name: &&String| rows.iter().any(|row| row.service.as_str() == name.as_str());
            known(client, services.iter().filter(|name| !is_shown(name))).await?;
        }
        let text = look(&rows, &args)?;
        if !args.watch {
            render::print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        if std::io::stdout().is_terminal() {
            render::print(&format!("{CLEAR}{text}"))?;
        } else if shown.as_ref() != Some(&rows) {
            render::print(&text)?;
        }
        shown = Some(rows);
        tokio::time::sleep(LOOK).await;
    }
}

fn look(rows: &[ReplicaRow], args: &Args) -> anyhow::Result<String> {
    if args.quiet {
        let ids = rows.iter().filter_map(|row| row.container_id.as_ref());
        let id = |id: &blixard_core::id::ContainerId| match args.no_trunc {
            true => format!("{}\n", id.0),
            false => format!("{}\n", id.short()),
        };
        return Ok(ids.map(id).collect());
    }
    if args.output.output == Output::Json {
        return Ok(serde_json::to_string_pretty(rows)? + "\n");
    }
    let now = text::now();
    Ok(match args.no_trunc {
        true => replica::long_table(rows, now, color::stdout()),
        false => replica::short_table(rows, now, color::stdout(), terminal::width()),
    })
}

/// The containers; with `all` those that ended, too, the newest of each slot first.
async fn rows(client: &Client, all: bool) -> anyhow::Result<Vec<ReplicaRow>> {
    if !all {
        return Ok(client.get::<List<ReplicaRow>>("/v1/replicas").await?.items);
    }
    let mut rows = client.get::<List<ReplicaRow>>("/v1/replicas?all=true").await?.items;
    let ids: BTreeSet<String> =
        rows.iter().filter_map(|row| Some(row.container_id.as_ref()?.0.clone())).collect();
    let gone = ended(client).await?;
    rows.extend(
        gone.into_iter().filter(|row| row.container_id.as_ref().is_some_and(|id| !ids.contains(&id.0))),
    );
    rows.sort_by(|a, b| {
        let key = |row: &ReplicaRow| (row.service.clone(), row.slot);
        key(a).cmp(&key(b)).then_with(|| (b.replica, b.attempt).cmp(&(a.replica, a.attempt)))
    });
    Ok(rows)
}

/// The containers that are gone; none of a node that is too old to tell.
///
/// # Errors
/// When the node does not answer.
pub(crate) async fn ended(client: &Client) -> anyhow::Result<Vec<ReplicaRow>> {
    match client.get::<List<ReplicaRow>>("/v1/ended").await {
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => Ok(Vec::new()),
        answer => Ok(answer?.items),
    }
}

/// Checks that services were named that exist.
async fn known(client: &Client, services: impl Iterator<Item = &String>) -> anyhow::Result<()> {
    for name in services {
        let path = format!("/v1/services/{}", crate::client::segment(name));
        let found: anyhow::Result<blixard_core::api::service::ServiceDetail> = client.get(&path).await;
        if let Err(error) = found
            && failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND))
        {
            let hint = "`blixard service ls` lists the services; `blixard inspect` shows one container";
            return Err(Failure::new(format!("there is no service `{name}`"), hint).into());
        }
    }
    Ok(())
}

/// Checks that filters name nodes that exist, or that something is still said to be on.
async fn known_nodes(client: &Client, rows: &[ReplicaRow], filters: &[Filter]) -> anyhow::Result<()> {
    let named = filters.iter().filter(|filter| filter.key == Key::Node);
    let unseen = named.filter(|filter| !rows.iter().any(|row| Key::Node.holds(row, &filter.value)));
    let unseen: Vec<&str> = unseen.map(|filter| filter.value.as_str()).collect();
    if unseen.is_empty() {
        return Ok(());
    }
    let nodes = node::nodes(client).await?;
    let is_known = |name: &str| nodes.iter().any(|node| node.id.to_string() == name || node.name == name);
    match unseen.into_iter().find(|name| !is_known(name)) {
        Some(name) => Err(node::unknown(name, &nodes).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::api::replica::ReplicaRow;

    use clap::{Args as _, FromArgMatches};

    use super::{Filter, STATUSES, filter, passes, status};
    use crate::client::canned::Canned;
    use crate::commands::node::tests::view;

    fn row() -> serde_json::Value {
        serde_json::json!({
            "container_id": "0123456789abcdef", "name": "web-0", "replica": 1, "service": "web",
            "slot": 0, "version": 2, "node": 3, "node_name": "box3", "image": "nginx:1",
            "phase": "running", "desired": "run", "ready": true, "healthy": false, "lost": false,
            "attempt": 0, "exit_code": null, "message": "", "since": 1, "created_at": 1,
            "address": null, "node_address": null, "ports": []
        })
    }

    #[tokio::test]
    async fn a_node_that_there_is_not_is_refused() {
        let answers = vec![
            ("/v1/nodes", 200, serde_json::json!({ "items": [view(1), view(2)] }).to_string()),
            ("/v1/replicas", 200, serde_json::json!({ "items": [row()] }).to_string()),
        ];
        let canned = Canned::new(answers);
        let ask = async |line: &str| {
            let words = std::iter::once("ps").chain(line.split_whitespace());
            let matches = super::Args::augment_args(clap::Command::new("ps")).try_get_matches_from(words);
            super::ps(&canned.client, super::Args::from_arg_matches(&matches.unwrap()).unwrap()).await
        };
        // Node 3 is a member no more; its row is still there.
        for known in ["node=1", "node=box2", "node=3", "node=box3", "node=1 --filter node=box2"] {
            ask(&format!("--filter {known}")).await.expect(known);
        }
        for unknown in ["4", "box4", "Box1"] {
            for line in [format!("--filter node={unknown}"), format!("-q --filter node=1 -f node={unknown}")]
            {
                let error = ask(&line).await.expect_err(&line);
                let text = crate::failure::text(&error, crate::render::color::Paint::Plain);
                assert!(text.starts_with(&format!("error: there is no node `{unknown}`\n")), "{text}");
                assert!(text.contains("node 1 (box1)\n") && text.contains("node 2 (box2)\n"), "{text}");
            }
        }
    }

    #[test]
    fn filters_of_one_key_are_alternatives_and_keys_add_up() {
        let row: ReplicaRow = serde_json::from_value(row()).unwrap();
        let check = |filters: &[&str], expect: bool| {
            let filters: Vec<Filter> = filters.iter().map(|text| filter(text).unwrap()).collect();
            assert_eq!(passes(&row, &filters), expect, "{filters:?}");
        };
        check(&[], true);
        check(&["service=web", "node=3", "status=running", "version=2", "health=unhealthy"], true);
        check(&["node=box3", "image=nginx", "name=web-0", "id=0123"], true);
        check(&["image=docker.io/library/nginx:1"], true);
        check(&["image=nginx:2"], false);
        check(&["image=nginx:latest"], false);
        check(&["node=2", "node=3"], true);
        check(&["node=2", "service=web"], false);
        check(&["status=lost"], false);
        assert!(filter("colour=red").unwrap_err().contains("none of the keys service, name"));
        assert!(filter("web").is_err());
        assert!(filter("status=up").unwrap_err().contains("running, waiting"));
        assert!(filter("health=good").unwrap_err().contains("unhealthy"));
        assert_eq!(status(&row), "running");
        for phase in ["pulling", "stopping", "completed", "gone"] {
            let phase = serde_json::from_value(phase.into()).unwrap();
            let word = status(&ReplicaRow { phase: Some(phase), ..row.clone() });
            assert!(STATUSES.contains(&word.as_str()), "{word}");
        }
    }
}

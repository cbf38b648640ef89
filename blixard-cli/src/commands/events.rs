//! `blixard events`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use blixard_core::api::node::NodeView;
use blixard_core::cluster::{Event, EventId, EventKind};
use blixard_core::id::NodeId;
use blixard_core::time::UtcMs;
use http::Method;

use crate::args::{Output, OutputArgs, moment};
use crate::client::Client;
use crate::commands::node;
use crate::failure::Failure;
use crate::render::color::{self, Style};
use crate::render::{self, text};

/// How long a broken stream is tried to be resumed.
const RESUME_FOR: Duration = Duration::from_secs(30);
/// The pause between two tries.
const RESUME_PAUSE: Duration = Duration::from_millis(500);

/// The keys of filters.
pub(super) const KEYS: [&str; 4] = ["service", "node", "replica", "kind"];

/// Show what happened in the cluster, and with -f what happens
///
/// The stream resumes by itself when the connection breaks. With -o json each line is one event;
/// the index and n of its id, as INDEX.N, are what --after takes.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  blixard events\n  blixard events -f\n  blixard events -o json --after 812.0\n  blixard events --since 10m --filter service=web --filter kind=replica-changed"
)]
pub(crate) struct Args {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Only what happened after this event
    #[arg(long, value_name = "INDEX.N", value_parser = parse_position)]
    after: Option<EventId>,
    /// Only what happened since then: a time such as 2026-11-21T08:30:00Z, or how long ago: 10m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<UtcMs>,
    /// Only what happened until then; with -f the command ends at that time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<UtcMs>,
    /// Only of this service, node, replica or kind: service=web, node=2 or a node's name, replica=web-0,
    /// kind=replica-lost
    /// (repeatable: one of the values of a key, and every key)
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = parse_filter)]
    filters: Vec<Filter>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What events are shown of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Service(String),
    Node(NodeId),
    /// By its number or name, until it is found which that is.
    NodeNamed(String),
    /// By its number, or by its name: the service and the slot.
    Replica(String),
    Kind(EventKind),
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as service=web")?;
    match key {
        "service" => Ok(Filter::Service(value.to_owned())),
        "node" => Ok(Filter::NodeNamed(value.to_owned())),
        "replica" => Ok(Filter::Replica(value.to_owned())),
        "kind" | "event" | "type" => {
            // The error lists every kind there is.
            let kind = serde_json::from_value(serde_json::Value::from(value)).map(Filter::Kind);
            kind.map_err(|error| error.to_string().replace("variant", "kind"))
        }
        _ => Err(format!("`{key}` is not a key: there are {}", KEYS.join(", "))),
    }
}

impl Filter {
    /// Whether two filters are about the same.
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    fn admits(&self, event: &Event) -> bool {
        match self {
            Self::Service(name) => event.service.as_ref().is_some_and(|service| service.as_str() == name),
            Self::Node(id) => event.node == Some(*id),
            Self::NodeNamed(_) => false,
            Self::Kind(kind) => event.kind == *kind,
            Self::Replica(named) => {
                let number = event.replica.map(|replica| replica.to_string());
                // An event about a replica begins with its name, and where it is.
                let name = event.message.split(' ').next();
                number.is_some() && (number.as_ref() == Some(named) || name == Some(named.as_str()))
            }
        }
    }
}

impl Args {
    /// Puts numbers in the place of what nodes are called. `told` are those that there are events of:
    /// one of them may be a member no more.
    fn find_nodes(&mut self, nodes: &[NodeView], told: &BTreeSet<NodeId>) -> Result<(), Failure> {
        let mut found = Vec::new();
        for filter in std::mem::take(&mut self.filters) {
            let Filter::NodeNamed(named) = &filter else {
                found.push(filter);
                continue;
            };
            let number: Option<NodeId> = named.parse().ok();
            let is_known = |id: &NodeId| nodes.iter().any(|node| node.id == *id) || told.contains(id);
            let ids: Vec<NodeId> = match number.filter(is_known) {
                Some(id) => vec![id],
                None => nodes.iter().filter(|node| node.name == *named).map(|node| node.id).collect(),
            };
            if ids.is_empty() {
                return Err(node::unknown(named, nodes));
            }
            found.extend(ids.into_iter().map(Filter::Node));
        }
        self.filters = found;
        Ok(())
    }

    /// Whether an event is one of those asked for.
    fn admits(&self, event: &Event) -> bool {
        let in_time = self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at <= until);
        let admitted = |filter: &Filter| {
            self.filters.iter().filter(|other| other.is_like(filter)).any(|other| other.admits(event))
        };
        in_time && self.filters.iter().all(admitted)
    }
}

fn parse_position(text: &str) -> Result<EventId, String> {
    let parsed = text.split_once('.').and_then(|(index, n)| Some((index.parse().ok()?, n.parse().ok()?)));
    parsed.map(|(index, n)| EventId { index, n }).ok_or_else(|| "use INDEX.N, such as 812.0".to_owned())
}

/// Finds out which nodes are meant.
async fn find_nodes(client: &Client, args: &mut Args) -> anyhow::Result<()> {
    if !args.filters.iter().any(|filter| matches!(filter, Filter::NodeNamed(_))) {
        return Ok(());
    }
    let nodes = node::nodes(client).await?;
    let mut tried = args.clone();
    if tried.find_nodes(&nodes, &BTreeSet::new()).is_err() {
        // Of one that left there may be events.
        let mut told = BTreeSet::new();
        let mut lines = client.lines::<Event>(Method::GET, "/v1/events?follow=false", None).await?;
        while let Some(event) = lines.next().await? {
            told.extend(event.node);
        }
        args.find_nodes(&nodes, &told)?;
        return Ok(());
    }
    *args = tried;
    Ok(())
}

pub(crate) async fn events(client: &Client, mut args: Args) -> anyhow::Result<ExitCode> {
    find_nodes(client, &mut args).await?;
    let Some(until) = args.until.filter(|_| args.follow) else { return show(client, &args).await };
    let left = until.since(text::now());
    if left.is_zero() {
        // Nothing is left to be waited for: what there was is shown in full.
        args.follow = false;
        return show(client, &args).await;
    }
    // Cancel safe: what was printed is printed.
    tokio::select! {
        biased;
        shown = show(client, &args) => shown,
        () = tokio::time::sleep(left) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints events until the stream ends for good.
async fn show(client: &Client, args: &Args) -> anyhow::Result<ExitCode> {
    let mut after = args.after;
    let mut broken_since: Option<Instant> = None;
    loop {
        let error = match stream(client, args, &mut after, &mut broken_since).await {
            Ok(()) if !args.follow => return Ok(ExitCode::SUCCESS),
            Ok(()) => None,
            Err(error) if crate::failure::is_output_closed(&error) => return Err(error),
            Err(error) => Some(error),
        };
        let since = *broken_since.get_or_insert_with(Instant::now);
        let never_worked = after == args.after && error.is_some();
        if let Some(error) = error
            && (!args.follow || never_worked || since.elapsed() > RESUME_FOR)
        {
            return Err(error);
        }
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

/// Prints one stream to its end.
async fn stream(
    client: &Client,
    args: &Args,
    after: &mut Option<EventId>,
    broken_since: &mut Option<Instant>,
) -> anyhow::Result<()> {
    let mut path = format!("/v1/events?follow={}", args.follow);
    if let Some(EventId { index, n }) = after {
        path.push_str(&format!("&after={index}.{n}"));
    }
    let mut lines = client.lines::<Event>(Method::GET, &path, None).await?;
    *broken_since = None;
    if lines.has_gap() {
        render::warn("some events before the first one shown are forgotten");
    }
    while let Some(event) = lines.next().await? {
        *after = Some(event.id);
        if !args.admits(&event) {
            continue;
        }
        match args.output.output {
            Output::Json => render::line(&serde_json::to_string(&event)?)?,
            Output::Table => render::line(&line(&event))?,
        }
    }
    Ok(())
}

fn line(event: &Event) -> String {
    let kind = serde_json::to_value(event.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default();
    let at = color::stdout().apply(Style::Dim, &event.at.to_string());
    let by = event.by.as_ref().map(|by| format!(" (by {by})")).unwrap_or_default();
    format!("{at}  {kind:<17}  {}{by}", text::printable(&event.message))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::api::node::NodeView;
    use blixard_core::cluster::{Event, EventId, EventKind};
    use blixard_core::id::{NodeId, ReplicaId};
    use blixard_core::time::UtcMs;
    use clap::{Args as _, FromArgMatches};

    use crate::client::canned::Canned;
    use crate::commands::node::tests::view;

    fn args(line: &str) -> super::Args {
        let words = std::iter::once("events").chain(line.split_whitespace());
        let matches = super::Args::augment_args(clap::Command::new("events")).try_get_matches_from(words);
        super::Args::from_arg_matches(&matches.unwrap()).unwrap()
    }

    /// An event of nothing in particular.
    fn event(at: u64, kind: EventKind, message: &str) -> Event {
        let id = EventId { index: 3, n: 0 };
        let message = message.to_owned();
        Event { id, at: UtcMs(at), kind, service: None, replica: None, node: None, message, by: None }
    }

    fn nodes() -> Vec<NodeView> {
        [1, 2].map(|id| serde_json::from_value(view(id)).unwrap()).into()
    }

    #[tokio::test]
    async fn nodes_are_named_by_number_or_name_and_unknown_ones_are_refused() {
        let list = serde_json::json!({ "items": [view(1), view(2)] }).to_string();
        let left = event(5, EventKind::ReplicaLost, "node 7 (box7) is down");
        let event = Event { node: Some(NodeId(7)), ..left };
        let log = serde_json::to_string(&event).unwrap() + "\n";
        let canned = Canned::new(vec![("/v1/nodes", 200, list), ("/v1/events", 200, log)]);
        let ask = async |line: &str| super::events(&canned.client, args(line)).await;
        for known in ["", "--filter node=2", "--filter node=box2", "--filter node=box1 --filter node=2"] {
            ask(known).await.expect(known);
        }
        // It is a member no more, and what happened to it is still told.
        ask("--filter node=7").await.expect("it left");
        for unknown in ["3", "box3", "Box2", ""] {
            let error = ask(&format!("--filter node={unknown}")).await.expect_err(unknown);
            let text = crate::failure::text(&error, crate::render::color::Paint::Plain);
            assert!(text.starts_with(&format!("error: there is no node `{unknown}`\n")), "{text}");
            assert!(text.contains("node 1 (box1)\n") && text.contains("node 2 (box2)\n"), "{text}");
        }
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(
            super::line(&event(0, EventKind::ReplicaPlaced, "web-0 goes to node 2\n")),
            "1970-01-01T00:00:00.000Z  replica-placed     web-0 goes to node 2\\n"
        );
    }

    #[test]
    fn filters_narrow_by_key_and_widen_by_value() {
        let event = |service: &str, kind, at| Event {
            service: Some(service.parse().unwrap()),
            replica: Some(ReplicaId(7)),
            node: Some(NodeId(2)),
            ..event(at, kind, &format!("{service}-0 on node 2 is placed, version 1"))
        };
        let check = |line: &str, expect: [bool; 3]| {
            let mut args = args(line);
            args.find_nodes(&nodes(), &BTreeSet::new()).unwrap();
            let shown = [
                event("web", EventKind::ReplicaPlaced, 5),
                event("db", EventKind::ReplicaPlaced, 6),
                event("web", EventKind::ReplicaLost, 7),
            ]
            .map(|event| args.admits(&event));
            assert_eq!(shown, expect, "{line}");
        };
        check("", [true; 3]);
        check("--filter service=web", [true, false, true]);
        check("--filter service=web --filter service=db", [true; 3]);
        check("--filter service=web --filter kind=replica-lost", [false, false, true]);
        check("--filter replica=web-0", [true, false, true]);
        check("--filter replica=7 --filter node=2", [true; 3]);
        check("--filter node=1", [false; 3]);
        check("--filter node=box1", [false; 3]);
        check("--filter node=box2", [true; 3]);
        check("--filter node=box1 --filter node=box2", [true; 3]);
        check("--since 1970-01-01T00:00:00.006Z", [false, true, true]);
        check("--until 1970-01-01T00:00:00.006Z", [true, true, false]);
        for wrong in ["web", "name=web", "kind=boom"] {
            assert!(super::parse_filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn positions_have_two_numbers() {
        assert_eq!(super::parse_position("812.3"), Ok(EventId { index: 812, n: 3 }));
        assert!(super::parse_position("812").is_err());
        assert!(super::parse_position("x.1").is_err());
    }
}

//! `blixard discover` and `blixard peer`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::discovery::{DiscoveryView, LinkState, LinkView, SourceView};
use clap::Subcommand;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::render::color::{self, Paint, Style};
use crate::render::table::Table;
use crate::render::{self, text};

/// How many digits of a key are shown.
const KEY_CHARS: usize = 16;

/// Show how a node finds others: each of its sources, and what it said
///
/// Sources are what `blixard node --join` was given, and discovery-peers.json in the data directory.
/// What they name is where to ask; who is a member is the cluster's to say (`blixard node ls`).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard discover\n  blixard discover -o json")]
pub(crate) struct DiscoverArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Show a node's links to the other members
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard peer ls")]
pub(crate) struct PeerArgs {
    #[command(subcommand)]
    command: PeerCommand,
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// List the other members: how the link to each is, its round trip, and which source names it
    #[command(visible_alias = "list", after_help = "Example:\n  blixard peer ls\n  blixard peer ls -o json")]
    Ls(OutputArgs),
}

pub(crate) async fn discover(client: &Client, args: DiscoverArgs) -> anyhow::Result<ExitCode> {
    let view: DiscoveryView = client.get("/v1/discovery").await?;
    match args.output.output {
        Output::Json => render::json(&view)?,
        Output::Table => render::print(&sources(&view.sources, color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn peer(client: &Client, args: PeerArgs) -> anyhow::Result<ExitCode> {
    let PeerCommand::Ls(output) = args.command;
    let list: List<LinkView> = client.get("/v1/links").await?;
    match output.output {
        Output::Json => render::json(&list.items)?,
        Output::Table => render::print(&links(&list.items, color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn sources(sources: &[SourceView], paint: Paint) -> String {
    let now = text::now();
    let mut table = Table::new(&["SOURCE", "STATUS", "LOOKED AT", "KEY", "MEMBER", "ADDRESSES"], paint);
    for source in sources {
        let status = match source.failures {
            _ if source.looked_at.is_none() => "not looked at yet".to_owned(),
            0 => "ok".to_owned(),
            failures => format!("failed {failures} times"),
        };
        let looked = source.looked_at.map(|at| text::ago(now, at)).unwrap_or_default();
        let mut begin = [text::printable(&source.name), status, looked];
        if source.contacts.is_empty() {
            let [name, status, looked] = begin.clone();
            table.row([name, status, looked, String::new(), String::new(), String::new()]);
        }
        for contact in &source.contacts {
            let [name, status, looked] = begin.clone();
            let key = contact.key.to_string();
            let member = match contact.member {
                Some(id) => format!("node {id}"),
                None if contact.named => "no".to_owned(),
                None => "no (found only)".to_owned(),
            };
            let key = key.get(..KEY_CHARS).unwrap_or(&key).to_owned();
            table.row([name, status, looked, key, member, contact.addresses.join(", ")]);
            begin = Default::default();
        }
    }
    let problems = sources.iter().filter_map(|source| source.problem.as_deref());
    let problems = problems.map(|problem| format!("{}\n", text::printable(problem)));
    if sources.is_empty() {
        return "no sources: this node was given nothing to find others by, and knows them from the cluster\n"
            .to_owned();
    }
    table.render() + &problems.collect::<String>()
}

fn links(links: &[LinkView], paint: Paint) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "LINK", "ADDRESS", "ROUND TRIP", "FAILURES", "SOURCES"], paint);
    for link in links {
        let (state, style) = match link.state {
            LinkState::Connected => ("connected", Style::Green),
            LinkState::Connecting => ("connecting", Style::Yellow),
            LinkState::HalfOpen => ("half-open", Style::Yellow),
            LinkState::Open => ("open", Style::Red),
        };
        table.row([
            link.id.to_string(),
            text::printable(&link.name),
            state.to_owned(),
            link.address.clone().or(link.addresses.first().cloned()).unwrap_or_default(),
            link.rtt_us.map(|rtt| round_trip(Duration::from_micros(rtt))).unwrap_or_default(),
            link.failures.to_string(),
            text::printable(&link.sources.join(", ")),
        ]);
        table.style(2, Some(style));
    }
    let errors = links.iter().filter(|link| link.state != LinkState::Connected);
    let errors = errors.filter_map(|link| Some((link.id, link.error.as_deref()?)));
    let errors = errors.map(|(id, error)| format!("node {id}: {}\n", text::printable(error)));
    table.render() + &errors.collect::<String>()
}

fn round_trip(time: Duration) -> String {
    let micros = time.as_micros();
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use blixard_core::api::discovery::{LinkView, SourceView};
    use serde_json::json;

    use super::{links, sources};
    use crate::render::color::Paint;

    #[test]
    fn sources_and_links_look_like_this() {
        let contact = |key: &str, member: Option<u64>, named: bool| {
            json!({"key": key.repeat(32), "node": null, "cluster": null, "addresses": ["10.0.0.1:7001"],
                   "named": named, "member": member})
        };
        let views: Vec<SourceView> = serde_json::from_value(json!([
            {"name": "file r.json", "looked_at": 0, "problem": null, "failures": 0,
             "contacts": [contact("01", Some(1), true), contact("02", None, false)]},
            {"name": "box1:7001", "looked_at": null, "problem": "box1:7001: no member there", "failures": 2,
             "contacts": []}
        ]))
        .unwrap();
        let shown = sources(&views, Paint::Plain);
        let words: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|word| !word.is_empty()).collect())
            .collect();
        assert_eq!(words[1][0], "file r.json");
        assert_eq!(words[1][3..], ["0101010101010101", "node 1", "10.0.0.1:7001"]);
        assert_eq!(words[2], ["0202020202020202", "no (found only)", "10.0.0.1:7001"]);
        assert_eq!(words[3], ["box1:7001", "not looked at yet"]);
        assert_eq!(words[4], ["box1:7001: no member there"]);
        assert!(sources(&[], Paint::Plain).starts_with("no sources"));

        let views: Vec<LinkView> = serde_json::from_value(json!([
            {"id": 2, "name": "box2", "key": "02".repeat(32), "state": "connected", "address": "10.0.0.2:7001",
             "rtt_us": 1234, "failures": 0, "error": null, "addresses": [], "sources": ["file r.json"]},
            {"id": 3, "name": "box3", "key": "03".repeat(32), "state": "half-open", "address": null,
             "rtt_us": null, "failures": 4, "error": "no answer", "addresses": ["10.0.0.3:7001"], "sources": []}
        ]))
        .unwrap();
        assert_eq!(
            links(&views, Paint::Plain),
            "\
ID   NAME   LINK        ADDRESS         ROUND TRIP   FAILURES   SOURCES
2    box2   connected   10.0.0.2:7001   1.2 ms       0          file r.json
3    box3   half-open   10.0.0.3:7001                4
node 3: no answer
"
        );
    }
}

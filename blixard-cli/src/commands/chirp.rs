//! `blixard chirp`: listens on the local network by itself; no node is asked.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::discovery::announce::AnnouncedContainer;
use blixard_node::mdns::{self, Interfaces};

use crate::args::{Output, OutputArgs, time};
use crate::failure::Failure;
use crate::render::{self, text};

/// How wide the columns are at least: rows are shown as they come.
const COLUMNS: [(&str, usize); 6] =
    [("CONTAINER ID", 12), ("NAME", 20), ("IP", 15), ("PORT", 5), ("IMAGE", 28), ("NODE", 0)];
/// How many digits of an id are shown.
const ID_CHARS: usize = 12;

/// List the containers that nodes on the local network announce, of any cluster
///
/// Listens by mDNS and shows each container as it is heard. It asks no node, and works on a machine that
/// runs none. What is announced is anybody's word: nothing is connected to.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard chirp\n  blixard chirp --timeout 10\n  blixard chirp -o json")]
pub(crate) struct Args {
    /// How long to listen, in seconds or as 1m30s
    #[arg(long, default_value = "3s", value_name = "TIME", value_parser = time)]
    timeout: Duration,
    /// Listen on this interface (repeatable) [default: all but loopback and those of containers]
    #[arg(short, long, value_name = "NAME")]
    interface: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Listens, and prints what is heard.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let interfaces = match args.interface {
        names if names.is_empty() => Interfaces::Outward,
        names => Interfaces::Named(names),
    };
    let shows = args.output.output == Output::Table;
    let mut heard: BTreeMap<String, AnnouncedContainer> = BTreeMap::new();
    let mut printing = Ok(());
    if shows {
        render::print(&row(COLUMNS.map(|(heading, _)| heading.to_owned())))?;
    }
    let more = mdns::scan(&interfaces, args.timeout, |container| {
        if shows && printing.is_ok() {
            printing = render::print(&row(cells(&container)));
        }
        heard.insert(container.container_id.clone(), container);
    });
    let more = more.map_err(|error| {
        Failure::new(
            error.to_string(),
            "is UDP port 5353 closed, or used by a program that shares it with nobody?",
        )
    })?;
    printing?;
    if !shows {
        let containers: Vec<&AnnouncedContainer> = heard.values().collect();
        render::json(&containers)?;
    } else if heard.is_empty() {
        let seconds = args.timeout.as_secs_f32();
        render::note(&format!(
            "nobody announced a container within {seconds} s: --timeout listens for longer, --interface elsewhere; see docs/discovery.md"
        ));
    }
    if more {
        render::warn("more is announced than is shown");
    }
    Ok(ExitCode::SUCCESS)
}

fn cells(container: &AnnouncedContainer) -> [String; 6] {
    let id = container.container_id.chars().take(ID_CHARS).collect::<String>();
    [
        text::printable(&id),
        text::printable(&container.name),
        container.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        container.port.map(|port| port.to_string()).unwrap_or_default(),
        text::image(&container.image),
        text::printable(&container.node),
    ]
}

fn row(cells: [String; 6]) -> String {
    let mut line = String::new();
    for (cell, (_, width)) in cells.into_iter().zip(COLUMNS) {
        line.push_str(&format!("{cell:width$}   "));
    }
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use blixard_core::discovery::announce::AnnouncedContainer;

    use super::{COLUMNS, cells, row};

    #[test]
    fn containers_look_like_this_and_act_on_no_terminal() {
        let container = AnnouncedContainer {
            container_id: "abc123456789fedc".to_owned(),
            name: "webapp".to_owned(),
            ip: Some("192.168.1.5".parse().unwrap()),
            port: Some(8080),
            image: "nginx:alpine\x1b[2J".to_owned(),
            node: "laptop\n".to_owned(),
        };
        assert_eq!(
            row(COLUMNS.map(|(heading, _)| heading.to_owned())) + &row(cells(&container)),
            "\
CONTAINER ID   NAME                   IP                PORT    IMAGE                          NODE
abc123456789   webapp                 192.168.1.5       8080    nginx:alpine\\x1b[2J            laptop\\n
"
        );
    }
}

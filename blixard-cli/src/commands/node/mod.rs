//! `blixard node`: with options the daemon; with a subcommand, a question to a running cluster or
//! a clean-up of this machine. The only user of the node crate.

mod daemon;
mod moving;
mod rebalance;

use std::process::ExitCode;

use anyhow::anyhow;
use blixard_core::api::node::{NodeView, Role};
use blixard_core::api::{List, WriteAnswer};
use blixard_core::cluster::{Availability, NodeStatus};
use blixard_node::config::NodeOptions;
use clap::Subcommand;

use self::daemon::DaemonArgs;
use crate::args::{Connection, Output, OutputArgs, WaitArgs};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::render::color::{self, Paint, Style};
use crate::render::table::Table;
use crate::render::{self, text};

/// Run this machine's node, or ask the cluster about its nodes
///
/// Without a subcommand this is the daemon: it stays in the foreground and runs this machine's
/// part of the cluster. With nothing to join it makes a new cluster, and says how the
/// next machine joins it. Ctrl-C stops the daemon and leaves its containers running; the next
/// start takes them over.
///
/// With a subcommand it is a client, like every other command: it asks a node that runs already.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Questions to a running node",
    override_usage = "blixard node [OPTIONS]      run this machine's node (the daemon)\n       blixard node <COMMAND>      ask a running node about the cluster's nodes",
    after_help = "Example:\n  blixard node --id 1 --bind 10.77.0.1:7001                              the first node\n  blixard node --id 2 --bind 10.77.0.2:7001 --join node-registry.json    a second one\n  blixard node --join 10.77.0.1:7001 --token-file token                  by address\n  blixard node --join mdns --token-file token                            by mDNS\n  blixard node ls                                                        from either\n\nEnvironment (flags win):\n  BLIXARD_NODE_REGISTRIES   registry files, separated by commas, like --join\n  BLIXARD_JOIN              a ticket, like --join -\n  BLIXARD_JOIN_TOKEN        a token to join by, like --token-file -\n  HTTP_PORT                 like --http\n  NAME                      like --name\n  BLIXARD_LOG               like --log"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    Ask(Question),
    /// Remove everything a node left on this machine: containers, networks, rules, data
    ///
    /// The daemon must be stopped. The cluster is not asked: remove the node from it as well, with
    /// `blixard node rm ID --force` on another one.
    #[command(
        after_help = "Example:\n  blixard node purge --yes\n  blixard --data-dir ./data/node2 node purge --yes --images"
    )]
    Purge {
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Also the images it pulled
        #[arg(long)]
        images: bool,
    },
}

/// What a running node is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Question {
    /// List the nodes of the cluster
    #[command(visible_alias = "list", after_help = "Example:\n  blixard node ls\n  blixard node ls -o json")]
    Ls(OutputArgs),
    /// Move a node's replicas elsewhere and give it no new ones
    #[command(after_help = "Example:\n  blixard node drain 2\n  blixard node activate 2    afterwards")]
    Drain(moving::Args),
    /// Give a drained node replicas again
    #[command(after_help = "Example:\n  blixard node activate 2")]
    Activate {
        /// The node's number or name
        #[arg(value_name = "ID")]
        node: String,
    },
    /// Even out how replicas are spread over the nodes, as after a node returned
    ///
    /// Moves one container after another: its replacement starts on the emptier node, and once that
    /// runs the old one stops. Constraints and room are kept; what volumes pin, what is on the host's
    /// network and services that are changing stay where they are. Nothing is moved without this
    /// command.
    #[command(after_help = "Example:\n  blixard node rebalance --dry-run\n  blixard node rebalance")]
    Rebalance(rebalance::Args),
    /// Move a node's replicas elsewhere, then remove it from the cluster
    #[command(after_help = "Example:\n  blixard node leave 2")]
    Leave(moving::Args),
    /// Remove a dead node from the cluster for good
    #[command(after_help = "Example:\n  blixard node rm 3 --force")]
    Rm {
        /// The node's number or name
        #[arg(value_name = "ID")]
        node: String,
        /// Also when it is up or still holds replicas
        #[arg(long)]
        force: bool,
    },
    /// Stop the containers of the node that is asked, and give it no new ones
    ///
    /// Their services go on elsewhere where they can. The daemon keeps running; `blixard node
    /// activate ID` undoes it.
    #[command(after_help = "Example:\n  blixard node down")]
    Down(WaitArgs),
}

/// What is to be done.
pub(crate) enum Task {
    /// On this machine, without asking a node.
    Here(Local),
    /// By asking a node.
    Ask(Question),
}

/// What runs on this machine without asking a node.
pub(crate) enum Local {
    Daemon(Box<NodeOptions>),
    Purge { options: Box<NodeOptions>, images: bool, yes: bool },
}

impl Args {
    /// What is to be done.
    pub(crate) fn task(self, connection: &Connection) -> Task {
        match self.verb {
            Some(Verb::Ask(question)) => Task::Ask(question),
            None => Task::Here(Local::Daemon(Box::new(self.daemon.options(connection)))),
            Some(Verb::Purge { yes, images }) => {
                Task::Here(Local::Purge { options: Box::new(self.daemon.options(connection)), images, yes })
            }
        }
    }
}

impl Local {
    /// Runs it to its end.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Daemon(options) => blixard_node::daemon::run(*options).or_else(|error| {
                let code = blixard_node::daemon::exit_code(&*error);
                crate::report(&anyhow!(error));
                Ok(code)
            }),
            Self::Purge { yes: false, .. } => Err(Failure::new(
                "purge removes this node's containers, networks and data for good",
                "say --yes when you mean it",
            )
            .into()),
            Self::Purge { options, images, .. } => {
                blixard_node::purge::purge(*options, images).map_err(|error| anyhow!(error))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Asks a node.
pub(crate) async fn ask(client: &Client, question: Question) -> anyhow::Result<ExitCode> {
    match question {
        Question::Ls(output) => list(client, output).await,
        Question::Drain(args) => moving::drain(client, args).await,
        Question::Leave(args) => moving::leave(client, args).await,
        Question::Rebalance(args) => rebalance::rebalance(client, args).await,
        Question::Down(args) => moving::down(client, args).await,
        Question::Activate { node } => {
            let _: WriteAnswer = client.post_empty(&format!("/v1/nodes/{}/activate", segment(&node))).await?;
            render::line(&node)?;
            Ok(ExitCode::SUCCESS)
        }
        Question::Rm { node, force } => {
            let _: WriteAnswer =
                client.delete(&format!("/v1/nodes/{}?force={force}", segment(&node))).await?;
            render::line(&node)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Every node of the cluster.
///
/// # Errors
/// When the node does not answer.
pub(crate) async fn nodes(client: &Client) -> anyhow::Result<Vec<NodeView>> {
    Ok(client.get::<List<NodeView>>("/v1/nodes").await?.items)
}

/// That there is no node of that number or name, and which there are.
pub(crate) fn unknown(node: &str, known: &[NodeView]) -> Failure {
    let known = known.iter().map(|node| format!("node {} ({})", node.id, text::printable(&node.name)));
    let hint = "name one of these; `blixard node ls` tells more of them";
    Failure::new(format!("there is no node `{node}`"), hint).with_details(known.collect())
}

async fn list(client: &Client, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let nodes = nodes(client).await?;
    match output.output {
        Output::Json => render::json(&nodes)?,
        Output::Table => render::print(&table(&nodes, color::stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(nodes: &[NodeView], paint: Paint) -> String {
    let headings =
        ["ID", "NAME", "ROLE", "STATUS", "AVAILABILITY", "ADDRESS", "REPLICAS", "CPU", "MEMORY", "VERSION"];
    let mut table = Table::new(&headings, paint);
    for node in nodes {
        let cpus = |millis: u64| format!("{}.{}", millis / 1000, millis % 1000 / 100);
        table.row([
            node.id.to_string(),
            text::printable(&node.name),
            role(node.role).to_owned(),
            status(node.status).to_owned(),
            availability(node).to_owned(),
            node.addresses.first().cloned().unwrap_or_default(),
            node.replicas.to_string(),
            format!("{}/{}", cpus(node.cpu_millis_reserved), cpus(node.cpu_millis)),
            format!("{}/{}", text::bytes(node.memory_bytes_reserved), text::bytes(node.memory_bytes)),
            text::printable(&node.version),
        ]);
        table.style(
            3,
            Some(match node.status {
                NodeStatus::Up => Style::Green,
                NodeStatus::Unknown => Style::Yellow,
                NodeStatus::Down => Style::Red,
            }),
        );
    }
    let warnings = nodes.iter().flat_map(|node| &node.warnings);
    let lines = warnings.map(|warning| format!("{}\n", text::printable(warning)));
    table.render() + &lines.collect::<String>()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Joining => "joining",
    }
}

fn status(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Up => "up",
        NodeStatus::Unknown => "unknown",
        NodeStatus::Down => "down",
    }
}

fn availability(node: &NodeView) -> &'static str {
    match node.availability {
        Availability::Active => "active",
        Availability::Draining if node.replicas == 0 => "drained",
        Availability::Draining => "draining",
        Availability::Leaving => "leaving",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use blixard_core::api::node::NodeView;
    use blixard_core::cluster::Availability;

    use crate::render::color::Paint;

    /// A node `boxN`, as the API tells of it.
    pub(crate) fn view(id: u64) -> serde_json::Value {
        serde_json::json!({
            "id": id, "name": format!("box{id}"), "role": "leader", "status": "up", "status_since": 0,
            "availability": "active", "hold_until": null, "key": "01".repeat(32),
            "addresses": ["10.77.0.1:7001"], "subnet": "10.210.1.0/24", "labels": {}, "replicas": 2,
            "cpu_millis": 4000, "cpu_millis_reserved": 1500, "memory_bytes": 8_589_934_592_u64,
            "memory_bytes_reserved": 0, "arch": "amd64", "os": "linux", "version": "0.1.0", "joined_at": 0
        })
    }

    #[test]
    fn node_ls_looks_like_this() {
        let node: NodeView = serde_json::from_value(view(1)).unwrap();
        let drained = NodeView { availability: Availability::Draining, replicas: 0, ..node.clone() };
        let node = NodeView { warnings: vec!["node 1 runs twice".to_owned()], ..node };
        assert_eq!(
            super::table(&[node, drained], Paint::Plain),
            "\
ID   NAME   ROLE     STATUS   AVAILABILITY   ADDRESS          REPLICAS   CPU       MEMORY        VERSION
1    box1   leader   up       active         10.77.0.1:7001   2          1.5/4.0   0 B/8.0 GiB   0.1.0
1    box1   leader   up       drained        10.77.0.1:7001   0          1.5/4.0   0 B/8.0 GiB   0.1.0
node 1 runs twice
"
        );
    }
}

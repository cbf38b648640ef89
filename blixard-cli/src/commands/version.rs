//! `blixard version`

use std::process::ExitCode;

use blixard_core::api::List;
use blixard_core::api::node::{ClusterStatus, NodeView};
use blixard_core::cluster::level::LEVEL;
use blixard_core::id::NodeId;
use serde::Serialize;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::render::{self, text};

/// Show the versions of this program, of the nodes and of what they share
///
/// The feature level is the highest that every node knows; it rises by itself once all are
/// upgraded. Without a node that answers only this program's version is shown, and the exit code
/// is 1; --client asks none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard version\n  blixard version --client\n  blixard version -o json")]
pub(crate) struct Args {
    /// Only this program's: ask no node
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Versions {
    client: Program,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Cluster>,
}

#[derive(Debug, Serialize)]
struct Program {
    version: &'static str,
    /// The highest feature level it knows.
    level: u16,
}

/// What a cluster says of its versions.
#[derive(Debug, Serialize)]
pub(crate) struct Cluster {
    /// The node that answered.
    node: NodeId,
    /// The feature level that every node knows.
    level: u16,
    nodes: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    id: NodeId,
    name: String,
    version: String,
}

/// Shows what `asking` a node answers beside this program's own.
pub(crate) fn run(args: &Args, asking: impl FnOnce() -> anyhow::Result<Cluster>) -> anyhow::Result<ExitCode> {
    let client = Program { version: env!("CARGO_PKG_VERSION"), level: LEVEL };
    let answer = if args.client { Ok(None) } else { asking().map(Some) };
    let (cluster, failed) = match answer {
        Ok(cluster) => (cluster, None),
        Err(error) => (None, Some(error)),
    };
    let versions = Versions { client, cluster };
    match args.output.output {
        Output::Json => render::json(&versions)?,
        Output::Table => render::print(&describe(&versions))?,
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Asks a node.
pub(crate) async fn ask(client: &Client) -> anyhow::Result<Cluster> {
    let status: ClusterStatus = client.get("/v1/cluster").await?;
    let nodes: List<NodeView> = client.get("/v1/nodes").await?;
    let member = |node: NodeView| Member { id: node.id, name: node.name, version: node.version };
    let nodes = nodes.items.into_iter().map(member).collect();
    Ok(Cluster { node: status.node, level: status.level, nodes })
}

fn describe(versions: &Versions) -> String {
    let Program { version, level } = &versions.client;
    let mut lines = vec![("Client".to_owned(), format!("{version}, knows feature level {level}"))];
    if let Some(cluster) = &versions.cluster {
        for member in &cluster.nodes {
            let asked = if member.id == cluster.node { ", answered" } else { "" };
            let name = text::printable(&member.name);
            let version = text::printable(&member.version);
            lines.push((format!("Node {}", member.id), format!("{version} ({name}{asked})")));
        }
        lines.push(("Feature level".to_owned(), cluster.level.to_string()));
    }
    lines.iter().map(|(key, value)| format!("{:<15}{value}\n", format!("{key}:"))).collect()
}

#[cfg(test)]
mod tests {
    use blixard_core::id::NodeId;

    use super::{Cluster, Member, Program, Versions, describe};

    #[test]
    fn versions_look_like_this() {
        let member =
            |id, version: &str| Member { id: NodeId(id), name: format!("box{id}"), version: version.into() };
        let cluster =
            Cluster { node: NodeId(2), level: 1, nodes: vec![member(1, "0.1.0"), member(2, "0.2.0")] };
        let versions = Versions { client: Program { version: "0.2.0", level: 2 }, cluster: Some(cluster) };
        assert_eq!(
            describe(&versions),
            "\
Client:        0.2.0, knows feature level 2
Node 1:        0.1.0 (box1)
Node 2:        0.2.0 (box2, answered)
Feature level: 1
"
        );
    }
}

//! `blixard completion`, and what it completes: names that the cluster has at that moment.
//!
//! The script that a shell is given asks this program for every completion, so that it knows all
//! commands and options by itself, and services, containers, images and so on by asking a node. Which
//! arguments those are follows from how the help calls them, so that a new command has it without
//! more.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::image::ImageRow;
use blixard_core::api::node::NodeView;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::ServiceRow;
use blixard_core::api::volume::VolumeRow;
use clap::{Arg, Command, CommandFactory, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use serde::de::DeserializeOwned;

use crate::args::Connection;
use crate::cli::Cli;
use crate::client::Client;
use crate::render::{self, replica, text};

/// How long a node has to answer: nobody waits long after pressing a key.
const PATIENCE: Duration = Duration::from_millis(800);
/// The variable by which the script asks this program.
const VARIABLE: &str = "BLIXARD_COMPLETE";

/// Print the script that teaches a shell to complete commands and names
///
/// Services, containers and nodes are those of the cluster at the moment the key is pressed: a node
/// is asked, the one that BLIXARD_HOST, BLIXARD_DATA_DIR or the same options on the line name.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  source <(blixard completion bash)                                      for this shell\n  blixard completion bash > /etc/bash_completion.d/blixard               for all\n  blixard completion zsh > /usr/local/share/zsh/site-functions/_blixard\n  blixard completion fish > ~/.config/fish/completions/blixard.fish"
)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells.completer(name).expect("the three are among the built-in shells");
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "blixard", "blixard", "blixard", &mut script)?;
    render::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell that asks for completions, and ends the process then; else does nothing.
pub(crate) fn answer() {
    CompleteEnv::with_factory(|| complete_names(Cli::command())).var(VARIABLE).complete();
}

/// The command with candidates for each argument that names something of the cluster.
fn complete_names(command: Command) -> Command {
    let parent = command.get_name().to_owned();
    let command = command.mut_args(|arg| match named(&arg, &parent) {
        None => arg,
        Some(Named::Services) => arg.add(ArgValueCandidates::new(services)),
        Some(Named::Containers) => arg.add(ArgValueCandidates::new(containers)),
        Some(Named::Nodes) => arg.add(ArgValueCandidates::new(nodes)),
        Some(Named::Images) => arg.add(ArgValueCandidates::new(images)),
        Some(Named::Volumes) => arg.add(ArgValueCandidates::new(volumes)),
    });
    command.mut_subcommands(complete_names)
}

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Services,
    /// Services, replicas and container ids.
    Containers,
    Nodes,
    Images,
    Volumes,
}

/// What an argument of the command `parent` names, by how the help calls it.
fn named(arg: &Arg, parent: &str) -> Option<Named> {
    if !arg.is_positional() {
        return None;
    }
    let value =
        arg.get_value_names().and_then(<[_]>::first).map_or(arg.get_id().as_str(), |name| name.as_str());
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match value.to_ascii_uppercase().as_str() {
        "NAME|ID" => Some(Named::Containers),
        "ID" if help.starts_with("The node") => Some(Named::Nodes),
        "NAME" | "NAMES" if help.starts_with("Images") => Some(Named::Images),
        "NAME" | "NAMES" if help.contains("volume") => Some(Named::Volumes),
        "NAME" | "NAMES" | "SERVICE" | "SERVICES" if parent != "node" => Some(Named::Services),
        _ => None,
    }
}

fn services() -> Vec<CompletionCandidate> {
    let rows: Vec<ServiceRow> = ask("/v1/services");
    rows.into_iter().map(|row| candidate(row.name.to_string(), &row.image)).collect()
}

fn containers() -> Vec<CompletionCandidate> {
    let mut found = services();
    for row in ask::<ReplicaRow>("/v1/replicas?all=true") {
        let status = replica::status(&row, text::now());
        if let Some(id) = &row.container_id {
            found.push(candidate(id.short().to_owned(), &format!("{}: {status}", row.name)));
        }
        found.push(candidate(row.name, &status));
    }
    found
}

fn nodes() -> Vec<CompletionCandidate> {
    let rows: Vec<NodeView> = ask("/v1/nodes");
    rows.into_iter().map(|row| candidate(row.id.to_string(), &row.name)).collect()
}

fn images() -> Vec<CompletionCandidate> {
    let rows: Vec<ImageRow> = ask("/v1/images");
    rows.into_iter().map(|row| candidate(text::image(&row.reference), &text::bytes(row.bytes))).collect()
}

fn volumes() -> Vec<CompletionCandidate> {
    let rows: Vec<VolumeRow> = ask("/v1/volumes");
    rows.into_iter().map(|row| candidate(row.name.to_string(), "")).collect()
}

fn candidate(value: String, help: &str) -> CompletionCandidate {
    let help = text::shorten(&text::printable(help), 60);
    CompletionCandidate::new(value).help(Some(help.into()))
}

/// The items of a list of the API; none when no node answers soon.
fn ask<T: DeserializeOwned>(path: &str) -> Vec<T> {
    let Ok(client) = Client::new(&connection(std::env::args_os().collect())) else { return Vec::new() };
    client.expect_old_answers();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let asking = async { tokio::time::timeout(PATIENCE, client.get::<List<T>>(path)).await };
    match runtime.block_on(asking) {
        Ok(Ok(list)) => list.items,
        _ => Vec::new(),
    }
}

/// Which node is asked: as the line that is being completed says, else the environment.
fn connection(words: Vec<OsString>) -> Connection {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let mut connection = Connection {
        host: variable("BLIXARD_HOST"),
        data_dir: variable("BLIXARD_DATA_DIR").map(Into::into),
        token: variable("BLIXARD_TOKEN"),
        ca: variable("BLIXARD_CA").map(Into::into),
    };
    let words: Vec<String> = words.into_iter().filter_map(|word| word.into_string().ok()).collect();
    for (at, word) in words.iter().enumerate() {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (word.as_str(), words.get(at + 1).cloned()),
        };
        match option {
            "--host" => connection.host = value,
            "--data-dir" => connection.data_dir = value.map(Into::into),
            "--token" => connection.token = value,
            "--ca" => connection.ca = value.map(Into::into),
            _ => {}
        }
    }
    connection
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::{Named, connection, named};
    use crate::cli::Cli;

    fn at<'c>(root: &'c Command, path: &str) -> &'c Command {
        path.split(' ').fold(root, |command, word| command.find_subcommand(word).expect(path))
    }

    #[test]
    fn arguments_that_name_something_of_the_cluster_are_known_by_their_help() {
        let root = Cli::command();
        let check = |path: &str, expect: Option<Named>| {
            let command = at(&root, path);
            let first = command.get_positionals().next().expect(path);
            assert_eq!(named(first, command.get_name()), expect, "{path}");
        };
        for path in ["stop", "logs", "exec", "inspect", "port"] {
            check(path, Some(Named::Containers));
        }
        for path in ["start", "rm", "service scale", "service inspect"] {
            check(path, Some(Named::Services));
        }
        for path in ["node drain", "node activate", "node leave", "node rm"] {
            check(path, Some(Named::Nodes));
        }
        check("image rm", Some(Named::Images));
        for path in ["volume inspect", "volume sync", "volume rm"] {
            check(path, Some(Named::Volumes));
        }
        for path in ["run", "config", "image pull", "cluster token rm", "completion"] {
            check(path, None);
        }
    }

    #[test]
    fn the_line_says_which_node_is_asked() {
        let of = |line: &str| connection(line.split(' ').map(Into::into).collect());
        assert_eq!(of("blixard -- blixard --host unix:///x stop").host.as_deref(), Some("unix:///x"));
        assert_eq!(of("blixard -- blixard stop --data-dir=/d w").data_dir, Some("/d".into()));
    }
}

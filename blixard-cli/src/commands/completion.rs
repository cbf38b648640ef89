//! `blixard completion`, and what it completes: names that the cluster has at that moment.
//!
//! The script that a shell is given asks this program for every completion, so that it knows all
//! commands and options by itself, and services, containers, images and so on by asking a node. Which
//! arguments those are follows from how the help calls them, so that a new command has it without
//! more.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::image::ImageRow;
use blixard_core::api::node::NodeView;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::ServiceRow;
use blixard_core::api::volume::VolumeRow;
use clap::{Arg, Command, CommandFactory, ValueEnum};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{CompleteEnv, Shells};
use serde::de::DeserializeOwned;

use crate::args::Connection;
use crate::cli::Cli;
use crate::client::Client;
use crate::commands::{events, ps};
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
    render::print(&script(args.shell)?)?;
    Ok(ExitCode::SUCCESS)
}

/// What teaches a shell to complete.
fn script(shell: Shell) -> anyhow::Result<String> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let completer = shells.completer(name).expect("the three are among the built-in shells");
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "blixard", "blixard", "blixard", &mut script)?;
    let script = String::from_utf8(script)?;
    Ok(match shell {
        Shell::Bash => {
            let [before, asked, ended] = BASH_PLACES;
            let script = script.replacen(before, &format!("{before}{BASH_BEFORE}"), 1);
            let script = script.replacen(asked, &format!("{BASH_WORDS}{asked}"), 1);
            script.replacen(ended, &format!("{ended}{BASH_AFTER}"), 1)
        }
        Shell::Zsh | Shell::Fish => script,
    })
}

/// Where something is added to the script of bash: [`BASH_BEFORE`] behind the first, [`BASH_WORDS`]
/// before the second, [`BASH_AFTER`] behind the third.
const BASH_PLACES: [&str; 3] = [
    "_clap_complete_blixard() {\n",
    "    COMPREPLY=( $( \\\n",
    "        \"blixard\" -- \"${words[@]}\" \\\n    ) )\n",
];
/// Bash ends words at `=` and `:` too, as in `service=web` and `web-0:/etc`. They are put together again
/// from the line, unless that has quotes or several lines.
const BASH_BEFORE: &str =
    "    local blixard_line=\"${COMP_LINE:0:COMP_POINT}\" blixard_cut=\"\" blixard_code\n";
const BASH_WORDS: &str = r#"    if [[ "$blixard_line" != *[\"\'\\$'\n']* ]]; then
        IFS=$' \t\n' read -r -a words <<< "$blixard_line"
        if [[ "$blixard_line" == *[[:space:]] ]]; then
            words+=("")
        fi
        _CLAP_COMPLETE_INDEX=$(( ${#words[@]} - 1 ))
        blixard_cut="${words[_CLAP_COMPLETE_INDEX]}"
        blixard_cut="${blixard_cut%"${blixard_cut##*[=:]}"}"
    fi
"#;
/// It puts what it is answered in the place of what follows the last of these.
const BASH_AFTER: &str = r#"    blixard_code=$?
    COMPREPLY=( "${COMPREPLY[@]#"$blixard_cut"}" )
    (exit $blixard_code)
"#;

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
        Some(Named::Sides) => arg.add(ArgValueCompleter::new(|current: &OsStr| match current.to_str() {
            Some(current) => sides(current, containers),
            None => PathCompleter::any().complete(current),
        })),
        Some(Named::Signals) => arg.add(text_completer(signals)),
        Some(Named::Filters) if parent == "ps" => arg.add(text_completer(ps_filters)),
        Some(Named::Filters) => arg.add(text_completer(event_filters)),
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
    /// Paths here or in a container.
    Sides,
    Signals,
    /// `KEY=VALUE`.
    Filters,
}

/// What an argument of the command `parent` names, by how the help calls it.
fn named(arg: &Arg, parent: &str) -> Option<Named> {
    let value =
        arg.get_value_names().and_then(<[_]>::first).map_or(arg.get_id().as_str(), |name| name.as_str());
    if !arg.is_positional() {
        return match value {
            "SIGNAL" => Some(Named::Signals),
            "KEY=VALUE" if arg.get_long() == Some("filter") => Some(Named::Filters),
            _ => None,
        };
    }
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match value.to_ascii_uppercase().as_str() {
        "NAME|ID" => Some(Named::Containers),
        "SRC" | "DST" => Some(Named::Sides),
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

/// Nodes by name, and by number.
fn node_names() -> Vec<CompletionCandidate> {
    let rows: Vec<NodeView> = ask("/v1/nodes");
    let names = rows.iter().map(|row| candidate(row.name.clone(), &format!("node {}", row.id)));
    let numbers = rows.iter().map(|row| candidate(row.id.to_string(), &row.name));
    names.chain(numbers).collect()
}

fn images() -> Vec<CompletionCandidate> {
    let rows: Vec<ImageRow> = ask("/v1/images");
    rows.into_iter().map(|row| candidate(text::image(&row.reference), &text::bytes(row.bytes))).collect()
}

fn volumes() -> Vec<CompletionCandidate> {
    let rows: Vec<VolumeRow> = ask("/v1/volumes");
    rows.into_iter().map(|row| candidate(row.name.to_string(), "")).collect()
}

/// The signals, without `SIG`, in the order of their numbers.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Signals that begin with `current`, with `SIG` unless it is being written without.
fn signals(current: &str) -> Vec<CompletionCandidate> {
    let whole = SIGNALS.map(|name| format!("SIG{name}"));
    let short = SIGNALS.map(str::to_owned).into_iter().filter(|_| !current.is_empty());
    beginning(current, whole.into_iter().chain(short).map(|name| candidate(name, "")).collect())
}

fn ps_filters(current: &str) -> Vec<CompletionCandidate> {
    let words = |words: &[&str]| words.iter().map(|word| candidate((*word).to_owned(), "")).collect();
    match current.split_once('=') {
        None => keys(current, &ps::Key::ALL.map(|(name, _)| name)),
        Some(("status", _)) => behind("status=", current, words(&ps::STATUSES)),
        Some(("health", _)) => behind("health=", current, words(&ps::HEALTHS)),
        Some(_) => names_of_filter(current),
    }
}

fn event_filters(current: &str) -> Vec<CompletionCandidate> {
    if current.contains('=') { names_of_filter(current) } else { keys(current, &events::KEYS) }
}

/// What a filter's key can be, with the `=` that follows it.
fn keys(current: &str, keys: &[&str]) -> Vec<CompletionCandidate> {
    beginning(current, keys.iter().map(|key| candidate(format!("{key}="), "")).collect())
}

/// What of the cluster a filter can name behind its key.
fn names_of_filter(current: &str) -> Vec<CompletionCandidate> {
    match current.split_once('=') {
        Some(("service", _)) => behind("service=", current, services()),
        Some(("node", _)) => behind("node=", current, node_names()),
        _ => Vec::new(),
    }
}

/// The values that fit behind a filter's key, with it.
fn behind(key: &str, current: &str, values: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    beginning(current, values.into_iter().map(|value| value.add_prefix(key)).collect())
}

/// One side of a copy: a path here, or the container before the colon. What is in a container nobody here
/// knows.
fn sides(current: &str, containers: impl Fn() -> Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let mut found = PathCompleter::any().complete(OsStr::new(current));
    if !current.starts_with(['/', '.']) && !current.contains(':') {
        let named = containers().into_iter().map(|one| {
            let help = one.get_help().cloned();
            CompletionCandidate::new(format!("{}:", one.get_value().to_string_lossy())).help(help)
        });
        found.extend(beginning(current, named.collect()));
    }
    found
}

/// Those that begin with what is written already.
fn beginning(current: &str, candidates: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let fits = |one: &CompletionCandidate| one.get_value().to_string_lossy().starts_with(current);
    candidates.into_iter().filter(fits).collect()
}

/// Completes what is text; nothing else is completed.
fn text_completer(complete: fn(&str) -> Vec<CompletionCandidate>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| current.to_str().map(complete).unwrap_or_default())
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
    use std::ffi::OsString;

    use clap::{Command, CommandFactory};
    use clap_complete::engine::CompletionCandidate;

    use super::{Named, SIGNALS, Shell, behind, candidate, complete_names, connection, named, script, sides};
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

    /// What an argument can be, of the words so far; without a node to ask.
    fn complete(line: &str) -> Vec<String> {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let (last, here) = (words.len() - 1, tempfile::tempdir().unwrap());
        let mut command = complete_names(Cli::command());
        let found = clap_complete::engine::complete(&mut command, words, last, Some(here.path())).unwrap();
        found.iter().map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn keys_and_words_that_need_no_node_are_completed() {
        let check = |line: &str, expect: &[&str]| assert_eq!(complete(line), expect, "{line}");
        check("blixard kill -s SIGHU", &["SIGHUP"]);
        check("blixard kill -s HU", &["HUP"]);
        check("blixard kill --signal SIGUS", &["SIGUSR1", "SIGUSR2"]);
        check("blixard kill --signal=TER", &["--signal=TERM"]);
        assert!(complete("blixard kill -s ").contains(&"SIGKILL".to_owned()));
        check("blixard events --filter ", &["service=", "node=", "replica=", "kind="]);
        check("blixard ps --filter n", &["name=", "node="]);
        check("blixard ps -f s", &["service=", "status="]);
        check("blixard ps --filter status=st", &["status=starting", "status=stopping"]);
        check("blixard ps --filter health=un", &["health=unhealthy"]);
    }

    #[test]
    fn every_signal_that_is_completed_is_one() {
        let numbers = "for number in {1..31}; do kill -l $number; done";
        let output = std::process::Command::new("bash").args(["--norc", "-c", numbers]).output().unwrap();
        let known = String::from_utf8(output.stdout).unwrap();
        assert_eq!(known.split_whitespace().collect::<Vec<_>>(), SIGNALS);
    }

    #[test]
    fn names_follow_a_key_and_precede_a_path() {
        let named = |names: &[&str]| names.iter().map(|name| candidate((*name).to_owned(), "")).collect();
        let check = |found: Vec<CompletionCandidate>, expect: &[&str]| {
            let found: Vec<_> =
                found.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect();
            assert_eq!(found, expect);
        };
        let names = || named(&["web", "web-0", "db"]);
        check(behind("service=", "service=we", names()), &["service=web", "service=web-0"]);
        check(behind("service=", "service=", names()), &["service=web", "service=web-0", "service=db"]);
        check(behind("service=", "service=x", names()), &[]);
        check(sides("we", names), &["web:", "web-0:"]);
        check(sides("web-", names), &["web-0:"]);
        // What is in a container is its own; what begins so is a path.
        for path in ["web:", "web:/etc", "./we", "/nowhere/we"] {
            check(sides(path, names), &[]);
        }
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join("we.txt"), "").unwrap();
        let path = here.path().join("w").display().to_string();
        check(sides(&path, names), &[&format!("{path}e.txt")]);
    }

    #[test]
    fn the_other_arguments_are_known_too() {
        let root = Cli::command();
        let check = |path: &str, id: &str, expect: Named| {
            let command = at(&root, path);
            let arg = command.get_arguments().find(|arg| arg.get_id() == id).expect(path);
            assert_eq!(named(arg, command.get_name()), Some(expect), "{path} {id}");
        };
        check("cp", "source", Named::Sides);
        check("cp", "destination", Named::Sides);
        check("kill", "signal", Named::Signals);
        check("ps", "filter", Named::Filters);
        check("events", "filters", Named::Filters);
    }

    /// Bash takes `=` and `:` for the ends of words; this program does not.
    #[test]
    fn bash_gives_words_whole_and_takes_what_follows_the_last_separator() {
        let check = |line: &str, asked: &str, said: &str, expect: &str| {
            let script = format!(
                "{}\nblixard() {{ shift; printf '%s|' \"$_CLAP_COMPLETE_INDEX\" \"$@\" >&2; printf '%b' {said:?}; }}\n\
                 COMP_LINE={line:?} COMP_POINT={} COMP_TYPE=9 COMP_WORDS=({}) COMP_CWORD={}\n\
                 _clap_complete_blixard blixard \"${{COMP_WORDS[COMP_CWORD]}}\" x\n\
                 printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                script(Shell::Bash).unwrap(),
                line.len(),
                pieces(line).iter().map(|word| format!("{word:?} ")).collect::<String>(),
                pieces(line).len() - 1,
            );
            let output = std::process::Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stderr), asked, "{line}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expect, "{line}");
        };
        check("blixard stop we", "2|blixard|stop|we|", "web\\vweb-0", "web\nweb-0\n");
        check("blixard stop ", "2|blixard|stop||", "web", "web\n");
        check("blixard ps -f service=w", "3|blixard|ps|-f|service=w|", "service=web", "web\n");
        check("blixard ps -f service=", "3|blixard|ps|-f|service=|", "service=a\\vservice=b", "a\nb\n");
        check("blixard cp web", "2|blixard|cp|web|", "web:", "web:\n");
        check("blixard cp web-0:/x ./a", "3|blixard|cp|web-0:/x|./a|", "./ab", "./ab\n");
        check(
            "blixard --host=unix:///run/b stop w",
            "3|blixard|--host=unix:///run/b|stop|w|",
            "web",
            "web\n",
        );
    }

    /// A line as bash splits it.
    fn pieces(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        for letter in line.chars() {
            let is_end = |letter: char| "=:".contains(letter);
            let last = words.last_mut().unwrap();
            match letter {
                ' ' => words.push(String::new()),
                _ if last.is_empty() || is_end(letter) == last.ends_with(is_end) => last.push(letter),
                _ => words.push(letter.to_string()),
            }
        }
        words
    }

    #[test]
    fn the_line_says_which_node_is_asked() {
        let of = |line: &str| connection(line.split(' ').map(Into::into).collect());
        assert_eq!(of("blixard -- blixard --host unix:///x stop").host.as_deref(), Some("unix:///x"));
        assert_eq!(of("blixard -- blixard stop --data-dir=/d w").data_dir, Some("/d".into()));
    }
}

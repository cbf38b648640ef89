//! What to say about a command that there is not: how the same is called here, for words of other
//! tools and for slips of the pen.

use std::fmt::Write;

use blixard_core::bundle::near;
use clap::error::{ContextKind, ContextValue};
use clap::{Command, CommandFactory};

use crate::cli::Cli;
use crate::failure::Failure;

/// Words of other tools, and what does the same here. Every command in it exists: a test says so.
const ELSEWHERE: [(&[&str], &str); 35] = [
    (&["rmi"], "`blixard image rm REF`"),
    (
        &["up", "deploy", "apply", "create", "submit", "launch", "update", "stack", "compose", "job"],
        "`blixard run FILE.bun` runs a service, and again after a change updates it",
    ),
    (
        &["get", "list", "ls", "containers", "container", "pods", "pod", "alloc", "tasks"],
        "`blixard ps` lists containers, `blixard service ls` services, `blixard node ls` nodes",
    ),
    (&["services", "svc", "deployments", "jobs"], "`blixard service ls`"),
    (&["nodes", "peers", "members"], "`blixard node ls`"),
    (&["describe", "show"], "`blixard inspect NAME`, or `blixard service inspect NAME` for people"),
    (&["info", "health", "raft", "operator", "monitor"], "`blixard cluster status`"),
    (
        &["down", "delete", "destroy", "remove", "uninstall", "del"],
        "`blixard rm NAME` removes a service; `blixard stop NAME` keeps it; `blixard node down` stops this node's containers",
    ),
    (&["images"], "`blixard image ls`"),
    (&["load"], "`blixard image import FILE.tar`"),
    (
        &["build", "push", "commit", "save", "tag", "buildx"],
        "images are built by other tools: `blixard image import FILE.tar` takes them",
    ),
    (
        &["login", "logout", "registry"],
        "credentials of registries are in a file that every node is given: `blixard node --registries FILE`",
    ),
    (
        &["top", "stats", "usage"],
        "`blixard node ls` shows what is reserved; `blixard exec NAME top` what a container's processes use",
    ),
    (&["server", "agent", "daemon", "serve", "init", "bootstrap", "client"], "`blixard node` is the daemon"),
    (&["join", "swarm"], "`blixard node --join FILE`, on the machine to add"),
    (&["promote", "demote"], "which nodes vote is decided by the cluster: `blixard cluster status` shows it"),
    (&["export"], "`blixard cp NAME:PATH .` copies files out of a container"),
    (&["rollout", "undo", "revert"], "`blixard service rollback NAME`, `blixard service history NAME`"),
    (&["cordon"], "`blixard node drain ID` also moves away what runs there"),
    (&["uncordon"], "`blixard node activate ID`"),
    (&["attach"], "`blixard logs -f NAME` follows the output, `blixard exec -it NAME sh` gets a shell"),
    (&["sh", "shell", "ssh", "bash", "enter"], "`blixard exec -it NAME sh`"),
    (&["log", "tail", "journal"], "`blixard logs -f NAME`"),
    (&["watch"], "`blixard events -f` follows what happens"),
    (
        &["pause", "unpause", "suspend", "resume"],
        "nothing is paused: `blixard stop NAME` and `blixard start NAME` keep the service",
    ),
    (&["rename"], "names stay: `blixard run --name NEW FILE.bun`, then `blixard rm OLD`"),
    (
        &["edit", "set", "autoscale", "replicas", "scaling"],
        "`blixard service scale NAME N`, or change the bundle and `blixard run FILE.bun`",
    ),
    (&["validate", "lint", "check", "plan", "diff", "convert"], "`blixard config FILE.bun`"),
    (&["volumes"], "`blixard volume ls`"),
    (&["network", "networks"], "each node has one container network: `blixard node ls -o json` shows it"),
    (
        &["secret", "secrets"],
        "there are no secrets yet; `env_file` keeps values out of a bundle: `blixard config FILE.bun`",
    ),
    (&["tokens", "ticket", "invite"], "`blixard cluster token create`"),
    (
        &["uninstall-node", "reset", "clean"],
        "`blixard node purge --yes` removes all that a node left on its machine",
    ),
    (
        &["upgrade", "self-update"],
        "replace the program and start the daemon again, one node after another: `blixard node ls` shows versions",
    ),
    (
        &["man-pages", "docs", "doc"],
        "`blixard man DIR` writes manual pages; `blixard help COMMAND` shows one",
    ),
];

/// Words that mean something of their own after another: the command, the words, what does the same.
const WITHIN: [(&str, &[&str], &str); 7] = [
    ("node", &["inspect", "show", "describe", "info", "status"], "`blixard node ls -o json`"),
    ("node", &["remove", "delete", "del"], "`blixard node rm ID`, or `blixard node leave ID` in peace"),
    ("image", &["inspect", "show", "history", "list"], "`blixard image ls -o json`"),
    ("image", &["remove", "delete", "del"], "`blixard image rm REF`"),
    ("volume", &["prune"], "`blixard volume ls` lists them, `blixard volume rm NAME` removes one"),
    (
        "volume",
        &["create", "add"],
        "a volume is made with the first service that names it: `blixard help run`, `volumes` in the bundle",
    ),
    ("volume", &["remove", "delete", "del"], "`blixard volume rm NAME`"),
];

/// What to say to `error`, when it is about an unknown command.
pub(crate) fn unknown_command(error: &clap::Error, arguments: &[String]) -> Option<Failure> {
    if error.kind() != clap::error::ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let root = Cli::command();
    let (path, group) = group(&root, arguments, word);
    let told =
        Failure::new(format!("there is no command `{path} {}`", printable(word)), hint(&root, group, word));
    Some(told)
}

/// The command whose subcommand was asked for, and what it is called with all that it is below.
fn group<'c>(root: &'c Command, arguments: &[String], word: &str) -> (String, &'c Command) {
    let (mut path, mut at) = ("blixard".to_owned(), root);
    for argument in arguments.iter().skip(1).take_while(|argument| *argument != word) {
        if let Some(sub) = at.find_subcommand(argument) {
            let _ = write!(path, " {}", sub.get_name());
            at = sub;
        }
    }
    (path, at)
}

fn hint(root: &Command, group: &Command, word: &str) -> String {
    let word = word.to_ascii_lowercase();
    let within = WITHIN.iter().find(|(name, words, _)| *name == group.get_name() && words.contains(&&*word));
    if let Some((_, _, told)) = within {
        return (*told).to_owned();
    }
    if let Some((_, told)) = ELSEWHERE.iter().find(|(words, _)| words.contains(&&*word)) {
        return (*told).to_owned();
    }
    // What is done to services is at the top; what else has the same name is something else.
    if group.get_name() == root.get_name() || group.get_name() == "service" {
        let mut found: Vec<String> = Vec::new();
        every_command(root, "blixard", &mut |path, command| {
            if command.get_name() == word || command.get_all_aliases().any(|alias| alias == word) {
                found.push(format!("`{path}`"));
            }
        });
        if !found.is_empty() {
            return found.join(", ");
        }
    }
    let names: Vec<&str> = group.get_subcommands().map(Command::get_name).collect();
    match near(&word, &names) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("there are: {}", names.join(", ")),
    }
}

/// Visits every command that is shown, with its path.
fn every_command(command: &Command, path: &str, visit: &mut impl FnMut(&str, &Command)) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path = format!("{path} {}", sub.get_name());
        visit(&path, sub);
        every_command(sub, &path, visit);
    }
}

fn printable(word: &str) -> String {
    crate::render::text::printable(word)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{ELSEWHERE, WITHIN, unknown_command};
    use crate::cli::Cli;

    fn told(line: &str) -> (String, String) {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = Cli::try_parse_from(&arguments).expect_err(line);
        let failure = unknown_command(&error, &arguments).unwrap_or_else(|| panic!("{line}: {error}"));
        (failure.body.error, failure.body.hint)
    }

    #[test]
    fn words_of_other_tools_lead_to_what_does_the_same() {
        let check = |line: &str, error: &str, hint: &str| {
            let (said, tried) = told(line);
            assert_eq!(said, format!("there is no command `{error}`"));
            assert!(tried.contains(hint), "{line}: {tried}");
        };
        check("blixard rmi nginx", "blixard rmi", "`blixard image rm REF`");
        check("blixard history web", "blixard history", "`blixard service history`");
        check("blixard rollback web", "blixard rollback", "`blixard service rollback`");
        check("blixard scale web 3", "blixard scale", "`blixard service scale`");
        check("blixard status", "blixard status", "`blixard cluster status`");
        check("blixard up -d", "blixard up", "`blixard run FILE.bun`");
        check("blixard login", "blixard login", "--registries FILE");
        check("blixard promote 2", "blixard promote", "`blixard cluster status`");
        check("blixard --host unix:///x drain 2", "blixard drain", "`blixard node drain`");
        check("blixard service logs web", "blixard service logs", "`blixard logs`");
        check("blixard service rm web", "blixard service rm", "`blixard rm`");
        check("blixard cluster info", "blixard cluster info", "`blixard cluster status`");
        check("blixard pull nginx", "blixard pull", "`blixard image pull`");
        check("blixard down", "blixard down", "`blixard rm NAME` removes a service");
        check("blixard create", "blixard create", "`blixard run FILE.bun`");
        check("blixard service create", "blixard service create", "`blixard run FILE.bun`");
        check("blixard volume prune", "blixard volume prune", "`blixard volume rm NAME`");
        check("blixard node inspect 2", "blixard node inspect", "`blixard node ls -o json`");
        check("blixard image history x", "blixard image history", "`blixard image ls -o json`");
        check("blixard image run x", "blixard image run", "there are: import");
        check("blixard PS", "blixard PS", "`blixard ps`");
        check("blixard evnets", "blixard evnets", "did you mean `events`?");
        check("blixard image xyzzy", "blixard image xyzzy", "there are: import");
        check("blixard xyzzy", "blixard xyzzy", "there are: run");
    }

    #[test]
    fn every_command_that_a_hint_names_exists() {
        let root = Cli::command();
        let within = WITHIN.map(|(_, words, hint)| (words, hint));
        for (words, hint) in ELSEWHERE.into_iter().chain(within) {
            let commands = hint.split('`').filter(|part| part.starts_with("blixard "));
            let mut named = 0;
            for line in commands {
                let mut at = &root;
                for word in line.split(' ').skip(1) {
                    match at.find_subcommand(word) {
                        Some(sub) => at = sub,
                        None => break,
                    }
                }
                let first = line.split(' ').nth(1).unwrap_or_default();
                assert!(first == "help" || at.get_name() != "blixard", "{words:?}: {line}");
                named += 1;
            }
            assert!(named > 0, "{words:?}");
        }
    }

    #[test]
    fn no_word_of_another_tool_is_a_command_here() {
        let root = Cli::command();
        for word in ELSEWHERE.iter().flat_map(|(words, _)| *words) {
            assert!(root.find_subcommand(word).is_none(), "{word}");
        }
    }
}

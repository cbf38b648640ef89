//! Tickets on their way in: a command line can be read by every user of the machine for as long as the
//! process runs, and an environment by what it starts. A daemon that finds a ticket in either begins
//! anew, under the same process id, with the ticket on its standard input, where it is read once.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blixard_core::api::token::Secret;
use blixard_core::discovery::file::FILE_BYTES_MAX;
use blixard_core::discovery::ticket::PREFIX;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::config::{JOIN_VARIABLES, NodeOptions, TOKEN_VARIABLE};

/// What stands for standard input.
const STDIN: &str = "-";

/// Takes the tickets out of where others can see them. Called before anything is opened or started; when
/// there are any to hide it does not return, unless the process cannot be begun anew.
///
/// # Errors
/// When `--join -` is given and standard input cannot be read.
pub(crate) fn take(options: &mut NodeOptions) -> io::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let hidden = hide(&arguments, |name| std::env::var(name).ok());
    if hidden.on_command_line {
        eprintln!(
            "warning: a ticket on the command line can be read by every user of this machine: give it as --join @FILE, --join - (standard input) or BLIXARD_JOIN"
        );
    }
    if !hidden.tickets.is_empty() || !hidden.tokens.is_empty() {
        let error = begin_anew(&hidden);
        eprintln!("warning: the ticket stays where others can read it: {error}");
    }
    let joins = options.join.iter().any(|target| target.trim() == STDIN);
    let wants_token = options.token_file.as_deref() == Some(Path::new(STDIN));
    if joins || wants_token {
        let (tokens, mut targets): (Vec<String>, Vec<String>) =
            read_stdin()?.into_iter().partition(|line| line.parse::<Secret>().is_ok());
        options.join.retain(|target| target.trim() != STDIN);
        if wants_token {
            options.token_file = None;
            // A ticket has a token, too.
            if tokens.is_empty() && targets.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "it holds no token"));
            }
        }
        if joins && targets.is_empty() {
            // Nothing there is still something to join by, that does not answer: no cluster is made.
            targets.push(STDIN.to_owned());
        }
        options.join.extend(targets);
        options.join_token = tokens.into_iter().next().or(options.join_token.take());
    }
    Ok(())
}

/// A command line and an environment without tickets.
#[derive(Debug, PartialEq, Eq)]
struct Hidden {
    arguments: Vec<OsString>,
    /// The variables that held one, with what else they hold.
    variables: Vec<(&'static str, String)>,
    tickets: Vec<String>,
    /// The token that [`TOKEN_VARIABLE`] held, unless a flag gives another.
    tokens: Vec<String>,
    on_command_line: bool,
    /// Whether standard input is asked for besides.
    asks_stdin: bool,
}

fn hide(arguments: &[OsString], variable: impl Fn(&str) -> Option<String>) -> Hidden {
    let mut tickets = Vec::new();
    let mut take = |text: &[u8]| {
        let found = is_ticket(text);
        if found {
            tickets.push(String::from_utf8_lossy(text).trim().to_owned());
        }
        found
    };
    let mut kept = Vec::new();
    for argument in arguments {
        let bytes = argument.as_bytes();
        let (option, value) = match bytes.strip_prefix(b"--join=") {
            Some(value) => ("--join=", value),
            None => ("", bytes),
        };
        kept.push(if take(value) { format!("{option}{STDIN}").into() } else { argument.clone() });
    }
    let on_command_line = kept != arguments;
    let mut variables = Vec::new();
    for name in JOIN_VARIABLES {
        let Some(list) = variable(name) else { continue };
        let rest: Vec<&str> = list.split(',').filter(|entry| !take(entry.as_bytes())).collect();
        let rest = rest.join(",");
        if rest != list {
            variables.push((name, rest));
        }
    }
    if !tickets.is_empty() && !on_command_line {
        kept.extend([OsString::from("--join"), OsString::from(STDIN)]);
    }
    let mut tokens = Vec::new();
    if let Some(token) = variable(TOKEN_VARIABLE).filter(|token| !token.trim().is_empty()) {
        variables.push((TOKEN_VARIABLE, String::new()));
        let is_file = |argument: &OsString| argument.as_bytes().starts_with(b"--token-file");
        if !arguments.iter().any(is_file) {
            tokens.push(token.trim().to_owned());
            kept.extend([OsString::from("--token-file"), OsString::from(STDIN)]);
        }
    }
    let asks = |argument: &OsString| argument == STDIN || argument.as_bytes().ends_with(b"=-");
    let asks_stdin = arguments.iter().any(asks);
    Hidden { arguments: kept, variables, tickets, tokens, on_command_line, asks_stdin }
}

/// Whether a text is a ticket, damaged or not: what is wrong with it must not be there to read either.
fn is_ticket(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let prefix = text.get(..PREFIX.len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX.as_bytes()))
        && !text.contains(&b'/')
        && !text.ends_with(b".json")
}

/// Runs this program in this process's place. Returns why it cannot.
fn begin_anew(hidden: &Hidden) -> io::Error {
    let Err(error) = try_to_begin_anew(hidden);
    error
}

fn try_to_begin_anew(hidden: &Hidden) -> io::Result<std::convert::Infallible> {
    let mut input = File::from(memfd_create("blixard-join", MemfdFlags::CLOEXEC)?);
    if hidden.asks_stdin {
        io::copy(&mut io::stdin().lock().take(FILE_BYTES_MAX), &mut input)?;
        writeln!(input)?;
    }
    for ticket in hidden.tickets.iter().chain(&hidden.tokens) {
        writeln!(input, "{ticket}")?;
    }
    input.rewind()?;
    let mut arguments = hidden.arguments.iter();
    // By its own name, which `ps` shows; a program that was replaced since is found in any case.
    let own = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(own.unwrap_or_else(|| PathBuf::from("/proc/self/exe")));
    command.arg0(arguments.next().map_or(OsStr::new("blixard"), OsString::as_os_str));
    command.args(arguments).stdin(Stdio::from(input));
    for (name, rest) in &hidden.variables {
        match rest.as_str() {
            "" => command.env_remove(name),
            rest => command.env(name, rest),
        };
    }
    Err(command.exec())
}

/// The lines of standard input, one of a terminal's, which is then nothing: what the daemon starts must not find it.
fn read_stdin() -> io::Result<Vec<String>> {
    let mut text = String::new();
    let mut stdin = io::stdin().lock().take(FILE_BYTES_MAX);
    if stdin.get_ref().is_terminal() {
        eprintln!("paste the ticket, and Enter:");
        stdin.read_line(&mut text)?;
    } else {
        stdin.read_to_string(&mut text)?;
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{hide, is_ticket};

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn tickets_leave_the_command_line_and_the_environment() {
        let check =
            |line: &str, environment: &[(&str, &str)], kept: &str, rest: &[&str], tickets: &[&str]| {
                let variable = |name: &str| {
                    environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
                };
                let hidden = hide(&words(line), variable);
                assert_eq!(hidden.arguments, words(kept), "{line}");
                assert_eq!(hidden.tickets, tickets, "{line}");
                let left: Vec<String> =
                    hidden.variables.iter().map(|(name, rest)| format!("{name}={rest}")).collect();
                assert_eq!(left, rest, "{line}");
                let all = format!("{:?}{left:?}", hidden.arguments);
                assert!(!all.to_lowercase().contains("bxt1a"), "{all}");
            };
        check("b node --join bxt1aa --id 2", &[], "b node --join - --id 2", &[], &["bxt1aa"]);
        check("b node --join=BXT1aa", &[], "b node --join=-", &[], &["BXT1aa"]);
        check(
            "b node --join bxt1aa --join bxt1ab",
            &[],
            "b node --join - --join -",
            &[],
            &["bxt1aa", "bxt1ab"],
        );
        check("b node --join ./bxt1 --join f.json", &[], "b node --join ./bxt1 --join f.json", &[], &[]);
        check("b node", &[("BLIXARD_JOIN", "bxt1aa")], "b node --join -", &["BLIXARD_JOIN="], &["bxt1aa"]);
        let list = [("BLIXARD_NODE_REGISTRIES", "/a.json, bxt1aa,b.json")];
        check("b node", &list, "b node --join -", &["BLIXARD_NODE_REGISTRIES=/a.json,b.json"], &["bxt1aa"]);
        let both = [("BLIXARD_JOIN", "@/f"), ("BLIXARD_NODE_REGISTRIES", "/a.json")];
        check("b node --join x", &both, "b node --join x", &[], &[]);
    }

    #[test]
    fn a_token_leaves_the_environment_whatever_it_is() {
        let check = |line: &str, kept: &str, tokens: &[&str]| {
            let hidden =
                hide(&words(line), |name| (name == "BLIXARD_JOIN_TOKEN").then(|| " x.y ".to_owned()));
            assert_eq!(hidden.arguments, words(kept));
            assert_eq!(hidden.tokens, tokens);
            assert_eq!(hidden.variables, [("BLIXARD_JOIN_TOKEN", String::new())]);
        };
        check("b node --join h:1", "b node --join h:1 --token-file -", &["x.y"]);
        check("b node --token-file /t", "b node --token-file /t", &[]);
        let none = hide(&words("b node"), |_| None);
        assert!(none.tokens.is_empty() && none.variables.is_empty());
    }

    #[test]
    fn a_damaged_ticket_is_hidden_as_well() {
        assert!(is_ticket(b"bxt1"));
        assert!(is_ticket(b" Bxt1?? "));
        assert!(!is_ticket(b"bxt1.json"));
        assert!(!is_ticket(b"./bxt1aa"));
        assert!(!is_ticket(b"bxt"));
    }
}

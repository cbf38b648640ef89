//! Keeps docs/reference/cli.md what `--help` says. `BLIXARD_WRITE_MANUAL=1 cargo test -p
//! blixard-cli manual` writes it anew.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};

use crate::cli::Cli;

/// The file below the repository's root.
const FILE: &str = "docs/reference/cli.md";
/// What precedes the commands; the rest of the file is generated.
const MARK: &str = "<!-- From here on generated from --help: see blixard-cli/src/manual.rs -->\n";
/// How wide help is printed.
const WIDTH: usize = 100;

/// A command's help and, after it, that of its subcommands.
fn write_help(manual: &mut String, command: &Command, path: &str) {
    let hide_values = |arg: clap::Arg| arg.hide_env_values(true);
    let shown = command.clone().bin_name(path).term_width(WIDTH).mut_args(hide_values);
    let help = shown.clone().render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    writeln!(manual, "\n## {path}\n\n```text\n{}\n```", lines.join("\n").trim_end())
        .expect("a string takes every write");
    for sub in command.get_subcommands() {
        write_help(manual, sub, &format!("{path} {}", sub.get_name()));
    }
}

#[test]
fn the_manual_says_what_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, found) = text.split_once(MARK).expect("the mark is in the file");
    let mut expected = String::new();
    write_help(&mut expected, &Cli::command(), "blixard");
    if std::env::var_os("BLIXARD_WRITE_MANUAL").is_some() {
        std::fs::write(&path, format!("{before}{MARK}{expected}")).unwrap();
        return;
    }
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(found == expected, "{FILE} is out of date, first at {differs:?}: see blixard-cli/src/manual.rs");
}

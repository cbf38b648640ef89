//! Holds the documents to the command line: every `blixard ...` in them is accepted.

use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;

/// The documents, but those that are generated.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = vec![root.join("README.md")];
    for directory in ["docs", "docs/reference", "docs/adr"] {
        let entries = std::fs::read_dir(root.join(directory)).unwrap().flatten().map(|entry| entry.path());
        found.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    found.retain(|path| !path.ends_with("docs/reference/cli.md"));
    found
}

/// The command lines of a document: in blocks, and within the text between backticks.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, part) in text.split("```").enumerate() {
        if at % 2 == 1 {
            let lines = part.lines().map(|line| line.trim().trim_start_matches("$ "));
            found.extend(
                lines.filter(|line| *line == "blixard" || line.starts_with("blixard ")).map(str::to_owned),
            );
        } else {
            let spans = part.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " "));
            found.extend(spans.filter(|span| span.starts_with("blixard ")));
        }
    }
    found.iter().map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn every_command_of_the_documents_is_accepted() {
    let mut tried = 0;
    for path in documents() {
        for line in commands(&std::fs::read_to_string(&path).unwrap()) {
            // What follows is another program's, or the shell's.
            let own = line.split(" | ").next().and_then(|line| line.split(" > ").next()).unwrap_or_default();
            // `...` stands for what the reader knows.
            let words: Vec<&str> = own.split_whitespace().filter(|word| !word.contains("...")).collect();
            // In the text a command may stand without its arguments, or an option without its value.
            let without_value = words.last().is_some_and(|word| word.starts_with('-'));
            if let Err(error) = Cli::try_parse_from(&words) {
                let fine = match error.kind() {
                    ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::MissingRequiredArgument => true,
                    ErrorKind::InvalidValue => without_value,
                    _ => false,
                };
                assert!(fine, "{}: `{line}`: {error}", path.display());
            }
            tried += 1;
        }
    }
    assert!(tried > 30, "only {tried} commands were found");
}

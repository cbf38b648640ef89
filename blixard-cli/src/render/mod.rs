//! How things look on a terminal, and how they are written.

pub(crate) mod color;
pub(crate) mod progress;
pub(crate) mod replica;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod text;

use std::io::{self, Write};

use blixard_core::api::WriteAnswer;
use blixard_core::text::printable_json;
use serde::Serialize;

use self::color::Style;
use crate::failure;

/// Writes to stdout. Of what others put into the text nothing acts on a terminal.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(color::stdout().only(text).as_bytes()).and_then(|()| stdout.flush());
    failure::output(written)
}

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes indented JSON to stdout.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&printable_json(&serde_json::to_string_pretty(value)?))?;
    Ok(())
}

/// Writes a warning to stderr.
pub(crate) fn warn(text: &str) {
    note(&format!("{} {text}", color::stderr().apply(Style::Yellow, "warning:")));
}

/// Writes what the cluster has to say about a write that it took.
pub(crate) fn warnings(answer: &WriteAnswer) {
    for warning in &answer.warnings {
        warn(&text::printable(warning));
    }
}

/// Writes a line to stderr, for people only: whether it arrives does not matter.
pub(crate) fn note(text: &str) {
    drop(io::stderr().write_all(color::stderr().only(&format!("{text}\n")).as_bytes()));
}

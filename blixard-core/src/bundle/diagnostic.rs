//! What is wrong with a bundle, and how it is shown.

use std::fmt;

use super::source::{Place, Source};
use crate::text::is_unseen;

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The bundle cannot be used.
    Error,
    /// The bundle works, perhaps not as its author thinks.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One fault of a bundle, or of the environment file it names.
///
/// Shown as `file:line:column: error: message`, then the line of the file with the offending text
/// underlined, then what to do. What is shown holds no control characters but line ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the bundle can be used all the same.
    pub severity: Severity,
    /// The file's name, as the caller gave it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The offending text, as far as it is on that line; empty when something is missing there.
    pub found: String,
    /// What is allowed, or what to write instead.
    pub hint: Option<String>,
    excerpt: Excerpt,
}

/// The part of a line that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// Characters before the offending text.
    before: usize,
}

/// The most characters of a line that are shown.
const EXCERPT_CHARS_MAX: usize = 100;

impl Diagnostic {
    pub(super) fn new(severity: Severity, source: &Source<'_>, place: Place, fault: Fault) -> Self {
        let line = source.line(place.line);
        let found = source.found(place);
        Self {
            severity,
            file: source.file().to_owned(),
            line: place.line,
            column: place.column,
            message: printable(&fault.message),
            excerpt: Excerpt::new(line, place.column, found.chars().count()),
            found: shorten(found),
            hint: fault.hint.map(|hint| printable(&hint)),
        }
    }
}

impl Excerpt {
    fn new(line: &str, column: usize, width: usize) -> Self {
        let at = column - 1;
        let end = at + width;
        let skipped = if end > EXCERPT_CHARS_MAX { at.saturating_sub(EXCERPT_CHARS_MAX / 2) } else { 0 };
        let shown: String = line.chars().skip(skipped).take(EXCERPT_CHARS_MAX).collect();
        let (mark, marks) = if skipped > 0 { ("…", 1) } else { ("", 0) };
        Self { text: format!("{mark}{}", printable(shown.trim_end())), before: at - skipped + marks }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, line, column, message, .. } = self;
        write!(f, "{}:{line}:{column}: {severity}: {message}", printable(&self.file))?;
        let room = self.excerpt.text.chars().count().saturating_sub(self.excerpt.before).max(1);
        let carets = self.found.chars().count().clamp(1, room);
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        write!(f, "\n {number} | {}", self.excerpt.text)?;
        write!(f, "\n {margin} | {}{}", " ".repeat(self.excerpt.before), "^".repeat(carets))?;
        match &self.hint {
            Some(hint) => write!(f, "\n {margin} = {hint}"),
            None => Ok(()),
        }
    }
}

/// What is wrong, before it is known where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same about the value at `path`.
    pub(super) fn of(mut self, path: &str) -> Self {
        self.message = format!("`{}` {}", shorten(path), self.message);
        self
    }
}

/// Text with what would disturb a terminal replaced, each character by one, so that what is underlined
/// stays so.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if is_unseen(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Text that is quoted in a message: its beginning when it is long.
pub(super) fn shorten(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(EXCERPT_CHARS_MAX).collect();
    if chars.next().is_some() { format!("{start}…") } else { start }
}

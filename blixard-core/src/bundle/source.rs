//! The text of a bundle: which bytes are text at all, and its lines.

use saphyr_parser::{Marker, Span};

use super::diagnostic::{Diagnostic, Fault, Severity};
use crate::limits::BUNDLE_BYTES_MAX;

/// A file's text and its lines.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    lines: Vec<&'a str>,
}

/// A place in a file: where something begins, counted from 1 in characters, and where it ends,
/// exclusively. Without an end that lies behind the beginning it is the rest of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) end_line: usize,
    pub(super) end_column: usize,
}

impl Place {
    /// One character.
    pub(super) fn at(line: usize, column: usize) -> Self {
        Self { line, column, end_line: line, end_column: column + 1 }
    }

    /// Its first character.
    pub(super) fn start(self) -> Self {
        Self::at(self.line, self.column)
    }

    /// A whole line.
    pub(super) fn line(line: usize) -> Self {
        Self { line, column: 1, end_line: line, end_column: 1 }
    }
}

impl From<Span> for Place {
    fn from(span: Span) -> Self {
        Self { end_line: span.end.line(), end_column: span.end.col() + 1, ..Self::from(span.start) }
    }
}

impl From<Marker> for Place {
    fn from(mark: Marker) -> Self {
        Self::at(mark.line().max(1), mark.col() + 1)
    }
}

impl<'a> Source<'a> {
    /// Takes the bytes of `file` for text.
    ///
    /// # Errors
    /// The one fault: too long, not UTF-8, or with a control character that YAML does not allow.
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Result<Self, Box<Diagnostic>> {
        let (text, invalid) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let (valid, _) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(valid).unwrap_or_default(), true)
            }
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Self { file, text, lines: lines(text) };
        let fault = if bytes.len() > BUNDLE_BYTES_MAX {
            let message = format!("the file has more than {BUNDLE_BYTES_MAX} bytes");
            Some((Place::line(1), Fault::new(message)))
        } else if let Some((at, c)) = text.char_indices().find(|(_, c)| !allowed(*c)) {
            let message = format!("the character U+{:04X} cannot stand in a bundle", u32::from(c));
            let hint = "inside double quotes, `\\t` and `\\x1b` stand for control characters";
            Some((source.place(at), Fault::new(message).hint(hint)))
        } else if invalid {
            let hint = "save the file as UTF-8 text";
            Some((source.place(text.len()), Fault::new("the text is not UTF-8 from here").hint(hint)))
        } else {
            None
        };
        match fault {
            Some((place, fault)) => Err(Box::new(Diagnostic::new(Severity::Error, &source, place, fault))),
            None => Ok(source),
        }
    }

    pub(super) fn file(&self) -> &str {
        self.file
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    pub(super) fn lines(&self) -> &[&'a str] {
        &self.lines
    }

    /// A line without its end; empty behind the last.
    pub(super) fn line(&self, number: usize) -> &'a str {
        self.lines.get(number.wrapping_sub(1)).copied().unwrap_or_default()
    }

    /// `place`, or the end of the text when it lies behind that.
    pub(super) fn within(&self, place: Place) -> Place {
        match self.lines.len() {
            last if place.line > last => Place::at(last, self.line(last).chars().count() + 1),
            _ => place,
        }
    }

    /// The text at `place`, as far as it is on its first line.
    pub(super) fn found(&self, place: Place) -> &'a str {
        let line = self.line(place.line);
        let offset = |column: usize| line.char_indices().nth(column - 1).map_or(line.len(), |(at, _)| at);
        let from = offset(place.column);
        let inside = place.end_line == place.line && place.end_column > place.column;
        let to = if inside { offset(place.end_column) } else { line.len() };
        line[from..to].trim_end()
    }

    fn place(&self, offset: usize) -> Place {
        let before = lines(&self.text[..offset]);
        let line = before.len().max(1);
        Place::at(line, before.last().map_or(0, |last| last.chars().count()) + 1)
    }
}

/// Splits at the line ends of YAML: LF, CR LF, CR. What follows the last end is a line too.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\n', '\r']) {
        lines.push(&rest[..at]);
        let end = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[at + end..];
    }
    lines.push(rest);
    lines
}

/// YAML's printable characters; a byte order mark only at the very beginning.
fn allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{85}')
        || !(c.is_control() || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}'))
}

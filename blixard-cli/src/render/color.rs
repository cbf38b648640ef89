//! Colour, where it is wanted: on a terminal, without NO_COLOR (no-color.org), not on a dumb one.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use blixard_core::text;

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Cyan => "36",
        }
    }
}

/// Whether to paint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Colored,
}

impl Paint {
    /// The text in that style, or as it is.
    pub(crate) fn apply(self, style: Style, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colored => format!("\x1b[{}m{text}\x1b[0m", style.code()),
        }
    }

    /// The text with nothing in it that acts on a terminal but colours, where it is painted.
    pub(crate) fn only(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Plain => text::printable_lines(text),
            Self::Colored => text::painted_lines(text),
        }
    }
}

/// Whether to paint on stdout.
pub(crate) fn stdout() -> Paint {
    wanted(io::stdout().is_terminal(), |name| std::env::var(name).ok())
}

/// Whether to paint on stderr.
pub(crate) fn stderr() -> Paint {
    wanted(io::stderr().is_terminal(), |name| std::env::var(name).ok())
}

fn wanted(terminal: bool, var: impl Fn(&str) -> Option<String>) -> Paint {
    let refused = var("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = var("TERM").is_some_and(|term| term == "dumb");
    if terminal && !refused && !dumb { Paint::Colored } else { Paint::Plain }
}

#[cfg(test)]
mod tests {
    use super::{Paint, Style, wanted};

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let check = |terminal, vars: &[(&str, &str)], expect| {
            let var =
                |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(wanted(terminal, var), expect, "{terminal} {vars:?}");
        };
        check(true, &[], Paint::Colored);
        check(false, &[], Paint::Plain);
        check(true, &[("NO_COLOR", "1")], Paint::Plain);
        check(true, &[("NO_COLOR", "")], Paint::Colored);
        check(true, &[("TERM", "dumb")], Paint::Plain);
        check(true, &[("TERM", "xterm")], Paint::Colored);
        assert_eq!(Paint::Colored.apply(Style::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}

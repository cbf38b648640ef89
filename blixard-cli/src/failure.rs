//! What a failed command tells its user: what happened, to what, and what to try.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use blixard_core::api::ErrorBody;
use blixard_core::text::printable_lines;
use http::StatusCode;

use crate::render::color::{self, Paint, Style};

/// Where a failure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// This command.
    Command,
    /// Options or variables that say nothing this program could do.
    Misuse,
    /// Nobody answers at the API's address: nothing was sent.
    NotReached,
    /// The API refused.
    Refused(StatusCode),
}

impl Cause {
    /// Whether what was asked for as a service may be a container: there is no such service, or a node
    /// without a quorum knows of none.
    pub(crate) fn may_be_no_service(self) -> bool {
        matches!(self, Self::Refused(StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE))
    }
}

/// A failure with advice.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Where it comes from.
    pub(crate) cause: Cause,
    /// What is said.
    pub(crate) body: ErrorBody,
}

impl Failure {
    /// What happened, and what to try.
    pub(crate) fn new(error: impl Into<String>, hint: impl Into<String>) -> Self {
        let body = ErrorBody { error: error.into(), hint: hint.into(), details: Vec::new() };
        Self { cause: Cause::Command, body }
    }

    /// The same from another cause.
    pub(crate) fn caused_by(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }

    /// The same with facts, one a line.
    pub(crate) fn with_details(mut self, details: Vec<String>) -> Self {
        self.body.details = details;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.body.error)
    }
}

impl std::error::Error for Failure {}

/// Where `error` comes from, when that is known.
pub(crate) fn cause(error: &anyhow::Error) -> Option<Cause> {
    error.downcast_ref::<Failure>().map(|failure| failure.cause)
}

/// Whoever read our output went away.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// What came of writing to our own output. Other pipes break too, and that is a failure.
pub(crate) fn output<T>(written: io::Result<T>) -> io::Result<T> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ReaderGone),
        _ => error,
    })
}

/// Whether whoever reads our output went away, which is no failure.
pub(crate) fn is_output_closed(error: &anyhow::Error) -> bool {
    let gone = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<ReaderGone>());
    error.chain().filter_map(|cause| cause.downcast_ref()).any(gone)
}

/// An error as lines for stderr.
pub(crate) fn text(error: &anyhow::Error, paint: Paint) -> String {
    let mut text = format!("{} {}\n", paint.apply(Style::Red, "error:"), printable_lines(&chain(error)));
    if let Some(Failure { body, .. }) = error.downcast_ref() {
        for detail in &body.details {
            let _ = writeln!(text, "  {}", printable_lines(detail));
        }
        if !body.hint.is_empty() {
            let _ = writeln!(text, "{} {}", paint.apply(Style::Bold, "try:"), printable_lines(&body.hint));
        }
    }
    text
}

/// What came of doing the same to several things: success, or the last of the errors, after the
/// others were told.
pub(crate) fn last(mut errors: Vec<anyhow::Error>) -> anyhow::Result<ExitCode> {
    let Some(last) = errors.pop() else { return Ok(ExitCode::SUCCESS) };
    for error in errors {
        // Nothing is left to be done when stderr is closed as well.
        drop(io::stderr().write_all(text(&error, color::stderr()).as_bytes()));
    }
    Err(last)
}

/// The error and its sources, without those that it tells itself.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for source in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&source) {
            let _ = write!(text, ": {source}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Failure, Paint, is_output_closed, output, text};

    #[test]
    fn a_failure_says_what_happened_and_what_to_try() {
        let failure = Failure::new("there is no service `web`", "`blixard service ls`")
            .with_details(vec!["one fact".into()]);
        assert_eq!(
            text(&failure.into(), Paint::Plain),
            "error: there is no service `web`\n  one fact\ntry: `blixard service ls`\n"
        );
    }

    #[test]
    fn nothing_in_a_failure_acts_on_a_terminal() {
        let failure = Failure::new("\x1b]0;x\x07", "\u{202e}").with_details(vec!["\x1b[2J".into()]);
        assert_eq!(
            text(&anyhow::Error::from(failure).context("c\u{9b}"), Paint::Plain),
            "error: c\\u{9b}: \\x1b]0;x\\x07\n  \\x1b[2J\ntry: \\u{202e}\n"
        );
    }

    #[test]
    fn a_source_is_told_once() {
        let told = anyhow::anyhow!("cut short").context("--join: cut short");
        assert_eq!(text(&told, Paint::Plain), "error: --join: cut short\n");
        let untold = anyhow::anyhow!("no such file").context("cannot read it");
        assert_eq!(text(&untold, Paint::Plain), "error: cannot read it: no such file\n");
    }

    #[test]
    fn only_our_own_output_may_be_closed() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let ours = output::<()>(Err(broken())).expect_err("it is broken");
        assert!(is_output_closed(&anyhow::Error::from(ours).context("writing")));
        // That of a connection, whose other side has refused what is sent.
        assert!(!is_output_closed(&anyhow::Error::from(broken()).context("sending")));
    }
}

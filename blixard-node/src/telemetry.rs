//! Logging: tracing's events to standard error, as text for people or as JSON lines.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write, stderr};

use blixard_core::text;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Begins to log what `directives` name (`info`, `blixard_node=debug,warn`). Colours are used on a
/// terminal that does not refuse them by `NO_COLOR`.
///
/// # Errors
/// When the directives cannot be read, or logging has begun before.
pub(crate) fn init(
    directives: &str,
    format: LogFormat,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        format!(
            "--log: `{directives}` cannot be read: {error}; write for example info or blixard_node=debug,warn"
        )
    })?;
    let colour = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match (format, colour) {
        (LogFormat::Json, _) => {
            subscriber.json().with_writer(|| Lines(stderr(), text::printable_json)).try_init()
        }
        (LogFormat::Text, true) => {
            subscriber.with_ansi(true).with_writer(|| Lines(stderr(), text::painted_lines)).try_init()
        }
        (LogFormat::Text, false) => {
            subscriber.with_ansi(false).with_writer(|| Lines(stderr(), text::printable_lines)).try_init()
        }
    }
}

/// Writes each event as the one line it is, whatever texts of others are in it: what would act on a
/// terminal, or begin another line, is escaped.
///
/// An event that cannot be written is lost, as when the file system of the log is full or whoever read it
/// is gone. `tracing_subscriber` would say so on standard error, which is just what cannot be written, and
/// panic in the task that logs.
struct Lines<W>(W, fn(&str) -> Cow<'_, str>);

impl<W: Write> Write for Lines<W> {
    /// Takes a whole event, as `tracing_subscriber` writes them.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text).replace('\n', "\\n");
        self.0.write_all(format!("{}\n", (self.1)(&line)).as_bytes()).ok();
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().ok();
        Ok(())
    }
}

/// Says something to whoever started the daemon, on standard output. It goes on when nobody can read it.
pub(crate) fn say(text: std::fmt::Arguments<'_>) {
    writeln!(io::stdout(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use blixard_core::text;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics here").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(json: bool, escape: fn(&str) -> Cow<'_, str>) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let make = move || Lines(writer.clone(), escape);
        let _: Lines<Kept> = make.make_writer();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(make);
        let said =
            || tracing::info!(node.name = %"box\x1b[2J\u{202e}\nERROR forged", err = ?"\u{9b}1m", "told");
        if json {
            tracing::subscriber::with_default(subscriber.json().finish(), said);
        } else {
            tracing::subscriber::with_default(subscriber.finish(), said);
        }
        String::from_utf8(kept.0.lock().expect("no test panics here").clone()).expect("text")
    }

    #[test]
    fn an_event_is_one_line_whatever_it_quotes() {
        let text = log(false, text::printable_lines);
        let json = log(true, text::printable_json);
        for lines in [&text, &json] {
            assert_eq!(lines.lines().count(), 1, "{lines}");
            assert!(!lines.trim_end().contains(text::is_unseen), "{lines}");
            assert!(lines.contains("forged") && lines.contains("told"), "{lines}");
        }
        let event: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(event["fields"]["message"], "told");
    }

    /// A file system that is full, or a pipe that nobody reads.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_no_error() {
        let mut lines = Lines(Broken, text::printable_lines);
        assert_eq!(lines.write(b"an event\n").expect("it is lost"), 9);
        lines.flush().expect("there is nothing to flush");
    }
}

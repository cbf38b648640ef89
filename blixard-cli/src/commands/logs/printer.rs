//! How lines look, and where they go. To a pipe goes what the container wrote, byte for byte; to a
//! terminal nothing that it could not bear.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use blixard_core::api::replica::LogLine;

use super::Said;
use crate::failure;
use crate::render::color::{self, Paint, Style};
use crate::render::{self, text};

/// How much of a line is held back for its end, when others could be printed between its pieces; in bytes.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Where lines go: stdout or stderr.
struct Channel {
    paint: Paint,
    terminal: bool,
    /// The log whose line is not at its end.
    open: Option<usize>,
    out: Box<dyn Write>,
}

/// A line that is not at its end.
#[derive(Default)]
struct Held {
    name: String,
    at: String,
    bytes: Vec<u8>,
}

/// Prints lines.
pub(super) struct Printer {
    /// The width of the names shown; absent when there is one container.
    names: Option<usize>,
    timestamps: bool,
    channels: [Channel; 2],
    held: BTreeMap<(usize, bool), Held>,
    failed: bool,
}

impl Printer {
    pub(super) fn new(names: Option<usize>, timestamps: bool) -> Self {
        let stdout = Channel {
            paint: color::stdout(),
            terminal: io::stdout().is_terminal(),
            open: None,
            out: Box::new(io::stdout()),
        };
        let stderr = Channel {
            paint: color::stderr(),
            terminal: io::stderr().is_terminal(),
            open: None,
            out: Box::new(io::stderr()),
        };
        Self { names, timestamps, channels: [stdout, stderr], held: BTreeMap::new(), failed: false }
    }

    /// Prints what was read.
    pub(super) fn take(&mut self, said: Said) -> io::Result<()> {
        let Said { source, name, line } = said;
        match line {
            Ok(LogLine { error: Some(error), .. }) => self.ends_early(&name, &error),
            Err(error) => self.ends_early(&name, &format!("{error:#}")),
            Ok(line) if self.names.is_none() => {
                self.print(source, &name, &line.at, line.stderr, &line.bytes(), line.partial)?;
            }
            Ok(line) => self.hold(source, name, &line)?,
        }
        Ok(())
    }

    fn ends_early(&mut self, name: &str, error: &str) {
        render::warn(&format!("the log of {name} ends early: {}", text::printable(error)));
        self.failed = true;
    }

    /// Prints a line once it is at its end, or too long to be held.
    fn hold(&mut self, source: usize, name: String, line: &LogLine) -> io::Result<()> {
        let held = self.held.entry((source, line.stderr)).or_default();
        if held.at.is_empty() {
            (held.name, held.at) = (name, line.at.clone());
        }
        held.bytes.extend_from_slice(&line.bytes());
        if line.partial && held.bytes.len() < HELD_BYTES_MAX {
            return Ok(());
        }
        let held = std::mem::take(held);
        self.held.remove(&(source, line.stderr));
        self.print(source, &held.name, &held.at, line.stderr, &held.bytes, line.partial)
    }

    /// Prints what is held, ends the lines that are open, and says whether a log ended early.
    pub(super) fn finish(mut self) -> io::Result<bool> {
        for ((source, stderr), held) in std::mem::take(&mut self.held) {
            self.print(source, &held.name, &held.at, stderr, &held.bytes, true)?;
        }
        let several = self.names.is_some();
        for channel in &mut self.channels {
            if channel.open.take().is_some() && (several || channel.terminal) {
                failure::output(channel.out.write_all(b"\n"))?;
            }
            failure::output(channel.out.flush())?;
        }
        Ok(self.failed)
    }

    fn print(
        &mut self,
        source: usize,
        name: &str,
        at: &str,
        stderr: bool,
        bytes: &[u8],
        partial: bool,
    ) -> io::Result<()> {
        let [stdout_channel, stderr_channel] = &mut self.channels;
        let channel = if stderr { stderr_channel } else { stdout_channel };
        let mut said = Vec::with_capacity(bytes.len() + 64);
        if channel.open != Some(source) {
            if channel.open.is_some() {
                said.push(b'\n');
            }
            if let Some(width) = self.names {
                let name = format!("{:<width$} | ", text::printable(name));
                said.extend_from_slice(channel.paint.apply(Style::Cyan, &name).as_bytes());
            }
            if self.timestamps {
                said.extend_from_slice(channel.paint.apply(Style::Dim, &text::printable(at)).as_bytes());
                said.push(b' ');
            }
        }
        if channel.terminal {
            said.extend_from_slice(text::for_terminal(bytes).as_bytes());
        } else {
            said.extend_from_slice(bytes);
        }
        channel.open = partial.then_some(source);
        if !partial {
            said.push(b'\n');
        }
        failure::output(channel.out.write_all(&said).and_then(|()| channel.out.flush()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{self, Write};
    use std::rc::Rc;

    use super::{Channel, LogLine, Paint, Printer, Said};

    #[derive(Clone, Default)]
    struct Written(Rc<RefCell<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written for pieces of lines: by which log, to which stream, what, and whether more comes.
    fn written(
        names: Option<usize>,
        timestamps: bool,
        terminal: bool,
        pieces: &[(usize, bool, &[u8], bool)],
    ) -> [String; 2] {
        let outs = [Written::default(), Written::default()];
        let channels =
            outs.clone().map(|out| Channel { paint: Paint::Plain, terminal, open: None, out: Box::new(out) });
        let mut printer = Printer { names, timestamps, channels, held: Default::default(), failed: false };
        for (source, stderr, bytes, partial) in pieces {
            let line = LogLine::new("T".into(), *stderr, bytes.to_vec(), *partial);
            let said = Said { source: *source, name: format!("web-{source}"), line: Ok(line) };
            printer.take(said).unwrap();
        }
        assert!(!printer.finish().unwrap());
        outs.map(|out| String::from_utf8_lossy(&out.0.borrow()).into_owned())
    }

    #[test]
    fn lines_carry_names_only_when_there_are_several_containers() {
        let check = |names, timestamps, expect: &str| {
            let [stdout, _] = written(names, timestamps, false, &[(0, false, b"hi", false)]);
            assert_eq!(stdout, expect);
        };
        check(None, false, "hi\n");
        check(None, true, "T hi\n");
        check(Some(6), false, "web-0  | hi\n");
        check(Some(5), true, "web-0 | T hi\n");
    }

    #[test]
    fn pieces_are_joined_and_streams_kept_apart() {
        let pieces: [(usize, bool, &[u8], bool); 4] = [
            (0, false, b"a\xc3", true),
            (0, true, b"err", false),
            (0, false, b"\xa9", true),
            (0, false, b"!", false),
        ];
        assert_eq!(written(None, true, false, &pieces), ["T aé!\n", "T err\n"]);
    }

    #[test]
    fn lines_of_several_containers_are_printed_whole() {
        let pieces: [(usize, bool, &[u8], bool); 4] = [
            (0, false, b"a", true),
            (1, false, b"b", false),
            (0, false, b"c", false),
            (1, false, b"d", true),
        ];
        let [stdout, _] = written(Some(5), false, false, &pieces);
        assert_eq!(stdout, "web-1 | b\nweb-0 | ac\nweb-1 | d\n");
        let long = vec![b'x'; super::HELD_BYTES_MAX];
        let pieces: [(usize, bool, &[u8], bool); 3] =
            [(0, false, &long, true), (1, false, b"b", false), (0, false, b"c", false)];
        let [stdout, _] = written(Some(5), false, false, &pieces);
        let expect = format!("web-0 | {}\nweb-1 | b\nweb-0 | c\n", "x".repeat(long.len()));
        assert!(stdout == expect, "a line too long to be held is cut where another comes between");
    }

    #[test]
    fn a_line_without_its_end_is_ended_for_a_terminal_only() {
        let pieces: [(usize, bool, &[u8], bool); 1] = [(0, false, b"$ ", true)];
        assert_eq!(written(None, false, false, &pieces)[0], "$ ");
        assert_eq!(written(None, false, true, &pieces)[0], "$ \n");
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let pieces: [(usize, bool, &[u8], bool); 1] = [(0, true, b"\x1b]0;t\x07\xff\x1b[31mred", false)];
        assert_eq!(written(None, false, true, &pieces)[1], "\\x1b]0;t\\x07\\xff\x1b[31mred\n");
    }
}

//! A container's logger: the process that containerd's shim starts for each container and that
//! writes what the container says into files, line by line, with time and stream.
//!
//! containerd is given `binary:///path/to/blixard?internal-logger=LOGFILE` as the container's
//! output; the shim turns the query's parameters into pairs of arguments, so that this program is
//! started as `blixard internal-logger LOGFILE`. [`dispatch`] therefore comes first in `main`,
//! before arguments are parsed and before any runtime is built: the container's start waits for it.
//!
//! The protocol is containerd's binary logging: the container's output is descriptor 3, its error
//! output 4, and a byte on 5 says that the logger reads. On removal the shim closes its ends and
//! sends SIGTERM, which is therefore no reason to end: the logger reads to the end of both streams.
//!
//! A file's lines are the format of Kubernetes' CRI: `TIME stdout|stderr F|P TEXT`, P for a part
//! of a line that goes on in the next entry.
//!
//! Beside a log that was rotated a small file says where in the whole log its newest file begins, so that
//! a reader that was overtaken knows how much it missed.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use blixard_core::time::UtcMs;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

/// The hidden subcommand, and the query parameter that becomes it.
pub const SUBCOMMAND: &str = "internal-logger";
/// A log file is put aside when it grew to this many bytes.
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// How many files of one attempt are kept, the newest included.
pub const FILES_MAX: usize = 3;
/// A longer line is written in parts, so that a container without line ends costs no memory.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;

/// Runs the logger and gives its exit code, when the process was started as one; call first in
/// `main`.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != SUBCOMMAND {
        return None;
    }
    Some(match logger_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{SUBCOMMAND}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Reads both streams to their end and writes them to the log named by the first argument.
///
/// # Errors
/// When the process was not started by a shim, or the log's directory cannot be made. A disk that
/// fails later loses lines; the container is never held up.
pub fn logger_main(mut args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let path = args.next().ok_or_else(|| io::Error::other("the log file is missing"))?;
    let log = RefCell::new(LogFile::open(PathBuf::from(path), FILE_BYTES_MAX)?);
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let _ignored = signal(SignalKind::terminate())?;
        let stdout = pipe::Receiver::from_file(open_descriptor(3)?)?;
        let stderr = pipe::Receiver::from_file(open_descriptor(4)?)?;
        OpenOptions::new().write(true).open("/proc/self/fd/5")?.write_all(b"1")?;
        let (first, second) = tokio::join!(copy(stdout, "stdout", &log), copy(stderr, "stderr", &log));
        first.and(second)
    })
}

fn open_descriptor(number: u32) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(nonblocking).open(format!("/proc/self/fd/{number}"))
}

async fn copy(mut from: pipe::Receiver, stream: &str, log: &RefCell<LogFile>) -> io::Result<()> {
    let mut lines = Lines { stream, pending: Vec::new() };
    let mut buffer = vec![0; 64 << 10];
    let mut entries = Vec::new();
    loop {
        let length = from.read(&mut buffer).await?;
        let time = now();
        match buffer.get(..length) {
            Some(bytes) if !bytes.is_empty() => lines.take(bytes, &time, &mut entries),
            _ => lines.finish(&time, &mut entries),
        }
        log.borrow_mut().write(&entries);
        entries.clear();
        if length == 0 {
            return Ok(());
        }
    }
}

/// Cuts a stream into entries.
struct Lines<'a> {
    stream: &'a str,
    pending: Vec<u8>,
}

impl Lines<'_> {
    fn take(&mut self, mut bytes: &[u8], time: &str, entries: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.extend(line, time, entries);
            self.entry("F", time, entries);
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.extend(bytes, time, entries);
    }

    /// Adds to the line that is not at its end yet, in parts where it is long.
    fn extend(&mut self, mut bytes: &[u8], time: &str, entries: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > LINE_BYTES_MAX {
            let (part, rest) = bytes.split_at(LINE_BYTES_MAX - self.pending.len());
            self.pending.extend_from_slice(part);
            let begun = self.pending.len() - unfinished_character(&self.pending);
            let next = self.pending.split_off(begun);
            self.entry("P", time, entries);
            self.pending = next;
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
    }

    /// Writes what is left of a last line without an end.
    fn finish(&mut self, time: &str, entries: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.entry("F", time, entries);
        }
    }

    fn entry(&mut self, tag: &str, time: &str, entries: &mut Vec<u8>) {
        entries.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        entries.append(&mut self.pending);
        entries.push(b'\n');
    }
}

/// How many bytes at the end are the beginning of a UTF-8 character whose rest is to come. A part is
/// cut before it, so that whoever shows parts one by one shows whole characters.
fn unfinished_character(bytes: &[u8]) -> usize {
    for (before, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > before + 1 { before + 1 } else { 0 };
    }
    0
}

/// The wall clock, RFC 3339 in UTC to the nanosecond.
#[expect(clippy::disallowed_methods, reason = "this process is no part of the simulated node")]
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = UtcMs(since.as_secs() * 1000).to_string();
    let seconds = seconds.split('.').next().unwrap_or_default();
    format!("{seconds}.{:09}Z", since.subsec_nanos())
}

/// A log in files: the newest at the path itself, older ones at `.1`, `.2`.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    /// How many bytes were written before the newest file.
    before: u64,
    /// What readers were last told of that.
    told: Option<Begin>,
}

impl LogFile {
    pub(super) fn open(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let before = before(&path);
        let mut log = Self { path, file: None, bytes: 0, bytes_max, before, told: None };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path)?;
        let metadata = file.metadata()?;
        self.bytes = metadata.len();
        self.file = Some(file);
        self.tell_begin(Begin { inode: metadata.ino(), bytes: self.before });
        Ok(())
    }

    /// Tells readers where the newest file begins; of a log that was never rotated they know it. What the
    /// disk does not take is told of no file, rather than of one that is gone.
    fn tell_begin(&mut self, begin: Begin) {
        if begin.bytes == 0 || self.told == Some(begin) {
            return;
        }
        let written = begin.write(&self.path);
        if written.is_err() {
            let _ = fs::remove_file(Begin::path(&self.path));
        }
        self.told = written.is_ok().then_some(begin);
    }

    /// Writes whole entries. What the disk does not take is lost, and the next ones are tried anew.
    pub(super) fn write(&mut self, entries: &[u8]) {
        if !entries.is_empty() && self.try_write(entries).is_err() {
            self.file = None;
        }
    }

    fn try_write(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.bytes > 0 && self.bytes + entries.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(entries)?;
            self.bytes += entries.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (1..FILES_MAX).rev() {
            match fs::rename(rotated(&self.path, age - 1), rotated(&self.path, age)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.before = self.before.saturating_add(std::mem::take(&mut self.bytes));
        self.reopen()
    }
}

/// How many bytes were written before the newest file of a log that is there already.
fn before(path: &Path) -> u64 {
    let length = |age| fs::metadata(rotated(path, age)).map_or(0, |metadata| metadata.len());
    let newest = fs::metadata(path).map(|metadata| metadata.ino());
    match Begin::read(path) {
        Some(begin) if newest.is_ok_and(|newest| newest == begin.inode) => begin.bytes,
        _ => (1..FILES_MAX).map(length).sum(),
    }
}

/// Where in the whole log a file of it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begin {
    /// The file's number in its file system: its name changes.
    pub(super) inode: u64,
    /// How many bytes were written before it.
    pub(super) bytes: u64,
}

impl Begin {
    /// Where it is written down for the log at `path`.
    pub(super) fn path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".begin");
        name.into()
    }

    /// What is written down; nothing when the log was never rotated, or when it cannot be read.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(Self::path(path)).ok()?;
        let (inode, bytes) = text.trim_end().split_once(' ')?;
        Some(Self { inode: inode.parse().ok()?, bytes: bytes.parse().ok()? })
    }

    /// Writes it down; whoever reads meanwhile reads the old or the new.
    fn write(&self, path: &Path) -> io::Result<()> {
        let path = Self::path(path);
        let unfinished = path.with_extension("begin~");
        fs::write(&unfinished, format!("{} {}\n", self.inode, self.bytes))?;
        fs::rename(unfinished, path)
    }
}

/// The path of a log's file put aside `age` times; 0 is the newest.
pub(crate) fn rotated(path: &Path, age: usize) -> PathBuf {
    if age == 0 {
        return path.to_path_buf();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::{Begin, LINE_BYTES_MAX, Lines, LogFile, now, rotated};

    fn entries(chunks: &[&[u8]]) -> String {
        let mut lines = Lines { stream: "stdout", pending: Vec::new() };
        let mut entries = Vec::new();
        for chunk in chunks {
            lines.take(chunk, "T", &mut entries);
        }
        lines.finish("T", &mut entries);
        String::from_utf8(entries).expect("text")
    }

    #[test]
    fn streams_are_cut_into_entries() {
        let check = |chunks: &[&[u8]], expect: &str| assert_eq!(entries(chunks), expect, "{chunks:?}");
        check(&[], "");
        check(&[b"one\ntw", b"o\n\n"], "T stdout F one\nT stdout F two\nT stdout F \n");
        check(&[b"no end"], "T stdout F no end\n");
        let long = vec![b'x'; LINE_BYTES_MAX + 2];
        let expect = format!("T stdout P {}\nT stdout F xx\n", "x".repeat(LINE_BYTES_MAX));
        check(&[&long, b"\n"], &expect);
    }

    #[test]
    fn parts_are_cut_between_characters_and_lose_no_byte() {
        let check = |text: &[u8]| {
            let mut lines = Lines { stream: "stdout", pending: Vec::new() };
            let mut entries = Vec::new();
            text.chunks(1000).for_each(|chunk| lines.take(chunk, "T", &mut entries));
            lines.finish("T", &mut entries);
            let parts = entries.split(|byte| *byte == b'\n').filter(|entry| !entry.is_empty());
            let parts: Vec<&[u8]> = parts.map(|entry| &entry["T stdout F ".len()..]).collect();
            assert!(parts.iter().all(|part| part.len() <= LINE_BYTES_MAX));
            assert_eq!(parts.concat(), text);
            parts.iter().all(|part| std::str::from_utf8(part).is_ok())
        };
        for character in ["é", "€", "𝄞"] {
            for shift in 0..4 {
                let text = "x".repeat(shift) + &character.repeat(20_000);
                assert!(check(text.as_bytes()), "{character} at {shift}");
            }
        }
        assert!(!check(&vec![0xa9; LINE_BYTES_MAX * 2 + 1]), "it is no text");
        assert!(!check(&vec![0xf0; LINE_BYTES_MAX * 2 + 1]), "it is no text");
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_dropped() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("7/1.log");
        let mut log = LogFile::open(path.clone(), 10).expect("log");
        for entry in ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"] {
            log.write(entry.as_bytes());
        }
        let read = |age| fs::read_to_string(rotated(&path, age)).expect("file");
        assert_eq!([read(0), read(1), read(2)], ["dddddddd", "cccccccc", "bbbbbbbb"]);
        assert!(!rotated(&path, 3).exists());
    }

    #[test]
    fn where_the_newest_file_begins_is_written_down_and_taken_up_by_the_next_logger() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("1.log");
        let begin = || {
            let begin = Begin::read(&path)?;
            assert_eq!(begin.inode, fs::metadata(&path).expect("file").ino());
            Some(begin.bytes)
        };
        let mut log = LogFile::open(path.clone(), 10).expect("log");
        log.write(b"aaaaaaaa");
        assert_eq!(begin(), None, "it was not rotated");
        for (entry, expect) in
            [("bbbbbb", 8), ("ccccccc", 14), ("dd", 14), ("eeeeeeee", 23), ("ffffffff", 31)]
        {
            log.write(entry.as_bytes());
            assert_eq!(begin(), Some(expect), "{entry}");
        }
        drop(log);
        let mut log = LogFile::open(path.clone(), 10).expect("log");
        log.write(b"gggggggg");
        assert_eq!(begin(), Some(39));
    }

    #[test]
    fn times_have_nanoseconds() {
        let now = now();
        assert_eq!(now.len(), "2026-01-01T00:00:00.000000000Z".len(), "{now}");
    }
}

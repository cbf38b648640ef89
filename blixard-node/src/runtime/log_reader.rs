//! Reads one attempt's log from the files its logger wrote: the oldest first, the last lines only
//! if asked, and on across rotation. It gives lines in the pieces they were written in, so that no line
//! is too long for it: what it holds is one chunk and one entry.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::log_tail::{Header, Starts, starts_of_last};
use super::logger::{FILES_MAX, LINE_BYTES_MAX, rotated};
use crate::platform::{LogLine, LogQuery};

const CHUNK: usize = 64 << 10;
/// The longest entry: a longer one was not written by a logger, and is passed over.
const ENTRY_BYTES_MAX: usize = LINE_BYTES_MAX + 128;
/// How many characters of a time two times are compared by: to the millisecond.
const TIME_CHARS: usize = "2026-01-01T00:00:00.000".len();

/// A place in an attempt's log.
pub(crate) struct LogReader {
    path: PathBuf,
    /// Files to read, the oldest first; the last is the newest.
    files: VecDeque<File>,
    /// Bytes of an entry that is not complete yet.
    pending: Vec<u8>,
    /// How many bytes come before `pending`.
    position: u64,
    /// Whether the entry of which `pending` is a part is passed over.
    overlong: bool,
    /// From where the entries of each stream count.
    starts: Starts,
    since: Option<String>,
    until: Option<String>,
    /// Whether the line being read of each stream is in the time asked for; unknown between lines.
    wanted: [Option<bool>; 2],
    over: bool,
}

impl LogReader {
    /// Opens the log, at its last lines when only those are asked for.
    pub(crate) fn open(path: PathBuf, query: &LogQuery) -> io::Result<Self> {
        let mut files = VecDeque::new();
        for age in 0..FILES_MAX {
            match File::open(rotated(&path, age)) {
                Ok(file) => files.push_front(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && age > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let starts = match query.tail {
            Some(lines) => starts_of_last(&mut files, lines)?,
            None => [0; 2],
        };
        let comparable = |time: blixard_core::time::UtcMs| {
            let mut text = time.to_string();
            text.truncate(TIME_CHARS);
            text
        };
        let mut reader = Self {
            path,
            files,
            pending: Vec::new(),
            position: 0,
            overlong: false,
            starts,
            since: query.since.map(comparable),
            until: query.until.map(comparable),
            wanted: [None; 2],
            over: false,
        };
        reader.seek(starts[0].min(starts[1]))?;
        Ok(reader)
    }

    /// Goes on at `position`, which is the start of an entry.
    fn seek(&mut self, position: u64) -> io::Result<()> {
        for file in &mut self.files {
            file.rewind()?;
        }
        let mut left = position;
        while let Some(file) = self.files.front_mut() {
            let length = file.metadata()?.len();
            if left <= length || self.files.len() == 1 {
                self.files.front_mut().map(|file| file.seek(SeekFrom::Start(left))).transpose()?;
                break;
            }
            left -= length;
            self.files.pop_front();
        }
        self.position = position;
        Ok(())
    }

    /// Whether what is still to come was written later than asked for.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Reads on, a chunk's worth at most; an empty answer means that there is nothing more for now.
    pub(crate) fn read(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        while lines.is_empty() && !self.over {
            let Some(file) = self.files.front_mut() else { break };
            let length = file.by_ref().take(CHUNK as u64).read_to_end(&mut self.pending)?;
            if length == 0 {
                if self.files.len() == 1 && !self.follow_rotation()? {
                    break;
                }
                self.files.pop_front();
                continue;
            }
            self.take_entries(&mut lines);
        }
        Ok(lines)
    }

    fn take_entries(&mut self, lines: &mut Vec<LogLine>) {
        let bytes = std::mem::take(&mut self.pending);
        let mut rest = bytes.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (entry, after) = rest.split_at(end);
            if !std::mem::take(&mut self.overlong) {
                lines.extend(self.entry(entry));
            }
            self.position += end as u64 + 1;
            rest = after.get(1..).unwrap_or_default();
        }
        if rest.len() > ENTRY_BYTES_MAX {
            self.overlong = true;
        }
        if self.overlong {
            self.position += rest.len() as u64;
            return;
        }
        self.pending = rest.to_vec();
    }

    /// Appends the files that are newer than the last one; false when there are none.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let Some(last) = self.files.back() else { return Ok(false) };
        let last = last.metadata()?;
        let mut newer = Vec::new();
        for age in 0..FILES_MAX {
            match File::open(rotated(&self.path, age)) {
                Ok(file) => {
                    let metadata = file.metadata()?;
                    if (metadata.dev(), metadata.ino()) == (last.dev(), last.ino()) {
                        break;
                    }
                    newer.push(file);
                }
                // In the middle of a rotation, or removed: what is there next time counts.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let any = !newer.is_empty();
        self.files.extend(newer.into_iter().rev());
        Ok(any)
    }

    /// The line, or the piece of one, that an entry is. What is no entry is passed over, and so is what
    /// was not asked for.
    fn entry(&mut self, entry: &[u8]) -> Option<LogLine> {
        let header = Header::read(entry)?;
        if self.starts.get(header.stream).is_some_and(|start| self.position < *start) {
            return None;
        }
        let at = String::from_utf8_lossy(header.at);
        let time = at.get(..TIME_CHARS).unwrap_or(&at);
        let line = self.wanted.get_mut(header.stream)?;
        if line.is_none() && self.until.as_deref().is_some_and(|until| time > until) {
            self.over = true;
            return None;
        }
        let wanted = *line.get_or_insert_with(|| self.since.as_deref().is_none_or(|since| time >= since));
        if !header.partial {
            *line = None;
        }
        wanted.then(|| LogLine {
            at: at.into_owned(),
            stderr: header.stream == 1,
            bytes: entry.get(header.bytes..).unwrap_or_default().to_vec(),
            partial: header.partial,
        })
    }
}

#[cfg(test)]
mod tests;

//! Reads one attempt's log from the files its logger wrote: the oldest first, the last lines only
//! if asked, and on across rotation. It gives lines in the pieces they were written in, so that no line
//! is too long for it: what it holds is one chunk and one entry. Where rotation removed files before it
//! got to them it says so.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::log_tail::{Header, Starts, starts_of_last};
use super::logger::{Begin, FILES_MAX, LINE_BYTES_MAX, rotated};
use crate::platform::{LogLine, LogQuery};

const CHUNK: usize = 64 << 10;
/// The longest entry: a longer one was not written by a logger, and is passed over.
const ENTRY_BYTES_MAX: usize = LINE_BYTES_MAX + 128;
/// How many characters of a time two times are compared by: to the millisecond.
const TIME_CHARS: usize = "2026-01-01T00:00:00.000".len();

/// How often the files are looked at anew that are rotated meanwhile.
const LOOKS_MAX: usize = 3;

/// What is missing between two files.
struct Gap {
    /// How much; absent when that cannot be told, and then maybe nothing.
    bytes: Option<u64>,
}

/// A place in an attempt's log.
pub(crate) struct LogReader {
    path: PathBuf,
    /// Files to read, the oldest first; the last is the newest.
    files: VecDeque<File>,
    /// How many bytes were written before the newest of `files`, where that is known.
    before_newest: Option<u64>,
    /// What is missing behind the first of `files`.
    ahead: Option<Gap>,
    /// What is missing before the next entry, and was not told yet.
    gap: Option<Gap>,
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
        let Files { mut files, before_newest, .. } = Files::look(&path, None)?;
        if files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let comparable = |time: blixard_core::time::UtcMs| {
            let mut text = time.to_string();
            text.truncate(TIME_CHARS);
            text
        };
        let until = query.until.map(comparable);
        let starts = match query.tail {
            Some(lines) => starts_of_last(&mut files, lines, until.as_deref())?,
            None => [0; 2],
        };
        let mut reader = Self {
            path,
            files,
            before_newest,
            ahead: None,
            gap: None,
            pending: Vec::new(),
            position: 0,
            overlong: false,
            starts,
            since: query.since.map(comparable),
            until,
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
                if self.files.len() > 1 {
                    self.next_file();
                } else if !self.follow_rotation()? {
                    break;
                }
                // The file may have grown before it was put aside; from then on it does not.
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
                self.entry(entry, lines);
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

    /// Goes on at the start of the next file.
    fn next_file(&mut self) {
        self.files.pop_front();
        if let Some(gap) = self.ahead.take() {
            // What comes behind the gap is no rest of an entry before it.
            self.pending.clear();
            self.overlong = false;
            self.gap = Some(gap);
        }
    }

    /// Appends the files that are newer than the last one; false when there are none.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let Some(last) = self.files.back() else { return Ok(false) };
        let newer = Files::look(&self.path, Some(inode(&last.metadata()?)))?;
        if !newer.stable || newer.files.is_empty() {
            // In the middle of a rotation, or removed: what is there next time counts.
            return Ok(false);
        }
        let lengths = newer.lengths()?;
        let length = last.metadata()?.len();
        let end = self.before_newest.and_then(|before| before.checked_add(length));
        if newer.met {
            self.before_newest = newer.before_newest.or(end.and_then(|end| end.checked_add(lengths)));
        } else {
            // The last one is gone by now. Others may have come and gone after it.
            let start = newer.before_newest.and_then(|before| before.checked_sub(lengths));
            let bytes = start.zip(end).and_then(|(start, end)| start.checked_sub(end));
            self.ahead = (bytes != Some(0)).then_some(Gap { bytes });
            self.before_newest = newer.before_newest;
        }
        self.files.extend(newer.files);
        Ok(true)
    }

    /// Adds the line, or the piece of one, that an entry is. What is no entry is passed over, and so is
    /// what was not asked for.
    fn entry(&mut self, entry: &[u8], lines: &mut Vec<LogLine>) {
        let Some(header) = Header::read(entry) else { return };
        if self.starts.get(header.stream).is_some_and(|start| self.position < *start) {
            return;
        }
        let at = String::from_utf8_lossy(header.at);
        let time = at.get(..TIME_CHARS).unwrap_or(&at);
        if let Some(gap) = self.gap.take() {
            self.tell_gap(&gap, &at, time, lines);
        }
        let Some(line) = self.wanted.get_mut(header.stream) else { return };
        if line.is_none() && self.until.as_deref().is_some_and(|until| time > until) {
            self.over = true;
            return;
        }
        let wanted = *line.get_or_insert_with(|| self.since.as_deref().is_none_or(|since| time >= since));
        if !header.partial {
            *line = None;
        }
        if wanted {
            lines.push(LogLine {
                at: at.into_owned(),
                stderr: header.stream == 1,
                bytes: entry.get(header.bytes..).unwrap_or_default().to_vec(),
                partial: header.partial,
                note: false,
            });
        }
    }

    /// Says that something is missing before an entry of `time`. Lines that were begun before it end
    /// there, for their ends are lost; what is older than asked for is not missed.
    fn tell_gap(&mut self, gap: &Gap, at: &str, time: &str, lines: &mut Vec<LogLine>) {
        let line = |stderr, text: String, note| LogLine {
            at: at.to_owned(),
            stderr,
            bytes: text.into_bytes(),
            partial: false,
            note,
        };
        for (stream, wanted) in std::mem::take(&mut self.wanted).into_iter().enumerate() {
            if wanted == Some(true) {
                lines.push(line(stream == 1, String::new(), false));
            }
        }
        if self.since.as_deref().is_none_or(|since| time >= since) {
            let what = match gap.bytes {
                Some(bytes) => {
                    format!("{bytes} bytes of the log were removed by rotation before they were read")
                }
                None => "part of the log may have been removed by rotation before it was read".to_owned(),
            };
            lines.push(line(true, format!("[blixard: {what}]"), true));
        }
    }
}

/// The files of a log that were there at one time.
struct Files {
    /// The oldest first.
    files: VecDeque<File>,
    /// How many bytes were written before the newest of them, where that is known.
    before_newest: Option<u64>,
    /// Whether they were not rotated while they were opened.
    stable: bool,
    /// Whether the file that was looked for was met.
    met: bool,
}

impl Files {
    /// Opens those that are newer than the file `last`, or all. Rotation goes on meanwhile, so it is
    /// looked again when the files seen do not belong together.
    fn look(path: &Path, last: Option<(u64, u64)>) -> io::Result<Self> {
        let mut seen = Self::look_once(path, last)?;
        for _ in 1..LOOKS_MAX {
            if seen.stable && (seen.before_newest.is_some() || seen.met) {
                break;
            }
            seen = Self::look_once(path, last)?;
        }
        Ok(seen)
    }

    fn look_once(path: &Path, last: Option<(u64, u64)>) -> io::Result<Self> {
        let mut seen = Self { files: VecDeque::new(), before_newest: None, stable: true, met: false };
        let mut inodes = Vec::new();
        let mut ended = false;
        for age in 0..FILES_MAX {
            let file = match File::open(rotated(path, age)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    seen.stable &= age > 0;
                    ended = true;
                    continue;
                }
                file => file?,
            };
            let own = inode(&file.metadata()?);
            if last == Some(own) {
                seen.met = true;
                break;
            }
            // One that is there twice, or after one that is not, is on its way to another name.
            seen.stable &= !ended && !inodes.contains(&own);
            if !seen.stable && age > 0 {
                break;
            }
            inodes.push(own);
            seen.files.push_front(file);
        }
        // An open file keeps its number, so what has the number still is the file.
        let newest = std::fs::metadata(path).ok().map(|newest| inode(&newest));
        seen.stable &= newest == inodes.first().copied().or(last);
        seen.before_newest = seen.find_before_newest(path, &inodes)?;
        Ok(seen)
    }

    /// How many bytes were written before the newest file: where one of the files begins is written down.
    fn find_before_newest(&self, path: &Path, inodes: &[(u64, u64)]) -> io::Result<Option<u64>> {
        if inodes.is_empty() || !self.stable {
            return Ok(None);
        }
        let Some(begin) = Begin::read(path) else {
            // A log of one file was never rotated.
            return Ok((inodes.len() == 1 && !self.met).then_some(0));
        };
        let Some(age) = inodes.iter().position(|(_, inode)| *inode == begin.inode) else { return Ok(None) };
        let mut before = begin.bytes;
        for file in self.files.iter().rev().take(age + 1).skip(1) {
            let Some(next) = before.checked_add(file.metadata()?.len()) else { return Ok(None) };
            before = next;
        }
        Ok(Some(before))
    }

    /// How many bytes are in all but the newest, which grows.
    fn lengths(&self) -> io::Result<u64> {
        self.files.iter().rev().skip(1).map(|file| Ok(file.metadata()?.len())).sum()
    }
}

/// What tells a file from every other one while it is open.
fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests;

//! Reads one attempt's log from the files its logger wrote: the oldest first, the last lines only
//! if asked, and on across rotation.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::logger::{FILES_MAX, rotated};
use crate::platform::LogLine;

const CHUNK: usize = 64 << 10;
/// Entries read beyond the wanted ones, so that parts of their lines written earlier, between
/// lines of the other stream, are not missed.
const TAIL_SLACK: usize = 32;

/// A place in an attempt's log.
pub(crate) struct LogReader {
    path: PathBuf,
    /// Files to read, the oldest first; the last is the newest.
    files: VecDeque<File>,
    /// Bytes of an entry that is not complete yet.
    pending: Vec<u8>,
    /// The parts so far of a line of stdout, and of stderr.
    parts: [String; 2],
    /// Only so many last lines of what is there at first.
    tail: Option<usize>,
}

impl LogReader {
    /// Opens the log; only its last `tail` lines when given.
    pub(crate) fn open(path: PathBuf, tail: Option<usize>) -> io::Result<Self> {
        let mut files = VecDeque::new();
        for age in 0..FILES_MAX {
            match File::open(rotated(&path, age)) {
                Ok(file) => files.push_front(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && age > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let mut reader = Self { path, files, pending: Vec::new(), parts: Default::default(), tail };
        if let Some(lines) = tail {
            reader.seek_tail(lines)?;
        }
        Ok(reader)
    }

    /// Skips all but roughly the last entries: never fewer than asked for.
    fn seek_tail(&mut self, lines: usize) -> io::Result<()> {
        let wanted = lines.saturating_add(TAIL_SLACK);
        let mut complete = 0;
        for index in (0..self.files.len()).rev() {
            let Some(file) = self.files.get_mut(index) else { break };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let mut end = bytes.len();
            while complete <= wanted && end > 0 {
                let start = bytes.get(..end - 1).and_then(rposition_newline).map_or(0, |at| at + 1);
                complete += usize::from(bytes.get(start..end).is_some_and(is_complete));
                end = start;
            }
            file.seek(SeekFrom::Start(end as u64))?;
            if complete > wanted {
                self.files.drain(..index);
                break;
            }
        }
        Ok(())
    }

    /// Reads on; an empty answer means that there is nothing more for now.
    pub(crate) fn read(&mut self) -> io::Result<Vec<LogLine>> {
        let Some(tail) = self.tail.take() else { return self.read_some() };
        let mut kept = VecDeque::new();
        loop {
            let lines = self.read_some()?;
            if lines.is_empty() {
                return Ok(kept.into());
            }
            kept.extend(lines);
            kept.drain(..kept.len().saturating_sub(tail));
        }
    }

    fn read_some(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while lines.is_empty() {
            let Some(file) = self.files.front_mut() else { break };
            let length = file.read(&mut chunk)?;
            if length == 0 {
                if self.files.len() == 1 && !self.follow_rotation()? {
                    break;
                }
                self.files.pop_front();
                continue;
            }
            self.pending.extend_from_slice(chunk.get(..length).unwrap_or_default());
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let entry = std::mem::replace(&mut self.pending, rest);
                lines.extend(self.entry(entry.get(..end).unwrap_or_default()));
            }
        }
        Ok(lines)
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

    /// Takes one entry and gives the line it completes. What is no entry is passed over.
    fn entry(&mut self, entry: &[u8]) -> Option<LogLine> {
        let text = String::from_utf8_lossy(entry);
        let mut fields = text.splitn(4, ' ');
        let (at, stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let stderr = match stream {
            "stdout" => false,
            "stderr" => true,
            _ => return None,
        };
        let parts = &mut self.parts[usize::from(stderr)];
        parts.push_str(text);
        (tag == "F").then(|| LogLine { at: at.to_owned(), stderr, text: std::mem::take(parts) })
    }
}

fn rposition_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|byte| *byte == b'\n')
}

/// Whether an entry ends a line.
fn is_complete(entry: &[u8]) -> bool {
    entry.splitn(4, |byte| *byte == b' ').nth(2) == Some(b"F")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use super::LogReader;

    fn texts(reader: &mut LogReader) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let lines = reader.read().expect("log");
            if lines.is_empty() {
                return texts;
            }
            texts.extend(lines.into_iter().map(|line| line.text));
        }
    }

    fn numbered(range: std::ops::Range<u32>) -> String {
        range.map(|number| format!("T stdout F {number}\n")).collect()
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("file");
        file.write_all(text.as_bytes()).expect("write");
    }

    #[test]
    fn lines_come_in_order_over_rotated_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("1.log");
        fs::write(directory.path().join("1.log.2"), numbered(0..100)).expect("file");
        fs::write(directory.path().join("1.log.1"), numbered(100..200)).expect("file");
        fs::write(&path, numbered(200..250)).expect("file");
        let check = |tail: Option<usize>, expect: std::ops::Range<u32>| {
            let mut reader = LogReader::open(path.clone(), tail).expect("log");
            let expect: Vec<String> = expect.map(|number| number.to_string()).collect();
            assert_eq!(texts(&mut reader), expect, "{tail:?}");
        };
        check(None, 0..250);
        check(Some(10), 240..250);
        check(Some(120), 130..250);
        check(Some(1000), 0..250);
        check(Some(0), 250..250);
    }

    #[test]
    fn parts_of_lines_are_joined_by_stream() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("1.log");
        fs::write(&path, "T stdout P one \nT stderr F  err\nnonsense\nT stdout F two\n").expect("file");
        let mut reader = LogReader::open(path, Some(2)).expect("log");
        assert_eq!(texts(&mut reader), [" err", "one two"]);
    }

    #[test]
    fn a_followed_log_is_read_on_across_rotation() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("1.log");
        append(&path, "T stdout F 1\nT stdout F");
        let mut reader = LogReader::open(path.clone(), None).expect("log");
        assert_eq!(texts(&mut reader), ["1"]);
        append(&path, " 2\n");
        fs::rename(&path, directory.path().join("1.log.2")).expect("rename");
        append(&directory.path().join("1.log.1"), "T stdout F 3\n");
        append(&path, "T stdout F 4\n");
        assert_eq!(texts(&mut reader), ["2", "3", "4"]);
        append(&path, "T stdout F 5\n");
        assert_eq!(texts(&mut reader), ["5"]);
    }
}

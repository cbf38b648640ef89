//! Finds where the last lines of a log begin: reads its files backwards, a chunk at a time, so that
//! the length of the log costs time and no memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;

const CHUNK: u64 = 64 << 10;
/// What of an entry says whose it is and whether it ends a line: time, stream and tag take less.
const HEADER_BYTES: usize = 64;
/// How far before the wanted lines the beginning of a line of the other stream is looked for, in bytes.
/// A longer one is shown from its middle.
const LOOK_BACK_BYTES: u64 = 1 << 20;

/// What an entry says before its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header<'a> {
    /// When it was written.
    pub(super) at: &'a [u8],
    /// 0 for stdout, 1 for stderr.
    pub(super) stream: usize,
    /// Whether its line goes on in the stream's next entry.
    pub(super) partial: bool,
    /// How many bytes come before its text.
    pub(super) bytes: usize,
}

impl<'a> Header<'a> {
    /// Reads `TIME stdout|stderr F|P `; nothing when that is not how `entry` begins.
    pub(super) fn read(entry: &'a [u8]) -> Option<Self> {
        let mut fields = entry.splitn(4, |byte| *byte == b' ');
        let (at, stream, tag) = (fields.next()?, fields.next()?, fields.next()?);
        fields.next()?;
        let stream = match stream {
            b"stdout" => 0,
            b"stderr" => 1,
            _ => return None,
        };
        let partial = match tag {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { at, stream, partial, bytes: at.len() + "stdout".len() + tag.len() + 3 })
    }
}

/// From where each stream is to be read, in bytes from the start of the oldest file.
pub(super) type Starts = [u64; 2];

/// Where the last `lines` complete lines begin, and whatever is written after them. Lines count in the
/// order of their ends, whichever stream they are of. What ends later than `until` does not count.
pub(super) fn starts_of_last(
    files: &mut VecDeque<File>,
    lines: usize,
    until: Option<&str>,
) -> io::Result<Starts> {
    let lengths = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<u64>>>()?;
    let mut base: u64 = lengths.iter().sum();
    let mut scan = Scan { wanted: lines, until, found: 0, starts: [None; 2], boundary: None };
    if lines == 0 {
        return Ok([base; 2]);
    }
    for (file, length) in files.iter_mut().zip(lengths).rev() {
        base -= length;
        let walked = entries_backwards(file, length, |start, end, header| {
            scan.entry(base + start, base + end, header)
        })?;
        if walked.is_break() {
            break;
        }
    }
    Ok(scan.starts.map(|start| start.unwrap_or(0)))
}

struct Scan<'a> {
    wanted: usize,
    until: Option<&'a str>,
    found: usize,
    /// Where a stream is to be read from, once that is known.
    starts: [Option<u64>; 2],
    /// Where the line before the wanted ones ends, once it was met.
    boundary: Option<u64>,
}

impl Scan<'_> {
    fn entry(&mut self, start: u64, end: u64, header: &[u8]) -> ControlFlow<()> {
        if let Some(boundary) = self.boundary
            && boundary - start > LOOK_BACK_BYTES
        {
            self.starts = self.starts.map(|start| start.or(Some(boundary)));
            return ControlFlow::Break(());
        }
        let Some(header) = Header::read(header).filter(|header| !header.partial) else {
            return ControlFlow::Continue(());
        };
        let is_later = |until: &str| header.at.get(..until.len()).is_some_and(|at| at > until.as_bytes());
        if self.found == 0 && self.until.is_some_and(is_later) {
            return ControlFlow::Continue(());
        }
        if self.boundary.is_none() {
            if self.found < self.wanted {
                self.found += 1;
                return ControlFlow::Continue(());
            }
            self.boundary = Some(end);
        }
        if let Some(start) = self.starts.get_mut(header.stream) {
            start.get_or_insert(end);
        }
        match self.starts {
            [Some(_), Some(_)] => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Gives the start, the end and the first bytes of each complete entry, the last first.
fn entries_backwards(
    file: &mut File,
    length: u64,
    mut visit: impl FnMut(u64, u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut window_end = length;
    // Where the entry being looked for ends; none before the last line's end was met.
    let mut entry_end = None;
    let mut window = Vec::new();
    while window_end > 0 {
        let window_start = window_end.saturating_sub(CHUNK);
        let after: Vec<u8> = window.iter().copied().take(HEADER_BYTES).collect();
        window.clear();
        file.seek(SeekFrom::Start(window_start))?;
        file.by_ref().take(window_end - window_start).read_to_end(&mut window)?;
        let mut upper = window.len();
        window.extend_from_slice(&after);
        let header_at = |window: &[u8], from: usize| {
            let until = window.len().min(from + HEADER_BYTES);
            let entry = window.get(from..until).unwrap_or_default().split(|byte| *byte == b'\n').next();
            entry.unwrap_or_default().to_vec()
        };
        while let Some(newline) =
            window.get(..upper).and_then(|bytes| bytes.iter().rposition(|byte| *byte == b'\n'))
        {
            let start = window_start + newline as u64 + 1;
            if let Some(end) = entry_end.replace(start)
                && visit(start, end, &header_at(&window, newline + 1)).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            upper = newline;
        }
        if window_start == 0
            && let Some(end) = entry_end
            && visit(0, end, &header_at(&window, 0)).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        window_end = window_start;
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use super::Header;

    #[test]
    fn headers_are_read_and_nothing_else() {
        let check = |entry: &[u8], expect: Option<(usize, bool, usize)>| {
            let header = Header::read(entry).map(|header| (header.stream, header.partial, header.bytes));
            assert_eq!(header, expect, "{}", String::from_utf8_lossy(entry));
        };
        check(b"T stdout F text", Some((0, false, 11)));
        check(b"T stderr P ", Some((1, true, 11)));
        check(b"T stdout F", None);
        check(b"T stdin F text", None);
        check(b"T stdout X text", None);
        check(b"", None);
    }
}

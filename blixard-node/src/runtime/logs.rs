//! Reads what loggers wrote: over rotated files, the last lines only if asked, and on while a
//! container runs.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ReplicaId;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::disk;
use super::containers::Containers;
use super::logger::{FILES_MAX, rotated};
use crate::platform::{LogLine, LogQuery, RuntimeError};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long after the container's end its logger may still write.
const DRAIN: Duration = Duration::from_millis(300);
/// How long to wait before asking containerd again whether a container still runs.
const RETRY: Duration = Duration::from_secs(1);
const CHUNK: usize = 64 << 10;
const QUEUE: usize = 512;
/// Entries read beyond the wanted ones, so that parts of their lines written earlier, between
/// lines of the other stream, are not missed.
const TAIL_SLACK: usize = 32;

type Lines = Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>;

impl Containers {
    /// A container's log. Following ends shortly after the container does.
    pub(crate) async fn logs(
        self: &Arc<Self>,
        replica: ReplicaId,
        attempt: u32,
        query: LogQuery,
    ) -> Result<Lines, RuntimeError> {
        let path = self.files.log(replica, attempt);
        let opened = super::blocking(move || match LogReader::open(path, query.tail) {
            Ok(reader) => Ok(Some(reader)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read the log", &error)),
        });
        let Some(reader) = opened.await? else {
            return Err(RuntimeError::NotFound(format!(
                "there is no log of attempt {attempt} of replica {replica} on this node"
            )));
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = sender.closed() => {}
                () = containers.pump(replica, attempt, reader, query, &sender) => {}
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn pump(
        &self,
        replica: ReplicaId,
        attempt: u32,
        mut reader: LogReader,
        query: LogQuery,
        sender: &mpsc::Sender<Result<LogLine, RuntimeError>>,
    ) {
        let id = self.id(replica, attempt);
        let ended = async {
            while let Err(error) = self.ended(&id).await {
                tracing::debug!(container = %id, err = %error, "cannot wait for the container");
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(DRAIN).await;
        };
        tokio::pin!(ended);
        let mut last = !query.follow;
        loop {
            let read = super::blocking(move || {
                let lines = reader.read().map_err(|error| disk("read the log", &error))?;
                Ok((reader, lines))
            });
            let lines = match read.await {
                Ok((back, lines)) => {
                    reader = back;
                    lines
                }
                Err(error) => {
                    // Whoever reads may be gone as well; there is nobody else to tell.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            let idle = lines.is_empty();
            for line in lines {
                if sender.send(Ok(line)).await.is_err() {
                    return;
                }
            }
            if !idle {
                continue;
            }
            if last {
                return;
            }
            tokio::select! {
                biased;
                () = &mut ended => last = true,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

/// A place in an attempt's log.
struct LogReader {
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
    fn open(path: PathBuf, tail: Option<usize>) -> io::Result<Self> {
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
    fn read(&mut self) -> io::Result<Vec<LogLine>> {
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

/// Removes the logs of all but the newest attempts.
pub(crate) fn prune_attempts(directory: &Path, keep: usize) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut attempts: BTreeSet<u32> = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        attempts.extend(name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok()));
    }
    let surplus = attempts.len().saturating_sub(keep);
    for attempt in attempts.into_iter().take(surplus) {
        for age in 0..FILES_MAX {
            let path = rotated(&directory.join(format!("{attempt}.log")), age);
            super::files::absent_is_fine(fs::remove_file(path))?;
        }
    }
    Ok(())
}

/// Removes the logs of replicas that have no container here and wrote nothing for `older_than`.
pub(crate) fn prune_replicas(
    logs: &Path,
    replicas: &BTreeSet<ReplicaId>,
    older_than: Duration,
) -> io::Result<()> {
    let entries = match fs::read_dir(logs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let replica: Option<ReplicaId> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if replica.is_some_and(|replica| !replicas.contains(&replica)) && age(&entry.path())? > older_than {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// How long ago anything in the directory was written.
fn age(directory: &Path) -> io::Result<Duration> {
    let mut newest = fs::metadata(directory)?.modified()?;
    for entry in fs::read_dir(directory)? {
        newest = newest.max(entry?.metadata()?.modified()?);
    }
    Ok(newest.elapsed().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::time::Duration;

    use super::{LogReader, prune_attempts, prune_replicas};

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

    #[test]
    fn old_attempts_and_replicas_lose_their_logs() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let replica = directory.path().join("7");
        fs::create_dir(&replica).expect("directory");
        for name in ["1.log", "1.log.1", "2.log", "10.log"] {
            fs::write(replica.join(name), "").expect("file");
        }
        prune_attempts(&replica, 2).expect("prune");
        let mut names: Vec<_> =
            fs::read_dir(&replica).expect("directory").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["10.log", "2.log"]);
        let present = [blixard_core::id::ReplicaId(7)].into();
        prune_replicas(directory.path(), &present, Duration::ZERO).expect("prune");
        assert!(replica.exists());
        prune_replicas(directory.path(), &Default::default(), Duration::from_secs(60)).expect("prune");
        assert!(replica.exists());
        prune_replicas(directory.path(), &Default::default(), Duration::ZERO).expect("prune");
        assert!(!replica.exists());
    }
}

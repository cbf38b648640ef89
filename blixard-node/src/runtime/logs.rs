//! The logs of containers: read, followed while a container runs, and removed when old.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ReplicaId;
use blixard_core::limits::LOG_READERS_MAX;
use blixard_core::time::UtcMs;
use futures_util::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::client::disk;
use super::containers::Containers;
use super::log_reader::LogReader;
use super::logger::{Begin, FILES_MAX, rotated};
use crate::platform::{LogLine, LogQuery, RuntimeError};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long after the container's end its logger may still write.
const DRAIN: Duration = Duration::from_millis(300);
/// How long to wait before asking containerd again whether a container still runs.
const RETRY: Duration = Duration::from_secs(1);

type Lines = Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>;

impl Containers {
    /// A container's log, read as it is taken: whoever takes it slowly, or not at all, holds one chunk.
    /// Following ends shortly after the container does.
    pub(crate) async fn logs(
        self: &Arc<Self>,
        replica: ReplicaId,
        attempt: u32,
        query: LogQuery,
    ) -> Result<Lines, RuntimeError> {
        let permit = Arc::clone(&self.log_readers).try_acquire_owned().map_err(|_| {
            RuntimeError::Unavailable(format!(
                "{LOG_READERS_MAX} logs are being read on this node, and no more are at a time"
            ))
        })?;
        let path = self.files.log(replica, attempt);
        let opened = super::blocking(move || match LogReader::open(path, &query) {
            Ok(reader) => Ok(Some(reader)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk("read the log", &error)),
        });
        let Some(reader) = opened.await? else {
            return Err(RuntimeError::NotFound(format!(
                "there is no log of attempt {attempt} of replica {replica} on this node"
            )));
        };
        let containers = Arc::clone(self);
        let ended = async move {
            let id = containers.id(replica, attempt);
            while let Err(error) = containers.ended(&id).await {
                tracing::debug!(container = %id, err = %error, "cannot wait for the container");
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(DRAIN).await;
        };
        let reading = Reading {
            reader: Some(reader),
            ready: VecDeque::new(),
            last: !query.follow,
            until: query.until,
            ended: Box::pin(ended),
            _permit: permit,
        };
        Ok(futures_util::stream::unfold(reading, Reading::next).boxed())
    }
}

/// A log being read.
struct Reading {
    /// Absent once it failed.
    reader: Option<LogReader>,
    ready: VecDeque<LogLine>,
    /// Whether the end of what is there is the end.
    last: bool,
    until: Option<UtcMs>,
    /// Ready once the container has ended and its logger too.
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: OwnedSemaphorePermit,
}

impl Reading {
    async fn next(mut self) -> Option<(Result<LogLine, RuntimeError>, Self)> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some((Ok(line), self));
            }
            let mut reader = self.reader.take()?;
            let read = super::blocking(move || {
                let lines = reader.read().map_err(|error| disk("read the log", &error))?;
                Ok((reader, lines))
            });
            match read.await {
                Err(error) => return Some((Err(error), self)),
                Ok((reader, lines)) => {
                    self.ready = lines.into();
                    if self.ready.is_empty() && (self.last || reader.is_over()) {
                        return None;
                    }
                    self.reader = Some(reader);
                }
            }
            if self.ready.is_empty() {
                self.pause().await;
            }
        }
    }

    /// Waits for more to be written.
    async fn pause(&mut self) {
        self.last = self.until.is_some_and(|until| now() > until);
        // Cancel safe: the container's end stays ready.
        tokio::select! {
            biased;
            () = &mut self.ended => self.last = true,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

fn now() -> UtcMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UtcMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The attempts of a replica whose logs are here, the oldest first.
pub(crate) fn attempts(directory: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut attempts = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok());
        attempts.extend(attempt);
    }
    Ok(attempts)
}

/// Removes the logs of all but the newest attempts.
pub(crate) fn prune_attempts(directory: &Path, keep: usize) -> io::Result<()> {
    let attempts = attempts(directory)?;
    let surplus = attempts.len().saturating_sub(keep);
    for attempt in attempts.into_iter().take(surplus) {
        let log = directory.join(format!("{attempt}.log"));
        for path in (0..FILES_MAX).map(|age| rotated(&log, age)).chain([Begin::path(&log)]) {
            super::files::absent_is_fine(fs::remove_file(path))?;
        }
        super::files::absent_is_fine(fs::remove_file(directory.join(format!("{attempt}.json"))))?;
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
    use std::time::Duration;

    use super::{prune_attempts, prune_replicas};

    #[test]
    fn old_attempts_and_replicas_lose_their_logs() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let replica = directory.path().join("7");
        fs::create_dir(&replica).expect("directory");
        for name in ["1.log", "1.log.1", "1.log.begin", "2.log", "10.log"] {
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

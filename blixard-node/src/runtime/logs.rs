//! The logs of containers: read, followed while a container runs, and removed when old.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::id::ReplicaId;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::disk;
use super::containers::Containers;
use super::log_reader::LogReader;
use super::logger::{FILES_MAX, rotated};
use crate::platform::{LogLine, LogQuery, RuntimeError};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long after the container's end its logger may still write.
const DRAIN: Duration = Duration::from_millis(300);
/// How long to wait before asking containerd again whether a container still runs.
const RETRY: Duration = Duration::from_secs(1);
const QUEUE: usize = 512;

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
    use std::time::Duration;

    use super::{prune_attempts, prune_replicas};

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

//! What is kept of a container that ended and was removed: how it ended, in a small file beside its log
//! and for as long. `ps -a` and `logs` know of it from here, also when the cluster has forgotten it.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::UNIX_EPOCH;

use blixard_core::id::ReplicaId;
use blixard_core::limits::ENDED_CONTAINERS_MAX;
use blixard_core::time::UtcMs;
use containerd_client::services::v1::Container;
use containerd_client::types::v1::{Process, Status as ProcessStatus};

use super::client::disk;
use super::containers::Containers;
use super::files::Files;
use super::record::Record;
use crate::platform::{EndedContainer, RuntimeError};

/// How a process ends that goes with its machine, as a shell says it: by SIGKILL.
const KILLED: u32 = 137;
/// The largest file read; what is written is far smaller.
const FILE_BYTES_MAX: u64 = 64 << 10;

impl Containers {
    /// Writes down how a container's process ended, before the container is removed. Of one whose process
    /// is not there, as after a crash of the machine, only what it wrote tells that it ran, and until
    /// when; what the disk does not take is told and missed by nobody else.
    pub(crate) async fn remember(&self, container: &Container, process: Option<&Process>, oom_killed: bool) {
        let Some(record) = Record::read(container) else { return };
        let files = self.files.clone();
        let (container, process) = (container.clone(), process.cloned());
        let id = container.id.clone();
        let written = super::blocking(move || {
            let ended = match &process {
                Some(process) => ended(&container, record, process, oom_killed),
                None => {
                    let wrote = last_written(&files.log(record.replica, record.attempt));
                    wrote.and_then(|at| at_end(&container, record, KILLED, false, at))
                }
            };
            ended
                .map_or(Ok(()), |ended| write(&files, &ended))
                .map_err(|error| disk("write down how a container ended", &error))
        });
        if let Err(error) = written.await {
            tracing::warn!(container = %id, err = %error, "`ps -a` will not show this container");
        }
    }

    /// The containers that ended here and of which only the log is left, the last ended first.
    pub(crate) async fn ended_containers(&self) -> Result<Vec<EndedContainer>, RuntimeError> {
        let logs = self.files.logs();
        super::blocking(move || {
            read_all(&logs).map_err(|error| disk("read which containers have ended", &error))
        })
        .await
    }

    /// The attempts of a replica of which there are logs.
    pub(crate) async fn log_attempts(
        &self,
        replica: ReplicaId,
    ) -> Result<std::collections::BTreeSet<u32>, RuntimeError> {
        let directory = self.files.replica_logs(replica);
        super::blocking(move || {
            super::logs::attempts(&directory).map_err(|error| disk("look for logs", &error))
        })
        .await
    }
}

fn ended(
    container: &Container,
    record: Record,
    process: &Process,
    oom_killed: bool,
) -> Option<EndedContainer> {
    let stopped = process.status == ProcessStatus::Stopped as i32;
    let ended_at = process.exited_at.as_ref().filter(|_| stopped).and_then(utc)?;
    at_end(container, record, process.exit_status, oom_killed, ended_at)
}

fn at_end(
    container: &Container,
    record: Record,
    exit_code: u32,
    oom_killed: bool,
    ended_at: UtcMs,
) -> Option<EndedContainer> {
    Some(EndedContainer {
        replica: record.replica,
        attempt: record.attempt,
        service: record.service?,
        slot: record.slot,
        version: record.version,
        image: record.image,
        exit_code,
        oom_killed,
        created_at: container.created_at.as_ref().and_then(utc),
        ended_at,
    })
}

fn utc(at: &prost_types::Timestamp) -> Option<UtcMs> {
    let millis = at.seconds.checked_mul(1000)?.checked_add(i64::from(at.nanos) / 1_000_000)?;
    u64::try_from(millis).ok().map(UtcMs)
}

/// When something was written to a log last; absent when nothing was.
fn last_written(log: &Path) -> Option<UtcMs> {
    let metadata = fs::metadata(log).ok().filter(|metadata| metadata.len() > 0)?;
    let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(UtcMs)
}

fn write(files: &Files, ended: &EndedContainer) -> io::Result<()> {
    let path = files.ended(ended.replica, ended.attempt);
    let unfinished = path.with_extension("json~");
    fs::write(&unfinished, serde_json::to_vec(ended)?)?;
    fs::rename(unfinished, path)
}

/// Files that cannot be read, or say nothing of the kind, are passed over.
fn read_all(logs: &Path) -> io::Result<Vec<EndedContainer>> {
    let entries = match fs::read_dir(logs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for directory in entries.flatten() {
        let Ok(files) = fs::read_dir(directory.path()) else { continue };
        let records = files.flatten().map(|file| file.path());
        let records = records.filter(|path| path.extension().is_some_and(|end| end == "json"));
        all.extend(records.filter_map(|path| read(&path)));
    }
    all.sort_by_key(|ended| std::cmp::Reverse((ended.ended_at, ended.replica, ended.attempt)));
    all.truncate(ENDED_CONTAINERS_MAX);
    Ok(all)
}

fn read(path: &Path) -> Option<EndedContainer> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use blixard_core::id::ReplicaId;
    use blixard_core::time::UtcMs;

    use super::{read, read_all, write};
    use crate::platform::EndedContainer;
    use crate::runtime::files::Files;

    #[test]
    fn what_ended_is_read_back_the_last_first_and_damage_is_passed_over() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let files = Files::new(directory.path().to_owned());
        assert_eq!(read_all(&files.logs()).expect("none yet"), []);
        let ended = |replica: u64, attempt: u32, at: u64| EndedContainer {
            replica: ReplicaId(replica),
            attempt,
            service: "web".parse().expect("a name"),
            slot: 0,
            version: 2,
            image: "web:1".into(),
            exit_code: 137,
            oom_killed: true,
            created_at: None,
            ended_at: UtcMs(at),
        };
        let all = [ended(7, 1, 30), ended(8, 0, 20), ended(7, 0, 10)];
        for one in &all {
            fs::create_dir_all(files.replica_logs(one.replica)).expect("directory");
            write(&files, one).expect("file");
        }
        fs::write(files.replica_logs(ReplicaId(7)).join("2.json"), "{").expect("file");
        fs::write(files.logs().join("stray"), "").expect("file");
        assert_eq!(read_all(&files.logs()).expect("records"), all);
    }

    #[test]
    fn records_of_what_ended_survive_every_damage() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("1.json");
        let json = br#"{"replica":7,"attempt":1,"service":"web","slot":0,"version":2,"image":"web:1","exit_code":137,
            "oom_killed":true,"created_at":null,"ended_at":30}"#;
        damage::survives("record of what ended", &[json.to_vec()], |input| {
            fs::write(&path, input).expect("file");
            let ended = read(&path).ok_or("it is no record")?;
            let again = serde_json::to_vec(&ended).expect("JSON");
            assert_eq!(serde_json::from_slice::<EndedContainer>(&again).expect("it was written"), ended);
            Ok(())
        });
    }
}

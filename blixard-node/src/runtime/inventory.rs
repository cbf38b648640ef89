//! What runs on the node, told by containerd; and the removal of what nothing refers to any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::agent::{Observed, ObservedState};
use blixard_core::id::{ContainerId, ReplicaId};
use containerd_client::services::v1::DeleteNamespaceRequest;
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::types::v1::{Process, Status as ProcessStatus};

use super::cgroups;
use super::client::{disk, failed};
use super::containers::Containers;
use super::images::SNAPSHOTTER;
use super::record::Record;
use super::shims;
use crate::platform::{ContainerInfo, RuntimeError};

/// What a process left nothing of ended with: as if by SIGKILL.
const EXIT_UNKNOWN: u32 = 137;
/// Logs of a replica that is gone are kept this long after their last line.
const LOGS_KEPT: Duration = Duration::from_secs(3600);

impl Containers {
    /// Every container of this node but those being started.
    pub(crate) async fn list(self: &Arc<Self>) -> Result<Vec<Observed>, RuntimeError> {
        // Read first: a container whose start ends meanwhile is then left out once, not misread.
        let starting: BTreeSet<ContainerId> = self.starting().clone();
        let containers = self.client.all_containers().await?;
        let processes = self.client.all_processes().await?;
        let processes: HashMap<&str, &Process> =
            processes.iter().map(|process| (process.id.as_str(), process)).collect();
        let records: Vec<Record> = containers.iter().filter_map(Record::read).collect();
        let known: BTreeSet<ContainerId> = records.iter().map(|record| record.id.clone()).collect();
        self.sweep(&known, records.iter().map(|record| record.replica).collect()).await;
        let mut observed = Vec::new();
        for record in records.iter().filter(|record| !starting.contains(&record.id)) {
            let state = state_of(processes.get(record.id.0.as_str()).copied());
            let oom_killed = self.oom_killed(&record.id).await;
            if state == ObservedState::Running && oom_killed {
                // It was killed while nobody took events.
                self.survives_oom(record.id.clone());
            }
            observed.push(Observed {
                replica: record.replica,
                attempt: record.attempt,
                state,
                oom_killed: state != ObservedState::Running && oom_killed,
                address: self.networks.address_of(&record.id).await,
            });
        }
        observed.sort_by_key(|observed| (observed.replica, observed.attempt));
        Ok(observed)
    }

    /// Whether a container's process runs.
    pub(crate) async fn state(&self, id: &ContainerId) -> Result<ObservedState, RuntimeError> {
        self.known(id).await?;
        Ok(state_of(self.client.process(&id.0).await?.as_ref()))
    }

    /// What is known of a container.
    pub(crate) async fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo, RuntimeError> {
        let record = self.known(id).await?;
        let process = self.client.process(&id.0).await?;
        let state = state_of(process.as_ref());
        let log = self.files.log(record.replica, record.attempt);
        Ok(ContainerInfo {
            id: record.id,
            pid: process.filter(|_| state == ObservedState::Running).map(|process| process.pid),
            exit_code: match state {
                ObservedState::Running => None,
                ObservedState::Exited(code) => Some(code),
            },
            address: self.networks.address_of(id).await,
            image: record.image,
            image_digest: record.image_digest,
            log_path: log.to_string_lossy().into_owned(),
            ports: record.ports,
        })
    }

    pub(crate) async fn known(&self, id: &ContainerId) -> Result<Record, RuntimeError> {
        let container = self.client.container(&id.0).await?;
        container.as_ref().and_then(Record::read).ok_or_else(|| {
            RuntimeError::NotFound(format!("there is no container {} on this node", id.short()))
        })
    }

    /// Removes what a daemon that was cut off left of containers that are not there: snapshots,
    /// networks, shims, files, old logs. A failure is told and tried again at the next listing.
    async fn sweep(&self, known: &BTreeSet<ContainerId>, replicas: BTreeSet<ReplicaId>) {
        match self.orphans(known).await {
            Err(error) => tracing::warn!(err = %error, "cannot look for leftovers of containers"),
            Ok(orphans) => {
                for id in orphans {
                    // Since it was looked for it may have been asked for anew.
                    if self.starting().contains(&id) {
                        continue;
                    }
                    tracing::info!(container = %id, "removing what is left of a container");
                    if let Err(error) = self.erase(&id).await {
                        tracing::warn!(container = %id, err = %error, "cannot remove what is left of a container");
                    }
                }
            }
        }
        let logs = self.files.logs();
        let swept = super::blocking(move || {
            super::logs::prune_replicas(&logs, &replicas, LOGS_KEPT)
                .map_err(|error| disk("remove old logs", &error))
        });
        if let Err(error) = swept.await {
            tracing::warn!(err = %error, "old logs stay");
        }
    }

    async fn orphans(&self, known: &BTreeSet<ContainerId>) -> Result<BTreeSet<ContainerId>, RuntimeError> {
        let mut found: BTreeSet<ContainerId> = self.networks.list().await.into_iter().collect();
        let request = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), ..Default::default() };
        let mut answers = self
            .client
            .snapshots()
            .list(self.client.request(request))
            .await
            .map_err(|status| failed("list snapshots", &status))?
            .into_inner();
        while let Some(answer) =
            answers.message().await.map_err(|status| failed("list snapshots", &status))?
        {
            found.extend(answer.info.into_iter().map(|info| ContainerId(info.name)));
        }
        let (directory, namespace) = (self.files.containers(), self.client.namespace().to_owned());
        let look = move || Ok((directory_names(&directory)?, shims::forgotten(&namespace)));
        let (directories, forgotten) = super::blocking(look).await?;
        found.extend(directories.into_iter().map(ContainerId));
        found.extend(forgotten);
        let starting = self.starting().clone();
        found.retain(|id| is_container_id(&id.0) && !known.contains(id) && !starting.contains(id));
        // A start that began after `known` was read has created its container by now, or is marked.
        let mut orphans = BTreeSet::new();
        for id in found {
            if self.client.container(&id.0).await?.is_none() && !self.starting().contains(&id) {
                orphans.insert(id);
            }
        }
        Ok(orphans)
    }

    /// Removes every container and everything they left; with `images` all images too, and the
    /// namespace.
    pub(crate) async fn purge(&self, images: bool) -> Result<(), RuntimeError> {
        for container in self.client.all_containers().await? {
            self.erase(&ContainerId(container.id)).await?;
        }
        self.sweep(&BTreeSet::new(), BTreeSet::new()).await;
        self.networks.purge().await?;
        let node_cgroup = self.node_cgroup();
        let runc = self.runc_root.join(self.client.namespace());
        let directories = [self.files.containers(), self.files.exec(), self.files.logs(), runc];
        super::blocking(move || {
            cgroups::remove(&node_cgroup);
            cgroups::remove(cgroups::PARENT);
            for directory in directories {
                super::files::absent_is_fine(std::fs::remove_dir_all(&directory))
                    .map_err(|error| disk(&format!("remove {}", directory.display()), &error))?;
            }
            Ok(())
        })
        .await?;
        if images { self.purge_images().await } else { Ok(()) }
    }

    async fn purge_images(&self) -> Result<(), RuntimeError> {
        self.images.remove_all().await?;
        let request = DeleteNamespaceRequest { name: self.client.namespace().to_owned() };
        // Layers that nothing refers to any more go with containerd's next collection; until then
        // the namespace is not empty and stays, which costs nothing.
        if let Err(status) = self.client.namespaces().delete(self.client.request(request)).await {
            tracing::debug!(err = status.message(), "the containerd namespace stays for now");
        }
        Ok(())
    }
}

/// Whether a name found somewhere can be a container's: nothing else is to be removed.
pub(super) fn is_container_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn directory_names(directory: &std::path::Path) -> Result<Vec<String>, RuntimeError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(disk("read the directory of containers", &error)),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// A container without a process, or with one that never started, has ended.
fn state_of(process: Option<&Process>) -> ObservedState {
    match process {
        Some(process) if process.status == ProcessStatus::Stopped as i32 => {
            ObservedState::Exited(process.exit_status)
        }
        Some(process)
            if [ProcessStatus::Running, ProcessStatus::Paused, ProcessStatus::Pausing]
                .iter()
                .any(|status| *status as i32 == process.status) =>
        {
            ObservedState::Running
        }
        _ => ObservedState::Exited(EXIT_UNKNOWN),
    }
}

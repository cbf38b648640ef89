//! The containers of one node of one cluster: what they share, and how they end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::agent::Ready;
use blixard_core::id::{ClusterId, ContainerId, NodeId, ReplicaId};
use blixard_core::spec::NetworkMode;
use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{DeleteContainerRequest, DeleteTaskRequest, KillRequest, WaitRequest};
use containerd_client::tonic::Code;
use containerd_client::types::v1::Status as ProcessStatus;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cgroups::{self, CgroupSupport};
use super::client::{Client, disk, failed, found};
use super::files::Files;
use super::host_paths::HostPaths;
use super::images::{ImageStore, SNAPSHOTTER};
use super::networks::Networks;
use super::record::{Record, signal_names, signal_of};
use super::shims;
use crate::platform::RuntimeError;

/// How long a process may take to end after SIGKILL: longer is a process stuck in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it is waited before connections are looked for again: first, and at most.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(20);
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(250);
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// The containers of one node of one cluster.
pub(crate) struct Containers {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) client: Client,
    pub(crate) images: ImageStore,
    pub(crate) networks: Arc<dyn Networks>,
    pub(crate) files: Files,
    pub(crate) host_paths: HostPaths,
    /// Where runc keeps its state.
    pub(crate) runc_root: PathBuf,
    /// The program that every container's shim starts as its logger.
    pub(crate) logger: PathBuf,
    pub(crate) cgroups: CgroupSupport,
    /// The AppArmor profile of containers, where the kernel has AppArmor and it is loaded.
    pub(crate) apparmor: Option<String>,
    /// Containers being started: half of one may be there, which is not to be taken for an ended one.
    pub(crate) starting: Mutex<BTreeSet<ContainerId>>,
    /// How many processes of a container that went on had been killed for want of memory.
    pub(crate) survived: Mutex<BTreeMap<ContainerId, u64>>,
    /// Bounds the logs that are being read.
    pub(crate) log_readers: Arc<Semaphore>,
    /// Bounds the processes that are being run in containers beside their own.
    pub(crate) exec_sessions: Arc<Semaphore>,
}

/// Marks a container as being started until dropped.
pub(crate) struct Starting<'a> {
    containers: &'a Containers,
    id: ContainerId,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.containers.starting().remove(&self.id);
    }
}

impl Containers {
    /// The id of a replica's attempt.
    pub(crate) fn id(&self, replica: ReplicaId, attempt: u32) -> ContainerId {
        ContainerId::new(self.cluster, replica, attempt)
    }

    /// Makes the published ports lead to these attempts of replicas alone.
    pub(crate) async fn publish(&self, ready: &Ready) -> Result<(), RuntimeError> {
        let (mut containers, mut served) = (BTreeSet::new(), BTreeSet::new());
        for ((replica, attempt), spec) in ready {
            match spec.network {
                NetworkMode::Bridge => drop(containers.insert(self.id(*replica, *attempt))),
                NetworkMode::Host => {
                    served.extend(spec.ports.iter().map(|port| (port.protocol, port.container_port)));
                }
            }
        }
        self.networks.publish(containers, served).await
    }

    /// The cgroup of all containers of this node, below the machine's.
    pub(crate) fn node_cgroup(&self) -> String {
        format!("{}/{}", cgroups::PARENT, self.node)
    }

    /// The cgroup of a container.
    pub(crate) fn cgroup(&self, id: &ContainerId) -> PathBuf {
        format!("/{}/{id}", self.node_cgroup()).into()
    }

    pub(crate) fn starting(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn survived(&self) -> MutexGuard<'_, BTreeMap<ContainerId, u64>> {
        self.survived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, id: &ContainerId) -> Starting<'_> {
        self.starting().insert(id.clone());
        Starting { containers: self, id: id.clone() }
    }

    /// Stops a container gracefully and removes everything of it but its log. In that order: no new
    /// connections, the end of those it has, the signal, SIGKILL when `timeout` is over.
    pub(crate) async fn remove(&self, id: &ContainerId, timeout: Duration) -> Result<(), RuntimeError> {
        let container = self.client.container(&id.0).await?;
        let record = container.as_ref().and_then(Record::read);
        let mut process = self.client.process(&id.0).await?;
        let mut oom_killed = self.oom_killed(id).await;
        if process.as_ref().is_some_and(|process| process.status == ProcessStatus::Running as i32) {
            // Waiting begins before the signal, so that the end cannot be missed.
            let ended = self.ended(id);
            tokio::pin!(ended);
            let signal = record.map_or(SIGTERM, |record| record.stop_signal);
            let asked = async {
                let left = timeout.saturating_sub(self.drain(id, timeout / 2).await);
                self.kill(id, signal, false).await.map(|()| left)
            };
            tokio::select! {
                biased;
                ended = &mut ended => ended?,
                left = asked => {
                    if let Ok(ended) = tokio::time::timeout(left?, &mut ended).await {
                        ended?;
                    }
                }
            }
            self.kill_process(id).await?;
            process = self.client.process(&id.0).await?;
            oom_killed = false;
        }
        if let Some(container) = &container {
            self.remember(container, process.as_ref(), oom_killed).await;
        }
        self.erase(id).await
    }

    /// Takes a container out of the published ports, then waits until nobody is connected to them any
    /// more, at most `longest`, so that its end cuts nobody off. A connection that was silent for as
    /// long as that is kept for later and not waited for. How long it took.
    async fn drain(&self, id: &ContainerId, longest: Duration) -> Duration {
        let began = Instant::now();
        if let Err(error) = self.networks.withdraw(id).await {
            tracing::warn!(container = %id, err = %error, "published ports lead to a container that stops");
        }
        let mut pause = DRAIN_PAUSE_MIN;
        while began.elapsed() < longest {
            match self.networks.connections(id, longest).await {
                Ok(0) => break,
                Ok(open) => tracing::debug!(container = %id, open, "waiting for connections to end"),
                Err(error) => {
                    tracing::warn!(container = %id, err = %error, "connections are not waited for");
                    break;
                }
            }
            tokio::time::sleep(pause.min(longest.saturating_sub(began.elapsed()))).await;
            pause = (pause * 2).min(DRAIN_PAUSE_MAX);
        }
        began.elapsed()
    }

    /// Kills what runs and removes everything of a container but its log, in whatever state it is.
    pub(crate) async fn erase(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        if !self.end_process(id).await? {
            self.end_forgotten_shims(id).await;
        }
        let (removed, network) = tokio::join!(self.remove_container(id), self.networks.remove(id));
        removed?;
        network?;
        self.survived().remove(id);
        let (files, id) = (self.files.clone(), id.clone());
        super::blocking(move || {
            files.remove(&id).map_err(|error| disk("remove the container's files", &error))
        })
        .await
    }

    /// Kills a container's process, waits for its end and removes it; false when there is none.
    pub(crate) async fn end_process(&self, id: &ContainerId) -> Result<bool, RuntimeError> {
        if !self.kill_process(id).await? {
            return Ok(false);
        }
        let request = self.client.request(DeleteTaskRequest { container_id: id.0.clone() });
        found(self.client.tasks().delete(request).await, "remove the container's process").map(|_| true)
    }

    /// Kills a container's process, unless it has ended, and waits for its end; false when there is none.
    async fn kill_process(&self, id: &ContainerId) -> Result<bool, RuntimeError> {
        let Some(process) = self.client.process(&id.0).await? else { return Ok(false) };
        if process.status != ProcessStatus::Stopped as i32 {
            let ended = self.ended(id);
            tokio::pin!(ended);
            tokio::select! {
                biased;
                ended = &mut ended => ended?,
                killed = self.kill(id, SIGKILL, true) => {
                    killed?;
                    tokio::time::timeout(KILL_TIMEOUT, &mut ended).await.map_err(|_| {
                        RuntimeError::Unavailable(format!("container {} does not end", id.short()))
                    })??;
                }
            }
        }
        Ok(true)
    }

    /// Ends the shims of a container that containerd has forgotten, and says how many there were.
    pub(crate) async fn end_forgotten_shims(&self, id: &ContainerId) -> usize {
        let (namespace, of, cgroup) = (self.client.namespace().to_owned(), id.clone(), self.cgroup(id));
        let ending = super::blocking(move || Ok(shims::end_forgotten(&namespace, &of, &cgroup)));
        let ended = ending.await.unwrap_or(0);
        if ended > 0 {
            tracing::info!(container = %id, shims = ended, "ended what a start that was cut off left");
        }
        ended
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.remove_record(id).await?;
        self.remove_snapshot(id).await
    }

    /// Removes containerd's record of a container; its process and snapshot are others.
    pub(crate) async fn remove_record(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = self.client.request(DeleteContainerRequest { id: id.0.clone() });
        found(self.client.containers().delete(request).await, "remove the container").map(|_| ())
    }

    pub(crate) async fn remove_snapshot(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: id.0.clone() };
        let answer = self.client.snapshots().remove(self.client.request(request)).await;
        found(answer, "remove the root file system").map(|_| ())
    }

    /// Waits for the end of a container's process; one that is not there has ended.
    pub(crate) async fn ended(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = WaitRequest { container_id: id.0.clone(), exec_id: String::new() };
        let answer = self.client.tasks().wait(self.client.unbounded(request)).await;
        found(answer, "wait for the container").map(|_| ())
    }

    /// Sends a signal, by name or number, to a running container's process.
    pub(crate) async fn send_signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let number = signal_of(signal).ok_or_else(|| {
            let shown = blixard_core::text::printable(signal);
            RuntimeError::Invalid(format!("there is no signal `{shown}`: there are {}", signal_names()))
        })?;
        match self.client.process(&id.0).await? {
            Some(process) if process.status == ProcessStatus::Running as i32 => {
                self.kill(id, number, false).await
            }
            _ => Err(RuntimeError::Invalid(format!("container {} does not run", id.short()))),
        }
    }

    async fn kill(&self, id: &ContainerId, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let request = KillRequest { container_id: id.0.clone(), exec_id: String::new(), signal, all };
        match self.client.tasks().kill(self.client.request(request)).await {
            Ok(_) => Ok(()),
            // It ended by itself meanwhile.
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => Ok(()),
            Err(status) => Err(failed("signal the container", &status)),
        }
    }
}

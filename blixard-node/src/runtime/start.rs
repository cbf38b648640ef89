//! Creates and starts a container: snapshot, network, files, specification, process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::id::{ContainerId, VolumeName};
use blixard_core::spec::{MountKind, MountSpec, NetworkMode};
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::{Container, CreateContainerRequest, CreateTaskRequest, StartRequest};
use containerd_client::tonic::{Code, Status};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as ProcessStatus;
use oci_spec::runtime::{Process, Spec};
use prost::Message;
use prost_types::Any;
use rustix::process::Resource;
use tokio::time::Instant;

use super::client::{disk, failed};
use super::containers::Containers;
use super::files::ContainerFiles;
use super::images::{ImageRootfs, SNAPSHOTTER};
use super::logger;
use super::networks::{NetworkLease, NetworkOpening};
use super::record::{Record, signal_number};
use super::rootfs::Rootfs;
use super::runc::Unrunnable;
use super::spec;
use super::user::{self, ResolvedUser};
use crate::platform::{ContainerConfig, RuntimeError, Started};
use crate::volumes;

const RUNTIME: &str = "io.containerd.runc.v2";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Keeps a snapshot that no container refers to yet from containerd's garbage collection.
const GC_ROOT: &str = "containerd.io/gc.root";
/// For how long, and after how long each time, a process is created anew where an earlier start is
/// in the way.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);
const CREATE_RETRY: Duration = Duration::from_millis(100);
/// How often it is looked whether a forgotten shim is why a process is not created yet.
const CREATE_WATCH: Duration = Duration::from_secs(1);
/// How many attempts' logs of one replica are kept.
const LOGS_PER_REPLICA_MAX: usize = 5;

/// What the runc shim can be told (`containerd.runc.v1.Options`), as far as it is told here.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    /// Where runc keeps its state. One per node: in the default place, containers of two
    /// containerds on one machine would meet.
    #[prost(string, tag = "7")]
    root: String,
}

impl Containers {
    /// Creates and starts a container; one that already runs is success. When it fails nothing of
    /// the container is left but its log.
    pub(crate) async fn start(&self, config: &ContainerConfig) -> Result<Started, RuntimeError> {
        let id = self.id(config.replica, config.attempt);
        let _starting = self.begin(&id);
        if self.client.container(&id.0).await?.is_some() {
            match self.client.process(&id.0).await? {
                Some(process) if process.status == ProcessStatus::Running as i32 => {
                    return Ok(Started { pid: process.pid, address: self.networks.address_of(&id).await });
                }
                _ => self.erase(&id).await?,
            }
        }
        let image = &config.spec.image;
        let image = self.images.rootfs(&image.reference, image.digest.as_deref()).await?;
        let started = self.create(&id, config, &image).await;
        if started.is_err()
            && let Err(error) = self.erase(&id).await
        {
            tracing::warn!(container = %id, err = %error, "cannot remove a container that failed to start");
        }
        started
    }

    async fn create(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        image: &ImageRootfs,
    ) -> Result<Started, RuntimeError> {
        let (opening, rootfs) = tokio::join!(self.open_network(id, config), self.prepare_snapshot(id, image));
        let (lease, connect) = match opening? {
            Some(NetworkOpening { lease, connect }) => (Some(lease), Some(connect)),
            None => (None, None),
        };
        // Nothing runs in the namespace before the process starts, so it is connected meanwhile.
        let connected = async {
            match connect {
                Some(connect) => connect.await,
                None => Ok(()),
            }
        };
        let created = self.create_in(id, config, image, lease.as_ref(), rootfs?);
        let (connected, created) = tokio::join!(connected, created);
        created.and(connected)?;
        let request = StartRequest { container_id: id.0.clone(), exec_id: String::new() };
        let started = self.client.tasks().start(self.client.request(request)).await;
        let started = started.map_err(|status| failed("start the container", &status))?;
        Ok(Started { pid: started.into_inner().pid, address: lease.map(|lease| lease.address) })
    }

    /// Creates the container and its process, which does not run yet.
    async fn create_in(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        image: &ImageRootfs,
        lease: Option<&NetworkLease>,
        rootfs: Vec<Mount>,
    ) -> Result<(), RuntimeError> {
        let hostname = spec::hostname(config.spec.name.as_str(), config.slot);
        let (files, user, sources) = self.prepare_files(id, config, image, &hostname, lease, &rootfs).await?;
        let (spec, missing) = spec::build(&spec::Input {
            service: &config.spec,
            image: &image.config,
            hostname: &hostname,
            user,
            files: &files,
            sources: &sources,
            netns: lease.map(|lease| lease.netns_path.as_path()),
            cgroups_path: self.cgroup(id),
            cgroups: self.cgroups,
            open_files_max: rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            oom_score_adj: oom_score_adj(),
            apparmor: self.apparmor.as_deref(),
        })?;
        if !missing.is_empty() {
            tracing::warn!(service = %config.spec.name, limits = ?missing, "this kernel cannot enforce some limits");
        }
        self.create_container(id, config, image, &spec).await?;
        let process = spec.process().clone().unwrap_or_default();
        let created = self.create_process(id, config, rootfs).await;
        created.map_err(|status| start_failure(&process, &config.spec.image.reference, &status))
    }

    async fn open_network(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
    ) -> Result<Option<NetworkOpening<'_>>, RuntimeError> {
        match config.spec.network {
            NetworkMode::Host => Ok(None),
            NetworkMode::Bridge => self.networks.create(id, &config.spec.ports).await.map(Some),
        }
    }

    async fn prepare_snapshot(
        &self,
        id: &ContainerId,
        image: &ImageRootfs,
    ) -> Result<Vec<Mount>, RuntimeError> {
        let prepare = || {
            self.client.request(PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: id.0.clone(),
                parent: image.chain_id.clone(),
                labels: [(GC_ROOT.to_owned(), "blixard".to_owned())].into(),
            })
        };
        let mut answer = self.client.snapshots().prepare(prepare()).await;
        if answer.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists) {
            // Left by a start that was cut off before it created the container.
            self.remove_snapshot(id).await?;
            answer = self.client.snapshots().prepare(prepare()).await;
        }
        Ok(answer.map_err(|status| failed("prepare the root file system", &status))?.into_inner().mounts)
    }

    /// Does what needs the disk: who it runs as, its files, its volumes' directories, its log.
    async fn prepare_files(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        image: &ImageRootfs,
        hostname: &str,
        lease: Option<&NetworkLease>,
        rootfs: &[Mount],
    ) -> Result<(ContainerFiles, ResolvedUser, Vec<PathBuf>), RuntimeError> {
        let wanted = config.spec.security.user.as_ref().unwrap_or(&image.config.user).clone();
        let (files, id, hostname) = (self.files.clone(), id.clone(), hostname.to_owned());
        let (config, rootfs) = (config.clone(), Rootfs::from_mounts(rootfs));
        let data = self.files.data().to_path_buf();
        let (address, host_paths) = (lease.map(|lease| lease.address), self.host_paths.clone());
        let work = move || {
            let user = user::in_rootfs(&wanted, rootfs.as_ref())?;
            if let Some(missing) = missing_sources(&config.spec.volumes).first() {
                return Err(RuntimeError::Invalid(format!(
                    "the volume's source {missing} is not on this node: make the file or directory first"
                )));
            }
            let source = |mount: &MountSpec| match &mount.kind {
                MountKind::HostPath => host_paths.source_of(mount),
                MountKind::Volume(name) => volume_source(&data, &config, name),
            };
            let sources = config.spec.volumes.iter().map(source);
            let sources: Vec<PathBuf> = sources.collect::<Result<_, _>>()?;
            super::logs::prune_attempts(&files.replica_logs(config.replica), LOGS_PER_REPLICA_MAX)
                .map_err(|error| disk("remove old logs", &error))?;
            let written = files.write(&id, &hostname, address);
            Ok((written.map_err(|error| disk("write the container's files", &error))?, user, sources))
        };
        super::blocking(work).await
    }

    async fn create_container(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        image: &ImageRootfs,
        spec: &Spec,
    ) -> Result<(), RuntimeError> {
        let spec = serde_json::to_vec(spec)
            .map_err(|error| RuntimeError::Invalid(format!("cannot encode the specification: {error}")))?;
        let record = Record {
            id: id.clone(),
            replica: config.replica,
            attempt: config.attempt,
            service: Some(config.spec.name.clone()),
            slot: config.slot,
            version: config.version,
            image: image.reference.clone(),
            image_digest: image.manifest_digest.clone(),
            stop_signal: signal_number(
                Some(image.config.stop_signal.as_str()).filter(|signal| !signal.is_empty()),
            ),
            ports: config.spec.ports.clone(),
        };
        let container = Container {
            id: id.0.clone(),
            labels: record.labels(self.cluster, self.node, config),
            image: image.reference.clone(),
            runtime: Some(Runtime { name: RUNTIME.to_owned(), options: Some(self.runc_options()) }),
            spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: spec }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.0.clone(),
            extensions: record.extensions(),
            ..Default::default()
        };
        let create = || self.client.request(CreateContainerRequest { container: Some(container.clone()) });
        let mut answer = self.client.containers().create(create()).await;
        if answer.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists) {
            // Asked for by a start that was cut off, and made only now.
            self.remove_record(id).await?;
            answer = self.client.containers().create(create()).await;
        }
        answer.map(|_| ()).map_err(|status| failed("create the container", &status))
    }

    /// Creates the process. An earlier start that was cut off, with its daemon or its connection,
    /// may still be clearing up in containerd: that is waited for.
    async fn create_process(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
        rootfs: Vec<Mount>,
    ) -> Result<(), Status> {
        let output = self.logger_uri(config);
        let message = CreateTaskRequest {
            container_id: id.0.clone(),
            rootfs,
            stdout: output.clone(),
            stderr: output,
            options: Some(self.runc_options()),
            ..Default::default()
        };
        let patience = Instant::now() + CREATE_PATIENCE;
        loop {
            match self.try_create_process(id, message.clone()).await {
                Err(NotCreated { status, in_the_way: true }) if Instant::now() < patience => {
                    tracing::debug!(container = %id, err = status.message(), "an earlier start is in the way");
                    self.end_forgotten_shims(id).await;
                    if let Err(error) = self.end_process(id).await {
                        tracing::debug!(container = %id, err = %error, "cannot remove an earlier start's process");
                    }
                    tokio::time::sleep(CREATE_RETRY).await;
                }
                answer => return answer.map_err(|error| error.status),
            }
        }
    }

    /// Creates the process once. While it lasts, forgotten shims that may hold it up are ended.
    async fn try_create_process(
        &self,
        id: &ContainerId,
        message: CreateTaskRequest,
    ) -> Result<(), NotCreated> {
        let mut tasks = self.client.tasks();
        let call = tasks.create(self.client.request(message));
        tokio::pin!(call);
        let mut ended = 0;
        let answer = loop {
            match tokio::time::timeout(CREATE_WATCH, &mut call).await {
                Ok(answer) => break answer,
                Err(_) => ended += self.end_forgotten_shims(id).await,
            }
        };
        let in_the_way = |status: &Status| ended > 0 || is_in_the_way(status, self.client.namespace(), id);
        answer.map(|_| ()).map_err(|status| NotCreated { in_the_way: in_the_way(&status), status })
    }

    fn runc_options(&self) -> Any {
        let options = RuncOptions { root: self.runc_root.to_string_lossy().into_owned() };
        Any { type_url: "containerd.runc.v1.Options".to_owned(), value: options.encode_to_vec() }
    }

    fn logger_uri(&self, config: &ContainerConfig) -> String {
        let log = self.files.log(config.replica, config.attempt);
        format!("binary://{}?{}={}", percent_encode(&self.logger), logger::SUBCOMMAND, percent_encode(&log))
    }
}

/// The primary copy of a volume, which was prepared before.
fn volume_source(data: &Path, config: &ContainerConfig, name: &VolumeName) -> Result<PathBuf, RuntimeError> {
    let missing = || RuntimeError::Unavailable(format!("volume `{name}` is not on this node"));
    let id = config.volumes.get(name).ok_or_else(missing)?;
    let live = volumes::live(data, *id);
    // A directory itself: it is made here, and nobody else has a link in its place.
    match live.symlink_metadata() {
        Ok(found) if found.is_dir() => Ok(live),
        _ => Err(missing()),
    }
}

/// The sources of volumes that are not on this machine.
pub(super) fn missing_sources(volumes: &[MountSpec]) -> Vec<String> {
    let paths = volumes.iter().filter(|mount| mount.kind == MountKind::HostPath);
    let missing = paths.filter(|mount| !Path::new(&mount.source).exists());
    missing.map(|volume| volume.source.clone()).collect()
}

/// How eagerly the OOM killer takes this process.
fn oom_score_adj() -> i32 {
    let own = std::fs::read_to_string(crate::daemon::OOM_SCORE_ADJ);
    own.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Why a process was not created.
struct NotCreated {
    status: Status,
    /// Something of an earlier start of the same container was in the way.
    in_the_way: bool,
}

/// Whether something of an earlier start of the same container made the creation of its process
/// fail: the process itself, or its shim's directory, which containerd removes under the new shim.
fn is_in_the_way(status: &Status, namespace: &str, id: &ContainerId) -> bool {
    let message = status.message();
    let bundle = format!("/{namespace}/{id}/");
    // What is missing below the root file system, the image or the bundle has wrong.
    let is_missing = message.contains(&bundle)
        && message.contains("no such file or directory")
        && !message.contains(&format!("{bundle}rootfs/"));
    status.code() == Code::AlreadyExists || message.contains("failed to start shim") || is_missing
}

/// What runc could not start, in words for whoever wrote the bundle where the bundle is to blame.
fn start_failure(process: &Process, image: &str, status: &Status) -> RuntimeError {
    let message = status.message();
    let program = process.args().iter().flatten().next().map_or("", String::as_str);
    if let Some(why) = Unrunnable::of(program, process.cwd(), message) {
        return RuntimeError::Invalid(match why {
            Unrunnable::NotExecutable => {
                format!("the command `{program}` cannot be executed in the image {image}")
            }
            Unrunnable::NotFound => format!("the command `{program}` is not in the image {image}"),
            Unrunnable::NoDirectory => format!(
                "the container has no directory `{}` to start in, or its user may not enter it: set image.workdir, or WORKDIR in the image {image}",
                process.cwd().display()
            ),
        });
    }
    if message.contains("error mounting") {
        return RuntimeError::Invalid(format!("cannot start the container: {message}"));
    }
    failed("start the container", status)
}

fn percent_encode(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blixard_core::id::ContainerId;
    use containerd_client::tonic::Status;
    use oci_spec::runtime::Process;

    use super::{is_in_the_way, missing_sources, percent_encode, start_failure};
    use crate::platform::RuntimeError;

    #[test]
    fn paths_survive_a_url() {
        assert_eq!(
            percent_encode(Path::new("/data dir/a?b=c&d%/1.log")),
            "/data%20dir/a%3Fb%3Dc%26d%25/1.log"
        );
    }

    #[test]
    fn volumes_need_their_sources() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let volume = |name: &str| {
            let source = directory.path().join(name).to_string_lossy().into_owned();
            blixard_core::spec::MountSpec::host_path(source, "/x".into(), true)
        };
        std::fs::write(directory.path().join("there"), "").expect("file");
        let missing = missing_sources(&[volume("there"), volume(""), volume("typo.conf")]);
        assert_eq!(missing, [volume("typo.conf").source]);
        assert!(!directory.path().join("typo.conf").exists());
    }

    #[test]
    fn what_an_earlier_start_left_is_told_from_what_is_wrong() {
        let check = |status: Status, expect: bool| {
            let found = is_in_the_way(&status, "ours", &ContainerId("c0ffee".into()));
            assert_eq!(found, expect, "{status:?}");
        };
        let bundle = "/run/c/state/io.containerd.runtime.v2.task/ours/c0ffee";
        check(Status::already_exists("task c0ffee: already exists"), true);
        check(Status::unknown("failed to start shim: signal: killed"), true);
        check(Status::not_found(format!("mkdir {bundle}/rootfs: no such file or directory")), true);
        check(Status::unknown(format!("open {bundle}/log.json: no such file or directory")), true);
        let mount = format!("error mounting \"/a\" to {bundle}/rootfs/b: no such file or directory");
        check(Status::unknown(mount), false);
        check(Status::unknown("exec: \"nope\": stat /nope: no such file or directory"), false);
        check(Status::unavailable("the connection is closed"), false);
    }

    #[test]
    fn a_missing_command_is_the_bundles_fault() {
        let status = Status::unknown("runc create failed: exec: \"nope\": permission denied: unknown");
        let mut process = Process::default();
        process.set_args(Some(vec!["nope".to_owned()])).set_cwd("/etc/passwd".into());
        let check = |status: Status, expect: &str| match start_failure(&process, "web:1", &status) {
            RuntimeError::Invalid(text) => assert_eq!(text, expect),
            other => panic!("{other:?}"),
        };
        check(status, "the command `nope` cannot be executed in the image web:1");
        check(
            Status::unknown("error during container init: mkdir /etc/passwd: not a directory: unknown"),
            "the container has no directory `/etc/passwd` to start in, or its user may not enter it: set image.workdir, or WORKDIR in the image web:1",
        );
        let other = start_failure(&process, "web:1", &Status::unknown("no space left on device"));
        assert!(matches!(other, RuntimeError::Unavailable(_)));
    }
}

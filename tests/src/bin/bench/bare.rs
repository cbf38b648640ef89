//! The floor under a start: the containerd calls that cannot be avoided, by hand, with the same
//! specification that blixard gave to a container of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blixard_tests::host::Host;
use blixard_tests::machine;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, KillRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use prost_types::Any;
use serde_json::Value;

const SIGKILL: u32 = 9;

/// Makes containers like one that blixard started. Cloning shares the connection.
#[derive(Clone)]
pub(crate) struct Bare {
    channel: Channel,
    namespace: String,
    snapshotter: String,
    chain: String,
    runtime: Runtime,
    spec_type: String,
    spec: Value,
}

impl Bare {
    /// Copies what container `id` on `host` is made of; it must keep running.
    pub(crate) async fn like(host: &Host, id: &str) -> Result<Self> {
        let socket = machine::run_directory(&host.data_dir()).join("containerd.sock");
        let channel = containerd_client::connect(&socket).await.context("cannot connect to containerd")?;
        let namespace = namespace_of(&socket, id)?;
        let mut bare = Self {
            channel,
            namespace,
            snapshotter: String::new(),
            chain: String::new(),
            runtime: Runtime::default(),
            spec_type: String::new(),
            spec: Value::Null,
        };
        let request = bare.request(GetContainerRequest { id: id.to_owned() });
        let answer = ContainersClient::new(bare.channel.clone()).get(request).await?.into_inner();
        let container = answer.container.context("containerd answered without a container")?;
        let stat =
            StatSnapshotRequest { snapshotter: container.snapshotter.clone(), key: container.snapshot_key };
        let stat = SnapshotsClient::new(bare.channel.clone()).stat(bare.request(stat)).await?.into_inner();
        bare.snapshotter = container.snapshotter;
        bare.chain = stat.info.context("the snapshot has no description")?.parent;
        bare.runtime = container.runtime.context("the container has no runtime")?;
        let spec = container.spec.context("the container has no specification")?;
        bare.spec = serde_json::from_slice(&spec.value)?;
        bare.spec_type = spec.type_url;
        Ok(bare)
    }

    /// The containerd namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Starts a container called `id` and tells how long that took.
    pub(crate) async fn start(&self, id: &str) -> Result<Duration> {
        let begun = Instant::now();
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: id.to_owned(),
            parent: self.chain.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
        };
        let mounts = SnapshotsClient::new(self.channel.clone()).prepare(self.request(prepare)).await?;
        let mut spec = self.spec.clone();
        let group = spec["linux"]["cgroupsPath"].as_str().and_then(|path| Path::new(path).parent());
        let group = group.context("the specification names no cgroup")?.join(id);
        spec["linux"]["cgroupsPath"] = group.to_str().context("a cgroup's path is UTF-8")?.into();
        let container = Container {
            id: id.to_owned(),
            runtime: Some(self.runtime.clone()),
            spec: Some(Any { type_url: self.spec_type.clone(), value: serde_json::to_vec(&spec)? }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: id.to_owned(),
            ..Default::default()
        };
        let create = CreateContainerRequest { container: Some(container) };
        ContainersClient::new(self.channel.clone()).create(self.request(create)).await?;
        let mut tasks = TasksClient::new(self.channel.clone());
        let create = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: mounts.into_inner().mounts,
            options: self.runtime.options.clone(),
            ..Default::default()
        };
        tasks.create(self.request(create)).await?;
        let start = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        tasks.start(self.request(start)).await?;
        Ok(begun.elapsed())
    }

    /// Removes what [`Bare::start`] made.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let kill =
            KillRequest { container_id: id.to_owned(), signal: SIGKILL, all: true, ..Default::default() };
        tasks.kill(self.request(kill)).await?;
        let wait = WaitRequest { container_id: id.to_owned(), ..Default::default() };
        tasks.wait(self.request(wait)).await?;
        let delete = DeleteTaskRequest { container_id: id.to_owned() };
        tasks.delete(self.request(delete)).await?;
        let delete = DeleteContainerRequest { id: id.to_owned() };
        ContainersClient::new(self.channel.clone()).delete(self.request(delete)).await?;
        let remove = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: id.to_owned() };
        SnapshotsClient::new(self.channel.clone()).remove(self.request(remove)).await?;
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().expect("containerd's namespaces are ASCII");
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }
}

/// The containerd namespace that holds container `id`.
fn namespace_of(socket: &Path, id: &str) -> Result<String> {
    let socket = socket.to_str().context("the path is not UTF-8")?;
    let ctr = |arguments: &[&str]| blixard_tests::command::run("ctr", &[&["-a", socket], arguments].concat());
    for namespace in ctr(&["namespaces", "list", "-q"])?.lines() {
        if ctr(&["-n", namespace, "containers", "list", "-q"])?.lines().any(|listed| listed == id) {
            return Ok(namespace.to_owned());
        }
    }
    anyhow::bail!("containerd has no container {id}")
}

//! A node's runtime in a directory of its own, and what its tests ask of it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::agent::ObservedState;
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_core::spec::ServiceSpec;
use blixard_node::platform::{
    ContainerConfig, ContainerRuntime, ExecConfig, LogLine, LogQuery, RuntimeEvent, Started,
};
use blixard_node::runtime::images::Registries;
use blixard_node::runtime::{
    ContainerdChoice, ContainerdRuntime, HostOnly, Networks, RuntimeConfig, namespace,
};
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncReadExt;

use crate::support::image;

pub(crate) const NODE: NodeId = NodeId(1);
pub(crate) const IMAGE: &str = "blixard.test/box:1";
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A node's runtime in a directory of its own, with one image. Removed when dropped.
pub(crate) struct Bench {
    /// A cluster of its own, so that tests running at once share no names.
    pub(crate) cluster: ClusterId,
    pub(crate) directory: tempfile::TempDir,
    /// The network; the node's own bridge when absent.
    pub(crate) networks: Option<Arc<dyn Networks>>,
    pub(crate) runtime: Option<ContainerdRuntime>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with_networks(Some(Arc::new(HostOnly))).await
    }

    pub(crate) async fn with_networks(networks: Option<Arc<dyn Networks>>) -> Self {
        let directory = tempfile::Builder::new().prefix("blixard-runtime-").tempdir().expect("directory");
        let mut bench = Self { cluster: ClusterId(rand::random()), directory, networks, runtime: None };
        bench.connect().await;
        bench.import().await;
        bench
    }

    /// Imports the image that containers are made of.
    pub(crate) async fn import(&self) {
        let archive = Box::pin(std::io::Cursor::new(box_image()));
        let images = self.runtime().import(archive, None).await.expect("import").images;
        assert_eq!(images.len(), 1, "{images:?}");
    }

    /// Connects anew, as a daemon that was started again.
    pub(crate) async fn connect(&mut self) {
        self.runtime = None;
        let runtime = ContainerdRuntime::connect(RuntimeConfig {
            data: self.directory.path().join("data"),
            containerd: ContainerdChoice::Private,
            allow_paths: Vec::new(),
            registries: Registries::default(),
            logger: Some(logger()),
            networks: self.networks.clone(),
        })
        .await
        .expect("containerd");
        runtime.attach(self.cluster, NODE, [10, 99, 1, 0].into()).await.expect("attach");
        self.runtime = Some(runtime);
    }

    pub(crate) fn namespace(&self) -> String {
        namespace(self.cluster, NODE)
    }

    pub(crate) fn runtime(&self) -> &ContainerdRuntime {
        self.runtime.as_ref().expect("connected")
    }

    pub(crate) async fn start(&self, config: &ContainerConfig) -> Started {
        self.runtime().start(config).await.expect("start")
    }

    pub(crate) async fn remove(&self, config: &ContainerConfig, timeout: Duration) {
        self.runtime().remove(config.replica, config.attempt, timeout).await.expect("remove");
    }

    pub(crate) async fn ended(&self, config: &ContainerConfig) -> u32 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.runtime().state(config.replica, config.attempt).await.expect("state") {
                ObservedState::Exited(code) => return code,
                ObservedState::Running => assert!(Instant::now() < deadline, "still runs"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn log(&self, config: &ContainerConfig, query: LogQuery) -> Vec<LogLine> {
        let lines = self.runtime().logs(config.replica, config.attempt, query).await.expect("log");
        tokio::time::timeout(DEADLINE, lines.map(|line| line.expect("line")).collect())
            .await
            .expect("the log ends")
    }

    pub(crate) async fn log_text(&self, config: &ContainerConfig) -> Vec<String> {
        let lines = self.log(config, LogQuery { follow: true, ..LogQuery::default() }).await;
        lines.into_iter().map(|line| String::from_utf8_lossy(&line.bytes).into_owned()).collect()
    }

    /// What a program in a container ends with and writes, its errors last.
    pub(crate) async fn exec(&self, config: &ContainerConfig, command: &[&str]) -> (u32, String) {
        let command = command.iter().map(|part| (*part).to_owned()).collect();
        let exec = ExecConfig { command, ..Default::default() };
        let mut session = self.runtime().exec(config.replica, config.attempt, &exec).await.expect("exec");
        let io = session.take_io();
        let mut output = String::new();
        for stream in [Some(io.stdout), io.stderr].iter_mut().flatten() {
            let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut output));
            read.await.expect("end").expect("output");
        }
        (session.wait().await.expect("exit code"), output)
    }

    /// Removes everything and checks that nothing is left.
    pub(crate) async fn finish(mut self) {
        let runtime = self.runtime.take().expect("connected");
        runtime.purge(false).await.expect("purge");
        assert_eq!(runtime.list().await.expect("list"), []);
        runtime.remove_containerd().await.expect("stop");
        assert_eq!(runtime.containerd_pid(), None);
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let own = self.directory.path().to_string_lossy().into_owned();
        assert!(!mounts.contains(&own), "{mounts}");
    }
}

impl Drop for Bench {
    /// After a failed test: stops what it started and removes what it left.
    fn drop(&mut self) {
        let Some(pid) = self.runtime.as_ref().and_then(ContainerdRuntime::containerd_pid) else { return };
        let (socket, namespace) = (self.runtime().socket().to_path_buf(), self.namespace());
        for id in ctr(&socket, &namespace, &["tasks", "ls", "-q"]).lines() {
            ctr(&socket, &namespace, &["tasks", "rm", "--force", id]);
        }
        self.runtime = None;
        let _ = Command::new("kill").arg("-9").arg(pid.to_string()).status();
        let run = socket.parent().expect("run directory").to_string_lossy().into_owned();
        let data = self.directory.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if mount.starts_with(&run) || mount.starts_with(&data) {
                let _ = Command::new("umount").arg(mount).status();
            }
        }
        let _ = std::fs::remove_dir_all(run);
    }
}

pub(crate) fn ctr(socket: &Path, namespace: &str, args: &[&str]) -> String {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", namespace]).args(args);
    let output = command.output().expect("ctr");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn logger() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let target = test.parent().and_then(Path::parent).expect("target directory");
    target.join("examples/container_logger")
}

/// An OCI archive of one layer: busybox and its links, accounts, and a directory.
fn box_image() -> Vec<u8> {
    let busybox = image::busybox();
    let applets =
        ["sh", "sleep", "id", "cat", "echo", "env", "pwd", "hostname", "stty", "kill", "seq", "mount"];
    let links = applets.map(|applet| format!("bin/{applet}"));
    let mut files: Vec<image::File<'_>> = vec![
        ("bin/busybox", 0o755, &busybox),
        ("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n"),
        ("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nssl:x:101:web\n"),
        ("tmp/", image::DIRECTORY | 0o1777, b""),
    ];
    files.extend(links.iter().map(|link| (link.as_str(), image::LINK | 0o777, b"busybox".as_slice())));
    let config = serde_json::json!({
        "Env": ["FROM_IMAGE=yes"], "Cmd": ["sleep", "1000"], "User": "web", "WorkingDir": "/srv/app",
        "StopSignal": "SIGUSR1",
    });
    image::oci_archive(IMAGE, &files, config)
}

pub(crate) fn config(replica: u64, spec: serde_json::Value) -> ContainerConfig {
    let mut full = serde_json::json!({"name": "box", "image": {"reference": IMAGE}, "network": "host"});
    for (key, value) in spec.as_object().expect("an object") {
        full[key] = value.clone();
    }
    let spec: ServiceSpec = serde_json::from_value(full).expect("service");
    ContainerConfig {
        replica: ReplicaId(replica),
        attempt: 1,
        slot: 3,
        version: 1,
        spec: Arc::new(spec),
        volumes: Default::default(),
    }
}

pub(crate) fn script(replica: u64, script: &str) -> ContainerConfig {
    let image = serde_json::json!({"reference": IMAGE, "command": ["sh", "-c", script]});
    config(replica, serde_json::json!({ "image": image }))
}

pub(crate) type Events = Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;

pub(crate) async fn next_event(events: &mut Events) -> RuntimeEvent {
    tokio::time::timeout(DEADLINE, events.next())
        .await
        .expect("an event in time")
        .expect("a stream without end")
}

pub(crate) fn alive(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

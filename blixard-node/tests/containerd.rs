//! The container runtime on a real containerd of its own. Needs root, containerd, runc and a
//! static busybox; a machine without them fails the tests rather than skipping them.

#![expect(clippy::disallowed_methods, reason = "real containers run in real time")]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::agent::ObservedState;
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_core::spec::ServiceSpec;
use blixard_node::platform::{
    ContainerConfig, ContainerRuntime, ExecConfig, LogLine, LogQuery, RuntimeError, RuntimeEvent, Started,
};
use blixard_node::runtime::images::Registries;
use blixard_node::runtime::{
    ContainerdChoice, ContainerdRuntime, HostOnly, Networks, RuntimeConfig, namespace,
};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NODE: NodeId = NodeId(1);
const IMAGE: &str = "blixard.test/box:1";
const DEADLINE: Duration = Duration::from_secs(30);

/// A node's runtime in a directory of its own, with one image. Removed when dropped.
struct Bench {
    /// A cluster of its own, so that tests running at once share no names.
    cluster: ClusterId,
    directory: tempfile::TempDir,
    /// The network; the node's own bridge when absent.
    networks: Option<Arc<dyn Networks>>,
    runtime: Option<ContainerdRuntime>,
}

impl Bench {
    async fn new() -> Self {
        Self::with_networks(Some(Arc::new(HostOnly))).await
    }

    async fn with_networks(networks: Option<Arc<dyn Networks>>) -> Self {
        let directory = tempfile::Builder::new().prefix("blixard-runtime-").tempdir().expect("directory");
        let mut bench = Self { cluster: ClusterId(rand::random()), directory, networks, runtime: None };
        bench.connect().await;
        let archive = Box::pin(std::io::Cursor::new(box_image()));
        let images = bench.runtime().import(archive).await.expect("import");
        assert_eq!(images.len(), 1, "{images:?}");
        bench
    }

    /// Connects anew, as a daemon that was started again.
    async fn connect(&mut self) {
        self.runtime = None;
        let runtime = ContainerdRuntime::connect(RuntimeConfig {
            data: self.directory.path().join("data"),
            containerd: ContainerdChoice::Private,
            registries: Registries::default(),
            logger: Some(logger()),
            networks: self.networks.clone(),
        })
        .await
        .expect("containerd");
        runtime.attach(self.cluster, NODE, [10, 99, 1, 0].into()).await.expect("attach");
        self.runtime = Some(runtime);
    }

    fn namespace(&self) -> String {
        namespace(self.cluster, NODE)
    }

    fn runtime(&self) -> &ContainerdRuntime {
        self.runtime.as_ref().expect("connected")
    }

    async fn start(&self, config: &ContainerConfig) -> Started {
        self.runtime().start(config).await.expect("start")
    }

    async fn remove(&self, config: &ContainerConfig, timeout: Duration) {
        self.runtime().remove(config.replica, config.attempt, timeout).await.expect("remove");
    }

    async fn ended(&self, config: &ContainerConfig) -> u32 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.runtime().state(config.replica, config.attempt).await.expect("state") {
                ObservedState::Exited(code) => return code,
                ObservedState::Running => assert!(Instant::now() < deadline, "still runs"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn log(&self, config: &ContainerConfig, query: LogQuery) -> Vec<LogLine> {
        let lines = self.runtime().logs(config.replica, config.attempt, query).await.expect("log");
        tokio::time::timeout(DEADLINE, lines.map(|line| line.expect("line")).collect())
            .await
            .expect("the log ends")
    }

    async fn log_text(&self, config: &ContainerConfig) -> Vec<String> {
        let lines = self.log(config, LogQuery { tail: None, follow: true }).await;
        lines.into_iter().map(|line| line.text).collect()
    }

    /// What a program in a container ends with and writes, its errors last.
    async fn exec(&self, config: &ContainerConfig, command: &[&str]) -> (u32, String) {
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
    async fn finish(mut self) {
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

fn ctr(socket: &Path, namespace: &str, args: &[&str]) -> String {
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
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, path, content).expect("layer");
    };
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static");
    add("bin/busybox", 0o755, &busybox);
    add("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n");
    add("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nssl:x:101:web\n");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    layer.append_data(&mut header, "tmp/", std::io::empty()).expect("layer");
    for name in ["sh", "sleep", "id", "cat", "echo", "env", "pwd", "hostname", "stty", "kill", "seq", "mount"]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").expect("layer");
    }
    let layer = layer.into_inner().expect("layer");
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": arch, "os": "linux",
        "config": {"Env": ["FROM_IMAGE=yes"], "Cmd": ["sleep", "1000"], "User": "web", "WorkingDir": "/srv/app",
            "StopSignal": "SIGUSR1"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    }))
    .expect("config");
    let descriptor = |media: &str, bytes: &[u8]| serde_json::json!({"mediaType": media, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))
    .expect("manifest");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": IMAGE});
    let index =
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [entry]})).expect("index");
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content).expect("archive");
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", &index);
    for blob in [&layer, &config, &manifest] {
        add(&format!("blobs/sha256/{}", digest(blob)), blob);
    }
    archive.into_inner().expect("archive")
}

fn config(replica: u64, spec: serde_json::Value) -> ContainerConfig {
    let mut full = serde_json::json!({"name": "box", "image": {"reference": IMAGE}, "network": "host"});
    for (key, value) in spec.as_object().expect("an object") {
        full[key] = value.clone();
    }
    let spec: ServiceSpec = serde_json::from_value(full).expect("service");
    ContainerConfig { replica: ReplicaId(replica), attempt: 1, slot: 3, spec: Arc::new(spec) }
}

fn script(replica: u64, script: &str) -> ContainerConfig {
    let image = serde_json::json!({"reference": IMAGE, "command": ["sh", "-c", script]});
    config(replica, serde_json::json!({ "image": image }))
}

type Events = Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>>;

async fn next_event(events: &mut Events) -> RuntimeEvent {
    tokio::time::timeout(DEADLINE, events.next())
        .await
        .expect("an event in time")
        .expect("a stream without end")
}

fn alive(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_start_tell_their_end_and_leave_nothing() {
    let bench = Bench::new().await;
    let mut events = bench.runtime().events();
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);

    let failing = script(1, "echo out; echo err >&2; exit 7");
    bench.start(&failing).await;
    let expect = RuntimeEvent::Exited { replica: ReplicaId(1), attempt: 1, code: 7 };
    assert_eq!(next_event(&mut events).await, expect);
    assert_eq!(bench.ended(&failing).await, 7);
    let log = bench.log(&failing, LogQuery::default()).await;
    let lines: Vec<_> = log.iter().map(|line| (line.stderr, line.text.as_str())).collect();
    assert!(lines.contains(&(false, "out")) && lines.contains(&(true, "err")), "{lines:?}");
    bench.remove(&failing, DEADLINE).await;
    bench.remove(&failing, DEADLINE).await;
    let gone = bench.runtime().state(failing.replica, 1).await;
    assert!(matches!(gone, Err(RuntimeError::NotFound(_))), "{gone:?}");
    assert_eq!(bench.log(&failing, LogQuery { tail: Some(1), follow: true }).await.len(), 1);

    let first = config(2, serde_json::json!({}));
    let started = bench.start(&first).await;
    assert_eq!(bench.start(&first).await, started);
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, ObservedState::Running);
    let info = bench.runtime().inspect(first.replica, 1).await.expect("inspect");
    assert_eq!((info.pid, info.exit_code, info.image.as_str()), (Some(started.pid), None, IMAGE));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_what_image_and_service_say() {
    let bench = Bench::new().await;
    let volume = bench.directory.path().join("made/volume");
    let told = config(
        1,
        serde_json::json!({
            "image": {"reference": IMAGE, "command": ["sh", "-c",
                "id -u; id -g; id -G; pwd; hostname; echo $FROM_IMAGE $OF_SERVICE; cat /etc/hostname; \
                 cat /sys/kernel/security 2>/dev/null; mount -t tmpfs t /srv 2>/dev/null || echo refused"]},
            "environment": {"OF_SERVICE": "too"},
            "volumes": [{"source": volume, "target": "/data"}],
        }),
    );
    bench.start(&told).await;
    let lines = bench.log_text(&told).await;
    assert_eq!(lines, ["33", "34", "34 101", "/srv/app", "box-3", "yes too", "box-3", "refused"]);
    assert!(volume.is_dir());

    let missing = config(2, serde_json::json!({"image": {"reference": IMAGE, "command": ["nope", "--now"]}}));
    match bench.runtime().start(&missing).await {
        Err(RuntimeError::Invalid(text)) => {
            assert_eq!(text, format!("the command `nope` is not in the image {IMAGE}"));
        }
        other => panic!("{other:?}"),
    }
    let absent = config(3, serde_json::json!({"image": {"reference": "blixard.test/absent:1"}}));
    let absent = bench.runtime().start(&absent).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound(_))), "{absent:?}");
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed.len(), 1, "failed starts leave nothing: {listed:?}");

    // Root in a container: Docker's default capabilities, the seccomp filter, masked paths.
    let command = "cat /proc/self/status; cat /proc/keys; busybox mount -t tmpfs t /srv || echo refused; \
        busybox unshare -m true || echo refused; echo 1 > /proc/sys/kernel/sysrq || echo refused";
    let exec = ExecConfig {
        command: vec!["sh".into(), "-c".into(), command.into()],
        user: Some("root".into()),
        ..Default::default()
    };
    let host = config(4, serde_json::json!({}));
    bench.start(&host).await;
    let mut session = bench.runtime().exec(host.replica, 1, &exec).await.expect("exec");
    let mut output = String::new();
    let mut io = session.take_io();
    tokio::time::timeout(DEADLINE, io.stdout.read_to_string(&mut output))
        .await
        .expect("end")
        .expect("output");
    for expect in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"] {
        assert!(output.contains(expect), "{expect} in {output}");
    }
    assert_eq!(output.matches("refused").count(), 3, "{output}");
    bench.finish().await;
}

/// The namespace's half of the next test.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs inside the network namespace that the next test makes"]
async fn bridged_container_in_a_namespace() {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
    assert!(up.success());
    let bench = Bench::with_networks(None).await;
    let served = config(
        1,
        serde_json::json!({
            "network": "bridge",
            "ports": [{"container_port": 80, "host_port": 8080}],
            "image": {"reference": IMAGE, "command":
                ["sh", "-c", "echo here > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp"]},
        }),
    );
    let address = bench.start(&served).await.address.expect("an address");
    assert_eq!(&address.octets()[..3], [10, 99, 1]);
    let (code, hosts) = bench.exec(&served, &["cat", "/etc/hosts"]).await;
    assert!(code == 0 && hosts.contains(&format!("{address}\tbox-3\n")), "{hosts}");
    for target in [(address, 80), ([127, 0, 0, 1].into(), 8080)] {
        let deadline = Instant::now() + DEADLINE;
        while !bench.runtime().probe(target.into(), "/", Duration::from_secs(1)).await {
            assert!(Instant::now() < deadline, "{target:?} does not answer");
        }
    }
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed[0].address, Some(address));
    bench.remove(&served, Duration::ZERO).await;
    assert!(!bench.runtime().probe((address, 80).into(), "/", Duration::from_millis(300)).await);
    bench.finish().await;
}

#[test]
fn a_bridged_container_answers_on_its_address_and_its_published_port() {
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "bridged_container_in_a_namespace", "--ignored", "--nocapture"])
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_with_the_images_signal_and_then_kills() {
    let bench = Bench::new().await;
    let graceful = script(1, "trap 'echo asked; exit 0' USR1; echo ready; while :; do sleep 0.05; done");
    bench.start(&graceful).await;
    let mut lines =
        bench.runtime().logs(graceful.replica, 1, LogQuery { tail: None, follow: true }).await.expect("log");
    let ready = tokio::time::timeout(DEADLINE, lines.next()).await.expect("in time");
    assert_eq!(ready.expect("a line").expect("a line").text, "ready");
    bench.remove(&graceful, DEADLINE).await;
    let asked = tokio::time::timeout(DEADLINE, lines.next()).await.expect("in time");
    assert_eq!(asked.expect("a line").expect("a line").text, "asked");
    let end =
        tokio::time::timeout(DEADLINE, lines.next()).await.expect("a followed log ends with its container");
    assert!(end.is_none());

    let deaf = script(2, "trap '' USR1; while :; do sleep 0.05; done");
    let pid = bench.start(&deaf).await.pid;
    let begun = Instant::now();
    bench.remove(&deaf, Duration::from_millis(300)).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "it was given its time");
    assert!(!alive(pid));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_daemon_and_containerd() {
    let mut bench = Bench::new().await;
    let lasting = script(1, "seq 1 3; exec sleep 1000");
    let pid = bench.start(&lasting).await.pid;
    let containerd = bench.runtime().containerd_pid().expect("containerd");

    bench.connect().await;
    assert_eq!(bench.runtime().containerd_pid(), Some(containerd));
    let info = bench.runtime().inspect(lasting.replica, 1).await.expect("inspect");
    assert_eq!(info.pid, Some(pid));

    let mut events = bench.runtime().events();
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);
    let killed = Command::new("kill").arg("-9").arg(containerd.to_string()).status().expect("kill");
    assert_eq!(killed.into_raw(), 0);
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);
    assert_ne!(bench.runtime().containerd_pid(), Some(containerd));
    let info = bench.runtime().inspect(lasting.replica, 1).await.expect("inspect");
    assert_eq!(info.pid, Some(pid));
    assert!(alive(pid));

    let killed = Command::new("kill").arg("-9").arg(pid.to_string()).status().expect("kill");
    assert_eq!(killed.into_raw(), 0);
    let expect = RuntimeEvent::Exited { replica: ReplicaId(1), attempt: 1, code: 137 };
    assert_eq!(next_event(&mut events).await, expect);
    assert_eq!(bench.ended(&lasting).await, 137);
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_is_made_good_by_the_next() {
    let bench = Bench::new().await;
    for (replica, cut_after_ms) in (1..).zip([1, 4, 8, 15, 30, 50, 70, 90, 120]) {
        let config = config(replica, serde_json::json!({}));
        let cut_after = Duration::from_millis(cut_after_ms);
        let _ = tokio::time::timeout(cut_after, bench.runtime().start(&config)).await;
        let started = bench.start(&config).await;
        assert!(alive(started.pid), "cut off after {cut_after:?}");
    }
    // Cut off for good: listing shows what has a container, and removes what has none. containerd
    // may still be at what was asked of it, so that something shows late.
    let lost = config(100, serde_json::json!({}));
    let _ = tokio::time::timeout(Duration::from_millis(12), bench.runtime().start(&lost)).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        for observed in bench.runtime().list().await.expect("list") {
            bench.runtime().remove(observed.replica, observed.attempt, Duration::ZERO).await.expect("remove");
        }
        let socket = bench.runtime().socket();
        let snapshots = ctr(socket, &bench.namespace(), &["snapshots", "ls"]);
        if !snapshots.contains("Active") && bench.runtime().list().await.expect("list").is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{snapshots}");
    }
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_run_in_containers_with_and_without_a_terminal() {
    let bench = Bench::new().await;
    let host = config(1, serde_json::json!({"environment": {"A": "1"}}));
    bench.start(&host).await;
    assert_eq!(
        bench.exec(&host, &["sh", "-c", "echo $A $HOSTNAME; exit 3"]).await,
        (3, "1 box-3\n".to_owned())
    );
    // Much output of a process that is gone before it is read.
    let (code, output) = bench.exec(&host, &["seq", "1", "9000"]).await;
    assert_eq!((code, output.lines().count()), (0, 9000));

    let exec = ExecConfig {
        command: vec!["cat".into()],
        stdin: true,
        user: Some("0:0".into()),
        workdir: Some("/".into()),
        ..Default::default()
    };
    let mut session = bench.runtime().exec(host.replica, 1, &exec).await.expect("exec");
    let mut io = session.take_io();
    let mut stdin = io.stdin.take().expect("input");
    stdin.write_all(b"through").await.expect("write");
    stdin.shutdown().await.expect("shutdown");
    let mut output = String::new();
    tokio::time::timeout(DEADLINE, io.stdout.read_to_string(&mut output))
        .await
        .expect("end")
        .expect("output");
    assert_eq!((output.as_str(), session.wait().await.expect("code")), ("through", 0));

    let command = vec!["sh".into(), "-c".into(), "read line; stty size; exit 5".into()];
    let exec = ExecConfig { command, tty: true, stdin: true, ..Default::default() };
    let mut session = bench.runtime().exec(host.replica, 1, &exec).await.expect("exec");
    let mut io = session.take_io();
    session.resize(101, 33).await.expect("resize");
    io.stdin.as_mut().expect("input").write_all(b"\n").await.expect("write");
    let mut output = String::new();
    tokio::time::timeout(DEADLINE, io.stdout.read_to_string(&mut output))
        .await
        .expect("end")
        .expect("output");
    assert!(output.contains("33 101"), "{output:?}");
    assert_eq!(session.wait().await.expect("code"), 5);

    let nope = bench.exec(&host, &["nope"]).await;
    assert_eq!(nope, (127, "the command `nope` is not in the container\n".to_owned()));
    let denied = bench.exec(&host, &["/etc/passwd"]).await;
    assert_eq!(denied, (126, "the command `/etc/passwd` cannot be executed\n".to_owned()));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_output_is_rotated_and_none_of_the_end_is_lost() {
    let bench = Bench::new().await;
    let text = "x".repeat(100);
    let chatty = script(1, &format!("busybox yes {text} | busybox head -n 250000; echo last"));
    bench.start(&chatty).await;
    assert_eq!(bench.ended(&chatty).await, 0);
    let tail = bench.log(&chatty, LogQuery { tail: Some(2), follow: true }).await;
    let tail: Vec<_> = tail.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(tail, [text.as_str(), "last"]);
    let info = bench.runtime().inspect(chatty.replica, 1).await.expect("inspect");
    let directory = Path::new(&info.log_path).parent().expect("directory").to_path_buf();
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        sizes.push(entry.expect("entry").metadata().expect("metadata").len());
    }
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 10 << 20), "{sizes:?}");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_the_containers_cgroup() {
    let bench = Bench::new().await;
    let limited = config(
        1,
        serde_json::json!({"limits": {"cpu_shares": 512, "cpu_quota_us": 50_000, "memory_bytes": 33_554_432,
            "blkio_weight": 300, "pids": 20}}),
    );
    let pid = bench.start(&limited).await.pid;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
    let read = |controller: &str, v1: &str, v2: &str| {
        let line = groups
            .lines()
            .find(|line| line.split(':').nth(1).unwrap_or("").split(',').any(|c| c == controller));
        let path = match line {
            Some(line) => {
                format!("/sys/fs/cgroup/{controller}{}/{v1}", line.splitn(3, ':').nth(2).unwrap_or(""))
            }
            None => {
                let unified = groups.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup");
                format!("/sys/fs/cgroup{unified}/{v2}")
            }
        };
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
    };
    assert!(groups.contains("/blixard/1/"), "{groups}");
    let run = bench.runtime().socket().parent().expect("run directory").to_path_buf();
    let info = bench.runtime().inspect(limited.replica, 1).await.expect("inspect");
    assert!(run.join("runc").join(bench.namespace()).join(&info.id.0).is_dir(), "runc's state is the node's");
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(read("pids", "pids.max", "pids.max"), "20");
    assert!(["50000", "50000 100000"].contains(&read("cpu", "cpu.cfs_quota_us", "cpu.max").as_str()));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_takes_little_more_than_containerd_does() {
    let bench = Bench::new().await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for replica in 1..=10 {
        let begun = Instant::now();
        bench.start(&config(replica, serde_json::json!({}))).await;
        ours.push(begun.elapsed());
        let begun = Instant::now();
        let name = format!("by-ctr-{replica}");
        let run = ["run", "--detach", "--net-host", "--null-io", IMAGE, &name, "/bin/sleep", "1000"];
        ctr(bench.runtime().socket(), &bench.namespace(), &run);
        theirs.push(begun.elapsed());
    }
    ours.sort();
    theirs.sort();
    let _ = writeln!(
        std::io::stderr(),
        "start with the image present: median {:?}, worst {:?}; ctr run: median {:?}, worst {:?}",
        ours[5],
        ours[9],
        theirs[5],
        theirs[9]
    );
    assert!(ours[5] < theirs[5] * 2, "{ours:?} against {theirs:?}");
    let cgroups = bench.namespace();
    bench.finish().await;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        // What ctr makes and leaves, here and below; absent in the hierarchies that are none.
        let _ = std::fs::remove_dir(hierarchy.path().join(&cgroups));
    }
    let _ = std::fs::remove_dir(Path::new("/run/containerd/runc").join(&cgroups));
}

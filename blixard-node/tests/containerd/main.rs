//! The container runtime on a real containerd of its own. Needs root, containerd, runc and a
//! static busybox; a machine without them fails the tests rather than skipping them.

#![expect(clippy::disallowed_methods, reason = "real containers run in real time")]

mod bench;
mod leftovers;
#[path = "../support/mod.rs"]
mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use blixard_core::agent::ObservedState;
use blixard_core::id::ReplicaId;
use blixard_node::platform::{ContainerRuntime, ExecConfig, LogQuery, RuntimeError, RuntimeEvent};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::bench::{Bench, DEADLINE, IMAGE, alive, config, next_event, script};

#[tokio::test(flavor = "multi_thread")]
async fn containers_start_tell_their_end_and_leave_nothing() {
    let bench = Bench::new().await;
    let mut events = bench.runtime().events();
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);

    let failing = script(1, "echo out; echo err >&2; exit 7");
    bench.start(&failing).await;
    let expect = RuntimeEvent::Exited { replica: ReplicaId(1), attempt: 1, code: 7, oom_killed: false };
    assert_eq!(next_event(&mut events).await, expect);
    assert_eq!(bench.ended(&failing).await, 7);
    let log = bench.log(&failing, LogQuery::default()).await;
    let lines: Vec<_> = log.iter().map(|line| (line.stderr, line.bytes.as_slice())).collect();
    assert!(lines.contains(&(false, &b"out"[..])) && lines.contains(&(true, b"err")), "{lines:?}");
    bench.remove(&failing, DEADLINE).await;
    bench.remove(&failing, DEADLINE).await;
    let gone = bench.runtime().state(failing.replica, 1).await;
    assert!(matches!(gone, Err(RuntimeError::NotFound(_))), "{gone:?}");
    assert_eq!(
        bench.log(&failing, LogQuery { tail: Some(1), follow: true, ..LogQuery::default() }).await.len(),
        1
    );

    let first = config(2, serde_json::json!({}));
    let started = bench.start(&first).await;
    assert_eq!(bench.start(&first).await, started);
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state, ObservedState::Running);
    let info = bench.runtime().inspect(first.replica, 1).await.expect("inspect");
    assert_eq!((info.pid, info.exit_code, info.image.as_str()), (Some(started.pid), None, IMAGE));
    // Whoever waits for an image is told that one has a name now.
    bench.import().await;
    assert_eq!(next_event(&mut events).await, RuntimeEvent::ImageNamed);
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_what_image_and_service_say() {
    let bench = Bench::new().await;
    let volume = bench.directory.path().join("volume");
    std::fs::create_dir(&volume).expect("a directory");
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
    let published = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
    assert!(
        bench.runtime().probe(published, "/", Duration::from_millis(300)).await.is_err(),
        "not ready yet"
    );
    let ready = [((served.replica, served.attempt), served.spec.clone())].into();
    bench.runtime().publish(&ready).await.expect("publish");
    for target in [(address, 80).into(), published] {
        let deadline = Instant::now() + DEADLINE;
        while bench.runtime().probe(target, "/", Duration::from_secs(1)).await.is_err() {
            assert!(Instant::now() < deadline, "{target:?} does not answer");
        }
    }
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed[0].address, Some(address));
    bench.remove(&served, Duration::ZERO).await;
    assert!(bench.runtime().probe((address, 80).into(), "/", Duration::from_millis(300)).await.is_err());
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
    let mut lines = bench
        .runtime()
        .logs(graceful.replica, 1, LogQuery { follow: true, ..LogQuery::default() })
        .await
        .expect("log");
    let ready = tokio::time::timeout(DEADLINE, lines.next()).await.expect("in time");
    assert_eq!(ready.expect("a line").expect("a line").bytes, b"ready");
    bench.remove(&graceful, DEADLINE).await;
    let asked = tokio::time::timeout(DEADLINE, lines.next()).await.expect("in time");
    assert_eq!(asked.expect("a line").expect("a line").bytes, b"asked");
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
    let expect = RuntimeEvent::Exited { replica: ReplicaId(1), attempt: 1, code: 137, oom_killed: false };
    assert_eq!(next_event(&mut events).await, expect);
    assert_eq!(bench.ended(&lasting).await, 137);
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
    let tail = bench.log(&chatty, LogQuery { tail: Some(2), follow: true, ..LogQuery::default() }).await;
    let tail: Vec<_> = tail.iter().map(|line| String::from_utf8_lossy(&line.bytes)).collect();
    assert_eq!(tail, [text.as_str(), "last"]);
    let info = bench.runtime().inspect(chatty.replica, 1).await.expect("inspect");
    let directory = Path::new(&info.log_path).parent().expect("directory").to_path_buf();
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        let entry = entry.expect("entry");
        // Beside the log it is written down where its newest file begins.
        if entry.path().extension().is_none_or(|end| end != "begin") {
            sizes.push(entry.metadata().expect("metadata").len());
        }
    }
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 10 << 20), "{sizes:?}");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_for_want_of_memory_is_told_of_a_child_too_unless_its_parent_went_on() {
    let mut bench = Bench::new().await;
    let limited = |replica, script: &str| {
        let image = serde_json::json!({"reference": IMAGE, "command": ["sh", "-c", script]});
        config(replica, serde_json::json!({"image": image, "limits": {"memory_bytes": 16 << 20}}))
    };
    let mut events = bench.runtime().events();
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);
    let exited = |replica, code, oom_killed| RuntimeEvent::Exited {
        replica: ReplicaId(replica),
        attempt: 1,
        code,
        oom_killed,
    };

    // The parent ends because its child was killed, with a code of its own.
    let parent = limited(1, "busybox tail /dev/zero & wait $!; echo child $?; exit 1");
    bench.start(&parent).await;
    assert_eq!(next_event(&mut events).await, exited(1, 1, true));
    assert!(bench.log_text(&parent).await.contains(&"child 137".to_owned()), "its child was not killed");
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!((listed[0].state, listed[0].oom_killed), (ObservedState::Exited(1), true));
    bench.remove(&parent, DEADLINE).await;
    let ended = bench.runtime().ended().await.expect("ended containers");
    assert_eq!((ended[0].exit_code, ended[0].oom_killed), (1, true));

    let survivor = limited(2, "busybox tail /dev/zero & wait $!; echo child $?; sleep 5; exit 3");
    bench.start(&survivor).await;
    assert_eq!(next_event(&mut events).await, exited(2, 3, false));
    assert!(bench.log_text(&survivor).await.contains(&"child 137".to_owned()), "its child was not killed");

    // The daemon was away when the child was killed, and finds a container that went on.
    drop(events);
    let survivor = limited(3, "busybox tail /dev/zero & wait $!; echo child $?; sleep 8; exit 3");
    bench.start(&survivor).await;
    let deadline = Instant::now() + DEADLINE;
    while bench.log(&survivor, LogQuery::default()).await.is_empty() {
        assert!(Instant::now() < deadline, "its child is not killed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.connect().await;
    let mut events = bench.runtime().events();
    assert_eq!(next_event(&mut events).await, RuntimeEvent::Resync);
    let listed = bench.runtime().list().await.expect("list");
    assert_eq!(listed.iter().filter(|seen| seen.state == ObservedState::Running).count(), 1, "{listed:?}");
    assert_eq!(next_event(&mut events).await, exited(3, 3, false));
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

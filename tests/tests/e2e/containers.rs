//! What containers wrote, those that ended among them; programs and files in them; how they ended.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::replica::ReplicaRow;
use blixard_core::cluster::Phase;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::printed;
use blixard_tests::host::Host;
use blixard_tests::{image, wait};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

const SOON: Duration = Duration::from_secs(40);
/// How much more memory a daemon may hold while logs of any length are read, in KiB.
const GROWTH_KIB_MAX: u64 = 60 << 10;

/// The containers of a service, those that ended among them.
fn all_of(host: &Host, service: &str) -> Result<Vec<ReplicaRow>> {
    host.cli_json(&["ps", "-a", service])
}

fn memory_kib(host: &Host) -> Result<u64> {
    let pid = host.pid().context("no daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn a_log_keeps_every_byte_and_costs_no_memory_however_long_its_lines_are() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let script = "printf x; busybox yes é | head -n 20000 | busybox tr -d '\\n'; echo; \
                      printf 'raw \\377\\300 end\\n'; \
                      dd if=/dev/zero bs=1M count=12 2>/dev/null | busybox tr '\\0' '#'; echo; echo AFTER; \
                      exec sleep 600";
        host.run(&Bundle::new("bytes", &busybox).shell(script))?;
        let mut expect = format!("x{}\n", "é".repeat(20_000)).into_bytes();
        expect.extend_from_slice(b"raw \xff\xc0 end\n");
        expect.resize(expect.len() + (12 << 20), b'#');
        expect.extend_from_slice(b"\nAFTER\n");
        let read = |arguments: &[&str]| -> Result<Vec<u8>> {
            let output = host.cli_output(arguments)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(output.stdout)
        };
        wait::until("the last line", SOON, || {
            wait::ensure(read(&["logs", "-n", "1", "bytes"])? == b"AFTER\n", "it is not written yet")
        })?;
        let all = read(&["logs", "bytes"])?;
        ensure!(all == expect, "{} bytes came, of {}", all.len(), expect.len());
        let two = read(&["logs", "-n", "2", "bytes"])?;
        ensure!(two.len() == (12 << 20) + "\nAFTER\n".len(), "{} bytes are the last two lines", two.len());
        ensure!(read(&["logs", "--since", "2001-01-01T00:00:00Z", "--until", "10m", "bytes"])?.is_empty());
        ensure!(read(&["logs", "--tail", "all", "--since", "10m", "bytes-0"])? == expect, "since");

        // Output without an end of line, whose follower takes nothing of it.
        let endless = "while :; do dd if=/dev/zero bs=64k count=16 2>/dev/null | busybox tr '\\0' '#'; done";
        host.run(&Bundle::new("endless", &busybox).shell(endless))?;
        let before = memory_kib(host)?;
        let mut deaf: Vec<_> = (0..5)
            .map(|_| Ok(host.command(&["logs", "-f", "endless"])?.stdout(Stdio::piped()).spawn()?))
            .collect::<Result<_>>()?;
        let log = host.inspect("endless-0")?.container.context("it does not run")?.log_path;
        wait::until("the log to be put aside twice", SOON * 2, || {
            wait::ensure(std::fs::exists(format!("{log}.2"))?, "it is short")
        })?;
        let after = memory_kib(host)?;
        // One that reads on, from any node, is served meanwhile.
        let mut first = [0; 1 << 20];
        let mut stdout = deaf.first_mut().and_then(|client| client.stdout.take()).context("no output")?;
        stdout.read_exact(&mut first)?;
        ensure!(first.iter().all(|byte| *byte == b'#'), "something else was written");
        for client in &mut deaf {
            client.kill()?;
            client.wait()?;
        }
        ensure!(after < before + GROWTH_KIB_MAX, "the daemon grew from {before} to {after} KiB");
        Ok(())
    })
}

#[test]
fn logs_of_containers_that_ended_are_read_by_attempt_name_and_id_from_any_node() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let script = "cat /proc/sys/kernel/random/uuid; exit 3";
        host.submit(&Bundle::new("crash", &busybox).shell(script).always().constraint("node.id==2"))?;
        let ended = wait::until("two attempts to be over", SOON, || {
            let rows = all_of(host, "crash")?;
            let gone = |attempt| {
                rows.iter().find(|row| row.phase == Some(Phase::Gone) && row.attempt == attempt).cloned()
            };
            Ok([gone(0).context("attempt 0")?, gone(1).context("attempt 1")?])
        })?;
        ensure!(ended.iter().all(|row| row.exit_code == Some(3) && row.version == 1), "{ended:?}");
        let first = host.cli(&["logs", "--attempt", "0", "crash-0"])?;
        let second = host.cli(&["logs", "--attempt", "1", "crash-0"])?;
        ensure!(
            first.lines().count() == 1 && second.lines().count() == 1 && first != second,
            "{first}{second}"
        );
        let id = ended[0].container_id.clone().context("an id")?;
        ensure!(host.cli(&["logs", &id.0[..12]])? == first, "by the id of a container that is gone");
        // One that has just started may have written nothing yet.
        wait::until("the log of the newest attempt that has one", SOON, || {
            let log = host.cli(&["logs", "crash"])?;
            wait::ensure(log.lines().count() == 1, format!("`{log}`"))
        })?;
        let refused = host.cli_refused(&["logs", "--attempt", "99", "crash-0"])?;
        ensure!(refused.contains("there are logs of attempts"), "{refused}");

        host.cli(&["stop", "crash"])?;
        ensure!(host.cli(&["logs", "crash"])?.lines().count() == 1, "of a service that is stopped");
        ensure!(host.cli(&["logs", "-f", "crash"])?.lines().count() == 1, "following it ends");
        host.cli(&["rm", "crash"])?;
        ensure!(host.cli(&["logs", "crash"])?.lines().count() == 1, "of a service that was removed");
        ensure!(host.cli(&["logs", "crash-0"])?.lines().count() == 1, "of a container of it");
        ensure!(host.cli(&["logs", &id.0])? == first, "by the id");
        let detail = host.inspect(&id.0)?;
        ensure!(detail.row.phase == Some(Phase::Gone) && detail.row.exit_code == Some(3), "{detail:?}");

        // A version that replaces another: the log before it is the replaced container's.
        let quiet = Bundle::new("quiet", &busybox).constraint("node.id==2");
        host.run(&quiet.clone().shell("echo first; exec sleep 600"))?;
        host.run(&quiet.shell("exec sleep 600").environment("V", "2"))?;
        wait::until("the first version to be gone", SOON, || {
            let rows = all_of(host, "quiet")?;
            let gone = rows.iter().any(|row| row.phase == Some(Phase::Gone) && row.version == 1);
            wait::ensure(gone && host.replicas("quiet")?.len() == 1, "it is there")
        })?;
        let output = host.cli_output(&["logs", "quiet-0"])?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.stdout.is_empty() && told.contains("has written nothing yet"), "{}", printed(&output));
        ensure!(host.cli(&["logs", "--previous", "quiet-0"])? == "first\n", "of the one that was replaced");
        let both = host.cli(&["logs", "--previous", "quiet", "quiet-0"])?;
        ensure!(both.lines().filter(|line| line.ends_with("| first")).count() == 2, "{both}");
        Ok(())
    })
}

/// Runs the client on a terminal of 40 rows and 120 columns and gives what it printed.
fn on_terminal(host: &Host, arguments: &[&str]) -> Result<String> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let open = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(name.to_str()?.trim_end())
            .map_err(anyhow::Error::from)
    };
    let theirs: OwnedFd = open()?.into();
    tcsetwinsize(&theirs, size)?;
    let mut command = host.command(arguments)?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let mut client = command.spawn()?;
    // Ours is now the only other end.
    drop(command);
    let mut text = Vec::new();
    // A terminal whose other end is closed ends with EIO.
    std::fs::File::from(ours).read_to_end(&mut text).ok();
    ensure!(client.wait()?.success(), "{}", String::from_utf8_lossy(&text));
    Ok(String::from_utf8(text)?)
}

#[test]
fn programs_files_and_signals_reach_a_container_on_another_node() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let script = "trap 'exit 5' USR1; echo up; while :; do sleep 0.1; done";
        host.run(&Bundle::new("box", &busybox).shell(script).constraint("node.id==2"))?;

        for _ in 0..10 {
            let size = on_terminal(host, &["exec", "-it", "box", "busybox", "stty", "size"])?;
            ensure!(size.trim() == "40 120", "the program saw a terminal of {size}");
        }
        let mut command =
            host.command(&["exec", "-e", "FISH", "-e", "A=b=c", "-e", "NOT_SET_HERE", "box", "env"])?;
        let output = command.env("FISH", "carp").output()?;
        let env = String::from_utf8(output.stdout)?;
        ensure!(env.contains("FISH=carp\n") && env.contains("A=b=c\n") && !env.contains("NOT_SET"), "{env}");
        let refused = host.cli_output(&["exec", "-w", "/nope", "box", "true"])?;
        let told = printed(&refused);
        ensure!(refused.status.code() == Some(126), "{told}");
        ensure!(told.contains("no directory `/nope`") && !told.contains("OCI"), "{told}");
        ensure!(host.cli_output(&["exec", "box", "nope"])?.status.code() == Some(127));
        ensure!(host.cli_refused(&["exec", "-w", "srv", "box", "true"])?.contains("not an absolute path"));
        ensure!(host.cli_refused(&["exec", "-u", "nobody2", "box", "true"])?.contains("nobody2"));

        copies(host, &cluster.directory().join("copies"))?;

        ensure!(host.cli_refused(&["kill", "-s", "NOPE", "box"])?.contains("no signal `NOPE`"));
        let mut waiting = host.command(&["wait", "box-0"])?;
        let waiting = waiting.stdout(Stdio::piped()).spawn()?;
        host.cli(&["kill", "-s", "SIGUSR1", "box"])?;
        let waited = waiting.wait_with_output()?;
        ensure!(waited.stdout == b"5\n", "{}", printed(&waited));
        Ok(())
    })
}

/// Copies to and from the container `box`.
fn copies(host: &Host, here: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let path = |name: &str| -> Result<String> {
        Ok(here.join(name).to_str().context("the temporary directory is not UTF-8")?.to_owned())
    };
    let refused = host.cli_refused(&["cp", "box:/nonesuch", "."])?;
    ensure!(refused.contains("has no /nonesuch") && refused.contains("`blixard exec box ls"), "{refused}");
    std::fs::create_dir_all(here.join("tree/sub"))?;
    let long: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_be_bytes).collect();
    std::fs::write(here.join("tree/sub/long"), &long)?;
    std::fs::write(here.join("tree/run"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(here.join("tree/run"), std::fs::Permissions::from_mode(0o755))?;
    host.cli(&["cp", &path("tree")?, "box-0:/tmp"])?;
    ensure!(host.cli(&["exec", "box", "/tmp/tree/run"])? == "ran\n", "permissions are kept");
    host.cli(&["cp", &path("tree/run")?, "box-0:/tmp/other"])?;
    ensure!(host.cli(&["exec", "box", "/tmp/other"])? == "ran\n", "a file under another name");
    host.cli(&["cp", "box:/tmp/tree/.", &path("")?])?;
    ensure!(std::fs::read(here.join("sub/long"))? == long, "the bytes are others");
    host.cli(&["cp", "box:/etc/hostname", &path("name")?])?;
    ensure!(std::fs::read_to_string(here.join("name"))? == "box-0\n", "a file that is mounted");

    // Links lead out of neither side.
    host.cli(&[
        "exec",
        "box",
        "sh",
        "-c",
        "busybox ln -s /etc /tmp/etc; busybox ln -s /tmp/evil /tmp/tree/up",
    ])?;
    host.cli(&["cp", "box:/tmp/etc/hostname", &path("name")?])?;
    ensure!(std::fs::read_to_string(here.join("name"))? == "box-0\n", "a link within the container");
    let outside = here.join("outside");
    std::fs::create_dir(&outside)?;
    std::fs::create_dir_all(here.join("into/tree"))?;
    symlink(&outside, here.join("into/tree/sub"))?;
    host.cli_refused(&["cp", "box:/tmp/tree", &path("into")?])?;
    ensure!(std::fs::read_dir(&outside)?.count() == 0, "a link on the way was followed");
    for refused in [
        &["cp", "box:/nope", "."][..],
        &["cp", "box:etc", "."],
        &["cp", "box:/proc/kmsg", "."],
        &["cp", "box:/dev/zero", "."],
        &["cp", &path("nope")?, "box:/tmp"],
        &["cp", &path("name")?, "box:/nope/"],
        &["cp", &path("name")?, &path("other")?],
    ] {
        host.cli_refused(refused)?;
    }
    Ok(())
}

#[test]
fn a_kill_for_want_of_memory_and_a_missing_volume_are_named() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let busybox = image::busybox()?;
        let host = &cluster.hosts[0];
        host.import(&busybox)?;
        let limited = |name: &str, script: &str| {
            let limits = serde_json::json!({"memory_limit": "16MiB"});
            Bundle::new(name, &busybox).shell(script).always().set("resources", limits)
        };
        host.submit(&limited("hungry", "exec tail /dev/zero"))?;
        let named = "out of memory: killed at its memory limit of 16 MiB";
        wait::until("the end to be named", SOON, || {
            let rows = all_of(host, "hungry")?;
            let ended = rows.iter().find(|row| row.phase == Some(Phase::Gone)).context("none has ended")?;
            ensure!(ended.oom_killed && ended.exit_code == Some(137) && ended.message == named, "{ended:?}");
            let events = host.cli(&["events"])?;
            ensure!(events.contains(named), "{events}");
            ensure!(host.cli(&["ps", "-a", "--no-trunc", "hungry"])?.contains(named), "ps does not name it");
            Ok(())
        })?;
        host.cli(&["rm", "hungry"])?;

        // A child that was killed is told with the code that its parent ended with for that.
        host.submit(&limited("parent", "tail /dev/zero & wait $!; exit 1"))?;
        let named = "exited with code 1 after a process in it was killed for memory (limit 16 MiB)";
        wait::until("the child's end to be named", SOON, || {
            let rows = all_of(host, "parent")?;
            let ended = rows.iter().find(|row| row.phase == Some(Phase::Gone)).context("none has ended")?;
            ensure!(!ended.oom_killed && ended.exit_code == Some(1) && ended.message == named, "{ended:?}");
            let events = host.cli(&["events"])?;
            ensure!(events.contains(named), "{events}");
            ensure!(host.cli(&["ps", "-a", "--no-trunc", "parent"])?.contains(named), "ps does not name it");
            ensure!(host.cli(&["inspect", "parent"])?.contains(named), "inspect does not name it");
            Ok(())
        })?;
        host.cli(&["rm", "parent"])?;

        // A child that was killed is not why its parent ended later.
        let survivor = "sh -c 'exec tail /dev/zero'; echo went on; sleep 4; exit 7";
        host.submit(&limited("survivor", survivor))?;
        wait::until("it to end", SOON, || {
            let rows = all_of(host, "survivor")?;
            let ended = rows.iter().find(|row| row.exit_code.is_some()).context("it has not ended")?;
            ensure!(!ended.oom_killed && ended.exit_code == Some(7), "{ended:?}");
            ensure!(!ended.message.contains("memory"), "{ended:?}");
            Ok(())
        })?;
        ensure!(host.cli(&["logs", "survivor"])?.contains("went on"), "its child was not killed");

        let missing = cluster.directory().join("typo.conf");
        let source = missing.to_str().context("the temporary directory is not UTF-8")?;
        let bundle = Bundle::new("bound", &busybox).shell("exec sleep 600").volume(source, "/etc/app.conf");
        let refused = host.run_refused(&bundle, 20)?;
        ensure!(refused.contains(source), "the path is not named: {refused}");
        ensure!(!missing.exists(), "it was made");
        std::fs::write(&missing, "here")?;
        host.run(&bundle)?;
        ensure!(host.cli(&["exec", "bound", "cat", "/etc/app.conf"])? == "here", "it is not bound");
        Ok(())
    })
}

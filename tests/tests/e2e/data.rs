//! A data directory of which something is missing.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::{image, wait};

/// How long a daemon that cannot start has to say so and end.
const REFUSAL: Duration = Duration::from_secs(20);
/// The exit code that says that starting it again cannot help: the unit file names it.
const FOR_GOOD: i32 = 65;

#[test]
fn a_node_that_lost_its_log_or_snapshot_refuses_to_start_and_says_what_to_do() -> Result<()> {
    let mut cluster = Cluster::hosts(1)?;
    let every = ("BLIXARD_RAFT_SNAPSHOT_ENTRIES".to_owned(), "50".to_owned());
    cluster.hosts[0].environment.extend([every]);
    cluster.hosts[0].start(&[])?;
    cluster.check(|cluster| {
        let host = &mut cluster.hosts[0];
        let busybox = image::busybox()?;
        host.import(&busybox)?;
        let mut number = 0;
        wait::until("the log to lose its beginning", Duration::from_secs(60), || {
            number += 1;
            let job = Bundle::new(&format!("job-{number}"), &busybox);
            host.submit(&job.constraint("node.name==nowhere"))?;
            let status = host.status()?;
            wait::ensure(status.snapshot > 100, format!("the newest snapshot is at {}", status.snapshot))
        })?;
        let before = host.status()?;
        host.interrupt()?;

        for (name, truncate) in [("raft.wal", false), ("raft.wal", true), ("state.redb", false)] {
            let (path, kept) = (host.data_dir().join(name), host.data_dir().join("kept"));
            fs::rename(&path, &kept)?;
            if truncate {
                File::create(&path)?;
            }
            let said = host.log().len();
            host.spawn(&[])?;
            let code = host.wait_exit(REFUSAL)?;
            let log = host.log().split_off(said);
            ensure!(code == Some(FOR_GOOD), "{name}: it ended with {code:?}: {log}");
            for word in [name, "node rm 1 --force", "purge"] {
                ensure!(log.contains(word), "{name}: `{word}` is not said: {log}");
            }
            fs::rename(&kept, &path)?;
        }
        host.start(&[])?;
        let after = host.status()?;
        ensure!(after.id == before.id && after.services == before.services, "{before:?} became {after:?}");
        host.interrupt()?;
        a_damaged_log_is_refused(host)
    })
}

/// Flips one bit in every page of the log: the daemon refuses it in one line.
fn a_damaged_log_is_refused(host: &mut Host) -> Result<()> {
    let path = host.data_dir().join("raft.wal");
    let mut bytes = fs::read(&path)?;
    bytes.iter_mut().skip(4096 + 100).step_by(4096).for_each(|byte| *byte ^= 4);
    fs::write(&path, bytes)?;
    for _ in 0..2 {
        let said = host.log().len();
        host.spawn(&[])?;
        let code = host.wait_exit(REFUSAL)?;
        let log = host.log().split_off(said);
        ensure!(code == Some(FOR_GOOD), "it ended with {code:?}: {log}");
        ensure!(!log.contains("panicked"), "a panic is shown: {log}");
        let line = log.lines().find(|line| line.contains("raft.wal is damaged ("));
        let line = line.with_context(|| format!("the damage is not said: {log}"))?;
        ensure!(line.contains("node rm 1 --force") && line.contains("purge"), "no advice: {line}");
    }
    Ok(())
}

#[test]
fn a_data_directory_that_others_may_look_into_is_warned_of() -> Result<()> {
    Cluster::hosts(1)?.check(|cluster| {
        let host = &mut cluster.hosts[0];
        let data = host.data_dir();
        fs::create_dir_all(&data)?;
        for (mode, warned) in [(0o755, true), (0o750, true), (0o700, false)] {
            fs::set_permissions(&data, Permissions::from_mode(mode))?;
            let said = host.log().len();
            host.start(&[])?;
            let log = host.log().split_off(said);
            let told = log.contains(&format!("chmod 700 {}", data.display()));
            ensure!(told == warned, "mode {mode:o}: {log}");
            host.kill()?;
        }
        Ok(())
    })
}

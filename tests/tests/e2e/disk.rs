//! A disk that fills up.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::run;
use blixard_tests::host::Host;
use blixard_tests::image::Image;
use blixard_tests::{image, wait};

const SOON: Duration = Duration::from_secs(60);

/// One node, started, whose data directory is a small file system of its own; and that directory.
fn on_a_small_disk() -> Result<(Cluster, PathBuf)> {
    let mut cluster = Cluster::hosts(1)?;
    let data = cluster.hosts[0].data_dir();
    std::fs::create_dir_all(&data)?;
    let place = data.to_str().expect("temporary paths are UTF-8");
    run("mount", &["-t", "tmpfs", "-o", "size=96m,mode=700", "tmpfs", place])?;
    cluster.hosts[0].start(&[])?;
    Ok((cluster, data))
}

/// Runs a web server that answers at port 8080; the image it runs.
fn serving(host: &Host) -> Result<Image> {
    let web = image::web()?;
    host.import(&web)?;
    host.run(&Bundle::new("web", &web).port(80, 8080).always())?;
    Ok(web)
}

#[test]
fn a_full_disk_refuses_work_while_containers_go_on_and_space_heals_it() -> Result<()> {
    let (cluster, data) = on_a_small_disk()?;
    cluster.check(|cluster| {
        let host = &mut cluster.hosts[0];
        let web = serving(host)?;
        let pid = host.pid_of("web-0")?;

        let filler = data.join("filler");
        fill(&filler)?;
        let refused = wait::until("a write to be refused", SOON, || {
            // Each takes a little of what is left in allocated pages of the store.
            let big = Bundle::new("more", &web).environment("PAD", &"x".repeat(60_000));
            let number = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
            let name = format!("more-{number}");
            let big = big.set("name", name.into()).constraint("node.name==nowhere");
            match host.submit(&big) {
                Err(error) => Ok(format!("{error:#}")),
                Ok(_) => bail!("it was taken"),
            }
        })?;
        ensure!(!refused.contains("panicked"), "{refused}");
        ensure!(host.is_running(), "the daemon ended: {}", host.log_tail(30));
        ensure!(host.get(8080, "/")?.0 == 200, "the container stopped");
        let services = host.services()?.len();
        ensure!(services >= 1, "reads do not answer");

        std::fs::remove_file(&filler)?;
        wait::until("writes to work again", SOON, || host.cli(&["service", "scale", "web", "1"]).map(drop))?;
        ensure!(host.pid_of("web-0")? == pid, "the container was replaced");
        ensure!(host.services()?.iter().any(|row| row.name.as_str() == "web"), "the service is lost");
        Ok(())
    })
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_waits_for_space_while_containers_go_on() -> Result<()> {
    let (cluster, data) = on_a_small_disk()?;
    cluster.check(|cluster| {
        let host = &mut cluster.hosts[0];
        serving(host)?;
        let pid = host.pid_of("web-0")?;
        host.kill()?;

        let filler = data.join("filler");
        fill(&filler)?;
        let said = host.log().len();
        host.spawn(&[])?;
        wait::until("the daemon to say what it waits for", SOON, || {
            let log = host.log().split_off(said);
            ensure!(host.is_running(), "the daemon ended: {log}");
            wait::ensure(log.contains("No space left") && log.contains("again"), log)
        })?;
        ensure!(host.get(8080, "/")?.0 == 200, "the container stopped");
        let lines = host.log().split_off(said).lines().count();
        ensure!(lines < 100, "a hot loop wrote {lines} lines");

        std::fs::remove_file(&filler)?;
        wait::until("writes to work again", SOON, || host.cli(&["service", "scale", "web", "1"]).map(drop))?;
        ensure!(host.pid_of("web-0")? == pid, "the container was replaced");
        Ok(())
    })
}

/// Writes until nothing more fits.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let mut piece = vec![0_u8; 1 << 20];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    Ok(())
}

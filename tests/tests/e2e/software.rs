//! Unmodified programs from Debian's packages: they run, answer, and keep their data.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::http::converse;
use blixard_tests::{image, process, wait};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn nginx_serves_logs_and_survives_a_restart_of_the_daemon() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let nginx = image::nginx()?;
        let host = &mut cluster.hosts[0];
        host.import(&nginx)?;
        host.run(&Bundle::new("nginx", &nginx).port(80, 8080).always())?;
        let page = |host: &blixard_tests::host::Host| {
            let (status, body) = host.get(8080, "/")?;
            ensure!(status == 200 && body.contains("Welcome to nginx!"), "{status}: {body}");
            Ok(())
        };
        wait::until("the page", SOON, || page(host))?;
        ensure!(host.get(8080, "/absent")?.0 == 404, "an absent page is found");
        wait::until("the access log", SOON, || {
            wait::ensure(host.cli(&["logs", "nginx"])?.contains("GET /absent"), "it is not logged")
        })?;
        let pid = host.pid_of("nginx-0")?;
        host.kill()?;
        host.start(&[])?;
        page(host)?;
        ensure!(host.pid_of("nginx-0")? == pid, "it was started anew");
        // Its workers are another user than the master, as its configuration says.
        ensure!(host.cli(&["exec", "nginx-0", "ps"])?.contains("www-data"), "no worker is www-data");
        host.cli(&["stop", "nginx"])?;
        wait::until("it to stop", SOON, || wait::ensure(!process::is_alive(pid), "it runs"))
    })
}

#[test]
fn redis_answers_as_its_own_user_and_survives_a_restart_of_the_daemon() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let redis = image::redis()?;
        let host = &mut cluster.hosts[0];
        host.import(&redis)?;
        host.run(&Bundle::new("redis", &redis).port(6379, 6379).always())?;
        let address = SocketAddr::from((host.address(), 6379));
        let lan = host.lan().to_owned();
        let ask = |question: &str| converse(&lan, address, format!("{question}\r\n").as_bytes(), 100);
        wait::until("an answer", SOON, || wait::ensure(ask("PING")? == b"+PONG\r\n", "another answer"))?;
        ensure!(ask("SET fish blue")? == b"+OK\r\n", "it does not take a value");
        ensure!(host.cli(&["exec", "redis-0", "whoami"])?.trim() == "redis", "it runs as another user");
        host.kill()?;
        host.start(&[])?;
        ensure!(ask("GET fish")? == b"$4\r\nblue\r\n", "the value is lost");
        Ok(())
    })
}

#[test]
fn postgresql_keeps_its_rows_over_restarts_of_daemon_and_container() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let postgres = image::postgres()?;
        let volume = cluster.directory().join("volume");
        std::fs::create_dir(&volume)?;
        std::os::unix::fs::chown(&volume, Some(999), Some(999))?;
        let source = volume.to_str().context("UTF-8")?.to_owned();
        let log = cluster.directory().join("db.log");
        let host = &mut cluster.hosts[0];
        host.import(&postgres)?;
        let bundle = Bundle::new("db", &postgres).port(5432, 5432).always().set("stop_timeout", 20.into());
        host.run(&bundle.volume(&source, "/var/lib/postgresql/data"))?;
        let query = |host: &blixard_tests::host::Host, text: &str| {
            host.cli(&["exec", "db-0", "psql", "-h", "127.0.0.1", "-U", "postgres", "-Atc", text])
        };
        wait::until("the database", SOON, || query(host, "select 1").map(drop))?;
        query(host, "create table fish (name text); insert into fish values ('blue'), ('red')")?;

        host.kill()?;
        host.start(&[])?;
        ensure!(query(host, "select count(*) from fish")? == "2\n", "rows are lost with the daemon");

        // The server itself dies: it recovers in the container's next attempt.
        let pid = host.pid_of("db-0")?;
        process::signal(pid, Signal::KILL);
        wait::until("its rows after recovery", SOON, || {
            wait::ensure(host.pid_of("db-0")? != pid, "it is the old process")?;
            wait::ensure(
                query(host, "select count(*) from fish")? == "2\n",
                "rows are lost with the container",
            )
        })?;

        // From the LAN: the start of a session as user postgres is answered by `R`, authentication.
        let mut start = vec![0, 0, 0, 0, 0, 3, 0, 0];
        start.extend_from_slice(b"user\0postgres\0\0");
        start[3] = u8::try_from(start.len())?;
        let answer = converse(host.lan(), (host.address(), 5432).into(), &start, 1)?;
        ensure!(answer == b"R", "it answers {answer:?}");
        let mut follower = host.command(&["logs", "-f", "db"])?;
        let mut follower = follower.stderr(std::fs::File::create(&log)?).spawn()?;
        host.cli(&["stop", "db"])?;
        wait::until("the log's end", SOON, || follower.try_wait()?.context("it goes on"))?;
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("database system is shut down"), "it was not shut down well: {log}");
        Ok(())
    })
}

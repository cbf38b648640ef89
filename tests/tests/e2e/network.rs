//! Published ports while replicas come and go, and the boundary around containers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::cluster::Phase;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{http, image, process, wait};
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// Asks `addresses` for their page in turn until told to stop, each time by a new connection. How often they
/// were asked, and what went wrong.
pub(crate) fn ask_until(
    stop: &AtomicBool,
    lan: &str,
    addresses: &[std::net::SocketAddr],
) -> (u32, Vec<String>) {
    let (mut asked, mut failed) = (0, Vec::new());
    for address in addresses.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        asked += 1;
        match http::get(lan, *address, "/") {
            Ok((200, _)) => {}
            Ok((status, _)) => failed.push(format!("request {asked} of {address}: status {status}")),
            Err(error) => failed.push(format!("request {asked} of {address}: {error:#}")),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (asked, failed)
}

#[test]
fn no_request_fails_while_replicas_come_and_go() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &mut cluster.hosts[0];
        host.import(&web)?;
        // Its container listens a while after its process began, and says when it does.
        let bundle = Bundle::new("web", &web)
            .shell("sleep 1; echo up >/www/index.html; exec httpd -f -p 80 -h /www")
            .port(80, 8080)
            .replicas(1, 5)
            .set("healthcheck", json!({"path": "/", "interval": "500ms", "timeout": "2s", "retries": 20}));
        host.run(&bundle)?;
        host.served(8080)?;
        let (stop, lan, address) = (AtomicBool::new(false), host.lan().to_owned(), (host.address(), 8080));
        let (asked, failed) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask_until(&stop, &lan, &[address.into()]));
            let mut scenario = || -> Result<()> {
                for replicas in [5, 1, 3] {
                    host.cli(&["service", "scale", "web", &replicas.to_string()])?;
                    wait::until(&format!("{replicas} replicas"), SOON, || {
                        let rows = host.replicas("web")?;
                        let ready = rows.iter().filter(|row| row.ready).count();
                        let told = format!("{ready} of {} are ready", rows.len());
                        wait::ensure(ready == replicas && rows.len() == replicas, told)
                    })?;
                }
                // An update: each replica goes on until the one in its place is ready.
                host.run(&bundle.clone().environment("VERSION", "2").replicas(3, 5))?;
                host.kill()?;
                host.start(&[])?;
                host.cli(&["service", "scale", "web", "4"])?;
                wait::until("a fourth replica", SOON, || {
                    let rows = host.replicas("web")?;
                    wait::ensure(rows.iter().filter(|row| row.ready).count() == 4, "not ready")
                })
            };
            let result = scenario();
            stop.store(true, Ordering::Relaxed);
            let asked = asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
            result.map(|()| asked)
        })?;
        ensure!(asked > 50, "only {asked} requests were made");
        ensure!(failed.is_empty(), "{} of {asked} requests failed: {failed:?}", failed.len());
        Ok(())
    })
}

#[test]
fn a_replica_that_starts_again_answers_at_once_and_one_that_stops_answers_first() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &cluster.hosts[0];
        host.import(&web)?;
        host.run(&Bundle::new("beside", &web).shell("sleep 600"))?;
        host.run(&Bundle::new("web", &web).port(80, 8080).always())?;
        host.served(8080)?;
        for _ in 0..3 {
            let old = host.pid_of("web-0")?;
            process::signal(old, Signal::KILL);
            wait::until("another process", SOON, || {
                let pid = host.pid_of("web-0")?;
                wait::ensure(pid != old && process::is_alive(pid), "it is the old one")
            })?;
            host.served(8080).context("its address has the hardware address of before")?;
        }
        // A program that ends at once when it is told to, in the middle of an answer.
        let script = "mkdir /www/cgi-bin; \
             printf '#!/bin/sh\\nprintf \"\\\\r\\\\n\"; for i in 1 2 3 4; do echo $i; sleep 1; done; echo end' >/www/cgi-bin/slow; \
             chmod +x /www/cgi-bin/slow; echo up >/www/index.html; exec httpd -f -p 80 -h /www";
        let slow = Bundle::new("slow", &web).shell(script).port(80, 8081).set("stop_timeout", json!(60));
        host.run(&slow)?;
        host.served(8081)?;
        let answer = std::thread::scope(|scope| -> Result<(u16, String)> {
            let asking = scope.spawn(|| host.get(8081, "/cgi-bin/slow"));
            wait::until("the answer to begin", SOON, || {
                let processes = host.cli(&["exec", "slow-0", "ps"])?;
                wait::ensure(processes.contains("sleep 1"), "nobody answers yet")
            })?;
            host.cli(&["rm", "slow"])?;
            asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?
        })?;
        ensure!(answer.0 == 200 && answer.1.contains("end"), "it was cut off: {answer:?}");
        Ok(())
    })
}

#[test]
fn a_container_reaches_what_the_node_serves_it_and_nothing_else() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let web = image::web()?;
        let host = &cluster.hosts[0];
        host.import(&web)?;
        let serving = |name: &str, port: u16| {
            let line = format!("echo {name} >/www/index.html; exec httpd -f -p {port} -h /www");
            Bundle::new(name, &web).shell(&line).set("network", json!("host"))
        };
        host.run(&serving("declared", 9000).set("ports", json!([{"container_port": 9000}])))?;
        host.run(&serving("silent", 9001))?;
        host.run(&Bundle::new("web", &web).port(80, 8080))?;
        host.run(&Bundle::new("inside", &web).shell("sleep 600"))?;
        for port in [9000, 9001, 8080] {
            host.served(port)?;
        }
        let node = host.address();
        let ask = |port: u16| {
            let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {node} {port}");
            let output = host.cli_output(&["exec", "inside-0", "sh", "-c", &line])?;
            anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        ensure!(ask(9000)?.ends_with("declared\n"), "what is declared is served");
        ensure!(ask(8080)?.contains("web-0"), "what is published is served");
        for refused in [9001, 7001, 8082] {
            let answer = ask(refused)?;
            ensure!(answer.is_empty(), "port {refused} answers {answer}");
        }
        host.cli(&["rm", "declared"])?;
        ensure!(ask(9000)?.is_empty(), "it is served no more");
        let row = host.inspect("web-0")?.row;
        ensure!(row.phase == Some(Phase::Running), "{row:?}");
        Ok(())
    })
}

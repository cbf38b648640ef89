//! Published ports on every member, also on those that run no replica.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{http, image, wait};
use serde_json::json;

use crate::network::ask_until;

const SOON: Duration = Duration::from_secs(60);

/// The places of the hosts that run no replica of `web`, of which `count` are to be ready.
fn hosts_without(cluster: &Cluster, count: usize) -> Result<Vec<usize>> {
    let nodes = cluster.wait_ready(0, "web", count, SOON)?;
    Ok((0..cluster.hosts.len()).filter(|place| !nodes.contains(&(*place as u64 + 1))).collect())
}

#[test]
fn any_node_answers_for_a_service_while_its_replicas_move() -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        let bundle = Bundle::new("web", &web)
            .shell("sleep 1; echo up >/www/index.html; exec httpd -f -p 80 -h /www")
            .port(80, 8080)
            .replicas(1, 3)
            .set("healthcheck", json!({"path": "/", "interval": "500ms", "timeout": "2s", "retries": 20}));
        cluster.hosts[0].run(&bundle)?;
        for host in &cluster.hosts {
            host.served(8080).with_context(|| format!("host {} does not answer", host.number))?;
        }
        let lan = cluster.hosts[0].lan().to_owned();
        let addresses: Vec<SocketAddr> =
            cluster.hosts.iter().map(|host| (host.address(), 8080).into()).collect();
        let stop = AtomicBool::new(false);
        let (asked, failed) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask_until(&stop, &lan, &addresses));
            let scenario = || -> Result<()> {
                cluster.hosts[1].cli(&["service", "scale", "web", "2"])?;
                cluster.wait_ready(0, "web", 2, SOON)?;
                cluster.hosts[1].cli(&["service", "scale", "web", "1"])?;
                let without = hosts_without(cluster, 1)?;
                cluster.hosts[2].run(&bundle.clone().environment("VERSION", "2"))?;
                cluster.wait_ready(0, "web", 1, SOON)?;
                // Its only replica goes elsewhere, and stops once the one there is ready.
                let there = (0..3).find(|place| !without.contains(place)).context("nobody runs it")?;
                let number = cluster.hosts[there].number.to_string();
                cluster.hosts[0].cli(&["node", "drain", &number])?;
                wait::until("its node to be empty", SOON, || {
                    wait::ensure(hosts_without(cluster, 1)?.contains(&there), "it is there")
                })?;
                cluster.hosts[0].cli(&["node", "activate", &number])?;
                Ok(())
            };
            let result = scenario();
            stop.store(true, Ordering::Relaxed);
            let asked = asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
            result.map(|()| asked)
        })?;
        ensure!(asked > 50, "only {asked} requests were made");
        ensure!(failed.is_empty(), "{} of {asked} requests failed: {failed:?}", failed.len());
        the_rest(cluster, &web)
    })
}

/// A node whose container opens the port itself must not have it opened by the daemon, which leads to the
/// replica that is left elsewhere: that one waits for the container to be proven.
#[test]
fn a_service_goes_to_the_hosts_network_and_back_on_the_same_port() -> Result<()> {
    Cluster::formed(2)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        let serving = |body: &str, port: u16, count: u32| {
            let line = format!("echo {body} >/www/index.html; exec httpd -f -p {port} -h /www");
            Bundle::new("web", &web).shell(&line).replicas(count, count)
        };
        let bridge = |body, count| serving(body, 80, count).port(80, 8181);
        let host = |body| serving(body, 8181, 2).set("network", json!("host"));
        let become_all = |bundle: &Bundle, body: &str, count: usize| -> Result<()> {
            cluster.hosts[0].run(bundle)?;
            cluster.wait_ready(0, "web", count, SOON)?;
            for host in &cluster.hosts {
                let answer = host.served(8181)?;
                ensure!(answer.trim() == body, "host {} answers {answer}", host.number);
            }
            for host in &cluster.hosts {
                let log = host.log();
                let failed =
                    log.lines().find(|line| line.contains("phase=Failed") || line.contains("phase=Waiting"));
                ensure!(failed.is_none(), "its program could not listen at once: {failed:?}");
            }
            Ok(())
        };
        become_all(&bridge("first", 2), "first", 2)?;
        let declared = json!([{"container_port": 8181}]);
        become_all(&host("second").set("ports", declared.clone()), "second", 2)?;
        // One of the nodes leads to the other then, until it has a replica of its own.
        become_all(&bridge("third", 1), "third", 1)?;
        become_all(&host("fourth").set("ports", declared), "fourth", 2)?;
        // What does not say what it listens on may listen on any port.
        become_all(&bridge("fifth", 2), "fifth", 2)?;
        become_all(&host("sixth"), "sixth", 2)
    })
}

/// Long answers, callers in containers, ports that belong to one node, ports that somebody has.
fn the_rest(cluster: &mut Cluster, web: &image::Image) -> Result<()> {
    let without = hosts_without(cluster, 1)?;
    let away = &cluster.hosts[without[0]];
    // Several megabytes in one answer, over a link.
    let long = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\nprintf \"\\\\r\\\\n\"; head -c 5000000 /dev/zero | tr \"\\\\\\\\0\" x\\n' \
        >/www/cgi-bin/long; chmod +x /www/cgi-bin/long";
    cluster.hosts[0].cli(&["exec", "web-0", "sh", "-c", long])?;
    let (status, body) = away.get(8080, "/cgi-bin/long")?;
    ensure!(status == 200 && body.trim_end().len() == 5_000_000, "{status}, {} bytes", body.len());

    // A container asks the node that it is on, which runs no replica of what it asks for.
    let near = Bundle::new("near", web).shell("sleep 600").constraint(&format!("node.id=={}", away.number));
    away.run(&near)?;
    let asked = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {} 8080", away.address());
    let answer = away.cli(&["exec", "near", "sh", "-c", &asked])?;
    ensure!(answer.contains("200 OK") && answer.contains("up"), "{answer}");

    // Of one node only.
    let own = json!([{"container_port": 80, "host_port": 8081, "publish": "node"}]);
    let pinned = |name: &str| Bundle::new(name, web).constraint(&format!("node.id=={}", away.number));
    away.run(&pinned("own").set("ports", own))?;
    away.served(8081)?;
    let other = &cluster.hosts[without[1]];
    ensure!(other.get(8081, "/").is_err(), "a node answers that runs no replica");

    // A port that another program has on one node is said there, and served elsewhere.
    let taken = http::inside(&other.namespace(), || Ok(TcpListener::bind("0.0.0.0:8090")?))?;
    away.run(&pinned("shared").port(80, 8090))?;
    let third = cluster.hosts.iter().find(|host| ![away.number, other.number].contains(&host.number));
    third.context("there are three hosts")?.served(8090)?;
    wait::until("the log to say so", SOON, || {
        let log = other.log();
        let said = log.contains("does not answer on a published port") && log.contains("8090");
        wait::ensure(said, "it does not")
    })?;
    drop(taken);
    other.served(8090)?;
    away.cli(&["rm", "shared"])?;
    wait::until("the port to be free", SOON, || {
        http::inside(&other.namespace(), || Ok(TcpListener::bind("0.0.0.0:8090").map(drop)?))
    })
}

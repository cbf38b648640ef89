//! What a stranger and a local user can do: next to nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::api::token::TokenAnswer;
use blixard_core::limits;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::printed;
use blixard_tests::host::{Host, blixard};
use blixard_tests::{http, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where a node serves its API unless told otherwise.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8082);
/// More connections than the API holds over TCP.
const CLIENTS: usize = limits::HTTP_TCP_CONNECTIONS_MAX + 100;
/// How long the API may take to answer while it is attacked.
const PROMPT: Duration = Duration::from_secs(5);

/// The client's command line, run in a namespace against `url`.
fn client(namespace: &str, url: &str, token: Option<&str>, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(blixard()?).args(["--host", url]);
    command.args(arguments).env_remove("BLIXARD_TOKEN").env_remove("BLIXARD_CA");
    command.envs(token.map(|token| ("BLIXARD_TOKEN", token)));
    Ok(command.output()?)
}

fn token(host: &Host) -> Result<String> {
    Ok(host.cli_json::<TokenAnswer>(&["cluster", "token", "create", "--scope", "api"])?.token)
}

#[test]
fn over_tcp_a_stranger_reads_next_to_nothing_and_keeps_nobody_out() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let host = &cluster.hosts[0];
        let namespace = host.namespace();
        for path in ["/v1/health", "/v1/peers", "/v1/openapi.json"] {
            ensure!(http::get(&namespace, LOCAL, path)?.0 == 200, "{path} is not open");
        }
        let closed = ["cluster", "nodes", "services", "replicas", "replicas/web-0/logs", "events", "tokens"];
        for path in closed.into_iter().chain(["ended", "images", "pulls", "system/df", "nothing"]) {
            let (status, body) = http::get(&namespace, LOCAL, &format!("/v1/{path}"))?;
            ensure!(status == 401 && body.contains("BLIXARD_TOKEN"), "{path} is answered {status}: {body}");
        }
        let page = ["Sec-Fetch-Site: cross-site".to_owned()];
        let read = http::request(&namespace, LOCAL, "GET", "/v1/health", &page, &[])?;
        ensure!(read.status == 403, "a page of another site reads: {}", read.body);
        let (url, token) = (format!("http://{LOCAL}"), token(host)?);
        let refused = client(&namespace, &url, None, &["ps"])?;
        ensure!(!refused.status.success() && printed(&refused).contains("BLIXARD_TOKEN"), "{refused:?}");
        let read = client(&namespace, &url, Some(&token), &["ps"])?;
        ensure!(read.status.success(), "{}", printed(&read));
        attack(host, &token)
    })
}

/// More clients than there are places each say a byte now and then.
fn attack(host: &Host, token: &str) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let mut clients: Vec<TcpStream> =
        http::inside(&host.namespace(), || (0..CLIENTS).map(|_| Ok(TcpStream::connect(LOCAL)?)).collect())?;
    for _ in 0..3 {
        for client in &mut clients {
            // Those that were cut off already cannot be told anything.
            client.write_all(b"G").ok();
        }
        let start = Instant::now();
        host.status()?;
        let read = client(&host.namespace(), &format!("http://{LOCAL}"), Some(token), &["node", "ls"])?;
        ensure!(read.status.success(), "who has a token is kept out: {}", printed(&read));
        ensure!(start.elapsed() < 2 * PROMPT, "it took {:?} under attack", start.elapsed());
    }
    let started = host.status()?.term;
    for (position, client) in clients.iter_mut().enumerate() {
        client.set_read_timeout(Some(limits::HTTP_HEAD_WAIT + PROMPT))?;
        let ended = match client.read(&mut [0; 512]) {
            // Told that its head is no HTTP, or the end.
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock),
        };
        ensure!(ended, "client {position} may be silent for ever");
    }
    ensure!(host.status()?.term == started, "another election was held");
    Ok(())
}

#[test]
fn the_api_is_served_to_other_machines_within_tls_only() -> Result<()> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../blixard-node/testdata");
    let file = |name: &str| testdata.join(name).to_str().map(str::to_owned).context("the path is UTF-8");
    let (cert, key, ca) = (file("http-cert.pem")?, file("http-key.pem")?, file("http-ca.pem")?);
    Cluster::hosts(1)?.check(|cluster| {
        let lan = cluster.lan.namespace().to_owned();
        let host = &mut cluster.hosts[0];
        host.spawn(&["--http", "10.77.0.1:8082"])?;
        ensure!(host.wait_exit(Duration::from_secs(20))? == Some(1), "it is served in the clear");
        ensure!(host.log().contains("--http-cert"), "{}", host.log());
        host.start(&["--http", "10.77.0.1:8082", "--http-cert", &cert, "--http-key", &key])?;
        let token = token(host)?;
        let ask = |url: &str, ca: &[&str]| client(&lan, url, Some(&token), &[ca, &["node", "ls"]].concat());
        let known = ask("https://10.77.0.1:8082", &["--ca", &ca])?;
        ensure!(known.status.success() && printed(&known).contains("host1"), "{}", printed(&known));
        let unknown = ask("https://10.77.0.1:8082", &[])?;
        ensure!(!unknown.status.success() && printed(&unknown).contains("--ca"), "{}", printed(&unknown));
        let clear = ask("http://10.77.0.1:8082", &[])?;
        ensure!(!clear.status.success(), "it is served in the clear: {}", printed(&clear));
        let stranger = client(&lan, "https://10.77.0.1:8082", None, &["--ca", &ca, "node", "ls"])?;
        ensure!(!stranger.status.success() && printed(&stranger).contains("BLIXARD_TOKEN"), "{stranger:?}");
        wait::until("the node to go on", PROMPT, || host.status().map(drop))
    })
}

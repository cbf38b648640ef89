//! What others can do, and cannot: docs/security.md lists these tests beside what they promise.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::api::token::TokenAnswer;
use blixard_core::cluster::NodeStatus;
use blixard_core::limits;
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::command::printed;
use blixard_tests::host::{Host, blixard};
use blixard_tests::{http, image, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

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

/// What everybody on the machine, and what the daemon starts, can read of a process.
fn exposed(pid: u32) -> Result<String> {
    let read = |name: &str| -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}"))?).replace('\0', " "))
    };
    Ok(format!("{}\n{}", read("cmdline")?, read("environ")?))
}

#[test]
fn tickets_leave_no_trace_where_others_can_read() -> Result<()> {
    let mut cluster = Cluster::formed(1)?;
    for number in 2..=5 {
        cluster.add_host(number)?;
    }
    cluster.check(|cluster| {
        let ticket = cluster.hosts[0].cli(&["cluster", "token", "create"])?.trim().to_owned();
        let file = cluster.directory().join("ticket");
        fs::write(&file, format!("{ticket}\n"))?;
        let at_file = format!("@{}", file.display());
        cluster.hosts[3].environment.insert("BLIXARD_JOIN".to_owned(), ticket.clone());
        let ways: [&[&str]; 4] = [&["--join", &ticket], &["--join", &at_file], &[], &["--join", "-"]];
        for (host, way) in cluster.hosts[1..].iter_mut().zip(ways) {
            host.input = (way == ["--join", "-"]).then(|| file.clone());
            host.spawn(way)?;
            let pid = host.pid().context("it was started")?;
            host.wait_ready()?;
            ensure!(host.pid() == Some(pid), "the process id changed");
            for process in host.processes() {
                // One that has just ended shows nothing.
                let shown = exposed(process).unwrap_or_default();
                ensure!(!shown.to_lowercase().contains("bxt1"), "process {process} shows it: {shown}");
            }
            let stdin = fs::read_link(format!("/proc/{pid}/fd/0"))?;
            ensure!(stdin == Path::new("/dev/null"), "standard input is {}", stdin.display());
            ensure!(!host.log().contains("bxt1"), "the log has it: {}", host.log());
        }
        ensure!(cluster.hosts[1].log().contains("warning: a ticket on the command line"), "no warning");
        ensure!(!cluster.hosts[2].log().contains("warning: a ticket"), "a warning about a file");
        cluster.wait_formed()
    })
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

/// How long what was asked for may take to happen.
const SOON: Duration = Duration::from_secs(40);

/// What `blixard run` says of a bundle, and whether it takes it.
fn submitted(host: &Host, bundle: &Bundle) -> Result<(bool, String)> {
    let output = host.cli_output(&["run", bundle.write()?.path()])?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn containers_may_do_what_their_bundle_says() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let host = &cluster.hosts[0];
        let busybox = image::busybox()?;
        host.import(&busybox)?;
        let security = json!({
            "read_only": true, "no_new_privileges": true, "user": "1000:1001", "cap_drop": ["ALL"],
            "cap_add": ["CAP_NET_RAW"],
        });
        let strict = Bundle::of("strict", &busybox.reference).shell("sleep 600").set("security", security);
        host.run(&strict)?;
        host.run(&Bundle::of("usual", &busybox.reference).shell("sleep 600"))?;
        let exec = |name: &str, line: &str| host.cli(&["exec", name, "sh", "-c", line]);
        let status =
            exec("strict-0", "cat /proc/self/status; id -u; id -g; cat /etc/hosts /etc/resolv.conf")?;
        // NET_RAW is bit 13.
        for expect in
            ["NoNewPrivs:\t1", "CapBnd:\t0000000000002000", "CapEff:\t0000000000000000", "1000", "1001"]
        {
            ensure!(status.contains(expect), "{expect:?} is not in {status}");
        }
        let written = exec("strict-0", "touch /file 2>&1; echo shm > /dev/shm/file && cat /dev/shm/file")?;
        ensure!(written.contains("Read-only file system") && written.contains("shm"), "{written}");
        let as_root = ["exec", "-u", "0", "strict-0", "sh", "-c"];
        let hosts =
            host.cli(&[&as_root[..], &["echo x 2>&1 >> /etc/hosts; cat /proc/self/status"]].concat())?;
        for expect in ["Read-only file system", "CapBnd:\t0000000000002000", "NoNewPrivs:\t1"] {
            ensure!(hosts.contains(expect), "{expect:?} is not in {hosts}");
        }
        ensure!(exec("usual-0", "touch /file && cat /proc/self/oom_score_adj")?.trim() == "0");
        let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", host.pid().context("it runs")?))?;
        // Who lacks CAP_SYS_RESOURCE cannot protect itself; nor could this test.
        let may = Command::new("sh").args(["-c", "echo -900 > /proc/self/oom_score_adj"]).output()?;
        let expect = if may.status.success() { "-900" } else { "0" };
        ensure!(own.trim() == expect, "the daemon has {own}, not {expect}");
        let pids = host.service("usual")?.versions[0].spec.limits.pids;
        ensure!(pids == Some(4096), "{pids:?}");
        Ok(())
    })
}

#[test]
fn paths_of_the_host_are_a_right_that_each_node_checks() -> Result<()> {
    Cluster::hosts(1)?.check(|cluster| {
        let free = cluster.directory().join("free");
        fs::create_dir_all(free.join("deep"))?;
        symlink("/etc", free.join("etc"))?;
        cluster.hosts[0].start(&["--allow-path", "/etc/ssl"])?;
        let host = &cluster.hosts[0];
        let busybox = image::busybox()?;
        host.import(&busybox)?;
        let bundle = |source: &str| {
            Bundle::new("bound", &busybox).shell("sleep 600").volume(source, "/bound").always()
        };
        let (data, above) = (host.data_dir(), cluster.directory());
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let refused = [
            "/".to_owned(),
            "/etc".to_owned(),
            "//etc/".to_owned(),
            "/etc/../etc".to_owned(),
            "/var/../root".to_owned(),
            "/etc/localtime".to_owned(),
            text(&free.join("etc")),
            text(&data),
            text(above),
        ];
        for source in &refused {
            let (taken, said) = submitted(host, &bundle(source))?;
            ensure!(!taken && said.contains("gives this to no container"), "{source}: {said}");
        }
        ensure!(host.service("bound").is_err(), "a refused service was stored");

        // Below a refused directory, and allowed; the time zone read-only; a directory of nobody's.
        let source = free.join("deep");
        let volumes = json!([
            {"source": "/etc/ssl", "target": "/ssl", "mode": "ro"},
            {"source": "/etc/localtime", "target": "/etc/localtime", "mode": "ro"},
            {"source": text(&source), "target": "/bound", "mode": "rw"},
        ]);
        host.run(&bundle(&text(&source)).set("volumes", volumes))?;
        host.cli(&["exec", "bound-0", "sh", "-c", "test -d /ssl && echo here > /bound/file"])?;
        ensure!(fs::read_to_string(source.join("file"))? == "here\n");

        // What it was given became a link to what it would not be.
        fs::remove_dir_all(&source)?;
        symlink("/etc", &source)?;
        host.cli(&["kill", "bound-0"])?;
        wait::until("the refusal", SOON, || {
            let row = host.inspect("bound-0")?;
            let told = format!("{row:?}");
            wait::ensure(told.contains("is the system's /etc: this node gives it to no container"), told)
        })
    })
}

#[test]
fn a_stranger_with_an_unknown_token_is_refused_and_costs_no_entry() -> Result<()> {
    Cluster::hosts(2)?.check(|cluster| {
        cluster.hosts[0].start(&[])?;
        let mut registry: Value = serde_json::from_str(&fs::read_to_string(cluster.registry()?)?)?;
        let token = registry["join_token"].as_str().context("a registry file has a token")?;
        let last = if token.ends_with('0') { '1' } else { '0' };
        registry["join_token"] = format!("{}{last}", &token[..token.len() - 1]).into();
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("node-registry.json");
        fs::write(&file, registry.to_string())?;
        let file = file.to_string_lossy().into_owned();
        // What a node that just started has to write is written by the second try.
        wait::until("a try that costs no entry", SOON, || {
            let before = cluster.hosts[0].status()?.applied;
            let said = cluster.hosts[1].log().len();
            cluster.hosts[1].spawn(&["--join", &file])?;
            let code = cluster.hosts[1].wait_exit(SOON)?;
            let log = cluster.hosts[1].log().split_off(said);
            ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}: {log}");
            ensure!(log.contains("is not valid here"), "the reason is not said: {log}");
            let after = cluster.hosts[0].status()?.applied;
            wait::ensure(after == before, format!("{} entries were made", after - before))
        })?;
        ensure!(cluster.hosts[0].nodes()?.len() == 1, "a stranger became a member");
        Ok(())
    })
}

/// One validation for everybody; who may what, and who did it; nothing of others acts on a terminal.
#[test]
fn what_is_sent_is_checked_and_who_may_send_it_and_kept_who_did() -> Result<()> {
    Cluster::formed(1)?.check(|cluster| {
        let host = &cluster.hosts[0];
        let namespace = host.namespace();
        let ask = |token: &str, method: &str, path: &str, body: &serde_json::Value| {
            let headers =
                [format!("Authorization: Bearer {token}"), "Content-Type: application/json".to_owned()];
            let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
            http::request(&namespace, LOCAL, method, path, &headers, &body)
        };
        let token = |arguments: &[&str]| -> Result<TokenAnswer> {
            host.cli_json(&[&["cluster", "token", "create", "--scope"], arguments].concat())
        };
        let (read, write) = (token(&["read"])?, token(&["write", "--services", "web-"])?);
        let admin = token(&["admin"])?;
        let nothing = serde_json::Value::Null;

        // What the bundle reader refuses is refused, with the same words.
        // With a digest no registry is asked.
        let image = json!({"reference": "nowhere.invalid/x", "digest": format!("sha256:{}", "0".repeat(64))});
        let spec = |change: serde_json::Value| {
            let mut spec = json!({"name": "web-a", "image": image});
            let object = spec.as_object_mut().expect("an object");
            object.extend(change.as_object().expect("an object").clone());
            json!({ "spec": spec })
        };
        let volume = |source: &str, target: &str| json!({"volumes": [{"source": source, "target": target}]});
        let refused = [
            (volume("relative/../../etc", "/a"), "volumes[0].source"),
            (volume("/a", "/"), "cannot be `/`"),
            (json!({"stop_timeout_s": 4_294_967_295_u32}), "from 1 to 3600, not `4294967295`"),
            (json!({"image": {"reference": "a", "digest": "sha256:../../x"}}), "image.digest"),
            (json!({"environment": {"A\nB": "x"}}), "no variable called"),
            (json!({"image": {"reference": "a", "command": ["a", "b\u{0}"]}}), "NUL"),
            (json!({"placement": {"spread": "a\u{1b}[2J\u{202e}"}}), "no label called"),
        ];
        for (change, part) in refused {
            let answer = ask(&admin.token, "POST", "/v1/services", &spec(change))?;
            let body = answer.body;
            ensure!(answer.status == 422 && body.contains(part), "{part}: {} {body}", answer.status);
            ensure!(!body.contains(['\u{1b}', '\u{202e}']), "it acts on a terminal: {body:?}");
        }

        // Each scope does what it says and no more; the refusal says which it takes.
        let good = spec(json!({}));
        let denied = |token: &str, method: &str, path: &str, body: &serde_json::Value, part: &str| {
            let answer = ask(token, method, path, body)?;
            ensure!(
                answer.status == 403 && answer.body.contains(part),
                "{method} {path}: {} {}",
                answer.status,
                answer.body
            );
            Ok(())
        };
        denied(&read.token, "POST", "/v1/services", &good, "scope write")?;
        denied(&read.token, "GET", "/v1/tokens", &nothing, "scope admin")?;
        denied(&read.token, "POST", "/v1/replicas/web-a-0/exec", &json!({"command": ["sh"]}), "scope write")?;
        denied(&write.token, "POST", "/v1/nodes/1/drain", &nothing, "scope admin")?;
        denied(&write.token, "POST", "/v1/tokens", &json!({"scope": "admin"}), "scope admin")?;
        let db = json!({"spec": {"name": "db", "image": image}});
        denied(&write.token, "POST", "/v1/services", &db, "begin with `web-`")?;
        denied(&write.token, "GET", "/v1/images", &nothing, "token for all services")?;
        ensure!(ask(&read.token, "GET", "/v1/services", &nothing)?.status == 200, "reading is refused");
        ensure!(ask(&write.token, "POST", "/v1/services", &good)?.status == 201, "writing is refused");
        host.cli(&["service", "scale", "web-a", "1"])?;
        ensure!(ask(&admin.token, "POST", "/v1/services", &db)?.status == 201, "an admin is refused");
        denied(&write.token, "DELETE", "/v1/services/db", &nothing, "begin with `web-`")?;
        denied(&write.token, "GET", "/v1/services/%64b", &nothing, "begin with `web-`")?;
        denied(&write.token, "POST", "/v1/replicas/db-0/kill", &nothing, "begin with `web-`")?;
        for path in ["/v1/services", "/v1/replicas", "/v1/events"] {
            let body = ask(&write.token, "GET", path, &nothing)?.body;
            ensure!(
                body.contains("web-a") && !body.contains("\"db"),
                "{path} shows others' services: {body}"
            );
        }

        // Who did it is kept.
        let id = |token: &TokenAnswer| format!("token {}", token.id);
        let history = host.cli(&["service", "history", "web-a"])?;
        ensure!(history.contains(&id(&write)), "{history}");
        let audit = host.cli(&["cluster", "audit"])?;
        for part in
            [id(&write), id(&admin), "root (uid 0) on node 1".to_owned(), "scale web-a to 1".to_owned()]
        {
            ensure!(audit.contains(&part), "`{part}` is not in\n{audit}");
        }
        let secret = admin.token.split_once('.').context("a token has two halves")?.1;
        ensure!(!audit.contains(secret) && !host.log().contains(secret), "a secret is shown");
        let events = host.cli(&["events"])?;
        ensure!(events.contains(&format!("(by {})", id(&write))), "{events}");

        // A token that is revoked is no more.
        host.cli(&["cluster", "token", "rm", &write.id.to_string()])?;
        ensure!(ask(&write.token, "GET", "/v1/services", &nothing)?.status == 401, "it is taken still");
        Ok(())
    })
}

/// A copy of a follower's data directory, started beside it: it is refused for as long as the
/// original lives, and everybody says why.
#[test]
fn a_copy_of_a_node_beside_its_original_is_refused_and_named() -> Result<()> {
    let mut cluster = Cluster::formed(3)?;
    cluster.add_host(4)?;
    cluster.check(|cluster| {
        let members = [0, 1, 2];
        let leader = wait::until("a leader", SOON, || cluster.leader(0))?;
        let original = (leader + 1) % 3;
        let words = format!("node {} runs twice", cluster.hosts[original].number);
        let from = cluster.hosts[original].data_dir();
        let copied = Command::new("cp").arg("-a").arg(from).arg(cluster.hosts[3].data_dir()).output()?;
        ensure!(copied.status.success(), "{}", printed(&copied));
        let links = |cluster: &Cluster| -> Vec<usize> {
            cluster.hosts[..3].iter().map(|host| host.log().matches("link up").count()).collect()
        };
        let before = links(cluster);
        cluster.hosts[3].spawn_as(&["--bind", "10.77.0.4:7001"])?;
        for host in &cluster.hosts {
            wait::until("the log to say so", SOON, || {
                wait::ensure(host.log().contains(&words), format!("host {} says nothing", host.number))
            })?;
            wait::until("`node ls` to say so", SOON, || {
                let shown = host.cli(&["node", "ls"])?;
                wait::ensure(shown.contains(&words), shown)
            })?;
        }
        // Some dials of the copy later.
        let said = |cluster: &Cluster| cluster.hosts[leader].log().matches(&words).count();
        wait::until("it to be said again", SOON, || wait::ensure(said(cluster) > 1, "not yet"))?;
        ensure!(links(cluster) == before, "links were made anew: {before:?}, {:?}", links(cluster));
        let log = cluster.hosts[leader].log();
        for start in ["start 1 at ", "start 2 at 10.77.0.4:"] {
            ensure!(log.contains(start), "`{start}` is not said");
        }
        for host in &cluster.hosts[..3] {
            let nodes = host.nodes()?;
            ensure!(nodes.iter().all(|node| node.status == NodeStatus::Up), "{nodes:?}");
        }
        cluster.hosts[3].kill()?;
        for position in members {
            wait::until("it to be over", SOON, || {
                let shown = cluster.hosts[position].cli(&["node", "ls"])?;
                wait::ensure(!shown.contains("runs twice"), shown)
            })?;
        }
        // A daemon that was killed and comes back is no copy.
        let said = cluster.hosts[leader].log().len();
        cluster.hosts[original].kill()?;
        let bind = format!("{}:7001", cluster.hosts[original].address());
        cluster.hosts[original].spawn_as(&["--bind", &bind])?;
        cluster.hosts[original].wait_ready()?;
        wait::until("it to be linked again", SOON, || {
            let fresh = cluster.hosts[leader].log().split_off(said);
            wait::ensure(fresh.contains("link up"), fresh)
        })?;
        let fresh = cluster.hosts[leader].log().split_off(said);
        ensure!(!fresh.contains("runs twice"), "{fresh}");
        Ok(())
    })
}

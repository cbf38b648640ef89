//! Requests at a steady rate to a service's published port on every host, and which of those that
//! failed had no excuse.
//!
//! A request has an excuse when its host had no ready replica, as any member says, at some time
//! from shortly before it to shortly after; or when the test itself killed a replica there a moment
//! before: the kernel deals connections, and one that it dealt to a process that died in that
//! moment cannot be dealt again.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use blixard_core::api::replica::ReplicaRow;

use crate::cluster::Cluster;
use crate::host::blixard;
use crate::http;

/// Between two requests; each goes to the next host.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks at which hosts have a ready replica.
const LOOK: Duration = Duration::from_millis(100);
/// How far a look may be from what it tells.
const MARGIN: Duration = Duration::from_millis(300);
/// How long after a replica was killed connections may still be dealt to it.
const KILL_NOTICED: Duration = Duration::from_secs(1);

/// A host as traffic sees it.
#[derive(Debug, Clone)]
struct Target {
    number: u8,
    address: Ipv4Addr,
    socket: PathBuf,
}

#[derive(Debug)]
struct Request {
    host: u8,
    from: Instant,
    to: Instant,
    error: Option<String>,
}

/// Which hosts had a ready replica, at some time between `from` and `to`.
#[derive(Debug)]
struct Look {
    from: Instant,
    to: Instant,
    ready: BTreeSet<u8>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<Request>>,
    looks: Mutex<Vec<Look>>,
    kills: Mutex<Vec<(u8, Instant)>>,
    over: AtomicBool,
}

/// Requests under way; they end with [`Traffic::judge`].
#[derive(Debug)]
pub struct Traffic {
    began: Instant,
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// All that were sent.
    pub sent: usize,
    /// Those whose host had a ready replica all the time: none of them may fail.
    pub judged: usize,
    /// Those that failed with an excuse.
    pub excused: usize,
    /// Those that failed without one, each with when, where and how.
    pub failed: Vec<String>,
}

impl Traffic {
    /// Asks `service`'s published `port` on each of the cluster's hosts in turn, twenty times a
    /// second, from the LAN.
    pub fn begin(cluster: &Cluster, service: &str, port: u16) -> Self {
        let targets: Vec<Target> = cluster
            .hosts
            .iter()
            .map(|host| Target {
                number: host.number,
                address: host.address(),
                socket: host.data_dir().join("blixard.sock"),
            })
            .collect();
        let (seen, lan, service) =
            (Arc::new(Seen::default()), cluster.lan.namespace().to_owned(), service.to_owned());
        let ask = {
            let (seen, targets) = (seen.clone(), targets.clone());
            std::thread::spawn(move || ask_until_over(&seen, &targets, &lan, port))
        };
        let look = {
            let seen = seen.clone();
            std::thread::spawn(move || look_until_over(&seen, &targets, &service))
        };
        Self { began: Instant::now(), seen, threads: vec![ask, look] }
    }

    /// Takes note that a replica on `host` is killed now.
    pub fn kills(&self, host: u8) {
        self.seen.kills.lock().expect("no thread panics with it").push((host, Instant::now()));
    }

    /// How long requests have been sent.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends them and says what became of them.
    ///
    /// # Errors
    /// When a thread panicked.
    pub fn judge(self) -> Result<Verdict> {
        self.seen.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a thread of the traffic panicked"))?;
        }
        let requests = self.seen.requests.lock().expect("all threads ended");
        let looks = self.seen.looks.lock().expect("all threads ended");
        let kills = self.seen.kills.lock().expect("all threads ended");
        let killed = |request: &Request| {
            let within = |at: Instant| request.to >= at && request.from <= at + KILL_NOTICED;
            kills.iter().any(|(host, at)| *host == request.host && within(*at))
        };
        let mut verdict = Verdict { sent: requests.len(), ..Verdict::default() };
        for request in requests.iter() {
            let judged = was_ready(&looks, request) && !killed(request);
            verdict.judged += usize::from(judged);
            match &request.error {
                Some(error) if judged => verdict.failed.push(format!(
                    "at {:.2} s on host {}: {error}",
                    request.from.duration_since(self.began).as_secs_f64(),
                    request.host
                )),
                Some(_) => verdict.excused += 1,
                None => {}
            }
        }
        Ok(verdict)
    }
}

impl Verdict {
    /// Fails when a request failed without an excuse, or when so few could be judged that this
    /// says nothing.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{self}:\n  {}", self.failed.join("\n  "));
        ensure!(self.judged * 2 > self.sent, "too few could be judged: {self}");
        Ok(())
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests, {} of them to a host with a ready replica: {} of those failed; {} of the others",
            self.sent,
            self.judged,
            self.failed.len(),
            self.excused
        )
    }
}

/// Whether every look from shortly before the request to shortly after found its host ready.
fn was_ready(looks: &[Look], request: &Request) -> bool {
    let Some(first) = looks.iter().rposition(|look| look.to + MARGIN <= request.from) else { return false };
    let Some(last) = looks.iter().position(|look| look.from >= request.to + MARGIN) else { return false };
    looks[first..=last].iter().all(|look| look.ready.contains(&request.host))
}

fn ask_until_over(seen: &Arc<Seen>, targets: &[Target], lan: &str, port: u16) {
    let mut under_way = Vec::new();
    for target in targets.iter().cycle() {
        if seen.over.load(Ordering::SeqCst) {
            break;
        }
        let (seen, lan, host, address) = (seen.clone(), lan.to_owned(), target.number, target.address);
        under_way.push(std::thread::spawn(move || {
            let from = Instant::now();
            let error = match http::get(&lan, (address, port).into(), "/") {
                Ok((200, _)) => None,
                Ok((status, _)) => Some(format!("status {status}")),
                Err(error) => Some(format!("{error:#}")),
            };
            let request = Request { host, from, to: Instant::now(), error };
            seen.requests.lock().expect("no thread panics with it").push(request);
        }));
        under_way.retain(|thread| !thread.is_finished());
        std::thread::sleep(INTERVAL);
    }
    for thread in under_way {
        thread.join().expect("a request does not panic");
    }
}

/// Looks once more after the end, so that the last requests are judged too.
fn look_until_over(seen: &Seen, targets: &[Target], service: &str) {
    loop {
        let over = seen.over.load(Ordering::SeqCst);
        let from = Instant::now();
        if let Some(ready) = targets.iter().find_map(|target| ready_hosts(target, service).ok()) {
            let look = Look { from, to: Instant::now(), ready };
            seen.looks.lock().expect("no thread panics with it").push(look);
        }
        if over {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// The hosts that have a ready replica, as one host's daemon says. A node's id is its host's number.
fn ready_hosts(asked: &Target, service: &str) -> Result<BTreeSet<u8>> {
    let output = Command::new(blixard()?)
        .args(["ps", "-o", "json"])
        .env("BLIXARD_HOST", format!("unix://{}", asked.socket.display()))
        .env_remove("BLIXARD_DATA_DIR")
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "`ps` failed");
    let rows: Vec<ReplicaRow> = serde_json::from_slice(&output.stdout).context("`ps` printed no rows")?;
    let ready = rows.iter().filter(|row| row.service.as_str() == service && row.ready && !row.lost);
    ready.filter_map(|row| row.node).map(|node| u8::try_from(node.0).context("no host's number")).collect()
}

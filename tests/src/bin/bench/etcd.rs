//! The peer: etcd as Debian packages it, three members on three hosts of a LAN of their own.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blixard_tests::cluster::Cluster;
use blixard_tests::{http, process, wait};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use crate::load::{Make, Protocol, Target};

const CLIENT_PORT: u16 = 2379;
const READY: Duration = Duration::from_secs(30);

/// Members that run until this is dropped.
pub(crate) struct Etcd {
    members: Vec<Child>,
    /// The hosts, without blixard; when dropped, all that runs on them ends.
    cluster: Option<Cluster>,
}

impl Etcd {
    /// Starts `count` members and waits until they have a leader.
    pub(crate) fn start(count: u8) -> Result<Self> {
        let cluster = Cluster::hosts(count)?;
        let peer = |number: u8, address: IpAddr| format!("host{number}=http://{address}:2380");
        let everyone: Vec<String> =
            cluster.hosts.iter().map(|host| peer(host.number, host.address().into())).collect();
        let everyone = everyone.join(",");
        let mut etcd = Self { members: Vec::new(), cluster: Some(cluster) };
        for position in 0..usize::from(count) {
            etcd.spawn(position, &everyone)?;
        }
        wait::until("etcd to have a leader", READY, || etcd.leader().map(drop))?;
        Ok(etcd)
    }

    fn spawn(&mut self, position: usize, everyone: &str) -> Result<()> {
        let host = &self.cluster().hosts[position];
        let (client, peer) =
            (format!("http://{}:{CLIENT_PORT}", host.address()), format!("http://{}:2380", host.address()));
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.namespace()))
            .args(["etcd", "--name", &format!("host{}", host.number), "--data-dir"])
            .arg(host.data_dir())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", everyone, "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "error"])
            .env(process::MARK, host.namespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start etcd: is etcd-server installed?")?;
        self.members.push(child);
        Ok(())
    }

    fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("the hosts are there until the drop")
    }

    /// The members' pids. `nsenter` runs etcd in its own place.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }

    /// The leader's address.
    pub(crate) fn leader(&self) -> Result<SocketAddr> {
        for host in &self.cluster().hosts {
            let address = SocketAddr::from((host.address(), CLIENT_PORT));
            let path = "/v3/maintenance/status";
            // One that does not answer yet does not lead.
            let Ok(answer) = http::request(host.lan(), address, "POST", path, &[], b"{}") else { continue };
            let status: Value = serde_json::from_str(&answer.body)?;
            if status["leader"].is_string() && status["leader"] == status["header"]["member_id"] {
                return Ok(address);
            }
        }
        anyhow::bail!("no member of etcd leads")
    }

    /// Puts of `body`'s bytes over etcd's own gRPC, or over its JSON gateway, at the leader.
    pub(crate) fn puts(
        &self,
        protocol: Protocol,
        body: Arc<dyn Fn(usize, u64) -> Vec<u8> + Send + Sync>,
    ) -> Result<Target> {
        let address = self.leader()?;
        let make: Make = match protocol {
            Protocol::Http1 => Arc::new(move |client, count| {
                let put = json!({"key": STANDARD.encode(key(client)), "value": STANDARD.encode(body(client, count))});
                let request = Request::post("/v3/kv/put").header("host", address.to_string());
                let request = request.header("content-type", "application/json");
                request.body(Full::from(put.to_string())).expect("the request is well formed")
            }),
            Protocol::Grpc => Arc::new(move |client, count| {
                let message = put_message(&key(client), &body(client, count));
                let request = Request::post(format!("http://{address}/etcdserverpb.KV/Put"));
                let request = request.header("content-type", "application/grpc").header("te", "trailers");
                request.body(Full::from(message)).expect("the request is well formed")
            }),
        };
        let namespace = self.cluster().lan.namespace().to_owned();
        Ok(Target { namespace, address, protocol, make })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Ends the members; what is left is to reap them.
        self.cluster = None;
        for member in &mut self.members {
            member.wait().ok();
        }
    }
}

/// How long one member alone takes from its start, without data, to its first acknowledged put.
pub(crate) fn cold_start() -> Result<Duration> {
    let cluster = Cluster::hosts(1)?;
    let (address, lan) =
        (SocketAddr::from((cluster.hosts[0].address(), CLIENT_PORT)), cluster.hosts[0].lan().to_owned());
    let everyone = format!("host1=http://{}:2380", cluster.hosts[0].address());
    let mut etcd = Etcd { members: Vec::new(), cluster: Some(cluster) };
    let begun = std::time::Instant::now();
    etcd.spawn(0, &everyone)?;
    let put = json!({"key": STANDARD.encode("a"), "value": STANDARD.encode("b")}).to_string();
    wait::until("etcd to take a put", READY, || {
        let answer = http::request(&lan, address, "POST", "/v3/kv/put", &[], put.as_bytes())?;
        ensure!(answer.status == 200, "it answered {}", answer.status);
        Ok(())
    })?;
    Ok(begun.elapsed())
}

fn key(client: usize) -> Vec<u8> {
    format!("bench-{client:04}").into_bytes()
}

/// An `etcdserverpb.PutRequest` (field 1 the key, field 2 the value) as one gRPC message.
fn put_message(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = Vec::new();
    for (tag, field) in [(0x0a, key), (0x12, value)] {
        message.push(tag);
        let mut length = field.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(field);
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).expect("a put is small").to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

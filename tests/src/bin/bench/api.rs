//! blixard's API over TCP, as the benchmarks use it: on loopback inside each host's namespace, since
//! elsewhere it takes TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blixard_core::api::List;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::token::TokenAnswer;
use blixard_tests::host::Host;
use blixard_tests::http;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use crate::load::{Make, Protocol, Target};

/// Where every node serves it, each in its host's namespace.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8082);
/// How often something that is timed is looked at.
const STEP: Duration = Duration::from_millis(2);

/// Waits until `probe` gives a value, looking every two milliseconds.
pub(crate) fn until<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("waited {deadline:?} for: {what}"));
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Admits to the API of every node.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    authorization: String,
}

impl Api {
    /// Makes a token through `host`.
    pub(crate) fn new(host: &Host) -> Result<Self> {
        let token: TokenAnswer = host.cli_json(&["cluster", "token", "create", "--scope", "api"])?;
        Ok(Self { authorization: format!("Bearer {}", token.token) })
    }

    /// What the header `Authorization` says.
    pub(crate) fn authorization(&self) -> &str {
        &self.authorization
    }

    /// Submits a specification on `host`'s node.
    pub(crate) fn submit(&self, host: &Host, spec: &Value) -> Result<()> {
        let headers =
            [format!("Authorization: {}", self.authorization), "Content-Type: application/json".to_owned()];
        let body = json!({ "spec": spec }).to_string();
        let answer =
            http::request(&host.namespace(), ADDRESS, "POST", "/v1/services", &headers, body.as_bytes())?;
        ensure!(answer.status == 201, "a submission was answered {}: {}", answer.status, answer.body);
        Ok(())
    }

    /// The replicas of a service, as `host`'s node says.
    pub(crate) fn replicas(&self, host: &Host, service: &str) -> Result<Vec<ReplicaRow>> {
        let headers = [format!("Authorization: {}", self.authorization)];
        let answer = http::request(&host.namespace(), ADDRESS, "GET", "/v1/replicas", &headers, &[])?;
        ensure!(answer.status == 200, "the list was answered {}: {}", answer.status, answer.body);
        let list: List<ReplicaRow> = serde_json::from_str(&answer.body)?;
        Ok(list.items.into_iter().filter(|row| row.service.as_str() == service).collect())
    }

    /// Submissions of what `body` gives at `host`'s node.
    pub(crate) fn submissions(
        &self,
        host: &Host,
        body: Arc<dyn Fn(usize, u64) -> Vec<u8> + Send + Sync>,
    ) -> Target {
        let authorization = self.authorization.clone();
        let make: Make = Arc::new(move |client, count| {
            let request = Request::post("/v1/services").header("host", ADDRESS.to_string());
            let request = request.header("authorization", &authorization);
            let request = request.header("content-type", "application/json");
            request.body(Full::from(body(client, count))).expect("the request is well formed")
        });
        Target { namespace: host.namespace(), address: ADDRESS, protocol: Protocol::Http1, make }
    }
}

/// A specification that no node satisfies: it is stored, planned for and shown as pending, and
/// runs nothing.
pub(crate) fn unplaceable(name: &str, note: &str) -> Value {
    json!({
        "name": name,
        "image": {"reference": "blixard.test/none:1", "digest": format!("sha256:{}", "0".repeat(64))},
        "environment": {"NOTE": note},
        "placement": {"constraints": [{"label": "bench", "operator": "equal", "value": "nowhere"}]},
    })
}

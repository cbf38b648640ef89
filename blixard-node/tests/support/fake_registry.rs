//! A registry in this process that misbehaves on demand: breaks off blobs, wants tokens.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream;
use tokio::task::JoinHandle;

use super::image::{Layout, manifests_below};

/// What a registry that wants tokens hands out.
const TOKEN: &str = "token-of-the-test";

/// A running registry that holds one image; stopped when dropped.
pub struct FakeRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    pub faults: Arc<Faults>,
    task: JoinHandle<()>,
}

/// How it misbehaves, and what it saw.
#[derive(Default)]
pub struct Faults {
    /// How many more blob answers break off half way.
    pub breaks: AtomicU32,
    /// Bytes of blobs sent so far.
    pub bytes_sent: AtomicU64,
    /// Where blob requests started that did not start at 0.
    pub resumed_at: Mutex<Vec<u64>>,
    /// Whether a token is wanted.
    pub wants_token: bool,
    /// Whether ranges are ignored.
    pub ignores_ranges: bool,
    /// The status that answers HEAD, instead of what it should be.
    pub head: Option<u16>,
    /// Where blobs are instead.
    pub redirect: Option<String>,
}

struct Served {
    layout: Layout,
    faults: Arc<Faults>,
    host: String,
}

impl FakeRegistry {
    pub async fn start(archive: &[u8], faults: Faults) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let host = listener.local_addr().expect("bound").to_string();
        let faults = Arc::new(faults);
        let served =
            Arc::new(Served { layout: Layout::read(archive), faults: faults.clone(), host: host.clone() });
        let router = axum::Router::new().fallback(answer).with_state(served);
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        Self { host, faults, task }
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(served): State<Arc<Served>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let status = |code: u16| Response::builder().status(code);
    if let (Some(code), &http::Method::HEAD) = (served.faults.head, request.method()) {
        return status(code).body(Body::empty()).expect("valid");
    }
    if let Some(to) = served.faults.redirect.as_ref().filter(|_| path.contains("/blobs/")) {
        return status(307).header("location", to).body(Body::empty()).expect("valid");
    }
    if path == "/token" {
        let scope = request.uri().query().unwrap_or_default();
        assert!(scope.contains("scope=repository"), "{scope}");
        return status(200).body(format!("{{\"token\": {TOKEN:?}}}").into()).expect("valid");
    }
    if served.faults.wants_token && header("authorization") != Some(&format!("Bearer {TOKEN}")) {
        let repository = &served.layout.repository;
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:{repository}:pull\"",
            served.host
        );
        return status(401).header("www-authenticate", challenge).body(Body::empty()).expect("valid");
    }
    let prefix = format!("/v2/{}/", served.layout.repository);
    let Some((kind, name)) = path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else {
        return status(404).body(Body::empty()).expect("valid");
    };
    let digest = if name == served.layout.tag { &served.layout.root } else { name };
    let Some(content) = served.layout.blobs.get(digest) else {
        return status(404).body(Body::empty()).expect("valid");
    };
    if kind == "manifests" {
        let manifests = manifests_below(&served.layout);
        let (_, media_type) = manifests.iter().find(|(d, _)| d == digest).expect("a manifest");
        let response = status(200).header("docker-content-digest", digest).header("content-type", media_type);
        return response.body(content.clone().into()).expect("valid");
    }
    let range = header("range").filter(|_| !served.faults.ignores_ranges);
    let offset: usize = range
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or_default();
    if offset > 0 {
        served.faults.resumed_at.lock().expect("unpoisoned").push(offset as u64);
    }
    let rest = content[offset..].to_vec();
    let response = status(if offset > 0 { 206 } else { 200 }).header("content-length", rest.len());
    let breaks = rest.len() > 1000
        && served
            .faults
            .breaks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
    let sent = if breaks { rest.len() / 2 } else { rest.len() };
    served.faults.bytes_sent.fetch_add(sent as u64, Ordering::SeqCst);
    if !breaks {
        return response.body(rest.into()).expect("valid");
    }
    let half = stream::unfold(Some(rest[..sent].to_vec()), |part| async move {
        match part {
            Some(part) => Some((Ok(part), None)),
            None => {
                // Lets what was sent arrive before the connection is torn down.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Some((Err(std::io::Error::other("broken on purpose")), None))
            }
        }
    });
    response.body(Body::from_stream(half)).expect("valid")
}

//! The API against damaged requests: the bytes of whole requests, on a stream as a member's or client's is.
//!
//! Here and not beside one decoder: what reads a request is the HTTP library, the checks of headers, path
//! parameters, queries and bodies one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use blixard_core::api::REQUEST_ID_HEADER;
use blixard_core::api::token::TokenAnswer;
use blixard_core::limits::{HTTP_STRANGERS_AT_ONCE, HTTP_STRANGERS_INTERVAL};
use blixard_node::api::{self, Access};
use blixard_node::raft::RaftConfig;
use futures_util::future::join_all;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use simulation::checks::settled;
use simulation::disk::Loss;
use simulation::machine::Running;
use simulation::trace::Show;
use simulation::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

/// How long anything here may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an answer is waited for, in simulated time: far longer than a lone node takes to write, and
/// any to say that there is no quorum.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer is looked at: some go on for as long as they are taken.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// Whether anything panicked: tokio catches it where a task does.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// A request with a body, as it is sent.
fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nhost: 127.0.0.1:8082\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

/// Sends the bytes of a request and takes what comes back.
async fn send(node: &Running, router: Router, input: Vec<u8>) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(1 << 20);
    node.context.spawn("api stream", api::serve_stream(router, Box::new(server)));
    let (answers, mut requests) = tokio::io::split(client);
    let mut answer = Vec::new();
    // Who refuses a request reads no more of it.
    requests.write_all(&input).await.ok();
    // A request that does not end is waited for; the caller ends it by going away.
    timeout(ANSWER_WITHIN, answers.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)).await.ok();
    answer
}

/// Judges the first answer: what is refused is refused in words, in JSON.
fn judge(answer: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, rest)) = text.split_once("\r\n\r\n") else {
        return Err("it is not answered".to_owned());
    };
    let status: u16 =
        head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).expect(head);
    assert_ne!(status, 500, "{text}");
    if status < 400 {
        return Ok(());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let body =
        length.and_then(|length: usize| rest.get(..length)).unwrap_or_else(|| panic!("no length: {text}"));
    if body.is_empty() {
        return Err(format!("the HTTP library refuses it by {status}"));
    }
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    Err(body["error"].as_str().unwrap_or_else(|| panic!("no reason: {text}")).to_owned())
}

/// A runtime whose time passes when all wait.
fn paused() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing")
}

/// A cluster of one machine that has formed.
async fn formed() -> Arc<World> {
    formed_of(1).await
}

/// A cluster of so many machines that has formed.
async fn formed_of(machines: u64) -> Arc<World> {
    let world = World::new(7, machines, &RaftConfig::default(), Show::Hash);
    let end = Instant::now() + PATIENCE;
    while settled(&world).is_err() {
        assert!(Instant::now() < end, "the cluster does not form");
        for number in 1..=machines {
            world.start(number);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world
}

/// A token that may do everything.
async fn admin_token(node: &Running) -> String {
    let body = Body::from(json!({"scope": "admin"}).to_string());
    let request = Request::post("/v1/tokens").header("content-type", "application/json").body(body);
    let Ok(answer) = node.router.clone().oneshot(request.expect("it is well formed")).await;
    let bytes = answer.into_body().collect().await.expect("a whole body").to_bytes();
    serde_json::from_slice::<TokenAnswer>(&bytes).expect("a token").token
}

/// 200 a second for all without a token together, whoever has one waits for none of them.
#[test]
fn requests_over_tcp_without_a_token_come_at_a_pace_and_others_at_once() {
    paused().block_on(async {
        let world = formed().await;
        let node = world.machine(1).running().expect("it runs");
        let token = admin_token(&node).await;
        let router = api::router(node.handle.clone(), Access::Tcp);
        let asked = |headers: String, expected: &'static str| {
            let (node, router) = (&node, router.clone());
            async move {
                let begun = Instant::now();
                let answer = send(node, router, request("GET /v1/services", &headers, "")).await;
                assert_eq!(answer.get(..12), Some(format!("HTTP/1.1 {expected}").as_bytes()));
                begun.elapsed()
            }
        };
        // Half of them show one that nobody made.
        let unknown = format!("authorization: Bearer {}\r\n", token.replace(['a', 'b', 'c'], "d"));
        let flood = HTTP_STRANGERS_AT_ONCE + 100;
        let without = (0..flood).map(|count| asked(unknown.repeat(count as usize % 2), "401"));
        let with = asked(format!("authorization: Bearer {token}\r\n"), "200");
        let (without, with) = tokio::join!(join_all(without), with);
        let (longest, pace) = (without.into_iter().max().unwrap_or_default(), HTTP_STRANGERS_INTERVAL);
        assert!(longest > pace * 90 && longest < pace * 200, "{longest:?}");
        assert!(with < pace * 10, "{with:?}");
        world.end();
    });
}

#[test]
fn requests_survive_every_damage() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        hook(info);
    }));
    let runtime = paused();
    let world = runtime.block_on(formed());
    let node = world.machine(1).running().expect("it runs");
    let token = runtime.block_on(admin_token(&node));
    let bearer = format!(
        "authorization: Bearer {token}\r\norigin: http://127.0.0.1:8082\r\nsec-fetch-site: same-origin\r\n"
    );
    let writes = |id: &str| format!("{bearer}{REQUEST_ID_HEADER}: {}\r\n", id.repeat(16));
    let spec = json!({"spec": {"name": "web", "image": {"reference": "docker.io/library/app:latest"}, "replicas": {"min": 1, "max": 4}}});
    let submission = request("POST /v1/services", &writes("ab"), &spec.to_string());
    let seeds = [
        request("GET /v1/health", "", ""),
        submission,
        request("POST /v1/services/web/scale", &writes("cd"), r#"{"replicas": 2}"#),
        request("POST /v1/services/web/stop?timeout_s=3", &writes("ef"), ""),
        request("GET /v1/services/web", &bearer, ""),
        request("GET /v1/nodes/machine-1", &bearer, ""),
        request("GET /v1/replicas?all=true", &bearer, ""),
        request("GET /v1/events?after=0.0&follow=false", &bearer, ""),
        request("GET /v1/discovery", &bearer, ""),
        request("GET /v1/volumes", &bearer, ""),
        request("GET /v1/audit", &bearer, ""),
        request(
            "POST /v1/tokens",
            &writes("0a"),
            r#"{"scope": "read", "expires_in_s": 60, "services": "w"}"#,
        ),
    ];
    let router = api::router(node.handle.clone(), Access::Tcp);
    damage::survives("request to the API", &seeds, |input| {
        let answer = runtime.block_on(send(&node, router.clone(), input.to_vec()));
        assert!(!PANICKED.load(Ordering::Relaxed), "a task panics");
        judge(&answer)
    });
    runtime.block_on(async {
        assert!(world.checks.first().is_none(), "{:?}", world.checks.first());
        let Ok(answer) = node
            .router
            .clone()
            .oneshot(Request::get("/v1/health").body(Body::empty()).expect("a request"))
            .await;
        assert!(answer.status().is_success(), "it serves on");
        world.end();
    });
}
/// Whoever has just made a token on one node may use it on any.
#[test]
fn a_token_admits_on_a_node_that_has_not_heard_of_it_yet() {
    paused().block_on(async {
        let world = formed_of(3).await;
        let (maker, other) = (world.machine(1).running(), world.machine(2).running());
        let (maker, other) = (maker.expect("it runs"), other.expect("it runs"));
        let router = api::router(other.handle.clone(), Access::Tcp);
        let asked = async |token: &str| {
            let headers = format!("authorization: Bearer {token}\r\n");
            let answer = send(&other, router.clone(), request("GET /v1/services", &headers, "")).await;
            String::from_utf8_lossy(&answer[..12]).into_owned()
        };
        for _ in 0..20 {
            let token = admin_token(&maker).await;
            assert_eq!(asked(&token).await, "HTTP/1.1 200");
        }
        // Without a quorum nobody knows whether there is such a token.
        let unknown = admin_token(&maker).await.replace(['a', 'b', 'c'], "d");
        assert_eq!(asked(&unknown).await, "HTTP/1.1 401");
        world.machine(1).crash(Loss::Process);
        world.machine(3).crash(Loss::Process);
        assert_eq!(asked(&unknown).await, "HTTP/1.1 503");
        world.end();
    });
}

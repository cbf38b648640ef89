//! Clients of the API: each owns a few services, writes one thing at a time and asks again, with
//! the same request id and perhaps at another node, until it gets an answer that says what became
//! of the write. Besides, all of them use some services together.

pub(crate) mod shared;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use blixard_core::api::REQUEST_ID_HEADER;
use blixard_core::api::STALE_HEADER;
use blixard_core::id::{NodeId, ServiceName};
use blixard_node::platform::RandomSource;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tower::ServiceExt;

use crate::checks::linearizable::History;
use crate::checks::{Expected, MARK, Reads};
use crate::machine::Running;
use crate::random::Stream;
use crate::world::World;

/// How many clients there are.
pub const CLIENTS: u64 = 4;
/// How many services each has at most.
const SERVICES_EACH: u64 = 3;
/// How many thousandths of what a client does is about services that all share.
const SHARING: u64 = 400;
/// How many images there are: more than a machine pulls at once.
const IMAGES: u64 = 12;
/// How long a client waits for an answer before it asks again: longer than a node tries.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it waits before it asks again.
const RETRY: Duration = Duration::from_millis(300);
/// The first of the ports that every client publishes at times: only one service gets each.
const CONTENDED_PORT: u64 = 9_000;
/// How many there are.
const CONTENDED_PORTS: u64 = 3;
/// How often it asks.
const ANSWER_TRIES_MAX: u32 = 200;

/// What all clients share.
pub struct Clients {
    world: Arc<World>,
    reads: Reads,
    history: Mutex<History>,
    stopping: AtomicBool,
    /// The longest pause between two operations, in milliseconds.
    pause_ms: u64,
}

/// What the clients did.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Writes acknowledged.
    pub writes: u64,
    /// Writes refused for a reason that is the client's own.
    pub refused: u64,
    /// Tries that got no answer or one that said nothing.
    pub unanswered: u64,
    /// Reads that a quorum confirmed.
    pub reads: u64,
    /// What each service must be.
    pub expected: BTreeMap<ServiceName, Expected>,
}

impl Done {
    /// Adds another client's.
    pub fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.reads += other.reads;
        self.expected.extend(other.expected);
    }
}

/// An answer of the API.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) stale: bool,
    pub(crate) body: Value,
}

impl Clients {
    /// Clients of `world` that pause for up to `pause_ms` between operations.
    pub fn new(world: Arc<World>, pause_ms: u64) -> Arc<Self> {
        let stopping = AtomicBool::new(false);
        Arc::new(Self { world, reads: Reads::default(), history: Mutex::default(), stopping, pause_ms })
    }

    /// What all were told of the services that they share.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every client end once the write it is at is answered.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Reads what all share once more, from a cluster that has settled.
    pub async fn read_all(self: Arc<Self>) {
        let mut client = Client::new(self, CLIENTS);
        for name in shared::names() {
            client.shared_read(&name).await;
        }
    }

    /// Asks every node for the members: each must answer, as of now.
    ///
    /// # Errors
    /// Who did not.
    pub async fn ask_all(&self) -> Result<(), String> {
        for node in self.world.running() {
            let request = Request::get("/v1/nodes").body(Body::empty()).expect("it is well formed");
            let answer = call(&node, request).await;
            if !answer.is_some_and(|answer| answer.status == StatusCode::OK && !answer.stale) {
                return Err(format!("node {} does not answer for the cluster", node.handle.id));
            }
        }
        Ok(())
    }

    /// Runs one client until [`Clients::stop`].
    pub async fn run(self: Arc<Self>, number: u64) -> Done {
        let mut client = Client::new(self, number);
        while !client.shared.stopping.load(Ordering::Relaxed) {
            let pause = client.random.below(client.shared.pause_ms) + 1;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            client.act().await;
        }
        client.done
    }
}

struct Client {
    shared: Arc<Clients>,
    number: u64,
    random: Stream,
    done: Done,
    /// The bounds of each service's current version.
    maximum: BTreeMap<ServiceName, (u32, u32)>,
}

impl Client {
    fn new(shared: Arc<Clients>, number: u64) -> Self {
        let random = Stream::new(shared.world.seed, &format!("client {number}"));
        Self { shared, number, random, done: Done::default(), maximum: BTreeMap::new() }
    }

    async fn act(&mut self) {
        if self.random.chance(SHARING) {
            return self.share().await;
        }
        let name: ServiceName = format!("c{}-s{}", self.number, self.random.below(SERVICES_EACH))
            .parse()
            .expect("the name is well formed");
        let exists = self.done.expected.contains_key(&name);
        match self.random.below(100) {
            0..35 => self.submit(&name).await,
            35..55 if exists => self.scale(&name).await,
            55..62 if exists => self.suspend(&name, "stop", true).await,
            62..70 if exists => self.suspend(&name, "start", false).await,
            70..75 if exists => self.remove(&name).await,
            _ => self.read().await,
        }
    }

    /// A specification drawn anew: with its mark and bounds.
    fn spec(&self, name: &ServiceName, port: Option<u64>) -> (Value, String, u32, u32) {
        let mark = format!("{:016x}", self.random.next_u64());
        let min = u32::try_from(self.random.below(2)).expect("small") + 1;
        let max = min + u32::try_from(self.random.below(3)).expect("small");
        let published = port.filter(|_| self.random.chance(300));
        let image = format!("docker.io/library/app{}:latest", self.random.below(IMAGES));
        let port = |port| json!({"container_port": 80, "host_port": port});
        let spec = json!({
            "name": name.as_str(),
            "image": {"reference": image, "command": ["serve", format!("{}", self.random.below(10))]},
            "environment": {MARK: mark},
            "stop_timeout_s": 1 + self.random.below(10),
            "limits": {"pids": 100 + self.random.below(100), "memory_bytes": (64 + self.random.below(64)) << 20},
            "replicas": {"min": min, "max": max},
            "restart": {"policy": if self.random.chance(300) { "no" } else { "always" }},
            "ports": published.map(port).into_iter().collect::<Vec<_>>(),
            "reservations": {"cpu_millis": self.random.below(4) * 100},
        });
        let submitted = serde_json::from_value(spec.clone()).expect("it is a specification");
        self.shared.world.checks.submitted(submitted);
        (spec, mark, min, max)
    }

    async fn submit(&mut self, name: &ServiceName) {
        let own = 10_000 + self.number * 100 + u64::from(name.as_str().as_bytes()[4]);
        let contended = CONTENDED_PORT + self.random.below(CONTENDED_PORTS);
        let port = if self.random.chance(500) { contended } else { own };
        let (spec, mark, min, max) = self.spec(name, Some(port));
        let body = json!({"spec": spec}).to_string();
        let Some(answer) = self.write(Method::POST, "/v1/services", &body).await else { return };
        let version = answer.body["version"].as_u64().unwrap_or_default();
        let before = self.done.expected.get(name);
        let desired = before.map_or(min, |expected| expected.desired.clamp(min, max));
        let newer = before.map_or(1, |expected| expected.version + 1);
        if version != newer {
            let detail = format!("a submission of `{name}` made version {version}, not {newer}");
            self.shared.world.checks.violated("writes_apply_once", detail);
        }
        self.shared.reads.submitted(name, version);
        self.maximum.insert(name.clone(), (min, max));
        self.done.expected.insert(name.clone(), Expected { version, mark, desired, suspended: false });
    }

    async fn scale(&mut self, name: &ServiceName) {
        let (min, max) = self.maximum[name];
        let replicas = min + u32::try_from(self.random.below(u64::from(max - min + 2))).expect("small");
        let body = json!({"replicas": replicas}).to_string();
        let answer = self.write(Method::POST, &format!("/v1/services/{name}/scale"), &body).await;
        if answer.is_some() != (replicas <= max) {
            let detail = format!("scaling `{name}` ({min} to {max}) to {replicas} was answered otherwise");
            self.shared.world.checks.violated("bounds_are_kept", detail);
        }
        if answer.is_some() {
            self.change(name, |expected| expected.desired = replicas);
        }
    }

    async fn suspend(&mut self, name: &ServiceName, verb: &str, suspended: bool) {
        let timeout = match self.random.below(3) {
            0 if suspended => format!("?timeout_s={}", self.random.below(4)),
            _ => String::new(),
        };
        if self.write(Method::POST, &format!("/v1/services/{name}/{verb}{timeout}"), "").await.is_some() {
            self.change(name, |expected| expected.suspended = suspended);
        }
    }

    async fn remove(&mut self, name: &ServiceName) {
        self.shared.reads.removing(name);
        if self.write(Method::DELETE, &format!("/v1/services/{name}"), "").await.is_some() {
            self.done.expected.remove(name);
        }
    }

    fn change(&mut self, name: &ServiceName, change: impl FnOnce(&mut Expected)) {
        change(self.done.expected.get_mut(name).expect("only what is there is changed"));
    }

    /// Reads some client's service.
    async fn read(&mut self) {
        let (client, service) = (self.random.below(CLIENTS), self.random.below(SERVICES_EACH));
        let name: ServiceName = format!("c{client}-s{service}").parse().expect("the name is well formed");
        let Some(node) = self.pick() else { return };
        let begun = self.shared.reads.begin(&name);
        let request = Request::get(format!("/v1/services/{name}")).body(Body::empty());
        let Some(answer) = call(&node, request.expect("it is well formed")).await else { return };
        let found = match answer.status {
            StatusCode::OK => answer.body["version"].as_u64(),
            StatusCode::NOT_FOUND => None,
            _ => return,
        };
        if answer.stale || (answer.status == StatusCode::NOT_FOUND && begun.1 == 0) {
            return;
        }
        self.done.reads += 1;
        if let Err(detail) = self.shared.reads.ended(&name, begun, found) {
            self.shared.world.checks.violated("reads_are_not_old", detail);
        }
    }

    fn pick(&self) -> Option<Running> {
        let running = self.shared.world.running();
        let place = self.random.below(running.len().max(1) as u64);
        running.into_iter().nth(usize::try_from(place).expect("small"))
    }

    /// Writes, until an answer says what became of it: `None` when it was refused.
    async fn write(&mut self, method: Method, path: &str, body: &str) -> Option<Answer> {
        match self.ask(method.clone(), path, body, ANSWER_TRIES_MAX).await {
            Some(answer) if answer.status.is_success() => {
                self.done.writes += 1;
                Some(answer)
            }
            Some(answer) => {
                self.done.refused += 1;
                self.refused(path, &answer);
                None
            }
            None => {
                let detail = format!("{method} {path} got no answer in {ANSWER_TRIES_MAX} tries");
                self.shared.world.checks.violated("writes_are_answered", detail);
                None
            }
        }
    }

    /// Asks for a write up to `tries_max` times, until an answer says what became of it.
    async fn ask(&mut self, method: Method, path: &str, body: &str, tries_max: u32) -> Option<Answer> {
        let mut id = [0; 16];
        self.random.fill(&mut id);
        for _ in 0..tries_max {
            if let Some(node) = self.pick() {
                let request = Request::builder()
                    .method(method.clone())
                    .uri(path)
                    .header(REQUEST_ID_HEADER, hex::encode(id))
                    .header(http::header::CONTENT_TYPE, "application/json")
                    .body(Body::from(body.to_owned()))
                    .expect("it is well formed");
                match call(&node, request).await {
                    // It wrote nothing, which stands for that id; a member has to be asked anew.
                    Some(answer) if self.was_removed(&answer) => {
                        self.done.unanswered += 1;
                        self.random.fill(&mut id);
                    }
                    Some(answer) if answer.status.is_success() || answer.status.is_client_error() => {
                        return Some(answer);
                    }
                    _ => self.done.unanswered += 1,
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        None
    }

    /// A refusal must be one that this client can cause.
    fn refused(&self, path: &str, answer: &Answer) {
        let text = answer.body.to_string();
        let own = answer.status == StatusCode::UNPROCESSABLE_ENTITY
            || text.contains("is being removed")
            || text.contains(&format!("port {}", CONTENDED_PORT / 10));
        if !own {
            let detail = format!("{path} was refused with {}: {text}", answer.status);
            self.shared.world.checks.violated("refusals_have_a_cause", detail);
        }
    }

    /// Whether an answer is that of a node which has been removed, and may write nothing any more.
    fn was_removed(&self, answer: &Answer) -> bool {
        let error = answer.body["error"].as_str().unwrap_or_default();
        let number = error.strip_prefix("node ").and_then(|rest| rest.strip_suffix(" is no member"));
        let number = number.and_then(|number| number.parse().ok()).map(NodeId);
        let newest = self.shared.world.checks.newest();
        answer.status == StatusCode::FORBIDDEN
            && number.zip(newest).is_some_and(|(node, state)| state.removed_nodes.contains_key(&node))
    }
}

/// Asks a node's API, in a task of the node: `None` when no answer came.
pub(crate) async fn call(node: &Running, request: Request<Body>) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let router = node.router.clone();
    node.context.spawn("api call", async move {
        let Ok(response) = router.oneshot(request).await;
        let (parts, body) = response.into_parts();
        if let Ok(collected) = body.collect().await {
            // The client may have given up.
            reply.send((parts, collected.to_bytes())).ok();
        }
    });
    let (parts, bytes) = tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()?;
    let stale = parts.headers.contains_key(STALE_HEADER);
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Some(Answer { status: parts.status, stale, body })
}

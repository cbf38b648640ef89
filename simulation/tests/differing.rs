//! Members whose states are wrong although every checksum is right: they are found, answer nobody, and
//! are given the majority's state.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use blixard_core::cluster::snapshot::digest;
use blixard_core::id::NodeId;
use blixard_core::time::UtcMs;
use blixard_node::raft::RaftConfig;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use simulation::checks::{routes, settled};
use simulation::disk::Loss;
use simulation::machine::Running;
use simulation::trace::Show;
use simulation::world::World;
use tokio::time::Instant;
use tower::ServiceExt;

/// How long anything here may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Ports of services.
const HERE: u16 = 9_000;
const THERE: u16 = 9_001;
/// Within what a difference is found in a cluster that does nothing: two looks at a state in rest, the
/// signs of life that tell of it, and starting.
const FOUND_WITHIN: Duration = Duration::from_secs(20);

/// Runs `history` on a formed cluster whose members all have snapshots.
fn with<F: Future<Output = ()>>(machines: u64, history: impl FnOnce(Arc<World>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let raft = RaftConfig { snapshot_entries: 20, log_keep: 5, ..RaftConfig::default() };
        let world = World::new(7, machines, &raft, Show::Hash);
        until("the cluster forms", || {
            for machine in &world.machines {
                world.start(machine.number);
            }
            settled(&world).is_ok()
        })
        .await;
        for round in 0..30 {
            let (status, body) = submit(&world, "web", 1 + round % 2).await;
            assert_eq!(status, 201, "{body}");
        }
        until("it settles", || settled(&world).is_ok()).await;
        history(world.clone()).await;
        assert!(world.checks.first().is_none(), "{:?}", world.checks.first());
        world.end();
    });
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn node(world: &World, number: u64) -> Running {
    world.machine(number).running().expect("it runs")
}

/// What a node's API answers.
async fn ask(node: &Running, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).expect("it is well formed");
    let (router, (reply, answer)) = (node.router.clone(), tokio::sync::oneshot::channel());
    node.context.spawn("api call", async move {
        let Ok(response) = router.oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        reply.send((parts.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::Null))).ok();
    });
    answer.await.expect("an answer")
}

async fn submit(world: &World, name: &str, replicas: u32) -> (u16, Value) {
    let spec = json!({"spec": {
        "name": name,
        "image": {"reference": "docker.io/library/app:latest"},
        "replicas": {"min": replicas, "max": replicas},
    }});
    ask(&node(world, world.leader().expect("one leads")), Method::POST, "/v1/services", spec).await
}

/// Runs a service of one replica on a machine, with a port that any machine is to answer on.
async fn run_on(world: &World, name: &str, machine: u64, host_port: u16) {
    let spec = json!({"spec": {
        "name": name,
        "image": {"reference": "docker.io/library/app:latest"},
        "placement": {"constraints": [
            {"label": "node.name", "operator": "equal", "value": format!("machine-{machine}")}
        ]},
        "ports": [{"container_port": 80, "host_port": host_port, "protocol": "tcp"}],
    }});
    let leader = node(world, world.leader().expect("one leads"));
    let (status, body) = ask(&leader, Method::POST, "/v1/services", spec).await;
    assert_eq!(status, 201, "{body}");
}

/// What is wrong with a node, as another says.
async fn warnings(world: &World, asked: u64, number: u64) -> Vec<String> {
    let (_, body) = ask(&node(world, asked), Method::GET, &format!("/v1/nodes/{number}"), Value::Null).await;
    let warnings = body["warnings"].as_array().cloned().unwrap_or_default();
    warnings.iter().map(|warning| warning.as_str().expect("words").to_owned()).collect()
}

/// When the first member joined, as a node answers and is not stale: what damages alter.
async fn joined(node: &Running) -> Result<u64, (u16, String)> {
    let (status, body) = ask(node, Method::GET, "/v1/nodes/1", Value::Null).await;
    match body["joined_at"].as_u64() {
        Some(at) => Ok(at),
        None => Err((status, body["error"].as_str().unwrap_or_default().to_owned())),
    }
}

/// Damages a machine's state while its daemon is off, and starts it again.
fn damage(world: &Arc<World>, number: u64, by_ms: u64) {
    let machine = world.machine(number);
    machine.crash(Loss::Process);
    world.checks.set_wrong(number, true);
    let altered = machine.disk.alter_snapshot(|state| {
        let row = state.nodes.get_mut(&NodeId(1)).expect("it is a member");
        row.joined_at = UtcMs(row.joined_at.0 + by_ms);
    });
    assert!(altered, "machine {number} has no snapshot");
    world.start(number);
}

fn differs(world: &World, number: u64) -> bool {
    world.machine(number).running().is_some_and(|running| running.handle.differs().is_some())
}

fn is_right(world: &World, number: u64, as_of: u64) -> bool {
    let (own, other) = (node(world, number).handle.state(), node(world, as_of).handle.state());
    own.applied == other.applied && digest(&own) == digest(&other)
}

/// Two members whose states are right.
fn others(world: &World, number: u64) -> Vec<u64> {
    world.machines.iter().map(|machine| machine.number).filter(|other| *other != number).collect()
}

#[test]
fn a_member_whose_state_is_wrong_is_found_answers_nobody_and_is_given_the_majoritys() {
    with(3, async |world| {
        let leader = world.leader().expect("one leads");
        let wrong = others(&world, leader)[0];
        let right = joined(&node(&world, leader)).await.expect("an answer");
        let log = node(&world, wrong).handle.raft().last_log;
        run_on(&world, "here", wrong, HERE).await;
        run_on(&world, "there", leader, THERE).await;
        until("they run", || settled(&world).is_ok()).await;
        for (machine, port) in [(leader, HERE), (wrong, THERE)] {
            routes::ask(world.machine(machine), port).await.expect("any node answers");
        }
        let containers = world.machine(wrong).containers.running();
        damage(&world, wrong, 1);
        let begun = Instant::now();
        until("it runs", || world.machine(wrong).running().is_some()).await;
        // Before it is found it answers, and wrongly: that the state is damaged shows.
        until("it follows", || node(&world, wrong).handle.raft().leader.is_some()).await;
        assert_eq!(joined(&node(&world, wrong)).await, Ok(right + 1));
        // What it is given takes a while to be written, so that it is seen to answer nobody meanwhile.
        world.machine(wrong).disk.set_slowness(200);
        until("it is found", || differs(&world, wrong)).await;
        assert!(begun.elapsed() < FOUND_WITHIN, "after {:?}", begun.elapsed());
        for path in ["/v1/health", "/v1/nodes", "/v1/services/web", "/v1/events", "/v1/peers", "/v1/replicas"]
        {
            let (status, body) = ask(&node(&world, wrong), Method::GET, path, Value::Null).await;
            assert_eq!(status, 503, "{path}: {body}");
            assert!(body["error"].as_str().expect("why").contains("majority"), "{body}");
        }
        // What runs there is led to by nobody, nor does it lead anybody; its own kernel goes on.
        let led_on = routes::ask(world.machine(wrong), THERE).await;
        let led_to = routes::ask(world.machine(leader), HERE).await;
        let own = routes::ask(world.machine(wrong), HERE).await;
        assert!(differs(&world, wrong), "it took no time");
        assert!(led_on.is_err() && led_to.is_err() && own.is_ok(), "{led_on:?} {led_to:?} {own:?}");
        let (mut said, mut said_of_all) = (false, false);
        while differs(&world, wrong) {
            let words_of = |found: &[String]| found.iter().any(|words| words.contains("answers nobody"));
            said |= words_of(&warnings(&world, leader, wrong).await);
            let (_, status) = ask(&node(&world, leader), Method::GET, "/v1/cluster", Value::Null).await;
            said_of_all |= status["warnings"].to_string().contains(&format!("node {wrong} "));
            match joined(&node(&world, wrong)).await {
                Ok(at) => assert_eq!(at, right, "a wrong answer after it was found"),
                Err((status, why)) => assert_eq!(status, 503, "{why}"),
            }
            assert!(begun.elapsed() < PATIENCE, "it is not given a state");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.machine(wrong).disk.set_slowness(1);
        assert!(said && said_of_all, "nobody said that it differs");
        until("its state is the others'", || is_right(&world, wrong, leader)).await;
        world.checks.set_wrong(wrong, false);
        assert_eq!(joined(&node(&world, wrong)).await, Ok(right));
        let raft = node(&world, wrong).handle.raft();
        assert!(raft.last_log >= log && raft.voters().len() == 3, "its log is kept: {raft:?}");
        until("nobody says so any more", || settled(&world).is_ok()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(warnings(&world, leader, wrong).await, Vec::<String>::new());
        for (machine, port) in [(leader, HERE), (wrong, THERE)] {
            routes::ask(world.machine(machine), port).await.expect("any node answers again");
        }
        assert_eq!(world.machine(wrong).containers.running(), containers, "its containers ran on");
        assert_eq!(submit(&world, "web", 3).await.0, 201);
        until("all run", || settled(&world).is_ok()).await;
        // What it was given is what it starts with.
        world.machine(wrong).crash(Loss::Power);
        world.start(wrong);
        until("it is back", || settled(&world).is_ok()).await;
        assert!(is_right(&world, wrong, leader));
    });
}

#[test]
fn a_leader_whose_state_is_wrong_hands_over_and_is_given_the_majoritys() {
    with(3, async |world| {
        let wrong = others(&world, world.leader().expect("one leads"))[0];
        let right = joined(&node(&world, wrong)).await.expect("an answer");
        // It leads before anybody has compared anything.
        damage(&world, wrong, 1);
        for _ in 0..200 {
            let leader = world.leader();
            if leader == Some(wrong) {
                break;
            }
            if let Some(leader) = leader {
                let up =
                    world.machine(wrong).running().is_some_and(|node| node.handle.raft().leader.is_some());
                if up {
                    world.machine(leader).crash(Loss::Process);
                    until("another leads", || world.leader().is_some()).await;
                    world.start(leader);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.leader(), Some(wrong), "it leads");
        assert!(!differs(&world, wrong), "it was found before it led");
        world.machine(wrong).disk.set_slowness(200);
        until("it is found", || differs(&world, wrong)).await;
        until("another leads", || world.leader().is_some_and(|leader| leader != wrong)).await;
        until("it is right", || !differs(&world, wrong)).await;
        world.machine(wrong).disk.set_slowness(1);
        world.checks.set_wrong(wrong, false);
        assert_eq!(joined(&node(&world, wrong)).await, Ok(right));
        assert_eq!(submit(&world, "web", 2).await.0, 201);
        until("all run", || settled(&world).is_ok()).await;
        assert!(is_right(&world, wrong, others(&world, wrong)[0]));
    });
}

#[test]
fn without_a_majority_nobody_is_replaced_and_all_who_differ_say_so() {
    with(2, async |world| {
        let (leader, wrong) = (world.leader().expect("one leads"), 3 - world.leader().expect("one leads"));
        damage(&world, wrong, 1);
        until("it runs", || world.machine(wrong).running().is_some()).await;
        tokio::time::sleep(FOUND_WITHIN).await;
        for asked in [leader, wrong] {
            for number in [leader, wrong] {
                let found = warnings(&world, asked, number).await;
                assert!(found.iter().any(|words| words.contains("none is replaced")), "{number}: {found:?}");
            }
            assert!(!differs(&world, asked), "node {asked} answers nobody");
        }
        tokio::time::sleep(PATIENCE).await;
        assert!(!is_right(&world, wrong, leader), "one was replaced");
        assert_eq!(submit(&world, "web", 2).await.0, 201);
    });
}

#[test]
fn three_states_of_three_members_are_told_and_left_as_they_are() {
    with(3, async |world| {
        let leader = world.leader().expect("one leads");
        for (by_ms, number) in (1..).zip(others(&world, leader)) {
            damage(&world, number, by_ms);
            until("it runs", || world.machine(number).running().is_some()).await;
        }
        tokio::time::sleep(FOUND_WITHIN).await;
        for number in 1..=3 {
            let found = warnings(&world, world.leader().expect("one leads"), number).await;
            assert!(found.iter().any(|words| words.contains("none is replaced")), "{number}: {found:?}");
            assert!(!differs(&world, number));
        }
    });
}

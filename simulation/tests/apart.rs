//! Nodes that are cut off: what they are told, what they say, and what they do about it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use blixard_core::api::STALE_HEADER;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::id::NodeId;
use blixard_node::raft::RaftConfig;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use simulation::checks::{members_agree_who_votes, settled};
use simulation::disk::Loss;
use simulation::machine::Running;
use simulation::trace::Show;
use simulation::world::World;
use tokio::time::Instant;
use tower::ServiceExt;

/// How long anything here may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `history` on a formed cluster of three.
fn with_three<F: Future<Output = ()>>(history: impl FnOnce(Arc<World>) -> F) {
    with(3, history);
}

/// Runs `history` on a formed cluster.
fn with<F: Future<Output = ()>>(machines: u64, history: impl FnOnce(Arc<World>) -> F) {
    unformed(machines, async |world| {
        form(&world).await;
        history(world).await;
    });
}

/// Runs `history` on machines of which none has been started.
fn unformed<F: Future<Output = ()>>(machines: u64, history: impl FnOnce(Arc<World>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let world = World::new(7, machines, &RaftConfig::default(), Show::Hash);
        history(world.clone()).await;
        assert!(world.checks.first().is_none(), "{:?}", world.checks.first());
        world.end();
    });
}

/// Starts every daemon and waits until they are a cluster.
async fn form(world: &Arc<World>) {
    until("the cluster forms", || {
        for machine in &world.machines {
            world.start(machine.number);
        }
        settled(world).is_ok()
    })
    .await;
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a node's API answers: the status, whether it may be old, and the body.
async fn ask(node: &Running, method: Method, path: &str, body: Value) -> (u16, bool, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).expect("it is well formed");
    let (router, (reply, answer)) = (node.router.clone(), tokio::sync::oneshot::channel());
    node.context.spawn("api call", async move {
        let Ok(response) = router.oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        reply.send((parts, serde_json::from_slice(&bytes).unwrap_or(Value::Null))).ok();
    });
    let (parts, body) = answer.await.expect("an answer");
    (parts.status.as_u16(), parts.headers.contains_key(STALE_HEADER), body)
}

async fn submit(node: &Running, name: &str, replicas: u32) -> (u16, Value) {
    let spec = json!({"spec": {
        "name": name,
        "image": {"reference": "docker.io/library/app:latest"},
        "replicas": {"min": replicas, "max": replicas},
    }});
    let (status, _, body) = ask(node, Method::POST, "/v1/services", spec).await;
    (status, body)
}

fn node(world: &World, number: u64) -> Running {
    world.machine(number).running().expect("it runs")
}

fn cut(world: &World, number: u64, cut: bool) {
    for other in world.machines.iter().map(|machine| machine.number).filter(|other| *other != number) {
        world.net.set_cut(number, other, cut);
        world.net.set_cut(other, number, cut);
    }
}

fn follower(world: &World) -> u64 {
    let leader = world.leader().expect("one leads");
    (1..=3).find(|number| *number != leader).expect("there are three")
}

async fn runs_everywhere(world: &World) {
    assert_eq!(submit(&node(world, 1), "web", 3).await.0, 201);
    let busy = |number| !world.machine(number).containers.running().is_empty();
    until("every machine runs something", || (1..=3).all(busy)).await;
}

#[test]
fn a_node_removed_while_it_was_cut_off_learns_of_it_and_stops_its_containers() {
    with_three(async |world| {
        runs_everywhere(&world).await;
        let gone = follower(&world);
        cut(&world, gone, true);
        let leader = node(&world, world.leader().expect("one leads"));
        let path = format!("/v1/nodes/{gone}?force");
        assert_eq!(ask(&leader, Method::DELETE, &path, Value::Null).await.0, 200);
        let removed = node(&world, gone);
        assert!(removed.handle.state().nodes.contains_key(&NodeId(gone)), "it heard of its removal already");
        cut(&world, gone, false);
        let learned = tokio::time::timeout(PATIENCE, removed.handle.removed()).await;
        learned.expect("it learns that it was removed");
        until("its containers are gone", || world.machine(gone).containers.running().is_empty()).await;
    });
}

#[test]
fn a_node_removed_while_it_was_off_stops_its_containers_when_it_returns() {
    with_three(async |world| {
        runs_everywhere(&world).await;
        let gone = follower(&world);
        world.machine(gone).crash(Loss::Process);
        let leader = node(&world, world.leader().expect("one leads"));
        let path = format!("/v1/nodes/{gone}?force");
        assert_eq!(ask(&leader, Method::DELETE, &path, Value::Null).await.0, 200);
        assert!(!world.machine(gone).containers.running().is_empty(), "nobody stopped them yet");
        world.start(gone);
        until("its containers are gone", || world.machine(gone).containers.running().is_empty()).await;
    });
}

#[test]
fn a_node_that_leaves_ends_up_knowing_it() {
    with_three(async |world| {
        runs_everywhere(&world).await;
        let leader = world.leader().expect("one leads");
        let leaving = node(&world, leader);
        let (status, ..) =
            ask(&leaving, Method::POST, &format!("/v1/nodes/{leader}/leave"), Value::Null).await;
        assert_eq!(status, 200);
        tokio::time::timeout(PATIENCE, leaving.handle.removed()).await.expect("it learns that it has left");
        until("its containers are gone", || world.machine(leader).containers.running().is_empty()).await;
    });
}

#[test]
fn an_image_reaches_a_member_whose_link_was_down_for_a_moment() {
    with_three(async |world| {
        let apart = follower(&world);
        let importer = node(&world, world.leader().expect("one leads"));
        cut(&world, apart, true);
        let import = ask(&importer, Method::POST, "/v1/images/import", json!("app:1"));
        let mend = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            cut(&world, apart, false);
        };
        let ((status, _, body), ()) = tokio::join!(import, mend);
        assert_eq!(status, 200, "{body}");
        let members = body["members"].as_array().expect("members");
        assert_eq!(members.len(), 3);
        assert!(members.iter().all(|member| member["error"].is_null()), "{body}");
        let (_, _, listed) = ask(&importer, Method::GET, "/v1/images", Value::Null).await;
        assert_eq!(listed["items"][0]["nodes"], json!([1, 2, 3]), "{listed}");

        // A member that stays away is named, and holds nobody up for long.
        cut(&world, apart, true);
        let begun = Instant::now();
        let (_, _, body) = ask(&importer, Method::POST, "/v1/images/import", json!("app:2")).await;
        let members = body["members"].as_array().expect("members").iter();
        let failed: Vec<&Value> = members.filter(|member| !member["error"].is_null()).collect();
        assert_eq!(failed.len(), 1, "{body}");
        assert_eq!(failed[0]["node"], apart, "{body}");
        assert!(begun.elapsed() < Duration::from_secs(15), "after {:?}", begun.elapsed());
    });
}

#[test]
fn without_a_quorum_answers_come_in_time_and_name_who_is_missing() {
    with_three(async |world| {
        let alone = follower(&world);
        let missing: Vec<u64> = (1..=3).filter(|number| *number != alone).collect();
        for number in &missing {
            world.machine(*number).crash(Loss::Power);
        }
        for _ in 0..2 {
            let begun = Instant::now();
            let (status, body) = submit(&node(&world, alone), "late", 1).await;
            assert_eq!(status, 503, "{body}");
            assert!(begun.elapsed() <= Duration::from_millis(10_100), "after {:?}", begun.elapsed());
            let said = body["error"].as_str().expect("a reason").to_owned();
            for number in &missing {
                assert!(said.contains(&format!("node {number} (")), "{said}");
            }
            let begun = Instant::now();
            let (status, stale, _) =
                ask(&node(&world, alone), Method::GET, "/v1/services", Value::Null).await;
            assert_eq!((status, stale), (200, true));
            assert!(begun.elapsed() < Duration::from_millis(2_500), "after {:?}", begun.elapsed());
        }
        assert_eq!(node(&world, alone).handle.raft().leader, None, "the one that is gone does not lead");
    });
}

#[test]
fn without_a_quorum_images_are_removed_by_force_alone() {
    with_three(async |world| {
        let alone = follower(&world);
        let asked = node(&world, alone);
        let (status, _, body) = ask(&asked, Method::POST, "/v1/images/import", json!("app:1")).await;
        assert_eq!(status, 200, "{body}");
        let images = async || ask(&asked, Method::GET, "/v1/images", Value::Null).await.2["items"].clone();
        let image = images().await[0]["digest"].as_str().expect("its digest").to_owned();
        for number in (1..=3).filter(|number| *number != alone) {
            world.machine(number).crash(Loss::Power);
        }
        let check = async |method: Method, path: &str, expect: u16| {
            let (status, _, body) = ask(&asked, method, path, Value::Null).await;
            assert_eq!(status, expect, "{path}: {body}");
            let left = images().await;
            assert_eq!(left == json!([]), expect == 200, "{path}: {left}");
            body["error"].as_str().unwrap_or_default().to_owned()
        };
        let remove = format!("/v1/images?reference={image}");
        for (method, path) in [(Method::POST, "/v1/images/prune"), (Method::DELETE, &remove)] {
            let said = check(method, path, 503).await;
            assert!(said.starts_with("which images are needed is not certain: "), "{path}: {said}");
        }
        check(Method::DELETE, &format!("{remove}&force=true"), 200).await;
    });
}

#[test]
fn a_leader_whose_clock_is_far_ahead_takes_writes_of_nodes_whose_clocks_are_right() {
    with_three(async |world| {
        let leader = world.leader().expect("one leads");
        assert_eq!(submit(&node(&world, leader), "web", 1).await.0, 201);
        world.machine(leader).clock.set_skew_ms(25 * 60 * 1000);
        let (status, body) = submit(&node(&world, follower(&world)), "api", 1).await;
        assert_eq!(status, 201, "{body}");
    });
}

/// Removes a machine's node by force, and waits until Raft has let it go.
async fn remove(world: &World, number: u64) {
    let node_id = world.machine(number).member();
    let asked = node(world, (1..=9).find(|other| *other != number).expect("there are others"));
    let path = format!("/v1/nodes/{node_id}?force");
    assert_eq!(ask(&asked, Method::DELETE, &path, Value::Null).await.0, 200);
    until("Raft lets the node go", || {
        let Some(leader) = world.leader().filter(|leader| *leader != number) else { return false };
        !node(world, leader).handle.raft().members().any(|member| member == node_id)
    })
    .await;
}

#[test]
fn a_member_that_was_away_follows_a_leader_that_joined_meanwhile() {
    with(5, async |world| {
        let leader = world.leader().expect("one leads");
        let others: Vec<u64> = (2..=5).filter(|number| *number != leader).collect();
        let (away, replaced) = (others[0], others[1]);
        world.machine(away).crash(Loss::Process);
        remove(&world, replaced).await;
        world.machine(replaced).replace();
        world.start(replaced);
        let joined = || world.machine(replaced).running().map(|running| running.handle);
        let votes = || joined().is_some_and(|node| node.raft().voters().contains(&node.id));
        until("the newcomer votes", votes).await;
        for _ in 0..60 {
            let leader = world.leader().expect("one leads");
            if leader == replaced {
                break;
            }
            world.machine(leader).crash(Loss::Process);
            until("another leads", || world.leader().is_some()).await;
            world.start(leader);
            until("it is back", || {
                world.machine(leader).running().is_some_and(|node| node.handle.raft().leader.is_some())
            })
            .await;
        }
        assert_eq!(world.leader(), Some(replaced), "the newcomer leads");
        world.start(away);
        until("all follow it", || settled(&world).is_ok()).await;
    });
}

#[test]
fn the_only_voter_removed_by_force_hands_over() {
    with(2, async |world| {
        let voter = world.leader().expect("one leads");
        assert_eq!(node(&world, voter).handle.raft().configurations, [[NodeId(voter)].into()]);
        remove(&world, voter).await;
        let left = 3 - voter;
        assert_eq!(submit(&node(&world, left), "web", 1).await.0, 201);
    });
}

/// Starts three daemons and waits until the change that lets all vote is half done at a follower; returns
/// who leads then.
async fn half_done(world: &Arc<World>) -> u64 {
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "no change of voters was seen half done");
        for machine in &world.machines {
            world.start(machine.number);
        }
        let leader = world.leader();
        let follows = |running: &Running| Some(running.machine) != leader;
        let changing = |running: &Running| running.handle.raft().is_changing_voters();
        if let Some(leader) =
            leader.filter(|_| world.running().iter().any(|node| follows(node) && changing(node)))
        {
            return leader;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_change_of_voters_that_its_leader_left_half_done_is_finished() {
    unformed(3, async |world| {
        let leader = half_done(&world).await;
        world.machine(leader).crash(Loss::Process);
        world.start(leader);
        until("the change is finished", || {
            settled(&world).is_ok() && members_agree_who_votes(&world).is_ok()
        })
        .await;
        let leader = world.leader().expect("one leads");
        world.machine(leader).crash(Loss::Process);
        until("the others go on without it", || world.leader().is_some_and(|now| now != leader)).await;
        let next = node(&world, world.leader().expect("one leads"));
        assert_eq!(submit(&next, "web", 1).await.0, 201);
    });
}

#[test]
fn what_a_snapshot_covers_is_durable_and_what_no_quorum_holds_is_not() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O needs nothing").block_on(async {
        let raft = RaftConfig { snapshot_entries: 20, log_keep: 1, ..RaftConfig::default() };
        let world = World::new(7, 3, &raft, Show::Hash);
        world.checks.look_at_disks();
        form(&world).await;
        let joins = follower(&world);
        remove(&world, joins).await;
        for number in 0..40 {
            let asked = node(&world, world.leader().expect("one leads"));
            assert_eq!(submit(&asked, &format!("web-{}", number % 4), 1).await.1["error"], Value::Null);
        }
        // It has of the entries before only the snapshot that it is sent.
        world.machine(joins).replace();
        form(&world).await;
        until("all vote", || members_agree_who_votes(&world).is_ok()).await;
        let (applied, _) = world.checks.reached();
        assert!(node(&world, joins).handle.raft().snapshot > 0, "it was sent a snapshot");
        let last = node(&world, joins).handle.raft().snapshot;
        world.checks.applied(&world, 1..=applied);
        assert_eq!(world.checks.first(), None);
        // Together with it alone, no other machine is a quorum for what both have of the log.
        let others: Vec<u64> = (1..=3).filter(|number| *number != joins).collect();
        world.machine(others[0]).disk.wipe();
        world.checks.applied(&world, last..=last);
        assert_eq!(world.checks.first(), None, "two of three have it");
        world.machine(others[1]).disk.wipe();
        world.checks.applied(&world, last..=last);
        let found = world.checks.first().map(|violation| violation.invariant);
        assert_eq!(found.as_deref(), Some("committed_entries_are_durable"));
        world.end();
    });
}

#[test]
fn a_leader_that_has_yet_to_apply_what_it_holds_refuses_no_valid_token() {
    for slowness in [10, 30, 50, 100] {
        unformed(2, async |world| {
            until("the first machine leads", || {
                world.start(1);
                world.leader() == Some(1)
            })
            .await;
            until("it has a token", || world.machine(1).ticket().is_some()).await;
            let ticket = world.machine(1).ticket().expect("it has one");
            // It leads once its vote is written, and applies what it held before once an entry of its
            // own term is.
            world.machine(1).disk.set_slowness(slowness);
            world.machine(1).crash(Loss::Process);
            world.start(1);
            let targets = vec![JoinTarget::Ticket(Box::new(ticket))];
            world.machine(2).start(targets, None, Box::new(|_, _| {}));
            until("the second machine is a member", || {
                assert_eq!(world.machine(2).failure(), None);
                world.machine(2).has_joined()
            })
            .await;
        });
    }
}

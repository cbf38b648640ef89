//! Real endpoints on the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::copies::{Start, Twice};
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::endpoint::endpoint_addr;
use super::hello::Hello;
use super::{IrohTransport, public_key};
use crate::platform::{Duplex, Inbound, LinkError, RandomSource, Transport};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

/// Numbers the endpoints, so that no two draw the same: a start is told from another by what it drew.
static ENDPOINTS: AtomicU64 = AtomicU64::new(0);

/// Randomness good enough for jitter and boot numbers.
struct Random(Mutex<u64>);

impl RandomSource for Random {
    fn fill(&self, bytes: &mut [u8]) {
        let mut state = self.0.lock().unwrap();
        for byte in bytes {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = state.to_be_bytes()[0];
        }
    }
}

/// Answers with what it was asked, and remembers who linked.
#[derive(Default)]
struct Echo {
    linked: Mutex<Vec<(NodeId, SocketAddr)>>,
    strangers: Mutex<Vec<(NodeKey, Bytes)>>,
    twice: Mutex<Vec<(NodeId, Twice)>>,
    refused: Mutex<Vec<Start>>,
}

#[async_trait]
impl Inbound for Echo {
    async fn call(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String> {
        match (channel, &request[..]) {
            (Channel::Forward, b"fail") => Err("cannot".to_owned()),
            (Channel::Forward, b"slow") => {
                tokio::time::sleep(Duration::from_millis(700)).await;
                Ok(request)
            }
            (Channel::Raft, b"stall") => {
                std::thread::sleep(Duration::from_millis(1500));
                Ok(request)
            }
            (Channel::Raft, b"hang") => {
                std::thread::sleep(Duration::from_secs(8));
                Ok(request)
            }
            (Channel::Heartbeat, _) => Ok(from.0.to_be_bytes().to_vec().into()),
            _ => Ok(request),
        }
    }

    async fn stranger(
        &self,
        from: NodeKey,
        address: Option<SocketAddr>,
        request: Bytes,
    ) -> Result<Bytes, String> {
        assert!(address.unwrap().ip().is_loopback());
        self.strangers.lock().unwrap().push((from, request.clone()));
        if request.is_empty() { Err("ask something".to_owned()) } else { Ok(request) }
    }

    /// Counts what comes until its end and answers with the count.
    async fn stream(&self, _from: NodeId, _channel: Channel, header: Bytes, mut stream: Box<dyn Duplex>) {
        if header == b"unread"[..] {
            return std::future::pending().await;
        }
        let mut count = u64::try_from(header.len()).unwrap();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
            count += bytes as u64;
        }
        stream.write_u64(count).await.unwrap();
        stream.shutdown().await.unwrap();
        // The other side ends it, once it has the count.
        let _end = stream.read(&mut buffer).await;
    }

    fn linked(&self, from: NodeId, address: SocketAddr) {
        self.linked.lock().unwrap().push((from, address));
    }

    fn runs_twice(&self, node: NodeId, twice: Twice) {
        self.twice.lock().unwrap().push((node, twice));
    }

    fn is_refused(&self, start: Start) {
        self.refused.lock().unwrap().push(start);
    }
}

fn secret_key(node: u64) -> [u8; 32] {
    let mut key = [7; 32];
    key[0] = u8::try_from(node).unwrap();
    key
}

struct Member {
    node: NodeId,
    transport: Arc<IrohTransport>,
    echo: Arc<Echo>,
}

impl Member {
    async fn start(node: u64) -> Self {
        Self::start_on(node, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_on(node: u64, bind: SocketAddr) -> Self {
        let secret_key = secret_key(node);
        let seed = (node << 32) | ENDPOINTS.fetch_add(1, Ordering::Relaxed);
        let random = Arc::new(Random(Mutex::new(seed)));
        let mut transport = None;
        // A socket that was just closed may still hold its port.
        eventually("bound", async || {
            let bound = IrohTransport::bind(secret_key, 1, bind, Vec::new(), None, random.clone()).await;
            transport = bound.inspect_err(|error| eprintln!("{error}")).ok();
            transport.is_some()
        })
        .await;
        let transport = transport.expect("bound");
        let echo = Arc::new(Echo::default());
        transport.serve(echo.clone());
        Self { node: NodeId(node), transport, echo }
    }

    fn peer(&self) -> Peer {
        Peer { key: self.transport.key(), addresses: self.transport.addresses(), relay_url: None }
    }

    async fn call(&self, to: &Self, channel: Channel, request: &'static [u8]) -> Result<Bytes, LinkError> {
        self.call_within(to.node, channel, request, DEADLINE).await
    }

    async fn call_within(
        &self,
        to: NodeId,
        channel: Channel,
        request: &'static [u8],
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        self.transport.call(to, channel, Bytes::from_static(request), deadline).await
    }
}

fn peers(members: &[&Member]) -> BTreeMap<NodeId, Peer> {
    members.iter().map(|member| (member.node, member.peer())).collect()
}

async fn pair() -> (Member, Member) {
    let (one, two) = (Member::start(1).await, Member::start(2).await);
    for member in [&one, &two] {
        member.transport.set_peers(peers(&[&one, &two]));
    }
    // A dial made before the other side knew of this one was refused.
    eventually("linked", async || one.call(&two, Channel::Raft, b"").await.is_ok()).await;
    (one, two)
}

/// Waits until `ready` holds, at most [`DEADLINE`].
async fn eventually(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !ready().await {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_answer_each_other() {
    let (one, two) = pair().await;
    assert_eq!(one.call(&two, Channel::Raft, b"hello").await.unwrap(), "hello");
    assert_eq!(two.call(&one, Channel::Forward, b"back").await.unwrap(), "back");
    assert_eq!(one.call(&two, Channel::Heartbeat, b"").await.unwrap(), 1_u64.to_be_bytes()[..]);
    let refused = one.call(&two, Channel::Forward, b"fail").await.unwrap_err();
    assert_eq!(refused.to_string(), "node 2 refused: cannot");
    let linked = two.echo.linked.lock().unwrap().clone();
    assert_eq!(linked.first(), Some(&(NodeId(1), one.transport.addresses()[0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_unknown_key_is_refused_and_told_why() {
    let (one, two) = pair().await;
    let stranger = Member::start(3).await;
    stranger.transport.set_peers(peers(&[&one]));
    let error = stranger.call(&one, Channel::Raft, b"let me in").await.unwrap_err();
    let LinkError::Unreachable { reason, .. } = &error else { panic!("{error}") };
    let expect = format!("no member of this cluster has the key {}", stranger.transport.key());
    assert!(reason.contains(&expect), "{reason}");
    assert!(one.echo.linked.lock().unwrap().iter().all(|(from, _)| *from == two.node));

    // Admitted, it gets through without being restarted.
    one.transport.set_peers(peers(&[&one, &two, &stranger]));
    eventually("admitted", async || stranger.call(&one, Channel::Raft, b"now").await.is_ok()).await;

    // Removed again, it is cut off.
    one.transport.set_peers(peers(&[&one, &two]));
    eventually("cut off", async || stranger.call(&one, Channel::Raft, b"now").await.is_err()).await;
    let error = one.call(&stranger, Channel::Raft, b"and back").await.unwrap_err();
    assert_eq!(error.to_string(), "cannot reach node 3: it is not a known member");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_another_key_answers_is_unreachable() {
    let (one, two) = pair().await;
    let mut wrong = peers(&[&two]);
    wrong.insert(NodeId(9), Peer { key: NodeKey(wrong_key()), ..two.peer() });
    one.transport.set_peers(wrong);
    let error = one.transport.call(NodeId(9), Channel::Raft, Bytes::new(), DEADLINE).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}

/// A key that nobody in these tests holds.
fn wrong_key() -> [u8; 32] {
    *iroh::SecretKey::from_bytes(&[99; 32]).public().as_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_may_only_ask_to_join() {
    let one = Member::start(1).await;
    let stranger = Member::start(3).await;
    let ask = async |request: &'static [u8]| {
        stranger.transport.call_stranger(&one.peer(), Bytes::from_static(request), DEADLINE).await
    };
    assert_eq!(ask(b"may I?").await.unwrap(), "may I?");
    assert_eq!(one.echo.strangers.lock().unwrap()[0], (stranger.transport.key(), "may I?".into()));
    assert!(
        matches!(ask(b"").await.unwrap_err(), LinkError::Refused { reason, .. } if reason == "ask something")
    );

    let long = Bytes::from(vec![0; 65 << 10]);
    let error = stranger.transport.call_stranger(&one.peer(), long, DEADLINE).await.unwrap_err();
    assert!(error.to_string().contains("a frame of 66560 bytes exceeds the bound of 65536"), "{error}");

    // The same protocol with another channel.
    let target = endpoint_addr(one.transport.key(), &one.transport.addresses(), None).unwrap();
    let endpoint = stranger.transport.shared.listener.endpoint().expect("it listens");
    for channel in Channel::ALL.into_iter().filter(|channel| *channel != Channel::Join) {
        let connection = endpoint.connect(target.clone(), super::endpoint::ALPN_JOIN).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let frame = super::frame::Frame { id: 0, tag: channel as u8, payload: "vote".into() };
        super::stream::write_frame(&mut send, &[], frame).await.unwrap();
        let closed = super::link::close_reason(&connection.closed().await);
        assert!(closed.contains("only a member may ask that"), "{channel:?}: {closed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_any_size_arrive_and_too_large_ones_are_refused() {
    let (one, two) = pair().await;
    for bytes in [0, 1, 4096, 4097, 65_536, 65_537, 5 << 20] {
        let message: Bytes = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let answer = one.transport.call(two.node, Channel::Raft, message.clone(), DEADLINE).await.unwrap();
        assert!(answer == message, "{bytes} bytes");
    }
    let large = Bytes::from(vec![0; blixard_core::limits::MESSAGE_BYTES_MAX + 1]);
    let error = one.transport.call(two.node, Channel::Raft, large, DEADLINE).await.unwrap_err();
    assert_eq!(error.to_string(), "node 2 refused: the message of 67108865 bytes exceeds 67108864");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_a_hundred_mebibytes() {
    let (one, two) = pair().await;
    let header = Bytes::from_static(b"head");
    let mut stream = one.transport.open_stream(two.node, Channel::Image, header, DEADLINE).await.unwrap();
    let piece = vec![1; 1 << 20];
    for _ in 0..100 {
        stream.write_all(&piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), 4 + (100 << 20));
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

/// What is on the way of one stream delays what others say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_takes_no_more_than_its_window_and_delays_no_call() {
    let (one, two) = pair().await;
    let header = Bytes::from_static(b"unread");
    let mut stream = one.transport.open_stream(two.node, Channel::Image, header, DEADLINE).await.unwrap();
    let mut taken = 0;
    while let Ok(written) = timeout(SECOND, stream.write(&[1; 1 << 10])).await {
        taken += written.unwrap();
        assert!(taken <= 128 << 10, "{taken}");
    }
    assert!(taken > 100 << 10, "{taken}");
    one.call(&two, Channel::Raft, b"meanwhile").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_restarted_elsewhere_is_found_by_its_own_link() {
    let (one, two) = pair().await;
    one.call(&two, Channel::Raft, b"here").await.unwrap();
    two.transport.shutdown().await;
    let moved = Member::start(2).await;
    assert_ne!(moved.transport.addresses(), two.transport.addresses());
    moved.transport.set_peers(peers(&[&one, &two]));
    eventually("found again", async || one.call(&moved, Channel::Raft, b"there").await.is_ok()).await;
    let address = moved.transport.addresses()[0];
    assert!(one.echo.linked.lock().unwrap().contains(&(NodeId(2), address)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_moved_reforms_from_one_hint_each() {
    let before = [Member::start(1).await, Member::start(2).await, Member::start(3).await];
    let old = peers(&before.each_ref());
    for member in &before {
        member.transport.shutdown().await;
    }
    let after = [Member::start(1).await, Member::start(2).await, Member::start(3).await];
    for member in &after {
        member.transport.set_peers(old.clone());
    }
    // Two and three are told of one only; of each other they learn from it.
    for member in &after[1..] {
        member.transport.hint(after[0].transport.key(), &after[0].transport.addresses());
    }
    for from in &after {
        for to in after.iter().filter(|to| to.node != from.node) {
            let what = format!("{} reaches {}", from.node, to.node);
            eventually(&what, async || from.call(to, Channel::Raft, b"vote").await.is_ok()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_times_out_without_costing_the_link() {
    let (one, two) = pair().await;
    one.call(&two, Channel::Raft, b"warm").await.unwrap();
    let link = one.transport.shared.slot(two.node).unwrap().link().unwrap();
    let slow = one.call_within(two.node, Channel::Forward, b"slow", SECOND / 5).await.unwrap_err();
    assert_eq!(slow.to_string(), "no answer from node 2 within 200ms");
    one.call(&two, Channel::Raft, b"still").await.unwrap();
    assert!(link.connection().close_reason().is_none());
}

/// A member on a thread of its own, which its handlers can block: then it sends nothing at all, not
/// even acknowledgements.
fn with_blocking_member(test: impl AsyncFnOnce(&Member, NodeId)) {
    let (hand_over, handed) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = std::thread::Builder::new().spawn(move || {
        runtime().block_on(async {
            let two = Member::start(2).await;
            let one = Peer { key: public_key(&secret_key(1)), addresses: Vec::new(), relay_url: None };
            two.transport.set_peers([(NodeId(1), one)].into());
            hand_over.send((two.node, two.peer())).unwrap();
            let _stop = stopped.await;
            two.transport.shutdown().await;
        });
    });
    let (two, peer) = handed.recv().unwrap();
    runtime().block_on(async {
        let one = Member::start(1).await;
        one.transport.set_peers([(two, peer)].into());
        test(&one, two).await;
    });
    stop.send(()).unwrap();
    other.unwrap().join().unwrap();
}

#[test]
fn a_member_that_stalls_keeps_its_link_and_what_is_under_way_on_it() {
    with_blocking_member(async |one, two| {
        let call = async |request, deadline| one.call_within(two, Channel::Raft, request, deadline).await;
        call(b"warm", DEADLINE).await.unwrap();
        let mut stream =
            one.transport.open_stream(two, Channel::Image, Bytes::new(), DEADLINE).await.unwrap();
        stream.write_all(&[1; 1000]).await.unwrap();
        // As those of an election, which are short.
        let error = call(b"stall", SECOND / 5).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer from node 2 within 200ms");
        let error = call(b"vote", SECOND / 5).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer from node 2 within 200ms");
        stream.write_all(&[1; 1000]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read_u64().await.unwrap(), 2000);
    });
}

#[test]
fn a_member_silent_for_long_is_redialled() {
    with_blocking_member(async |one, two| {
        let call = async |request, deadline| one.call_within(two, Channel::Raft, request, deadline).await;
        call(b"warm", DEADLINE).await.unwrap();
        let link = one.transport.shared.slot(two).unwrap().link().unwrap();
        call(b"hang", DEADLINE).await.unwrap_err();
        let closed = link.connection().close_reason().expect("the link has fallen");
        assert_eq!(super::link::close_reason(&closed), "it fell silent");
        eventually("redialled", async || call(b"again", SECOND).await.is_ok()).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_member_costs_callers_no_wait_and_returns() {
    let (one, two) = pair().await;
    two.transport.shutdown().await;
    eventually("circuit open", async || {
        let started = Instant::now();
        one.call(&two, Channel::Raft, b"?").await.is_err() && started.elapsed() < Duration::from_millis(50)
    })
    .await;
    let address = two.transport.addresses()[0];
    drop(two);
    let back = Member::start_on(2, address).await;
    back.transport.set_peers(peers(&[&one]));
    eventually("back", async || one.call(&back, Channel::Raft, b"!").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_concurrent_calls_all_get_their_own_answers() {
    let (one, two) = pair().await;
    let calls = (0..10_000_u64).map(|n| {
        let (transport, to) = (one.transport.clone(), two.node);
        async move {
            let request = Bytes::from(n.to_be_bytes().to_vec());
            let channel = if n % 2 == 0 { Channel::Raft } else { Channel::Forward };
            assert_eq!(transport.call(to, channel, request.clone(), 3 * DEADLINE).await.unwrap(), request);
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_frame_costs_the_link_only() {
    let (one, two) = pair().await;
    one.call(&two, Channel::Raft, b"warm").await.unwrap();
    let link = one.transport.shared.slot(two.node).unwrap().link().unwrap();
    let (mut send, _recv) = link.connection().open_bi().await.unwrap();
    send.write_all(&[super::frame::StreamKind::Lane as u8, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    send.write_all(&[0; 9]).await.unwrap();
    let closed = super::link::close_reason(&link.connection().closed().await);
    assert!(closed.contains("a frame of 4294967295 bytes exceeds the bound of 65536"), "{closed}");
    eventually("redialled", async || one.call(&two, Channel::Raft, b"again").await.is_ok()).await;
}

/// Prints figures; asserts none, as they depend on the machine.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures: run with --release -- --ignored --nocapture"]
async fn figures() {
    let (one, two) = pair().await;
    one.call(&two, Channel::Raft, b"warm").await.unwrap();
    tokio::time::sleep(SECOND).await;
    for payload in [64, 1024, 16 << 10] {
        let payload = Bytes::from(vec![1; payload]);
        let call = async || {
            let started = Instant::now();
            one.transport.call(two.node, Channel::Raft, payload.clone(), DEADLINE).await.unwrap();
            started.elapsed()
        };
        let mut alone = Vec::new();
        for _ in 0..5_000 {
            alone.push(call().await);
        }
        alone.sort();
        let started = Instant::now();
        let callers = (0..64).map(|_| async {
            for _ in 0..1_000 {
                call().await;
            }
        });
        futures_util::future::join_all(callers).await;
        let rate = 64_000.0 / started.elapsed().as_secs_f64();
        println!(
            "{} B: RTT p50 {:?} p99 {:?}; 64 callers {rate:.0}/s",
            payload.len(),
            alone[2_500],
            alone[4_950]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_ended_is_replaced_at_the_same_address() {
    let (one, two) = (Member::start(1).await, Member::start(2).await);
    let listener = &one.transport.shared.listener;
    let bound = || listener.endpoint().map(|endpoint| endpoint.bound_sockets());
    let before = bound();
    let boot = one.transport.shared.hello().boot;
    // As iroh's own does when it loses its socket. No link holds it: none is up yet.
    listener.endpoint().expect("it listens").close().await;
    let open = || listener.endpoint().is_some_and(|endpoint| !endpoint.is_closed());
    eventually("listening again", async || open()).await;
    assert_eq!(bound(), before);
    assert_ne!(one.transport.shared.hello().boot, boot, "its links are told from those before");
    for member in [&one, &two] {
        member.transport.set_peers(peers(&[&one, &two]));
    }
    eventually("linked", async || two.call(&one, Channel::Raft, b"").await.is_ok()).await;
}

/// Two members with the one link that `dialler` makes: the other knows no address of it.
async fn pair_dialled_by(dialler: u64) -> (Member, Member) {
    let (one, two) = (Member::start(1).await, Member::start(2).await);
    let (dials, waits) = if dialler == 1 { (&one, &two) } else { (&two, &one) };
    let hidden = Peer { addresses: Vec::new(), ..dials.peer() };
    waits.transport.set_peers([(dials.node, hidden)].into());
    dials.transport.set_peers(peers(&[waits]));
    eventually("linked", async || waits.call(dials, Channel::Raft, b"").await.is_ok()).await;
    (one, two)
}

/// Another connection that `there` makes to `here`, as an endpoint with this boot number would.
async fn connect(there: &Member, here: &Member, boot: u64) -> iroh::endpoint::Connection {
    let before = here.echo.linked.lock().unwrap().len();
    let target = endpoint_addr(here.transport.key(), &here.transport.addresses(), None).unwrap();
    let endpoint = there.transport.shared.listener.endpoint().expect("it listens");
    let connection = endpoint.connect(target, super::endpoint::ALPN_MEMBER).await.unwrap();
    let hello = Hello { boot, ..there.transport.shared.hello() };
    super::hello::say(&connection, &hello).await.unwrap();
    eventually("heard", async || here.echo.linked.lock().unwrap().len() > before).await;
    connection
}

async fn closes(connection: &iroh::endpoint::Connection) -> String {
    let closed = tokio::time::timeout(DEADLINE / 2, connection.closed()).await;
    super::link::close_reason(&closed.expect("what is under way there does not wait for an answer"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_from_another_endpoint_of_the_member_takes_over_whoever_dialled() {
    for dialler in [1, 2] {
        let (one, two) = pair_dialled_by(dialler).await;
        let old = one.transport.shared.slot(two.node).unwrap().link().expect("linked");
        // As both sides make when they dial at once: either of the two is superseded by the other.
        let twin = connect(&two, &one, old.boot).await;
        // As if the endpoint there had ended without a word: the links here are still up.
        let new = connect(&two, &one, old.boot + 1).await;
        closes(old.connection()).await;
        assert_eq!(closes(&twin).await, "it has started anew", "dialled by {dialler}");
        new.close(0_u32.into(), b"done");
        eventually("linked again", async || one.call(&two, Channel::Raft, b"").await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_keeps_none_of_its_links() {
    let (one, two) = pair_dialled_by(2).await;
    let old = one.transport.shared.slot(two.node).unwrap().link().expect("linked");
    let boot = two.transport.shared.hello().boot;
    let twin = connect(&two, &one, boot).await;
    let mut more = Vec::new();
    for _ in 0..super::peer::SUPERSEDED_MAX {
        more.push(connect(&two, &one, boot).await);
    }
    // The oldest makes room; the others live on for what is under way on them. The other side may
    // dial again, which takes more room.
    closes(old.connection()).await;
    assert!(more.last().is_some_and(|newest| newest.close_reason().is_none()));
    one.transport.set_peers(BTreeMap::new());
    more.push(twin);
    for connection in &more {
        closes(connection).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_start_of_a_member_is_refused_while_the_first_lives() {
    let (one, two) = pair_dialled_by(2).await;
    let link = || one.transport.shared.slot(two.node).and_then(|slot| slot.link());
    let links = || one.echo.linked.lock().unwrap().len();
    let start = |member: &Member| member.transport.shared.hello().start.expect("it says one");
    let (first, before) = (link().expect("linked"), links());
    // The same key, and by chance the same count.
    let copy = Member::start(2).await;
    copy.transport.set_peers(peers(&[&one]));
    let told = || one.echo.twice.lock().unwrap().clone();
    eventually("refused again and again", async || told().len() >= 4).await;
    for (node, twice) in told() {
        assert_eq!((node, twice.refused.start), (two.node, start(&copy)));
        let linked = twice.linked.expect("who is linked is known");
        assert_eq!((linked.start, linked.address), (start(&two), Some(two.transport.addresses()[0])));
    }
    eventually("the copy knows", async || copy.echo.refused.lock().unwrap().contains(&start(&copy))).await;
    assert!(two.echo.refused.lock().unwrap().is_empty() && copy.echo.linked.lock().unwrap().is_empty());
    assert!(Arc::ptr_eq(&first, &link().expect("it is still linked")) && links() == before);
    two.transport.shutdown().await;
    eventually("it takes over", async || copy.call(&one, Channel::Raft, b"").await.is_ok()).await;

    // What the leader refuses is refused by everybody, and only for as long.
    eventually("the copy is linked", async || link().is_some()).await;
    let linked = link().expect("the copy is linked");
    // As both sides make when they dial at once: one of the two is superseded by the other.
    let twin = connect(&copy, &one, linked.boot).await;
    let twice = Twice { linked: None, ..told()[0].1 };
    one.transport.heed_twice([(two.node, twice)].into());
    closes(linked.connection()).await;
    closes(&twin).await;
    let refused = copy.echo.refused.lock().unwrap().len();
    eventually("refused", async || copy.echo.refused.lock().unwrap().len() > refused).await;
    one.transport.heed_twice(BTreeMap::new());
    eventually("linked again", async || copy.call(&one, Channel::Raft, b"").await.is_ok()).await;
}

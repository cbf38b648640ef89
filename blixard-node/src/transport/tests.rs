//! Real endpoints on the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::IrohTransport;
use crate::platform::{Duplex, Inbound, LinkError, RandomSource, Transport};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

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
            (Channel::Forward, b"block") => {
                std::thread::sleep(Duration::from_millis(1500));
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
        let mut secret_key = [7; 32];
        secret_key[0] = u8::try_from(node).unwrap();
        let seed = Instant::now().elapsed().as_nanos() as u64 ^ (node << 32) ^ u64::from(bind.port());
        let random = Arc::new(Random(Mutex::new(seed)));
        let transport = IrohTransport::bind(secret_key, bind, Vec::new(), None, random).await.unwrap();
        let echo = Arc::new(Echo::default());
        transport.serve(echo.clone());
        Self { node: NodeId(node), transport, echo }
    }

    fn peer(&self) -> Peer {
        Peer { key: self.transport.key(), addresses: self.transport.addresses(), relay_url: None }
    }

    async fn call(&self, to: &Self, channel: Channel, request: &'static [u8]) -> Result<Bytes, LinkError> {
        self.transport.call(to.node, channel, Bytes::from_static(request), DEADLINE).await
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

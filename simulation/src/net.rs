//! The simulated network: messages with delay, loss and partitions, delivered in the context of
//! the node they reach.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::wire::{Channel, Peer};
use blixard_node::context::NodeContext;
use blixard_node::platform::{Duplex, Inbound, LinkError, Transport};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::random::Stream;
use crate::tasks::SimSpawner;
use crate::trace::Trace;

/// The size of a simulated stream's buffer, in bytes.
const STREAM_BUFFER: usize = 64 << 10;

/// The network between the machines of a world. Cloning shares it.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Inner>>);

struct Inner {
    lives: BTreeMap<NodeKey, Arc<Life>>,
    /// Pairs whose first cannot send to their second.
    cut: BTreeSet<(NodeKey, NodeKey)>,
    random: Stream,
    trace: Trace,
    /// The chance that a message is lost, in thousandths.
    loss: u64,
}

/// One life of a node, as the network sees it.
struct Life {
    machine: u64,
    spawner: SimSpawner,
    context: Mutex<Option<NodeContext>>,
    handler: Mutex<Option<Arc<dyn Inbound>>>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    /// A network on which nothing is lost and nobody is cut off.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let random = Stream::new(seed, "network");
        let (lives, cut) = (BTreeMap::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(Inner { lives, cut, random, trace, loss: 0 })))
    }

    /// Sets the chance that a message is lost, in thousandths.
    pub fn set_loss(&self, thousandths: u64) {
        lock(&self.0).loss = thousandths;
    }

    /// Cuts what `from` sends to `to`, or lets it through again.
    pub fn set_cut(&self, from: NodeKey, to: NodeKey, cut: bool) {
        let mut inner = lock(&self.0);
        if cut {
            inner.cut.insert((from, to));
        } else {
            inner.cut.remove(&(from, to));
        }
    }

    /// Plugs a life of a node in: replaces an earlier one of the same key.
    pub fn plug(&self, key: NodeKey, machine: u64, spawner: SimSpawner) -> Arc<SimTransport> {
        let life = Arc::new(Life {
            machine,
            spawner,
            context: Mutex::default(),
            handler: Mutex::default(),
            peers: Mutex::default(),
        });
        lock(&self.0).lives.insert(key, life.clone());
        Arc::new(SimTransport { net: self.clone(), key, life })
    }

    /// Takes a node off the network.
    pub fn unplug(&self, key: NodeKey) {
        lock(&self.0).lives.remove(&key);
    }

    /// The other side of a message from `from`, after the message's delay; an error when it is
    /// lost, cut or there is nobody.
    async fn pass(&self, from: NodeKey, to: NodeKey) -> Result<Arc<Life>, &'static str> {
        let (delay, lost) = {
            let inner = lock(&self.0);
            (Duration::from_micros(50 + inner.random.below(450)), inner.random.chance(inner.loss))
        };
        tokio::time::sleep(delay).await;
        let inner = lock(&self.0);
        if lost || inner.cut.contains(&(from, to)) {
            return Err("lost");
        }
        inner.lives.get(&to).filter(|life| !life.spawner.is_crashed()).cloned().ok_or("nobody is there")
    }

    fn record(&self, kind: &str, machine: u64, what: &[u8]) {
        let trace = lock(&self.0).trace.clone();
        trace.record(kind, machine, what);
    }
}

/// One life of a node's side of the network.
pub struct SimTransport {
    net: Net,
    key: NodeKey,
    life: Arc<Life>,
}

impl SimTransport {
    /// Says in which context this node handles what arrives.
    pub fn set_context(&self, context: NodeContext) {
        *lock(&self.life.context) = Some(context);
    }

    fn key_of(&self, to: NodeId) -> Result<NodeKey, LinkError> {
        let peer = lock(&self.life.peers).get(&to).map(|peer| peer.key);
        peer.ok_or_else(|| unreachable(to, "it is not a known member"))
    }

    /// Sends a request and waits for its answer, within `deadline`.
    async fn exchange(
        &self,
        to: NodeKey,
        name: String,
        deadline: Duration,
        serve: impl FnOnce(Arc<dyn Inbound>, &Life) -> Option<futures_util::future::BoxFuture<'static, Result<Bytes, String>>>,
        kind: &str,
        request: &[u8],
    ) -> Result<Bytes, LinkError> {
        let exchange = async {
            let Ok(life) = self.net.pass(self.key, to).await else {
                return std::future::pending().await;
            };
            self.net.record(kind, life.machine, request);
            let handler = lock(&life.handler).clone();
            let context = lock(&life.context).clone();
            let (Some(handler), Some(context)) = (handler, context) else {
                return Err(LinkError::Unreachable { to: name.clone(), reason: "it is starting".to_owned() });
            };
            let Some(work) = serve(handler, &life) else {
                return Err(LinkError::Unreachable { to: name.clone(), reason: "it does not know us".to_owned() });
            };
            let (reply, answer) = oneshot::channel();
            context.spawn("inbound", async move {
                // The sender may have given up.
                reply.send(work.await).ok();
            });
            let Ok(answer) = answer.await else { return std::future::pending().await };
            let Ok(own) = self.net.pass(to, self.key).await else { return std::future::pending().await };
            self.net.record("answer", own.machine, answer.as_deref().unwrap_or_default());
            answer.map_err(|reason| LinkError::Refused { to: name.clone(), reason })
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(LinkError::Timeout { to: name.clone(), within: deadline }),
        }
    }
}

fn unreachable(to: NodeId, reason: &str) -> LinkError {
    LinkError::Unreachable { to: format!("node {to}"), reason: reason.to_owned() }
}

/// Which member a key is to a receiver.
fn member(life: &Life, key: NodeKey) -> Option<NodeId> {
    lock(&life.peers).iter().find(|(_, peer)| peer.key == key).map(|(id, _)| *id)
}

#[async_trait]
impl Transport for SimTransport {
    fn key(&self) -> NodeKey {
        self.key
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let host = u8::try_from(self.life.machine).unwrap_or(u8::MAX);
        vec![SocketAddr::from(([10, 77, 0, host], 7001))]
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, Peer>) {
        *lock(&self.life.peers) = peers;
    }

    fn serve(&self, handler: Arc<dyn Inbound>) {
        *lock(&self.life.handler) = Some(handler);
    }

    async fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let key = self.key_of(to)?;
        let (own, sent) = (self.key, request.clone());
        let serve = move |handler: Arc<dyn Inbound>, life: &Life| {
            let from = member(life, own)?;
            Some(Box::pin(async move { handler.call(from, channel, sent).await }) as _)
        };
        self.exchange(key, format!("node {to}"), deadline, serve, "deliver", &request).await
    }

    async fn call_stranger(&self, to: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, LinkError> {
        let (own, sent) = (self.key, request.clone());
        let serve = move |handler: Arc<dyn Inbound>, _: &Life| {
            Some(Box::pin(async move { handler.stranger(own, None, sent).await }) as _)
        };
        self.exchange(to.key, format!("key {}", to.key), deadline, serve, "stranger", &request).await
    }

    async fn open_stream(
        &self,
        to: NodeId,
        channel: Channel,
        header: Bytes,
        deadline: Duration,
    ) -> Result<Box<dyn Duplex>, LinkError> {
        let key = self.key_of(to)?;
        let name = format!("node {to}");
        let opening = async {
            let Ok(life) = self.net.pass(self.key, key).await else { return std::future::pending().await };
            self.net.record("stream", life.machine, &header);
            let handler = lock(&life.handler).clone();
            let context = lock(&life.context).clone();
            let (Some(handler), Some(context), Some(from)) = (handler, context, member(&life, self.key)) else {
                return Err(unreachable(to, "it does not know us"));
            };
            let (near, far) = tokio::io::duplex(STREAM_BUFFER);
            context.spawn("inbound stream", async move {
                handler.stream(from, channel, header, Box::new(far)).await;
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        };
        match tokio::time::timeout(deadline, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(LinkError::Timeout { to: name, within: deadline }),
        }
    }

    async fn shutdown(&self) {
        self.net.unplug(self.key);
    }
}

//! A simulated network at the level of messages: delays, losses and cuts between pairs.
//!
//! Links are QUIC's: packets that are lost are sent again, so a message is late or its link falls.
//! A request may arrive a second time, later, as from a sender that asks again on a new link. A message between two that cannot hear each other fails when the link's
//! idle time ends or at its deadline, whichever is sooner; its answer may be what was lost.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::wire::{Channel, Peer};
use blixard_node::context::NodeContext;
use blixard_node::platform::{Duplex, Inbound, LinkError, Transport};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::checks::Checks;
use crate::random::Stream;
use crate::stream::SimStream;
use crate::tasks::SimSpawner;
use crate::trace::Trace;

/// The size of a simulated stream's buffer, in bytes.
const STREAM_BUFFER: usize = 64 << 10;
/// How long a link is silent before it falls, as with the production transport.
const LINK_IDLE: Duration = Duration::from_secs(3);

/// After how long a doubled request arrives again at most, in milliseconds.
const DOUBLED_MS_MAX: u64 = 3_000;

/// How the network treats messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// The longest usual delay, in microseconds.
    pub delay_us: u64,
    /// The chance of a long delay, in thousandths.
    pub spikes: u64,
    /// The longest long delay, in milliseconds.
    pub spike_ms: u64,
    /// The chance that a message's link falls under it, in thousandths.
    pub loss: u64,
}

impl Weather {
    /// Nothing is late or lost.
    pub const CALM: Self = Self { delay_us: 900, spikes: 0, spike_ms: 1, loss: 0 };
}

/// The network between the machines of a world. Cloning shares it.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Inner>>);

struct Inner {
    lives: BTreeMap<NodeKey, Arc<Life>>,
    /// Pairs of machines whose first cannot send to their second, and for how many reasons.
    cut: BTreeMap<(u64, u64), u32>,
    /// How many thousandths of the requests arrive a second time.
    doubled: u64,
    random: Stream,
    trace: Trace,
    checks: Arc<Checks>,
    weather: Weather,
    delivered: u64,
    failed: u64,
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
    /// A network in calm weather on which nobody is cut off.
    pub fn new(seed: u64, trace: Trace, checks: Arc<Checks>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            lives: BTreeMap::new(),
            cut: BTreeMap::new(),
            doubled: 0,
            random: Stream::new(seed, "network"),
            trace,
            checks,
            weather: Weather::CALM,
            delivered: 0,
            failed: 0,
        })))
    }

    /// Changes how messages are treated.
    pub fn set_weather(&self, weather: Weather) {
        lock(&self.0).weather = weather;
    }

    /// Cuts what machine `from` sends to machine `to`, or takes one such cut back.
    pub fn set_cut(&self, from: u64, to: u64, cut: bool) {
        let mut inner = lock(&self.0);
        let reasons = inner.cut.entry((from, to)).or_default();
        *reasons = if cut { *reasons + 1 } else { reasons.saturating_sub(1) };
        if *reasons == 0 {
            inner.cut.remove(&(from, to));
        }
    }

    /// Whether messages are neither late nor lost nor doubled but by cuts.
    pub fn is_calm(&self) -> bool {
        let inner = lock(&self.0);
        inner.weather == Weather::CALM && inner.doubled == 0
    }

    /// Sets how many thousandths of the requests arrive a second time.
    pub fn set_doubled(&self, thousandths: u64) {
        lock(&self.0).doubled = thousandths;
    }

    /// After how long a request that has arrived does so again, if it does.
    fn again(&self) -> Option<Duration> {
        let inner = lock(&self.0);
        let doubled = inner.doubled > 0 && inner.random.chance(inner.doubled);
        doubled.then(|| Duration::from_millis(1 + inner.random.below(DOUBLED_MS_MAX)))
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        lock(&self.0).cut.clear();
    }

    /// How many messages arrived and how many were lost or cut.
    pub fn counts(&self) -> (u64, u64) {
        let inner = lock(&self.0);
        (inner.delivered, inner.failed)
    }

    /// Whether `from` can send to `to` now.
    pub(crate) fn reaches(&self, from: u64, to: u64) -> bool {
        !lock(&self.0).cut.contains_key(&(from, to))
    }

    pub(crate) fn record(&self, kind: &str, machine: u64, what: &[u8]) {
        let trace = lock(&self.0).trace.clone();
        trace.record(kind, machine, what);
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

    /// Takes a life off the network, unless another has replaced it.
    fn unplug(&self, key: NodeKey, life: &Arc<Life>) {
        let mut inner = lock(&self.0);
        if inner.lives.get(&key).is_some_and(|plugged| Arc::ptr_eq(plugged, life)) {
            inner.lives.remove(&key);
        }
        drop(inner);
        // A life and what serves it hold each other.
        lock(&life.handler).take();
        lock(&life.context).take();
    }

    /// Carries a message to where `to` lives; `None` when it does not arrive.
    async fn pass(&self, from: u64, to: NodeKey) -> Option<Arc<Life>> {
        let (delay, lost) = {
            let inner = lock(&self.0);
            let weather = inner.weather;
            let usual = Duration::from_micros(50 + inner.random.below(weather.delay_us));
            let spike = inner.random.chance(weather.spikes);
            let late = if spike { inner.random.below(weather.spike_ms) } else { 0 };
            (usual + Duration::from_millis(late), inner.random.chance(weather.loss))
        };
        tokio::time::sleep(delay).await;
        let mut inner = lock(&self.0);
        let life = inner.lives.get(&to).filter(|life| !life.spawner.is_crashed()).cloned();
        let life = life.filter(|life| !lost && !inner.cut.contains_key(&(from, life.machine)));
        match life {
            Some(_) => inner.delivered += 1,
            None => inner.failed += 1,
        }
        life
    }
}

/// One life of a node's side of the network.
pub struct SimTransport {
    net: Net,
    key: NodeKey,
    life: Arc<Life>,
}

/// What a receiver does with a request, unless it does not know the sender.
type Serve<'a> =
    &'a (dyn Fn(Arc<dyn Inbound>, &Life) -> Option<BoxFuture<'static, Result<Bytes, String>>> + Sync);

impl SimTransport {
    /// Says in which context this node handles what arrives.
    pub fn set_context(&self, context: NodeContext) {
        *lock(&self.life.context) = Some(context);
    }

    /// Takes this life off the network.
    pub fn unplug(&self) {
        self.net.unplug(self.key, &self.life);
    }

    fn key_of(&self, to: NodeId) -> Result<NodeKey, LinkError> {
        let peer = lock(&self.life.peers).get(&to).map(|peer| peer.key);
        peer.ok_or_else(|| unreachable(&format!("node {to}"), "it is not a known member"))
    }

    /// Runs `work`, which never ends when a message is lost.
    async fn within<T>(
        &self,
        to: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        match tokio::time::timeout(deadline.min(LINK_IDLE), work).await {
            Ok(answer) => answer,
            Err(_) if deadline > LINK_IDLE => Err(unreachable(to, "the link fell")),
            Err(_) => Err(LinkError::Timeout { to: to.to_owned(), within: deadline }),
        }
    }

    /// Sends a request and waits for its answer. What takes the receiver long keeps its link up.
    async fn exchange(
        &self,
        to: NodeKey,
        name: &str,
        deadline: Duration,
        kind: &str,
        request: &[u8],
        serve: Serve<'_>,
    ) -> Result<Bytes, LinkError> {
        let sent = tokio::time::Instant::now();
        let arrival = async { Ok(self.arrive(to, kind, request).await) };
        let life = self.within(name, deadline, arrival).await?;
        let (handler, context) = life.receiver(name)?;
        let Some(work) = serve(handler, &life) else { return Err(unreachable(name, "it does not know us")) };
        if let Some(late) = self.net.again()
            && let (Ok((handler, context)), net) = (life.receiver(name), self.net.clone())
            && let Some(work) = serve(handler, &life)
        {
            let machine = life.machine;
            context.spawn("inbound again", async move {
                tokio::time::sleep(late).await;
                net.record("again", machine, &[]);
                // Nobody waits for the second answer.
                work.await.ok();
            });
        }
        let (reply, answer) = oneshot::channel();
        context.spawn("inbound", async move {
            // The sender may have given up.
            reply.send(work.await).ok();
        });
        let left = deadline.saturating_sub(sent.elapsed());
        let answer = match tokio::time::timeout(left, answer).await {
            Ok(Ok(answer)) => answer,
            // It crashed: the link falls when it has been silent for long enough.
            Ok(Err(_)) => {
                let left = deadline.saturating_sub(sent.elapsed());
                return self.within(name, left, pending()).await;
            }
            Err(_) => return Err(LinkError::Timeout { to: name.to_owned(), within: deadline }),
        };
        let left = deadline.saturating_sub(sent.elapsed());
        let back = async {
            if self.net.pass(life.machine, self.key).await.is_none() {
                pending::<()>().await;
            }
            Ok(())
        };
        self.within(name, left, back).await?;
        self.net.record("answer", self.life.machine, answer.as_deref().unwrap_or_default());
        answer.map_err(|reason| LinkError::Refused { to: name.to_owned(), reason })
    }

    async fn arrive(&self, to: NodeKey, kind: &str, what: &[u8]) -> Arc<Life> {
        let Some(life) = self.net.pass(self.life.machine, to).await else { return pending().await };
        self.net.record(kind, life.machine, what);
        life
    }
}

fn unreachable(to: &str, reason: &str) -> LinkError {
    LinkError::Unreachable { to: to.to_owned(), reason: reason.to_owned() }
}

impl Life {
    fn receiver(&self, name: &str) -> Result<(Arc<dyn Inbound>, NodeContext), LinkError> {
        let handler = lock(&self.handler).clone();
        let context = lock(&self.context).clone();
        handler.zip(context).ok_or_else(|| unreachable(name, "it is starting"))
    }

    /// Which member the holder of `key` is to this one.
    fn member(&self, key: NodeKey) -> Option<NodeId> {
        lock(&self.peers).iter().find(|(_, peer)| peer.key == key).map(|(id, _)| *id)
    }
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
        let checks = lock(&self.net.0).checks.clone();
        let serve = move |handler: Arc<dyn Inbound>, life: &Life| {
            let (from, sent) = (life.member(own)?, sent.clone());
            let checks = checks.clone();
            Some(Box::pin(async move {
                let answer = handler.call(from, channel, sent.clone()).await;
                if let (Channel::Raft, Ok(answer)) = (channel, &answer) {
                    checks.spoke(from, to, &sent, answer);
                }
                answer
            }) as BoxFuture<'static, _>)
        };
        self.exchange(key, &format!("node {to}"), deadline, "deliver", &request, &serve).await
    }

    async fn call_stranger(&self, to: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, LinkError> {
        let (own, sent) = (self.key, request.clone());
        let serve = move |handler: Arc<dyn Inbound>, _: &Life| {
            let sent = sent.clone();
            Some(Box::pin(async move { handler.stranger(own, None, sent).await }) as BoxFuture<'static, _>)
        };
        self.exchange(to.key, &format!("key {}", to.key), deadline, "stranger", &request, &serve).await
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
        let arrival = async { Ok(self.arrive(key, "stream", &header).await) };
        let life = self.within(&name, deadline, arrival).await?;
        let (handler, context) = life.receiver(&name)?;
        let Some(from) = life.member(self.key) else { return Err(unreachable(&name, "it does not know us")) };
        let (near, far) = tokio::io::duplex(STREAM_BUFFER);
        let near = SimStream::new(near, self.net.clone(), self.life.machine, life.machine);
        let far = SimStream::new(far, self.net.clone(), life.machine, self.life.machine);
        context.spawn("inbound stream", async move {
            handler.stream(from, channel, header, Box::new(far)).await;
        });
        Ok(Box::new(near))
    }

    async fn shutdown(&self) {
        self.unplug();
    }
}

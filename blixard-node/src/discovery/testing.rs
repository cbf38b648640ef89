//! Seams for tests: a transport that answers from a script, and time that passes as it is slept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::announce::{Announcement, Heard};
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{self, Channel, JoinRequest, JoinResponse, Peer};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};

use super::Seams;
use crate::platform::{Announcer, Clock, Duplex, Inbound, LinkError, RandomSource, Spawner, Transport};

/// The key of the node under test.
pub(super) const OWN: NodeKey = NodeKey([99; 32]);

/// Everything but the answers: time passes as it is slept, work runs at once.
#[derive(Default)]
pub(super) struct World {
    pub(super) now: Mutex<Duration>,
    /// Who answers what, in order; nobody is unreachable.
    pub(super) script: Mutex<VecDeque<(u8, Result<JoinResponse, &'static str>)>>,
    pub(super) heard: Mutex<Vec<Heard>>,
    pub(super) asked: Mutex<Vec<(u8, JoinRequest)>>,
}

impl Clock for World {
    fn now(&self) -> Mono {
        Mono(*self.now.lock().unwrap())
    }

    fn utc(&self) -> UtcMs {
        UtcMs(0)
    }

    fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
        *self.now.lock().unwrap() = deadline.0;
        Box::pin(ready(()))
    }
}

impl RandomSource for World {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

impl Spawner for World {
    fn spawn(&self, name: &'static str, _task: BoxFuture<'static, ()>) {
        panic!("joining starts no task, not even {name}");
    }

    fn run_blocking(&self, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<'static, ()> {
        work();
        Box::pin(ready(()))
    }
}

#[async_trait]
impl Transport for World {
    fn key(&self) -> NodeKey {
        OWN
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn set_peers(&self, _peers: BTreeMap<NodeId, Peer>) {}

    fn serve(&self, _handler: Arc<dyn Inbound>) {}

    async fn call(
        &self,
        _to: NodeId,
        channel: Channel,
        _request: Bytes,
        _deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        panic!("joining asks strangers only, not over {channel:?}");
    }

    async fn call_stranger(&self, to: &Peer, request: Bytes, _: Duration) -> Result<Bytes, LinkError> {
        let to = to.key.0[0];
        self.asked.lock().unwrap().push((to, wire::decode(&request).unwrap()));
        let (from, answer) = self.script.lock().unwrap().pop_front().expect("a script for every question");
        assert_eq!(from, to, "asked out of turn");
        match answer {
            Ok(response) => Ok(wire::encode(&response).into()),
            Err(reason) => Err(LinkError::Unreachable { to: to.to_string(), reason: reason.to_owned() }),
        }
    }

    async fn open_stream(
        &self,
        _to: NodeId,
        channel: Channel,
        _header: Bytes,
        _deadline: Duration,
    ) -> Result<Box<dyn Duplex>, LinkError> {
        panic!("joining opens no stream, not over {channel:?}");
    }

    async fn shutdown(&self) {}
}

impl Announcer for World {
    fn announce(&self, all: BTreeSet<Announcement>) {
        panic!("joining announces nothing, not even {all:?}");
    }

    fn nodes(&self) -> Result<Vec<Heard>, String> {
        Ok(self.heard.lock().unwrap().clone())
    }
}

impl World {
    pub(super) fn seams(&self) -> Seams<'_> {
        Seams { clock: self, rng: self, spawner: self, transport: self, announcer: self }
    }
}

/// Runs a future to its end.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

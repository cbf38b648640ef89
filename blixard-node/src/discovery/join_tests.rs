//! Joining, against a transport that answers from a script.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::api::token::Secret;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{ClusterId, NodeId, NodeKey, TokenId};
use blixard_core::time::{Mono, UtcMs};
use blixard_core::wire::{self, Channel, JoinRequest, JoinResponse, Peer};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};

use super::{Admitted, JoinError, JoinStatus, JoinWish, join};
use crate::discovery::Seams;
use crate::discovery::refresh::Refresher;
use crate::discovery::sources::Sources;
use crate::platform::{Clock, Duplex, Inbound, LinkError, RandomSource, Spawner, Transport};

const CLUSTER: ClusterId = ClusterId([1; 16]);

fn peer(key: u8) -> Peer {
    Peer { key: NodeKey([key; 32]), addresses: vec![([10, 0, 0, key], 7001).into()], relay_url: None }
}

/// Everything but the answers: time passes as it is slept, work runs at once.
#[derive(Default)]
struct World {
    now: Mutex<Duration>,
    /// Who answers what, in order; nobody is unreachable.
    script: Mutex<VecDeque<(u8, Result<JoinResponse, &'static str>)>>,
    asked: Mutex<Vec<(u8, JoinRequest)>>,
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
        NodeKey([99; 32])
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

fn wish() -> JoinWish {
    let facts = NodeFacts {
        name: "box".to_owned(),
        addresses: vec![],
        labels: BTreeMap::new(),
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0".to_owned(),
        level: 1,
        reserved_ports: vec![],
    };
    JoinWish { node: Some(NodeId(4)), facts, token: None }
}

const TOKEN: Secret = Secret { id: TokenId([5; 8]), secret: [6; 32] };

fn ticket(key: u8) -> JoinTarget {
    JoinTarget::Ticket(Box::new(Ticket { cluster: CLUSTER, peer: peer(key), token: TOKEN }))
}

/// Joins by tickets of members 1 and 2, with these answers; returns also who was asked and what
/// was told.
fn joined(
    script: impl IntoIterator<Item = (u8, Result<JoinResponse, &'static str>)>,
) -> (Result<Admitted, JoinError>, World, Vec<String>) {
    let world = World { script: Mutex::new(script.into_iter().collect()), ..World::default() };
    let sources = Refresher::new(Sources::new(vec![ticket(1), ticket(2)], None, None));
    let told = Mutex::new(Vec::new());
    let status = |status: JoinStatus| match status {
        JoinStatus::Tried { candidate, reason } => {
            told.lock().unwrap().push(format!("{}: {reason}", candidate.key.0[0]));
        }
        JoinStatus::NoCandidates { .. } => panic!("there are candidates"),
    };
    let seams = Seams { clock: &world, rng: &world, spawner: &world, transport: &world };
    let wish = wish();
    let result = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(join(seams, &sources, &wish, &status));
    (result, world, told.into_inner().unwrap())
}

fn admitted() -> JoinResponse {
    JoinResponse::Admitted { node: NodeId(4), cluster: CLUSTER, peers: [(NodeId(1), peer(1))].into() }
}

#[test]
fn the_leader_that_a_member_names_admits() {
    let (result, world, told) =
        joined([(1, Ok(JoinResponse::Redirect { leader: peer(3) })), (3, Ok(admitted()))]);
    let peers = [(NodeId(1), peer(1))].into();
    assert_eq!(result, Ok(Admitted { node: NodeId(4), cluster: CLUSTER, peers, token: TOKEN }));
    assert!(told.is_empty(), "{told:?}");
    let asked = world.asked.into_inner().unwrap();
    for (_, request) in &asked {
        assert_eq!(
            (request.cluster, request.node, request.token),
            (Some(CLUSTER), Some(NodeId(4)), TokenId([5; 8]))
        );
        assert_eq!(request.secret, "06".repeat(32));
    }
}

#[test]
fn what_may_pass_is_tried_again_after_a_wait() {
    let unavailable = JoinResponse::Unavailable { message: "no leader".to_owned() };
    let (result, world, told) =
        joined([(1, Err("no answer")), (2, Ok(unavailable)), (1, Err("no answer")), (2, Ok(admitted()))]);
    assert!(result.is_ok());
    assert_eq!(told, ["1: cannot reach 1: no answer", "2: no leader", "1: cannot reach 1: no answer"]);
    assert_eq!(*world.now.lock().unwrap(), Duration::from_millis(125), "one wait");
}

#[test]
fn a_refusal_is_final() {
    let message = "token 0505050505050505 has expired".to_owned();
    let (result, world, _) = joined([(1, Ok(JoinResponse::Refused { message: message.clone() }))]);
    assert_eq!(result, Err(JoinError::Refused { reason: message }));
    assert_eq!(world.asked.into_inner().unwrap().len(), 1);
}

#[test]
fn members_that_redirect_in_a_circle_do_not_hold_the_joiner() {
    let to = |key: u8| Ok(JoinResponse::Redirect { leader: peer(key) });
    let (result, _, told) = joined([(1, to(2)), (2, to(1)), (1, to(2)), (2, to(1)), (2, Ok(admitted()))]);
    assert!(result.is_ok());
    assert_eq!(told, ["2: the members do not agree on who leads"]);
}

//! Links to other members over QUIC, by iroh: the [`Transport`] seam's production side, and the
//! only user of iroh's types.
//!
//! A member is its key; an address is only where to try. One link per member is kept up by a
//! supervisor, used by both sides and redialled when it falls. Whoever dials proves its key, so a
//! member that comes back elsewhere is known again by its first connection, and members tell
//! each other where the others are.
//!
//! Links never leave the configured addresses: nothing is looked up, multicast or port-mapped.
//! This module knows nothing of what messages mean, but for the addresses of members.

mod accept;
mod endpoint;
mod frame;
mod hello;
mod link;
mod peer;
mod serve;
mod shared;
mod starts;
mod stranger;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::copies::Twice;
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::limits::MESSAGE_BYTES_MAX;
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use self::endpoint::Listener;
pub(crate) use self::endpoint::chain;
pub use self::endpoint::{BindError, public_key};
use self::link::{CallFault, LANE_BYTES_MAX, Link};
use self::shared::Shared;
use crate::platform::{Duplex, Inbound, LinkError, RandomSource, Transport};

/// The production transport.
pub struct IrohTransport {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
}

impl IrohTransport {
    /// Listens on `bind` (UDP). Others are told to come to `advertise`, where port 0 stands for the
    /// bound one; when it is empty, to the bound address. `relay` is a relay's URL, for members
    /// that cannot reach each other. `boot` counts the starts of the data directory: with it others
    /// tell that the node runs twice.
    ///
    /// # Errors
    /// When the address cannot be bound, or the relay's URL is not one.
    pub async fn bind(
        secret_key: [u8; 32],
        boot: u64,
        bind: SocketAddr,
        advertise: Vec<SocketAddr>,
        relay: Option<&str>,
        rng: Arc<dyn RandomSource>,
    ) -> Result<Arc<Self>, BindError> {
        let listener = Listener::bind(secret_key, bind, relay).await?;
        let bound = listener.address();
        let port = bound.port();
        let named = |address: SocketAddr| {
            if address.port() == 0 { SocketAddr::new(address.ip(), port) } else { address }
        };
        let addresses =
            if advertise.is_empty() { vec![bound] } else { advertise.into_iter().map(named).collect() };
        let key = public_key(&secret_key);
        let shared = Arc::new(Shared::new(listener, key, addresses.clone(), boot, rng));
        Ok(Arc::new(Self { shared, addresses }))
    }

    /// Waits for the link to a member.
    async fn link(&self, to: NodeId, until: Instant, within: Duration) -> Result<Arc<Link>, LinkError> {
        let unreachable = |reason: String| LinkError::Unreachable { to: name(to), reason };
        let slot = self.shared.slot(to).ok_or_else(|| unreachable("it is not a known member".to_owned()))?;
        if let Some(link) = slot.link() {
            return Ok(link);
        }
        match timeout_at(until, slot.link_or_dial(&self.shared)).await {
            Ok(link) => link.map_err(unreachable),
            Err(_) => Err(unreachable(format!("no link within {within:?}"))),
        }
    }
}

#[async_trait]
impl Transport for IrohTransport {
    fn key(&self) -> NodeKey {
        self.shared.key
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, Peer>) {
        self.shared.set_peers(peers);
    }

    fn hint(&self, key: NodeKey, addresses: &[SocketAddr]) {
        self.shared.hint(key, addresses);
    }

    fn links(&self) -> BTreeMap<NodeId, crate::platform::Link> {
        self.shared.link_states()
    }

    fn heed_twice(&self, twice: BTreeMap<NodeId, Twice>) {
        self.shared.heed(twice);
    }

    fn serve(&self, handler: Arc<dyn Inbound>) {
        assert!(self.shared.handler.set(handler).is_ok(), "the transport is served once");
        self.shared.tasks.spawn(accept::accept(self.shared.clone()));
    }

    async fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        if request.len() > MESSAGE_BYTES_MAX {
            return Err(too_long(to, "message", request.len(), MESSAGE_BYTES_MAX));
        }
        let until = Instant::now() + deadline;
        let link = self.link(to, until, deadline).await?;
        match timeout_at(until, link.call(channel, request)).await {
            Ok(answer) => answer.map_err(|fault| fault_of(to, fault, deadline)),
            Err(_) => Err(LinkError::Timeout { to: name(to), within: deadline }),
        }
    }

    async fn call_stranger(&self, to: &Peer, request: Bytes, deadline: Duration) -> Result<Bytes, LinkError> {
        tokio::time::timeout(deadline, stranger::ask(&self.shared, to, request)).await.unwrap_or_else(|_| {
            Err(LinkError::Timeout { to: format!("{:?} (key {})", to.addresses, to.key), within: deadline })
        })
    }

    async fn open_stream(
        &self,
        to: NodeId,
        channel: Channel,
        header: Bytes,
        deadline: Duration,
    ) -> Result<Box<dyn Duplex>, LinkError> {
        if header.len() > LANE_BYTES_MAX {
            return Err(too_long(to, "stream's header", header.len(), LANE_BYTES_MAX));
        }
        let until = Instant::now() + deadline;
        let link = self.link(to, until, deadline).await?;
        match timeout_at(until, link.open_stream(channel, header)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(fault)) => Err(fault_of(to, fault, deadline)),
            Err(_) => Err(LinkError::Timeout { to: name(to), within: deadline }),
        }
    }

    async fn shutdown(&self) {
        self.shared.shutdown().await;
    }
}

fn fault_of(to: NodeId, fault: CallFault, within: Duration) -> LinkError {
    match fault {
        CallFault::Refused(reason) => LinkError::Refused { to: name(to), reason },
        CallFault::Ended(reason) => {
            tracing::debug!(peer.id = %to, reason, "a link ended under a message");
            LinkError::Timeout { to: name(to), within }
        }
    }
}

fn too_long(to: NodeId, what: &str, bytes: usize, bytes_max: usize) -> LinkError {
    LinkError::Refused { to: name(to), reason: format!("the {what} of {bytes} bytes exceeds {bytes_max}") }
}

fn name(node: NodeId) -> String {
    format!("node {node}")
}

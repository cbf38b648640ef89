//! One connection, from a client of this node to a container of another: bytes in both directions until
//! both have ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::id::NodeId;
use blixard_core::limits::{ROUTE_DEADLINE, ROUTED_CONNECTIONS_MAX};
use blixard_core::route::{self, Endpoint};
use blixard_core::wire::{self, Channel, RouteRequest};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};

use crate::platform::Duplex;
use crate::shared::Shared;

/// How much of each direction is held, in bytes.
const BUFFER_BYTES: usize = 16 << 10;
/// The answer that the container took the connection. Any other: it did not.
const CONNECTED: u8 = 1;
const NOT_CONNECTED: u8 = 0;

/// How many connections are led between this node and each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relays(Arc<Mutex<BTreeMap<NodeId, usize>>>);

impl Relays {
    /// Takes a place among the connections with `node`; none is left when there are
    /// [`ROUTED_CONNECTIONS_MAX`]: links have streams for more than these.
    fn enter(&self, node: NodeId) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(node).or_default();
        (*count < ROUTED_CONNECTIONS_MAX).then(|| *count += 1)?;
        Some(Place { relays: self.clone(), node })
    }
}

/// One of the connections with a node, until it is dropped.
struct Place {
    relays: Relays,
    node: NodeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.relays.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.node);
            }
        }
    }
}

/// Leads `client` to the first of `tried` that takes it. Where none does it is closed.
pub(super) async fn relay(shared: Shared, mut client: Box<dyn Duplex>, tried: Vec<Endpoint>, relays: Relays) {
    for endpoint in tried {
        let Some(place) = relays.enter(endpoint.node) else { continue };
        match shared.within(ROUTE_DEADLINE, connect(&shared, endpoint)).await {
            Some(Ok(mut stream)) => {
                // Either side may break it off; the other then sees that it ended.
                copy(&mut client, &mut stream).await.ok();
                return;
            }
            Some(Err(reason)) => {
                tracing::debug!(node.id = %endpoint.node, replica = %endpoint.replica, reason, "an endpoint did not take a connection");
            }
            None => tracing::debug!(node.id = %endpoint.node, "an endpoint did not answer in time"),
        }
        drop(place);
    }
}

async fn copy(one: &mut Box<dyn Duplex>, other: &mut Box<dyn Duplex>) -> std::io::Result<()> {
    copy_bidirectional_with_sizes(one, other, BUFFER_BYTES, BUFFER_BYTES).await.map(|_| ())
}

/// Connects to an endpoint over a link.
async fn connect(shared: &Shared, endpoint: Endpoint) -> Result<Box<dyn Duplex>, String> {
    let Endpoint { node, replica, container_port } = endpoint;
    let header = Bytes::from(wire::encode(&RouteRequest { replica, container_port }));
    let opening = shared.platform.transport.open_stream(node, Channel::Route, header, ROUTE_DEADLINE);
    let mut stream = opening.await.map_err(|error| error.to_string())?;
    match stream.read_u8().await {
        Ok(CONNECTED) => Ok(stream),
        Ok(_) => Err("its container does not take it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Leads a connection that came to member `from` to the container of this node that it is for.
pub(crate) async fn serve(
    shared: Shared,
    from: NodeId,
    header: Bytes,
    mut stream: Box<dyn Duplex>,
    relays: Relays,
) {
    let place = relays.enter(from);
    let dialled = match &place {
        Some(_) => shared.within(ROUTE_DEADLINE, dial(&shared, &header)).await,
        None => Some(Err("too many of its connections are led here".to_owned())),
    };
    match dialled.unwrap_or_else(|| Err("the container did not answer in time".to_owned())) {
        Ok(mut container) => {
            if stream.write_u8(CONNECTED).await.is_ok() {
                copy(&mut stream, &mut container).await.ok();
            }
        }
        Err(reason) => {
            tracing::debug!(peer.id = %from, reason, "a connection was not led on");
            // Whoever is gone needs no answer.
            stream.write_u8(NOT_CONNECTED).await.ok();
            stream.shutdown().await.ok();
        }
    }
}

/// Connects to the container that a request names, if it is this node's and the port is led to.
async fn dial(shared: &Shared, header: &[u8]) -> Result<Box<dyn Duplex>, String> {
    if let Some(why) = shared.digests.refusal() {
        return Err(why);
    }
    let request: RouteRequest = wire::decode(header).map_err(|error| error.to_string())?;
    let RouteRequest { replica, container_port } = request;
    let attempt = route::led_to(&shared.state(), shared.id, replica, container_port);
    let attempt = attempt.ok_or("no published port of a replica here is that one")?;
    let dialled = shared.platform.containers.dial(replica, attempt, container_port).await;
    dialled.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use blixard_core::id::NodeId;
    use blixard_core::limits::ROUTED_CONNECTIONS_MAX;

    use super::Relays;

    #[test]
    fn a_node_has_so_many_connections_with_another_and_no_more() {
        let relays = Relays::default();
        let enter = |node| relays.enter(NodeId(node));
        let mut places: Vec<_> = (0..ROUTED_CONNECTIONS_MAX).map(|_| enter(1).expect("a place")).collect();
        assert!(enter(1).is_none() && enter(2).is_some());
        places.pop();
        places.push(enter(1).expect("one was left"));
        drop(places);
        assert!(relays.0.lock().expect("nobody panicked").is_empty(), "nothing is kept of who is gone");
    }
}

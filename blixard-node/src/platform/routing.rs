//! Ports of the node that the daemon itself answers on, and connections to its containers.

use std::io;

use async_trait::async_trait;
use blixard_core::id::ReplicaId;

use super::{Duplex, RuntimeError};

/// Connections to one port of the node, as they come. Dropped, it takes no more.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection. Cancel safe.
    async fn accept(&mut self) -> io::Result<Box<dyn Duplex>>;
}

/// What leads connections from a node to containers of another.
#[async_trait]
pub trait Routing: Send + Sync + 'static {
    /// Takes connections to a TCP port on all of the node's addresses. Containers of the node may hold it,
    /// too: what is translated to them does not come here.
    ///
    /// # Errors
    /// `Unavailable` when another program has the port.
    async fn listen(&self, port: u16) -> Result<Box<dyn Listener>, RuntimeError>;

    /// Gives a port up that was listened on. The listener is dropped before; connections go on.
    async fn unlisten(&self, port: u16);

    /// Connects to a port of a container of this node, if published ports lead to it now.
    ///
    /// # Errors
    /// `NotFound` when none do; `Unavailable` when it does not take the connection.
    async fn dial(
        &self,
        replica: ReplicaId,
        attempt: u32,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError>;
}

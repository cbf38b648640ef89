//! Connections between machines: a client's, led to a container, which answers with who it is.

use std::io;

use async_trait::async_trait;
use blixard_core::agent::ObservedState;
use blixard_core::id::ReplicaId;
use blixard_node::platform::{Duplex, Listener, Routing, RuntimeError};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::{Inner, SimContainers, none};

/// As much as a connection holds, in bytes.
const BUFFER_BYTES: usize = 256;

struct Port(mpsc::UnboundedReceiver<Box<dyn Duplex>>);

#[async_trait]
impl Listener for Port {
    async fn accept(&mut self) -> io::Result<Box<dyn Duplex>> {
        match self.0.recv().await {
            Some(client) => Ok(client),
            // The port was given up, and the listener goes next.
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Routing for SimContainers {
    async fn listen(&self, port: u16) -> Result<Box<dyn Listener>, RuntimeError> {
        self.take(1).await;
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().listening.insert(port, sender);
        Ok(Box::new(Port(receiver)))
    }

    async fn unlisten(&self, port: u16) {
        self.lock().listening.remove(&port);
    }

    async fn dial(
        &self,
        replica: ReplicaId,
        attempt: u32,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        self.take(1).await;
        let answers = self.lock().answers(replica, attempt, port);
        let (mut container, near) = tokio::io::duplex(BUFFER_BYTES);
        if !answers {
            return Err(none(replica, attempt));
        }
        container
            .write_all(&replica.0.to_be_bytes())
            .await
            .map_err(|error| RuntimeError::Unavailable(error.to_string()))?;
        Ok(Box::new(near))
    }
}

impl Inner {
    /// Whether published ports lead to a container that runs and has this port.
    fn answers(&self, replica: ReplicaId, attempt: u32, port: u16) -> bool {
        let key = (replica, attempt);
        self.published.contains(&key)
            && self.containers.get(&key).is_some_and(|container| {
                container.state == ObservedState::Running
                    && container.spec.ports.iter().any(|known| known.container_port == port)
            })
    }
}

impl SimContainers {
    /// Connects to a port of the machine as a client does: the replica that the kernel translates to,
    /// else the stream that the daemon took. None when the connection is refused.
    pub(crate) fn connect(&self, port: u16) -> Option<Result<ReplicaId, Box<dyn Duplex>>> {
        let inner = self.lock();
        let has = |key: &&(ReplicaId, u32)| {
            let published = inner.containers.get(*key).map(|container| &container.spec.ports);
            published.is_some_and(|ports| ports.iter().any(|known| known.host_port == Some(port)))
        };
        if let Some((replica, _)) = inner.published.iter().find(has) {
            return Some(Ok(*replica));
        }
        let (client, taken) = tokio::io::duplex(BUFFER_BYTES);
        inner.listening.get(&port)?.send(Box::new(taken)).ok()?;
        Some(Err(Box::new(client)))
    }
}

//! Connections that are led between nodes: taken on ports of this one, and made to its containers.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::ReplicaId;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::net::{TcpListener, TcpStream};

use super::ContainerdRuntime;
use crate::platform::{Duplex, Listener, Routing, RuntimeError};

/// How long a connection may be silent before it is looked whether the other side is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

#[async_trait]
impl Routing for ContainerdRuntime {
    async fn listen(&self, port: u16) -> Result<Box<dyn Listener>, RuntimeError> {
        let listener = self.attached()?.networks.listen(port).await?;
        let listener = TcpListener::from_std(listener);
        let listener = listener
            .map_err(|error| RuntimeError::Unavailable(format!("cannot listen on port {port}: {error}")))?;
        Ok(Box::new(Port(listener)))
    }

    async fn unlisten(&self, port: u16) {
        let Ok(containers) = self.attached() else { return };
        if let Err(error) = containers.networks.unlisten(port).await {
            tracing::warn!(port, err = %error, "a port that is not led on any more is still open to containers");
        }
    }

    async fn dial(
        &self,
        replica: ReplicaId,
        attempt: u32,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        let containers = self.attached()?;
        let id = containers.id(replica, attempt);
        let address = containers.networks.published_address_of(&id).await.ok_or_else(|| {
            RuntimeError::NotFound(format!("no published port leads to container {}", id.short()))
        })?;
        let failed = |error: io::Error| {
            RuntimeError::Unavailable(format!("container {} does not take it: {error}", id.short()))
        };
        let stream = TcpStream::connect((address, port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Box::new(stream))
    }
}

struct Port(TcpListener);

#[async_trait]
impl Listener for Port {
    async fn accept(&mut self) -> io::Result<Box<dyn Duplex>> {
        let (stream, _) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        // A client that is gone without a word frees its place.
        set_socket_keepalive(&stream, true)?;
        set_tcp_keepidle(&stream, KEEP_ALIVE)?;
        Ok(Box::new(stream))
    }
}

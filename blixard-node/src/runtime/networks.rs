//! What the runtime asks of the container network: a namespace to run in, made before the
//! container and removed after it.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::id::{ClusterId, ContainerId, NodeId};
use blixard_core::spec::{PortSpec, Protocol};
use tokio::sync::OnceCell;

use crate::network::{ContainerNetwork, Lease, NetworkError};
use crate::platform::RuntimeError;

/// A container's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkLease {
    /// Its network namespace, as a path to join it by.
    pub netns_path: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A container's place in the network, which is being made.
pub struct NetworkOpening<'a> {
    /// Its place; the namespace is there.
    pub lease: NetworkLease,
    /// Connects it: links and addresses. Its ports are published by [`Networks::publish`].
    pub connect: Pin<Box<dyn Future<Output = Result<(), RuntimeError>> + Send + 'a>>,
}

/// The networks of one node's containers. Every method may be called again after an unknown
/// outcome: what is already so is success, but for a namespace, which is made anew.
#[async_trait]
pub trait Networks: Send + Sync + 'static {
    /// Says whose containers these are and which /24 they get addresses from. Called before any
    /// other method.
    async fn attach(&self, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError>;
    /// Makes the namespace of a container that does not run yet, and takes an address and its ports
    /// for it. The container may be created in it at once, and started once it is connected.
    async fn create<'a>(
        &'a self,
        id: &ContainerId,
        ports: &[PortSpec],
    ) -> Result<NetworkOpening<'a>, RuntimeError>;
    /// Makes the published ports lead to these containers alone, and lets containers reach these ports
    /// of the node itself.
    async fn publish(
        &self,
        containers: BTreeSet<ContainerId>,
        served: BTreeSet<(Protocol, u16)>,
    ) -> Result<(), RuntimeError>;
    /// Takes a container out of the published ports; its connections go on.
    async fn withdraw(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// How many connections to a container's published ports are open, but for those silent for `idle`.
    async fn connections(&self, id: &ContainerId, idle: Duration) -> Result<usize, RuntimeError>;
    /// The address of a container that published ports lead to now.
    async fn published_address_of(&self, id: &ContainerId) -> Option<Ipv4Addr>;
    /// Takes connections to a TCP port of the node that are not translated to a container.
    async fn listen(&self, port: u16) -> Result<std::net::TcpListener, RuntimeError>;
    /// Takes no more of them.
    async fn unlisten(&self, port: u16) -> Result<(), RuntimeError>;
    /// Removes all of a container's, also when it was never connected.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// A container's address, when it has one.
    async fn address_of(&self, id: &ContainerId) -> Option<Ipv4Addr>;
    /// The containers that have a namespace here.
    async fn list(&self) -> Vec<ContainerId>;
    /// Removes everything of this node's from the machine.
    async fn purge(&self) -> Result<(), RuntimeError>;
}

/// The node's bridge, opened when the node knows its subnet.
#[derive(Debug)]
pub struct Bridge {
    directory: PathBuf,
    network: OnceCell<Arc<ContainerNetwork>>,
}

impl Bridge {
    /// A bridge that keeps leases and namespaces in `directory`, which should not survive a reboot.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, network: OnceCell::new() }
    }

    fn open(&self) -> Result<&ContainerNetwork, RuntimeError> {
        let network = self.network.get().map(Arc::as_ref);
        network.ok_or_else(|| RuntimeError::Unavailable("the container network is not open yet".to_owned()))
    }
}

#[async_trait]
impl Networks for Bridge {
    async fn attach(&self, cluster: ClusterId, node: NodeId, subnet: Ipv4Addr) -> Result<(), RuntimeError> {
        let open = async || {
            let network = Arc::new(ContainerNetwork::open(&self.directory, cluster, node, subnet).await?);
            let (kept, looked_at) = (network.clone(), network.clone());
            // Both end with the process, or when the network is purged.
            tokio::spawn(async move { looked_at.keep_ways().await });
            tokio::spawn(async move {
                if let Err(error) = kept.keep_rules().await {
                    tracing::warn!(err = %error, "port rules that another program deletes stay away");
                }
            });
            Ok(network)
        };
        self.network.get_or_try_init(open).await.map(|_| ()).map_err(|error| failed(&error))
    }

    async fn create<'a>(
        &'a self,
        id: &ContainerId,
        ports: &[PortSpec],
    ) -> Result<NetworkOpening<'a>, RuntimeError> {
        let opening = self.open()?.create(id, ports).await.map_err(|error| failed(&error))?;
        let Lease { netns_path, address, .. } = opening.lease().clone();
        let connect = async { opening.connect().await.map(|_| ()).map_err(|error| failed(&error)) };
        Ok(NetworkOpening { lease: NetworkLease { netns_path, address }, connect: Box::pin(connect) })
    }

    async fn publish(
        &self,
        containers: BTreeSet<ContainerId>,
        served: BTreeSet<(Protocol, u16)>,
    ) -> Result<(), RuntimeError> {
        self.open()?.publish(containers, served).await.map_err(|error| failed(&error))
    }

    async fn withdraw(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.open()?.withdraw(id).await.map_err(|error| failed(&error))
    }

    async fn connections(&self, id: &ContainerId, idle: Duration) -> Result<usize, RuntimeError> {
        self.open()?.connections(id, idle).await.map_err(|error| failed(&error))
    }

    async fn published_address_of(&self, id: &ContainerId) -> Option<Ipv4Addr> {
        self.network.get()?.published_address_of(id).await
    }

    async fn listen(&self, port: u16) -> Result<std::net::TcpListener, RuntimeError> {
        self.open()?.listen(port).await.map_err(|error| failed(&error))
    }

    async fn unlisten(&self, port: u16) -> Result<(), RuntimeError> {
        self.open()?.unlisten(port).await.map_err(|error| failed(&error))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.open()?.remove(id).await.map_err(|error| failed(&error))
    }

    async fn address_of(&self, id: &ContainerId) -> Option<Ipv4Addr> {
        self.network.get()?.address_of(id).await
    }

    async fn list(&self) -> Vec<ContainerId> {
        match self.network.get() {
            Some(network) => network.list().await,
            None => Vec::new(),
        }
    }

    async fn purge(&self) -> Result<(), RuntimeError> {
        self.open()?.purge().await.map_err(|error| failed(&error))
    }
}

/// Every fault of the network may pass: a port is given up, an address comes free.
fn failed(error: &NetworkError) -> RuntimeError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    RuntimeError::Unavailable(text)
}

/// No container network: only services on the host's network run.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOnly;

#[async_trait]
impl Networks for HostOnly {
    async fn attach(&self, _: ClusterId, _: NodeId, _: Ipv4Addr) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn create<'a>(
        &'a self,
        _: &ContainerId,
        _: &[PortSpec],
    ) -> Result<NetworkOpening<'a>, RuntimeError> {
        Err(RuntimeError::Invalid("this node has no container network: use `network: host`".to_owned()))
    }

    async fn publish(
        &self,
        _: BTreeSet<ContainerId>,
        _: BTreeSet<(Protocol, u16)>,
    ) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn withdraw(&self, _: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn connections(&self, _: &ContainerId, _: Duration) -> Result<usize, RuntimeError> {
        Ok(0)
    }

    async fn published_address_of(&self, _: &ContainerId) -> Option<Ipv4Addr> {
        None
    }

    async fn listen(&self, _: u16) -> Result<std::net::TcpListener, RuntimeError> {
        Err(RuntimeError::Unavailable("this node has no container network".to_owned()))
    }

    async fn unlisten(&self, _: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn remove(&self, _: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn address_of(&self, _: &ContainerId) -> Option<Ipv4Addr> {
        None
    }

    async fn list(&self) -> Vec<ContainerId> {
        Vec::new()
    }

    async fn purge(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}

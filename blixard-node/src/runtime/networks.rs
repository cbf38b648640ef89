//! What the runtime asks of the container network: a namespace to run in, made before the
//! container and removed after it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use blixard_core::id::ContainerId;
use blixard_core::spec::PortSpec;

use crate::platform::RuntimeError;

/// A container's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkLease {
    /// Its network namespace, as a path to join it by.
    pub netns_path: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The networks of one node's containers. Every method may be called again after an unknown
/// outcome: what is already so is success.
#[async_trait]
pub trait Networks: Send + Sync + 'static {
    /// Says which /24 the containers get addresses from. Called before any other method.
    async fn attach(&self, subnet: Ipv4Addr) -> Result<(), RuntimeError>;
    /// Makes a container's namespace, address and published ports.
    async fn create(&self, id: &ContainerId, ports: &[PortSpec]) -> Result<NetworkLease, RuntimeError>;
    /// Removes all of a container's.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// A container's address, when it has one.
    fn address_of(&self, id: &ContainerId) -> Option<Ipv4Addr>;
    /// The containers that have a namespace here.
    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError>;
    /// Removes everything of this node's from the machine.
    async fn purge(&self) -> Result<(), RuntimeError>;
}

/// No container network: only services on the host's network run.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOnly;

#[async_trait]
impl Networks for HostOnly {
    async fn attach(&self, _subnet: Ipv4Addr) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn create(&self, _id: &ContainerId, _ports: &[PortSpec]) -> Result<NetworkLease, RuntimeError> {
        Err(RuntimeError::Invalid("this node has no container network: use `network: host`".to_owned()))
    }

    async fn remove(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn address_of(&self, _id: &ContainerId) -> Option<Ipv4Addr> {
        None
    }

    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn purge(&self) -> Result<(), RuntimeError> {
        Ok(())
    }
}

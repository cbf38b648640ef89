//! A platform without containers, for Raft alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::agent::{Observed, ObservedState, Ready};
use blixard_core::id::{ClusterId, NodeId, ReplicaId};
use blixard_node::platform::{
    ContainerConfig, ContainerInfo, ContainerRuntime, Duplex, ExecConfig, ExecSession, ImageInfo,
    ImportedImages, Listener, LogLine, LogQuery, OnProgress, Routing, RuntimeError, RuntimeEvent, Started,
    VolumeStore,
};
use futures_util::Stream;
use tokio::io::AsyncRead;

/// No containers: Raft asks for none.
pub(crate) struct NoContainers;

/// A store that keeps no volumes.
pub(crate) struct NoVolumes;

impl VolumeStore for NoVolumes {}

#[async_trait]
impl Routing for NoContainers {
    async fn listen(&self, _: u16) -> Result<Box<dyn Listener>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn unlisten(&self, _: u16) {
        unreachable!("Raft runs no containers")
    }

    async fn dial(&self, _: ReplicaId, _: u32, _: u16) -> Result<Box<dyn Duplex>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }
}

#[async_trait]
impl ContainerRuntime for NoContainers {
    async fn attach(&self, _: ClusterId, _: NodeId, _: Ipv4Addr) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = RuntimeEvent> + Send>> {
        unreachable!("Raft runs no containers")
    }

    async fn start(&self, _: &ContainerConfig) -> Result<Started, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn state(&self, _: ReplicaId, _: u32) -> Result<ObservedState, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn remove(&self, _: ReplicaId, _: u32, _: Duration) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn publish(&self, _: &Ready) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn probe(&self, _: SocketAddr, _: &str, _: Duration) -> Result<(), String> {
        unreachable!("Raft runs no containers")
    }

    async fn inspect(&self, _: ReplicaId, _: u32) -> Result<ContainerInfo, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn logs(
        &self,
        _: ReplicaId,
        _: u32,
        _: LogQuery,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<LogLine, RuntimeError>> + Send>>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn exec(&self, _: ReplicaId, _: u32, _: &ExecConfig) -> Result<Box<dyn ExecSession>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn image(&self, _: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Ok(None)
    }

    async fn resolve(&self, _: &str) -> Result<String, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn has_image(&self, _: &str, _: Option<&str>) -> Result<bool, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn pull(&self, _: &str, _: Option<&str>, _: OnProgress) -> Result<String, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn import(
        &self,
        _: Pin<Box<dyn AsyncRead + Send>>,
        _: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn export(&self, _: &str, _: Option<&str>) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        unreachable!("Raft runs no containers")
    }

    async fn remove_images(&self, _: &[String]) -> Result<u64, RuntimeError> {
        unreachable!("nothing is run here")
    }

    async fn disk_usage(&self) -> Result<blixard_node::platform::DiskUsage, RuntimeError> {
        unreachable!("nothing is run here")
    }

    async fn purge(&self, _: bool) -> Result<(), RuntimeError> {
        unreachable!("Raft runs no containers")
    }
}

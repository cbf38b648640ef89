//! Images between members: what one has, another need not pull.

use async_trait::async_trait;
use blixard_core::cluster::NodeStatus;
use blixard_core::id::NodeId;
use blixard_core::limits;
use blixard_core::wire::{self, Channel, ImageRequest};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::drivers::agent::ImageSource;
use crate::handle::Shared;
use crate::platform::{ContainerRuntime, Duplex, RuntimeError};

/// Asks `peer` for an image and takes it in.
///
/// # Errors
/// When the peer cannot be reached, does not have it, or its archive is refused here.
pub(crate) async fn fetch_from(
    shared: &Shared,
    peer: NodeId,
    wanted: &ImageRequest,
) -> Result<(), RuntimeError> {
    let containers: &dyn ContainerRuntime = &*shared.platform.containers;
    if containers.has_image(&wanted.reference, wanted.digest.as_deref()).await? {
        return Ok(());
    }
    let stream = open(shared, peer, wanted).await.map_err(RuntimeError::Unavailable)?;
    let stream = stream.ok_or_else(|| {
        RuntimeError::NotFound(format!("node {peer} does not have the image {}", wanted.reference))
    })?;
    containers.import(Box::pin(stream)).await?;
    Ok(())
}

/// Opens the archive of an image at `peer`; `None` when it has none.
async fn open(shared: &Shared, peer: NodeId, wanted: &ImageRequest) -> Result<Option<Box<dyn Duplex>>, String> {
    let header = Bytes::from(wire::encode(wanted));
    let opened =
        shared.platform.transport.open_stream(peer, Channel::Image, header, limits::WRITE_DEADLINE).await;
    let mut stream = opened.map_err(|error| error.to_string())?;
    let first = shared.within(limits::WRITE_DEADLINE, stream.read_u8()).await;
    match first {
        Some(Ok(1)) => Ok(Some(stream)),
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("node {peer} did not answer in time")),
    }
}

/// The members as a source of images for the agent.
pub(crate) struct Members(pub(crate) Shared);

#[async_trait]
impl ImageSource for Members {
    async fn fetch(&self, reference: &str, digest: Option<&str>) -> Result<bool, RuntimeError> {
        let wanted = ImageRequest { reference: reference.to_owned(), digest: digest.map(str::to_owned) };
        let state = self.0.state();
        let mut trouble = None;
        for (id, node) in &state.nodes {
            if *id == self.0.id || node.status != NodeStatus::Up {
                continue;
            }
            match fetch_from(&self.0, *id, &wanted).await {
                Ok(()) => return Ok(true),
                Err(RuntimeError::NotFound(_)) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(false), Err)
    }
}

//! Images between members: what one has, another need not pull.

use std::pin::Pin;

use async_trait::async_trait;
use blixard_core::cluster::NodeStatus;
use blixard_core::id::NodeId;
use blixard_core::limits;
use blixard_core::wire::{self, Channel, ImageRequest};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::drivers::agent::ImageSource;
use crate::platform::{Duplex, LinkError};
use crate::shared::Shared;

/// Opens the archive of an image at `peer`; `None` when it has none.
async fn open(
    shared: &Shared,
    peer: NodeId,
    wanted: &ImageRequest,
) -> Result<Option<Box<dyn Duplex>>, LinkError> {
    let header = Bytes::from(wire::encode(wanted));
    let opening = shared.platform.transport.open_stream(peer, Channel::Image, header, limits::WRITE_DEADLINE);
    let mut stream = opening.await?;
    let to = format!("node {peer}");
    match shared.within(limits::WRITE_DEADLINE, stream.read_u8()).await {
        Some(Ok(1)) => Ok(Some(stream)),
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(LinkError::Unreachable { to, reason: error.to_string() }),
        None => Err(LinkError::Timeout { to, within: limits::WRITE_DEADLINE }),
    }
}

/// The members as a source of images for the agent.
pub(crate) struct Members(pub(crate) Shared);

#[async_trait]
impl ImageSource for Members {
    async fn fetch(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<Option<Pin<Box<dyn AsyncRead + Send>>>, LinkError> {
        let wanted = ImageRequest { reference: reference.to_owned(), digest: digest.map(str::to_owned) };
        let state = self.0.state();
        let others = state.nodes.iter().filter(|(id, _)| **id != self.0.id);
        let mut trouble = None;
        for (id, _) in others.filter(|(_, node)| node.status == NodeStatus::Up) {
            match open(&self.0, *id, &wanted).await {
                Ok(Some(stream)) => return Ok(Some(Box::pin(stream))),
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }
}

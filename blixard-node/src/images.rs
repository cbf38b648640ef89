//! Images between members: what one has, another need not pull.

use std::pin::{Pin, pin};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::cluster::NodeStatus;
use blixard_core::id::NodeId;
use blixard_core::wire::{self, Channel, ImageRequest};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::drivers::agent::ImageSource;
use crate::platform::{Duplex, LinkError};
use crate::shared::Shared;

/// How many members are asked at a time. Each that has the image begins to send it.
const ASKED_MAX: usize = 4;

/// Opens the archive of an image at `peer`; `None` when it has none.
async fn open(
    shared: &Shared,
    peer: NodeId,
    wanted: &ImageRequest,
    within: Duration,
) -> Result<Option<Box<dyn Duplex>>, LinkError> {
    let header = Bytes::from(wire::encode(wanted));
    let opening = shared.platform.transport.open_stream(peer, Channel::Image, header, within);
    let mut stream = opening.await?;
    let to = format!("node {peer}");
    match shared.within(within, stream.read_u8()).await {
        Some(Ok(1)) => Ok(Some(stream)),
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(LinkError::Unreachable { to, reason: error.to_string() }),
        None => Err(LinkError::Timeout { to, within }),
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
        within: Duration,
    ) -> Result<Option<Pin<Box<dyn AsyncRead + Send>>>, LinkError> {
        let wanted = ImageRequest { reference: reference.to_owned(), digest: digest.map(str::to_owned) };
        let state = self.0.state();
        let others = state.nodes.iter().filter(|(id, _)| **id != self.0.id);
        let up: Vec<_> =
            others.filter(|(_, node)| node.status == NodeStatus::Up).map(|(id, _)| *id).collect();
        let found = first_found(up.into_iter().map(|id| open(&self.0, id, &wanted, within))).await?;
        Ok(found.map(|stream| Box::pin(stream) as _))
    }
}

/// The first thing found by any of `asked`, a few of which go on at a time: one that hangs holds up
/// nobody else.
///
/// # Errors
/// The last, when nothing is found and some could not tell.
async fn first_found<T>(
    asked: impl Iterator<Item = impl Future<Output = Result<Option<T>, LinkError>>>,
) -> Result<Option<T>, LinkError> {
    let mut answers = pin!(stream::iter(asked).buffer_unordered(ASKED_MAX));
    let mut trouble = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(error) => trouble = Some(error),
        }
    }
    trouble.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, pending, ready};

    use super::{ASKED_MAX, first_found};
    use crate::platform::LinkError;

    type Asked = BoxFuture<'static, Result<Option<u8>, LinkError>>;

    #[test]
    fn members_that_hang_or_fail_hold_up_nobody_who_has_the_image() {
        let error = LinkError::Timeout { to: "node 2".to_owned(), within: std::time::Duration::ZERO };
        let none = || -> Asked { ready(Ok(None)).boxed() };
        let fails = || -> Asked { ready(Err(error.clone())).boxed() };
        let has = || -> Asked { ready(Ok(Some(7))).boxed() };
        let check = |asked: Vec<Asked>, expect: Option<Result<Option<u8>, LinkError>>| {
            let found = first_found(asked.into_iter()).now_or_never();
            assert_eq!(format!("{found:?}"), format!("{expect:?}"));
        };
        check(vec![pending().boxed(), fails(), none(), has()], Some(Ok(Some(7))));
        check(vec![none(), fails(), none()], Some(Err(error.clone())));
        check(vec![none(), none()], Some(Ok(None)));
        check(vec![], Some(Ok(None)));
        check((0..3 * ASKED_MAX).map(|_| none()).chain([has()]).collect(), Some(Ok(Some(7))));
        check((0..ASKED_MAX).map(|_| pending().boxed()).chain([has()]).collect(), None);
    }
}

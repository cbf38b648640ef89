//! What a member sends, handed to whoever serves it.

use std::sync::Arc;

use blixard_core::limits::MESSAGE_BYTES_MAX;
use blixard_core::wire::Channel;
use bytes::Bytes;
use iroh::endpoint::{RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};

use super::frame::{Frame, Status, StreamKind};
use super::link::{LANE_BYTES_MAX, LANE_QUEUE, Link, write_lane};
use super::shared::Shared;
use super::stream::{FrameReader, LinkStream, ReadFault, read_frame, write_frame};
use super::tasks::Tasks;
use crate::platform::Inbound;

/// Calls of one lane handled at once; further ones wait in the stream, and so slow their sender.
const HANDLED_MAX: usize = 256;

/// Who answers.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) handler: Arc<dyn Inbound>,
    pub(super) shared: Arc<Shared>,
}

impl Serving {
    async fn answer(&self, link: &Link, channel: Channel, request: Bytes) -> (Status, Bytes) {
        let answer = if channel == Channel::Addresses {
            self.shared.told_addresses(&request).map(|()| Bytes::new())
        } else {
            self.handler.call(link.node, channel, request).await
        };
        match answer {
            Ok(answer) if answer.len() > MESSAGE_BYTES_MAX => {
                let reason = format!("the answer of {} bytes exceeds {MESSAGE_BYTES_MAX}", answer.len());
                (Status::Refused, reason.into())
            }
            Ok(answer) => (Status::Answered, answer),
            Err(reason) => (Status::Refused, reason.into()),
        }
    }
}

/// Serves every stream of a link until it ends.
pub(super) async fn streams(link: Arc<Link>, serving: Serving, tasks: Tasks) {
    while let Ok((send, recv)) = link.connection().accept_bi().await {
        let (link, serving, on) = (link.clone(), serving.clone(), tasks.clone());
        tasks.spawn(async move {
            if let Err(ReadFault::Malformed(what)) = stream(&link, &serving, &on, send, recv).await {
                link.malformed(&what);
            }
        });
    }
}

async fn stream(
    link: &Arc<Link>,
    serving: &Serving,
    tasks: &Tasks,
    send: SendStream,
    mut recv: RecvStream,
) -> Result<(), ReadFault> {
    let mut kind = [0];
    recv.read_exact(&mut kind).await.map_err(std::io::Error::other)?;
    match StreamKind::from_byte(kind[0]) {
        Some(StreamKind::Lane) => lane(link, serving, tasks, send, recv).await,
        Some(StreamKind::Call) => large_call(link, serving, send, recv).await,
        Some(StreamKind::Stream) => {
            let frame = read_frame(&mut recv, LANE_BYTES_MAX).await?;
            let channel = channel(frame.tag)?;
            let stream = LinkStream { send, recv, _busy: link.busy() };
            serving.handler.stream(link.node, channel, frame.payload, Box::new(stream)).await;
            Ok(())
        }
        Some(StreamKind::Hello) => Err(ReadFault::Malformed("a second hello".to_owned())),
        None => Err(ReadFault::Malformed(format!("a stream of kind {}", kind[0]))),
    }
}

async fn lane(
    link: &Arc<Link>,
    serving: &Serving,
    tasks: &Tasks,
    send: SendStream,
    recv: RecvStream,
) -> Result<(), ReadFault> {
    let (answers, queue) = mpsc::channel(LANE_QUEUE);
    tasks.spawn(write_lane(send, None, queue));
    let room = Arc::new(Semaphore::new(HANDLED_MAX));
    let mut reader = FrameReader::new(recv, LANE_BYTES_MAX);
    while let Some(frame) = reader.next().await? {
        let channel = channel(frame.tag)?;
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        let (link, serving, answers) = (link.clone(), serving.clone(), answers.clone());
        tasks.spawn(async move {
            let (status, payload) = serving.answer(&link, channel, frame.payload).await;
            let answer = Frame { id: frame.id, tag: status as u8, payload };
            if answer.payload.len() <= LANE_BYTES_MAX {
                // When the lane has ended, so has whoever asked.
                let _ended = answers.send(answer).await;
            } else {
                let _ended = large_answer(&link, answer).await;
            }
            drop(permit);
        });
    }
    Ok(())
}

async fn large_answer(link: &Link, answer: Frame) -> Result<(), std::io::Error> {
    let mut send = link.connection().open_uni().await?;
    write_frame(&mut send, &[], answer).await?;
    let _already_closed = send.finish();
    Ok(())
}

async fn large_call(
    link: &Link,
    serving: &Serving,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), ReadFault> {
    let frame = read_frame(&mut recv, MESSAGE_BYTES_MAX).await?;
    let (status, payload) = serving.answer(link, channel(frame.tag)?, frame.payload).await;
    write_frame(&mut send, &[], Frame { id: 0, tag: status as u8, payload })
        .await
        .map_err(std::io::Error::other)?;
    let _already_closed = send.finish();
    Ok(())
}

fn channel(tag: u8) -> Result<Channel, ReadFault> {
    Channel::from_byte(tag).ok_or_else(|| ReadFault::Malformed(format!("channel {tag}")))
}

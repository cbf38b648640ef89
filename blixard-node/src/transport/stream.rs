//! Reading and writing frames on QUIC streams, and what a stream of raw bytes looks like to its
//! users.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use iroh::endpoint::{RecvStream, SendStream, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::frame::{Frame, FrameError, HEADER_BYTES};
use super::link::Busy;

/// How much is read at once, and how far a buffer grows ahead of what has arrived.
const READ_BYTES: usize = 64 << 10;
/// Payloads up to this size are copied behind their header, so that one write carries both.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Why a frame did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    /// The stream or its connection ended.
    #[error("the stream ended: {0}")]
    Ended(#[from] io::Error),
    /// What arrived is not of this protocol: the connection is to be closed.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl From<FrameError> for ReadFault {
    fn from(error: FrameError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Appends a frame to what one write will carry.
pub(super) fn push_frame(chunks: &mut Vec<Bytes>, scratch: &mut BytesMut, frame: Frame) {
    frame.encode_header(scratch);
    if frame.payload.len() <= COPY_BYTES_MAX {
        scratch.extend_from_slice(&frame.payload);
    } else {
        chunks.push(scratch.split().freeze());
        chunks.push(frame.payload);
    }
}

/// Writes `prefix` and one frame. Not cancel safe: a frame cut short makes the stream useless.
pub(super) async fn write_frame(
    send: &mut SendStream,
    prefix: &[u8],
    frame: Frame,
) -> Result<(), WriteError> {
    let mut scratch = BytesMut::with_capacity(prefix.len() + HEADER_BYTES + COPY_BYTES_MAX);
    scratch.extend_from_slice(prefix);
    let mut chunks = Vec::with_capacity(3);
    push_frame(&mut chunks, &mut scratch, frame);
    chunks.push(scratch.freeze());
    send.write_all_chunks(&mut chunks).await
}

/// Reads one frame and not a byte more. Not cancel safe.
pub(super) async fn read_frame(recv: &mut RecvStream, bytes_max: usize) -> Result<Frame, ReadFault> {
    let mut header = BytesMut::zeroed(HEADER_BYTES);
    recv.read_exact(&mut header).await.map_err(io::Error::other)?;
    let length = usize::try_from((&header[..]).get_u32()).unwrap_or(usize::MAX);
    let mut bytes = header;
    loop {
        if let Some(frame) = Frame::decode(&mut bytes, bytes_max)? {
            return Ok(frame);
        }
        let missing = HEADER_BYTES + length - bytes.len();
        bytes.reserve(missing.min(READ_BYTES));
        let mut rest = AsyncReadExt::take(&mut *recv, u64::try_from(missing).unwrap_or(u64::MAX));
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Reads a stream of frames.
pub(super) struct FrameReader {
    recv: RecvStream,
    bytes: BytesMut,
    bytes_max: usize,
}

impl FrameReader {
    pub(super) fn new(recv: RecvStream, bytes_max: usize) -> Self {
        Self { recv, bytes: BytesMut::new(), bytes_max }
    }

    /// The next frame; none at the stream's proper end.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ReadFault> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.bytes, self.bytes_max)? {
                return Ok(Some(frame));
            }
            self.bytes.reserve(READ_BYTES / 4);
            if self.recv.read_buf(&mut self.bytes).await? == 0 {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }
}

/// Both directions of a QUIC stream as one. Dropping it ends both; while it lives, its link stays.
pub(super) struct LinkStream {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) _busy: Arc<Busy>,
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), context, into)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), context)
    }
}

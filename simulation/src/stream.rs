//! A simulated stream of bytes between two machines: it breaks when they are cut off.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::net::Net;

/// One end of a stream.
pub(crate) struct SimStream {
    bytes: DuplexStream,
    net: Net,
    own: u64,
    peer: u64,
}

impl SimStream {
    /// The end at machine `own` of a stream to machine `peer`.
    pub(crate) fn new(bytes: DuplexStream, net: Net, own: u64, peer: u64) -> Self {
        Self { bytes, net, own, peer }
    }

    fn check(&self) -> io::Result<()> {
        if self.net.reaches(self.own, self.peer) && self.net.reaches(self.peer, self.own) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "the link fell"))
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut self.bytes).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            self.net.record("stream bytes", self.peer, &bytes[..*count]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }
}

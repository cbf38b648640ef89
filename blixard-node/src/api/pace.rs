//! The pace that a client must keep: [`Paced`] bounds how long its stream takes nothing, and
//! [`PacedBody`] how long a request's body takes to come.
//!
//! Only time that is spent waiting for the client counts, and each [`STEP_BYTES`] that come or go begin
//! a new allowance: a slow network is within it, a byte a second is not.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::{Place, Standing};

/// How much is to come or go within one allowance, in bytes.
const STEP_BYTES: usize = 16 << 10;

/// The time a client has for its next [`STEP_BYTES`].
struct Allowance {
    whole: Duration,
    left: Duration,
    bytes: usize,
    /// Since when it is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Allowance {
    fn new(whole: Duration) -> Self {
        Self { whole, left: whole, bytes: 0, waiting: None }
    }

    /// The client is waited for: ready when it has used up its time.
    fn poll_spent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, sleep) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(now + left)))
        });
        sleep.as_mut().poll(context)
    }

    /// The client gave or took `bytes`.
    fn moved(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        self.bytes += bytes;
        if self.bytes >= STEP_BYTES {
            self.bytes = 0;
            self.left = self.whole;
        }
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client is too slow")
}

/// A client's stream, which holds its place and ends when the client takes nothing of an answer.
pub(super) struct Paced<S> {
    stream: S,
    writing: Option<Allowance>,
    standing: Standing,
    _place: Place,
}

impl<S> Paced<S> {
    /// With `allowance`, the client must take what is written; sessions are free of it.
    pub(super) fn new(stream: S, allowance: Option<Duration>, standing: Standing, place: Place) -> Self {
        Self { stream, writing: allowance.map(Allowance::new), standing, _place: place }
    }

    fn poll_paced<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let Some(allowance) = self.writing.as_mut().filter(|_| !self.standing.is_session()) else {
            return polled;
        };
        match polled {
            Poll::Ready(Ok(done)) => {
                allowance.moved(bytes(&done));
                Poll::Ready(Ok(done))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(allowance.poll_spent(context));
                Poll::Ready(Err(too_slow()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.poll_paced(context, polled, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.poll_paced(context, polled, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.poll_paced(context, polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.poll_paced(context, polled, |()| 0)
    }
}

/// A request's body, which fails when the client sends it too slowly.
pub(super) struct PacedBody<B> {
    body: B,
    allowance: Allowance,
}

impl<B> PacedBody<B> {
    pub(super) fn new(body: B, allowance: Duration) -> Self {
        Self { body, allowance: Allowance::new(allowance) }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for PacedBody<B> {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let bytes = match &frame {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                    _ => 0,
                };
                self.allowance.moved(bytes);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.allowance.poll_spent(context));
                Poll::Ready(Some(Err(too_slow().into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::sleep;

    use super::super::connections::Connections;
    use super::{Paced, STEP_BYTES};

    const ALLOWANCE: Duration = Duration::from_secs(30);

    /// What comes of writing 1 MiB to a client that takes `bytes` each second.
    async fn write_to(bytes: usize, session: bool) -> std::io::Result<()> {
        let (ours, mut client) = duplex(1024);
        let taken = Connections::new(1).take().expect("a place is free");
        if session {
            taken.standing.become_session();
        }
        let mut paced = Paced::new(ours, Some(ALLOWANCE), taken.standing, taken.place);
        let reading = async move {
            let mut buffer = vec![0; bytes];
            while client.read_exact(&mut buffer).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let writing = async move { paced.write_all(&vec![0; 1 << 20]).await };
        tokio::join!(reading, writing).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_byte_a_second_is_cut_off_and_a_slow_one_is_not() {
        let cut = write_to(1, false).await.expect_err("a byte a second is too slow");
        assert_eq!(cut.kind(), std::io::ErrorKind::TimedOut);
        write_to(2 * STEP_BYTES / 30, false).await.expect("twice the pace is enough");
        write_to(64, true).await.expect("a session has no pace");
    }
}

//! Accepts connections of a listener and serves each within its bounds.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use blixard_core::limits;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::connections::{Connections, Place, Standing, Taken};
use super::pace::{Paced, PacedBody};
use super::socket_user::SocketUser;
use super::tls::Tls;

/// How long open requests have to finish once the node shuts down.
const GRACE: Duration = Duration::from_secs(1);
/// How long a listener rests that cannot accept for want of descriptors or memory.
const REST: Duration = Duration::from_millis(100);
/// After how long a silence of a client's machine the kernel asks whether it is still there; after as long
/// again without an answer it is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How much of an answer waits in the kernel that is not on its way yet, in bytes. Without it a client that
/// reads nothing is given all that the largest buffer holds, by default 4 MiB, before it is waited for: of a
/// log that is work and memory by the gigabyte for a few hundred clients. What is on its way is not bounded
/// by it, so that a distant client is served as fast.
const UNSENT_BYTES_MAX: u32 = 128 << 10;
/// What a client is told for whom there is no place.
const FULL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\n",
    "content-type: application/json\r\ncontent-length: 104\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
    r#"{"error":"this node has as many connections as it takes","try":"close some, or use its Unix socket"}    "#
);

/// What a listener allows its clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many connections there are at a time.
    pub(super) connections: usize,
    /// How long a client may keep a request's body waiting: see [`PacedBody`].
    pub(super) body: Duration,
    /// How long a client may keep an answer waiting; absent: for ever.
    pub(super) taking: Option<Duration>,
}

/// A listener's way to its connections.
pub(super) trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. Cancel safe.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Who is at its other end, where the kernel tells.
    fn user(stream: &Self::Stream) -> Option<SocketUser>;

    /// Says that there is no place, to a client that is then left.
    fn turn_away(stream: Self::Stream, words: &[u8]);
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // A socket that is gone already says so when it is used.
        stream.set_nodelay(true).ok();
        sockopt::set_socket_keepalive(&stream, true).ok();
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE).ok();
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / 4).ok();
        sockopt::set_tcp_keepcnt(&stream, 4).ok();
        SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX).ok();
        Ok(stream)
    }

    fn user(_: &TcpStream) -> Option<SocketUser> {
        None
    }

    fn turn_away(stream: TcpStream, words: &[u8]) {
        // It fits the empty buffer of a new connection, or the client does without.
        stream.try_write(words).ok();
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }

    fn user(stream: &UnixStream) -> Option<SocketUser> {
        Some(SocketUser::of(stream))
    }

    fn turn_away(stream: UnixStream, words: &[u8]) {
        stream.try_write(words).ok();
    }
}

/// Serves `router` to whoever connects, until `shutdown`; then open requests have a grace.
pub(super) async fn serve<L: Accept>(
    listener: L,
    tls: Option<Tls>,
    router: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections = Connections::new(bounds.connections);
    let (stop, stopping) = watch::channel(false);
    let serving = Serving { router, bounds, user: None, stopping };
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        // Cancel safety: each arm says so itself, and `shutdown` is pinned outside.
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.next() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) if is_of_one(&error) => continue,
            Err(error) => {
                tracing::warn!(err = %error, "the API cannot accept a connection now");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Some(taken) = connections.take() else {
            // Within TLS nobody could read it.
            L::turn_away(stream, if tls.is_none() { FULL.as_bytes() } else { b"" });
            continue;
        };
        let serving = Serving { user: L::user(&stream), ..serving.clone() };
        tasks.spawn(serving.connection(stream, tls.clone(), taken));
    }
    drop(listener);
    stop.send_replace(true);
    if tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::debug!("open API requests were cut off at shutdown");
    }
}

/// Whether an error is about a client that left again before it was accepted.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What every connection of a listener is served with.
#[derive(Clone)]
struct Serving {
    router: Router,
    bounds: Bounds,
    /// Who is at the other end of this one.
    user: Option<SocketUser>,
    stopping: watch::Receiver<bool>,
}

impl Serving {
    async fn connection<S>(self, stream: S, tls: Option<Tls>, taken: Taken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Taken { place, standing, given_away } = taken;
        let talking = async move {
            match tls {
                None => self.talk(stream, place, standing).await,
                Some(tls) => {
                    let handshake = tls.acceptor.accept(stream);
                    match tokio::time::timeout(limits::HTTP_HEAD_WAIT, handshake).await {
                        Ok(Ok(stream)) => self.talk(stream, place, standing).await,
                        Ok(Err(error)) => tracing::debug!(err = %error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                }
            }
        };
        // Cancel safety: a stranger's connection that gives way is lost, which is what is meant.
        tokio::select! {
            biased;
            () = talking => {}
            _ = given_away => tracing::debug!("a connection of a stranger gave way to a newer one"),
        }
    }

    /// Speaks HTTP until the client has gone, or the stream has become a session.
    async fn talk<S>(mut self, stream: S, place: Place, standing: Standing)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let paced = Paced::new(stream, self.bounds.taking, standing.clone(), place);
        let (router, user, wait) = (self.router, self.user, self.bounds.body);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(standing.clone());
            if let Some(user) = &user {
                request.extensions_mut().insert(user.clone());
            }
            router.clone().oneshot(request.map(|body| Body::new(PacedBody::new(body, wait))))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HTTP_HEAD_WAIT)
            .max_headers(limits::HTTP_HEADERS_MAX)
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(paced), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let stopping = async move {
            // The sender outlives the connections.
            drop(self.stopping.wait_for(|stopping| *stopping).await);
        };
        // Cancel safety: the connection is pinned outside and polled again.
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = stopping => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(err = %error, "a connection to the API ended early");
        }
    }
}

#[cfg(test)]
mod tests;

//! Listeners: the Unix socket, TCP, and a member's stream. Linux glue; the simulator calls
//! [`serve_stream`] or the router itself.

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use blixard_core::limits;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};
use tower::ServiceExt;

use super::accept::{self, Bounds};
use super::access::Access;
use super::tls::Tls;
use crate::platform::Duplex;

/// The longest path of a Unix socket, in bytes: `sun_path` less its terminator.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How many connections may wait to be accepted. With few, clients that come all at once lose their
/// first packet and knock again only after a second.
const BACKLOG: u32 = 4096;
/// What the socket's callers, who are the node's own user, may do: a person who pages through a log
/// takes nothing for as long as it pleases, and a pipe into an import may wait for its source.
const LOCAL: Bounds = Bounds {
    connections: limits::HTTP_SOCKET_CONNECTIONS_MAX,
    body: limits::HTTP_LOCAL_BODY_WAIT,
    taking: None,
};
/// What callers over TCP may do, who may be anybody.
const REMOTE: Bounds = Bounds {
    connections: limits::HTTP_TCP_CONNECTIONS_MAX,
    body: limits::HTTP_BODY_WAIT,
    taking: Some(limits::HTTP_TAKING_WAIT),
};

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The path does not fit a socket address.
    #[error("{} has {} bytes, and a Unix socket's path takes at most {SOCKET_PATH_BYTES_MAX}: use a shorter --data-dir", path.display(), path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Another daemon answers there.
    #[error("another blixard node serves {}: stop it first, or use another --data-dir", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The address or path cannot be listened on.
    #[error("cannot listen on {at}")]
    Listen {
        /// The address or path.
        at: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The API's Unix socket, open.
pub struct UnixApi {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixApi {
    /// Opens a socket that only its owner may use. A file left by a daemon that died is replaced;
    /// one that answers is not.
    ///
    /// # Errors
    /// When the path is too long, another daemon answers there, or it cannot be listened on.
    pub async fn bind(path: &Path) -> Result<Self, ServeError> {
        Ok(Self { listener: listen_unix(path).await?, path: path.to_owned() })
    }

    /// Serves `router` until `shutdown`; the file goes with it.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send + 'static) {
        let Self { listener, path } = self;
        accept::serve(listener, None, router, LOCAL, shutdown).await;
        // Another daemon may have replaced the file; then there is nothing of ours to remove.
        drop(std::fs::remove_file(path));
    }
}

/// Checks that a socket can be called so.
///
/// # Errors
/// When the path is too long.
pub fn check_path(path: &Path) -> Result<(), ServeError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ServeError::PathTooLong { path: path.to_owned() });
    }
    Ok(())
}

async fn listen_unix(path: &Path) -> Result<UnixListener, ServeError> {
    check_path(path)?;
    let fail = |source| ServeError::Listen { at: path.display().to_string(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::InUse { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    // Bound under another name and moved into place once only its owner may use it.
    let mut private = path.as_os_str().to_owned();
    private.push("~");
    let private = PathBuf::from(private);
    drop(std::fs::remove_file(&private));
    let socket = UnixSocket::new_stream().map_err(fail)?;
    socket.bind(&private).map_err(fail)?;
    let listener = socket.listen(BACKLOG).map_err(fail)?;
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    std::fs::rename(&private, path).map_err(fail)?;
    Ok(listener)
}

/// The API's TCP listener, open.
pub struct TcpApi {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl TcpApi {
    /// Listens on `address`; within TLS when there is a certificate.
    ///
    /// # Errors
    /// When it is taken, or not this machine's.
    pub async fn bind(address: SocketAddr, tls: Option<Tls>) -> Result<Self, ServeError> {
        let listener = listen_tcp(address);
        let listener = listener.map_err(|source| ServeError::Listen { at: address.to_string(), source })?;
        Ok(Self { listener, tls })
    }

    /// How its callers come in.
    pub fn access(&self) -> Access {
        self.tls.as_ref().map_or(Access::Tcp, |tls| Access::Tls(tls.certificate.clone()))
    }

    /// Serves `router` until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send + 'static) {
        accept::serve(self.listener, self.tls, router, REMOTE, shutdown).await;
    }
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port whose last connections the kernel still remembers is not taken.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` on one stream, until the other side closes it.
pub async fn serve_stream(router: Router, stream: Box<dyn Duplex>) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(err = %error, "a member's API stream ended early");
    }
}

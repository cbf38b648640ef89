//! Where a node's API is, and connecting to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{Upload, tls};
use crate::args::Connection;
use crate::failure::{Cause, Failure};

/// The API's socket in a data directory.
const SOCKET_NAME: &str = "blixard.sock";
/// Where root's node keeps its data.
const SYSTEM_DATA_DIR: &str = "/var/lib/blixard";
/// Where other users' nodes keep theirs, below the current directory, in `node*`.
const USER_DATA_DIR: &str = "data";

/// Where a node's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`, in the clear.
    Tcp(String),
    /// `HOST:PORT`, within TLS.
    Tls(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Endpoint {
    /// The endpoint that the options name, or the one found on this machine.
    ///
    /// # Errors
    /// When none is named and none, or several, are found.
    pub(super) fn find(connection: &Connection) -> anyhow::Result<Self> {
        if let Some(url) = &connection.host {
            return Self::parse(url);
        }
        if let Some(dir) = connection.data_dir() {
            return Ok(Self::Unix(dir.join(SOCKET_NAME)));
        }
        Self::discover(Path::new(SYSTEM_DATA_DIR), Path::new(USER_DATA_DIR))
    }

    fn parse(url: &str) -> anyhow::Result<Self> {
        if let Some(path) = url.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        for scheme in ["http://", "https://"] {
            let kind = if scheme == "https://" { Self::Tls } else { Self::Tcp };
            let address = url.strip_prefix(scheme).map(|address| address.trim_end_matches('/'));
            if let Some(address) = address.filter(|address| !address.is_empty() && !address.contains('/')) {
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                return Ok(kind(if has_port { address.to_owned() } else { format!("{address}:8082") }));
            }
        }
        let hint = "give unix:///path/to/blixard.sock, http://127.0.0.1:8082 or https://NAME:8082";
        Err(Failure::new(format!("`{url}` is not the address of a node's API"), hint).into())
    }

    fn discover(system: &Path, user: &Path) -> anyhow::Result<Self> {
        let system = system.join(SOCKET_NAME);
        // `try_exists` fails on a directory we may not look into: then the socket's own error says
        // more than any guess.
        if system.try_exists().unwrap_or(true) {
            return Ok(Self::Unix(system));
        }
        let mut found: Vec<PathBuf> = std::fs::read_dir(user)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("node"))
            .map(|entry| entry.path().join(SOCKET_NAME))
            .filter(|socket| socket.exists())
            .collect();
        found.sort();
        match found.as_slice() {
            [socket] => Ok(Self::Unix(socket.clone())),
            [] => Err(Failure::new(
                format!(
                    "no node runs here: there is neither {} nor {}/node*/{SOCKET_NAME}",
                    system.display(),
                    user.display()
                ),
                "start one with `blixard node`, or name another's with --host or --data-dir",
            )
            .into()),
            several => Err(Failure::new(
                format!("{} nodes run here", several.len()),
                format!("name one: --host unix://{}", absolute(&several[0]).display()),
            )
            .with_details(several.iter().map(|socket| socket.display().to_string()).collect())
            .into()),
        }
    }

    /// What the `Host` header says.
    pub(super) fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(address) | Self::Tls(address) => address,
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// When nobody answers: [`Cause::NotReached`].
    pub(super) async fn connect(&self, ca: Option<&Path>) -> anyhow::Result<SendRequest<Upload>> {
        let not_reached = |error: io::Error| self.not_reached(&error);
        let stream: Box<dyn Stream> = match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(not_reached)?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await.map_err(not_reached)?),
            Self::Tls(address) => {
                let stream = TcpStream::connect(address).await.map_err(not_reached)?;
                Box::new(tls::within(stream, address, ca).await?)
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its request; its errors reach whoever waits for the answer.
        drop(tokio::spawn(connection.with_upgrades()));
        Ok(sender)
    }

    fn not_reached(&self, error: &io::Error) -> anyhow::Error {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "the socket is its owner's: try as root (sudo), or use --host http://127.0.0.1:8082 with a token in BLIXARD_TOKEN"
            }
            _ => "start a node with `blixard node`, or name another's API with --host or --data-dir",
        };
        let failure = Failure::new(format!("no node answers at {self}: {error}"), hint);
        failure.caused_by(Cause::NotReached).into()
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn addresses_are_sockets_or_http() {
        let check = |url: &str, expect: Option<Endpoint>| {
            assert_eq!(Endpoint::parse(url).ok(), expect, "{url}");
        };
        check("unix:///run/b.sock", Some(Endpoint::Unix("/run/b.sock".into())));
        check("http://127.0.0.1:9000/", Some(Endpoint::Tcp("127.0.0.1:9000".into())));
        check("http://localhost", Some(Endpoint::Tcp("localhost:8082".into())));
        check("unix://relative", None);
        check("/run/b.sock", None);
        check("https://a", Some(Endpoint::Tls("a:8082".into())));
        check("https://10.0.0.1:9000/", Some(Endpoint::Tls("10.0.0.1:9000".into())));
        check("https://", None);
        check("ftp://a", None);
        check("http://", None);
        check("http://a/v1", None);
    }

    #[test]
    fn the_only_node_of_a_directory_is_found() {
        let root = tempfile::tempdir().unwrap();
        let system = root.path().join("system");
        let user = root.path().join("data");
        let touch = |path: &std::path::Path| {
            std::fs::create_dir_all(path).unwrap();
            std::fs::write(path.join(super::SOCKET_NAME), "").unwrap();
        };
        let find = || Endpoint::discover(&system, &user);
        assert!(find().is_err(), "nothing is there");
        touch(&user.join("node2"));
        assert_eq!(find().ok(), Some(Endpoint::Unix(user.join("node2/blixard.sock"))));
        touch(&user.join("node1"));
        assert_eq!(find().unwrap_err().to_string(), "2 nodes run here");
        touch(&system);
        assert_eq!(find().ok(), Some(Endpoint::Unix(system.join("blixard.sock"))));
    }
}

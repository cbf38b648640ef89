//! Where a node's API is, and connecting to it.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
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

/// The variable that names a node's API.
const HOST_VARIABLE: &str = "BLIXARD_HOST";
/// The port of an API whose address names none.
const PORT: u16 = 8082;

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
            let is_variable = std::env::var(HOST_VARIABLE).is_ok_and(|value| value == *url);
            return Self::parse(url, if is_variable { HOST_VARIABLE } else { "--host" });
        }
        if let Some(dir) = connection.data_dir() {
            return Ok(Self::Unix(dir.join(SOCKET_NAME)));
        }
        Self::discover(Path::new(SYSTEM_DATA_DIR), Path::new(USER_DATA_DIR))
    }

    /// Reads an address; `from` is the option or variable that gives it.
    fn parse(url: &str, from: &str) -> anyhow::Result<Self> {
        let read = || {
            if let Some(path) = url.strip_prefix("unix://") {
                let fault = || format!("`{path}` is no absolute path");
                return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(fault()) };
            }
            let schemes = [("http://", Self::Tcp as fn(String) -> Self), ("https://", Self::Tls)];
            for (scheme, kind) in schemes {
                if let Some(rest) = url.strip_prefix(scheme) {
                    return authority(rest).map(kind);
                }
            }
            if url.is_empty() {
                return Err("it is empty".to_owned());
            }
            // What is wrong besides is said first: the advice has the rest.
            let is_address = !url.contains('/');
            is_address.then(|| authority(url)).transpose()?;
            Err("it does not begin with unix://, http:// or https://".to_owned())
        };
        read().map_err(|why| {
            let error = format!("{from}: `{url}` is not the address of a node's API: {why}");
            let hint = "give unix:///path/to/blixard.sock, http://127.0.0.1:8082 or https://NAME:8082";
            Failure::new(error, hint).caused_by(Cause::Misuse).into()
        })
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

/// Reads `HOST` or `HOST:PORT`, perhaps with a `/` at its end, as `HOST:PORT`.
fn authority(text: &str) -> Result<String, String> {
    let (text, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    if !path.trim_start_matches('/').is_empty() {
        return Err(format!("`{path}` follows the address"));
    }
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => {
            let (inner, rest) = inner.split_once(']').ok_or("its `[` has no `]`")?;
            // A zone may follow the address.
            if inner.split('%').next().is_none_or(|address| address.parse::<Ipv6Addr>().is_err()) {
                return Err(format!("`{inner}` is no IPv6 address"));
            }
            (&text[..inner.len() + 2], rest)
        }
        None if text.parse::<Ipv6Addr>().is_ok() => {
            return Err(format!("an IPv6 address stands in brackets: [{text}]"));
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_odd = |letter: char| letter.is_whitespace() || letter.is_control() || "@?#\\".contains(letter);
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    if host.contains(is_odd) {
        return Err(format!("`{host}` is no name or address of a host"));
    }
    if rest.is_empty() {
        return Ok(format!("{host}:{PORT}"));
    }
    let port = rest.strip_prefix(':').ok_or_else(|| format!("`{rest}` follows the `]`"))?;
    let is_port =
        port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
    match port {
        "" => Err("no port follows the `:`".to_owned()),
        _ if is_port => Ok(format!("{host}:{port}")),
        _ => Err(format!("`{port}` is no port: ports are 1 to 65535")),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Endpoint;
    use crate::args::Connection;

    #[test]
    fn addresses_are_sockets_or_http() {
        let check = |url: &str, expect: Option<Endpoint>| {
            assert_eq!(Endpoint::parse(url, "--host").ok(), expect, "{url}");
        };
        check("unix:///run/b.sock", Some(Endpoint::Unix("/run/b.sock".into())));
        check("http://127.0.0.1:9000/", Some(Endpoint::Tcp("127.0.0.1:9000".into())));
        check("http://localhost", Some(Endpoint::Tcp("localhost:8082".into())));
        check("unix://relative", None);
        check("/run/b.sock", None);
        check("https://a", Some(Endpoint::Tls("a:8082".into())));
        check("https://10.0.0.1:9000/", Some(Endpoint::Tls("10.0.0.1:9000".into())));
        check("https://[::1]:9000", Some(Endpoint::Tls("[::1]:9000".into())));
        check("http://[fe80::1%3]/", Some(Endpoint::Tcp("[fe80::1%3]:8082".into())));
        check("https://", None);
        check("ftp://a", None);
        check("http://", None);
        check("http://a/v1", None);
    }

    #[test]
    fn an_address_that_is_none_is_said_to_be_wrong_where_it_is() {
        let check = |url: &str, expect: &[&str]| {
            let connection = Connection { host: Some(url.to_owned()), ..Connection::default() };
            let error = Endpoint::find(&connection).expect_err(url);
            assert_eq!(crate::exit_code(&error), crate::MISUSED, "{url}");
            let text = crate::failure::text(&error, crate::render::color::Paint::Plain);
            assert!(text.contains("--host") && text.contains(&format!("`{url}`")), "{text}");
            assert!(text.contains("http://127.0.0.1:8082"), "{text}");
            assert!(expect.iter().all(|part| text.contains(part)), "{text}");
        };
        for scheme in ["", "http://", "https://"] {
            let check = |address: &str, expect: &str| check(&format!("{scheme}{address}"), &[expect]);
            check("127.0.0.1:99999", "`99999` is no port: ports are 1 to 65535");
            check("127.0.0.1:0", "`0` is no port");
            check("host:", "no port follows the `:`");
            check("host:abc", "`abc` is no port");
            check("host:+80", "`+80` is no port");
            check("host:80 ", "`80 ` is no port");
            check("[::1", "`[` has no `]`");
            check("[::1]8082", "`8082` follows the `]`");
            check("[::1]:99999", "`99999` is no port");
            check("[node1]:80", "`node1` is no IPv6 address");
            check("::1", "an IPv6 address stands in brackets: [::1]");
            check(":8082", "it names no host");
            check("me@host:80", "`me@host` is no name or address of a host");
        }
        check("10.0.0.1:8082", &["it does not begin with unix://, http:// or https://"]);
        check("/run/b.sock", &["it does not begin with"]);
        check("http://a/v1", &["`/v1` follows the address"]);
        check("unix://relative", &["`relative` is no absolute path"]);
        check("", &["it is empty"]);
    }

    #[test]
    fn where_an_address_comes_from_is_told() {
        let error = Endpoint::parse("host:", "BLIXARD_HOST").unwrap_err();
        assert!(error.to_string().starts_with("BLIXARD_HOST: "), "{error}");
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

//! Finds the containerd to use, and connects to it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::{Channel, Endpoint};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::platform::RuntimeError;

/// Where a containerd of the system listens.
pub const SYSTEM_SOCKET: &str = "/run/containerd/containerd.sock";
/// How long a live containerd takes to say its version, at most.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
/// After how long it is told that containerd is waited for.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// Which containerd runs the containers: `auto`, `private`, or the path of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ContainerdChoice {
    /// The system's when it answers, else a private one.
    #[default]
    Auto,
    /// One of this node's own, started and kept alive by the daemon.
    Private,
    /// The one that listens on this socket.
    Socket(PathBuf),
}

impl FromStr for ContainerdChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "private" => Self::Private,
            path => Self::Socket(path.into()),
        })
    }
}

/// A channel to the socket at `path`, which connects when first used and again whenever the
/// connection is lost.
pub(crate) fn channel(path: &Path) -> Channel {
    let path = path.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector)
}

/// The version of the containerd behind `channel`; nothing when it does not answer.
pub(crate) async fn version(channel: &Channel) -> Option<String> {
    let mut client = VersionClient::new(channel.clone());
    let answer = tokio::time::timeout(VERSION_TIMEOUT, client.version(Request::new(()))).await.ok()?;
    Some(answer.ok()?.into_inner().version)
}

/// Waits until the containerd behind `channel` answers.
///
/// # Errors
/// [`RuntimeError::Unavailable`] when it does not within `timeout`.
pub(crate) async fn wait_ready(
    channel: &Channel,
    socket: &Path,
    timeout: Duration,
) -> Result<String, RuntimeError> {
    let told_at = Instant::now() + TOLD_AFTER;
    let answering = async {
        let mut told = false;
        loop {
            let exists = socket.exists();
            if exists && let Some(version) = version(channel).await {
                return version;
            }
            if !told && Instant::now() >= told_at {
                told = true;
                let why = if exists { "it does not answer" } else { "there is no such socket" };
                tracing::warn!(socket = %socket.display(), why, timeout_s = timeout.as_secs(), "waiting for containerd");
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(timeout, answering).await.map_err(|_| {
        RuntimeError::Unavailable(format!(
            "no containerd answers on {} within {} s",
            socket.display(),
            timeout.as_secs()
        ))
    })
}

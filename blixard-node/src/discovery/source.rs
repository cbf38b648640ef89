//! One source of members: something to look at again and again that names them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::file::{FILE_BYTES_MAX, FileError};
use blixard_core::discovery::ticket::TicketError;

use super::Seams;
use crate::platform::Spawner;

/// Where a node learns of others. Each is looked at on a schedule of its own, by
/// [`super::finder::Finder`], which merges what they say.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// What it is, for people: without any secret in it.
    fn name(&self) -> String;

    /// Whether it is there. A node with such a source joins and never founds a cluster by itself,
    /// whatever the source says.
    fn is_there(&self) -> bool {
        true
    }

    /// The shortest time between two looks: a look at a file costs nothing, one at a server does.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    /// Whom it names now.
    ///
    /// # Errors
    /// Why it cannot be used now; it is tried again.
    async fn look(&self, seams: Seams<'_>) -> Result<Vec<Contact>, SourceError>;
}

/// Why a source cannot be used now. A node with such a source never bootstraps.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}{}", path.display(), hint(path, error))]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: Arc<io::Error>,
    },
    /// The file is far larger than any registry.
    #[error("{} is larger than {FILE_BYTES_MAX} bytes: it is not a registry file", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// What it says is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should hold a ticket holds none.
    #[error("{} holds no ticket: `blixard cluster token create` on a member prints one", named(path))]
    NoTicket {
        /// Which file; `-` is standard input.
        path: PathBuf,
    },
    /// A file that should hold a ticket is not there.
    #[error(
        "cannot read {}: {error} (put the output of `blixard cluster token create` on a member there)",
        path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: Arc<io::Error>,
    },
    /// What a file holds is no ticket.
    #[error("{}: {error}", path.display())]
    Ticket {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: TicketError,
    },
    /// Something else than a file does not answer as it should.
    #[error("{name}: {reason}")]
    Silent {
        /// The source.
        name: String,
        /// What is wrong, and what to try.
        reason: String,
    },
}

impl SourceError {
    /// Whether another look cannot help, because what is there is whole and nothing to join by: somebody
    /// must put something else there. What is not there yet, or does not answer, is looked at again.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unreadable { error, .. } => error.kind() == io::ErrorKind::IsADirectory,
            Self::File(error) => !matches!(error, FileError::Truncated { .. }),
            Self::TooLarge { .. } | Self::NoTicket { .. } | Self::Ticket { .. } => true,
            Self::Missing { .. } | Self::Silent { .. } => false,
        }
    }
}

fn named(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

fn hint(path: &Path, error: &io::Error) -> &'static str {
    match error.kind() {
        // `--join box1` is a file's name as well as a machine's.
        io::ErrorKind::NotFound if path.components().count() == 1 && path.extension().is_none() => {
            " (a machine is named with its port, such as box1:7001; a registry file is there once its node has started: check the path)"
        }
        io::ErrorKind::NotFound => " (a node writes it when it has started; check the path)",
        io::ErrorKind::IsADirectory => {
            " (name the registry file in it; a node's is node-registry.json in its data directory)"
        }
        _ => "",
    }
}

/// Runs `work`, which blocks on the disk, off the async threads; nothing when the node ends first.
pub(super) async fn blocking<T: Send + 'static>(
    spawner: &dyn Spawner,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let result = Arc::new(Mutex::new(None));
    let into = Arc::clone(&result);
    let work = move || *into.lock().unwrap_or_else(PoisonError::into_inner) = Some(work());
    spawner.run_blocking(Box::new(work)).await;
    result.lock().unwrap_or_else(PoisonError::into_inner).take()
}

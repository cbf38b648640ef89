//! The seam to the local network, how links look from outside, and how messages fail.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use blixard_core::api::discovery::LinkState;
use blixard_core::discovery::announce::{Announcement, Heard};

/// Why a message got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// Nobody there, or nobody who proves to hold the expected key: try again later.
    #[error("cannot reach {to}: {reason}")]
    Unreachable {
        /// Whom, as text.
        to: String,
        /// What failed.
        reason: String,
    },
    /// No answer in time. The message may have been handled.
    #[error("no answer from {to} within {within:?}")]
    Timeout {
        /// Whom, as text.
        to: String,
        /// The deadline that passed.
        within: Duration,
    },
    /// The other side answered that it cannot handle the message.
    #[error("{to} refused: {reason}")]
    Refused {
        /// Whom, as text.
        to: String,
        /// Its words.
        reason: String,
    },
}

/// How a link to a member is, as far as a transport tells.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Whether it is up, or when it is tried.
    pub state: Option<LinkState>,
    /// Where the other end is.
    pub address: Option<SocketAddr>,
    /// The round trip.
    pub rtt: Option<Duration>,
    /// Failed dials in a row.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
    /// Where the member may be, the newest first.
    pub addresses: Vec<SocketAddr>,
}

/// The local network: whoever is on it hears what is announced, and may announce anything.
pub trait Announcer: Send + Sync + 'static {
    /// Makes what this node announces exactly this: what it announced besides is withdrawn.
    fn announce(&self, all: BTreeSet<Announcement>);

    /// What others announce as nodes now. Begins to listen when it is called first.
    ///
    /// # Errors
    /// Why nothing can be heard.
    fn nodes(&self) -> Result<Vec<Heard>, String>;
}

/// No local network: for a node that nobody is to hear of, as in tests of something else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silence;

impl Announcer for Silence {
    fn announce(&self, _all: BTreeSet<Announcement>) {}

    fn nodes(&self) -> Result<Vec<Heard>, String> {
        Ok(Vec::new())
    }
}

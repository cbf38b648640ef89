//! A member at an address: who it is, it says itself, and it is believed in nothing else until it has
//! proven that it knows the join token. Links need the other side's key, so it is asked for it first,
//! over TCP at the port that links are accepted on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::file::{self, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Seams;
use super::source::{Source, SourceError};
use crate::context::NodeContext;

/// How long a name may take to be looked up, and a member at each address to say who it is.
const DEADLINE: Duration = Duration::from_secs(3);
/// How often it is asked at most.
const PAUSE: Duration = Duration::from_secs(1);
/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// The most that a member says of itself, in bytes.
const WORDS_BYTES_MAX: u64 = 16 << 10;
/// How many are told at once who this node is. More wait: each is gone in a moment.
const ASKERS_MAX: usize = 32;
/// How long whoever asks may take to be told.
const TELL_DEADLINE: Duration = Duration::from_secs(2);
/// The pause after the system refused to take a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The source.
pub(super) struct Host {
    host: String,
    port: u16,
}

impl Host {
    pub(super) fn new(host: String, port: u16) -> Self {
        Self { host, port }
    }

    /// Who is at `address`. Its word alone: all that is kept is its key and where it is.
    async fn ask(&self, address: SocketAddr) -> Result<Contact, String> {
        let asking = async {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            let mut words = Vec::new();
            stream.take(WORDS_BYTES_MAX).read_to_end(&mut words).await.map_err(|error| error.to_string())?;
            Ok(String::from_utf8_lossy(&words).into_owned())
        };
        let words = timeout(DEADLINE, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()))?;
        let told =
            file::parse("its answer", &words).map_err(|error| format!("no member of a cluster: {error}"))?;
        let mut contact = told.into_iter().next().ok_or("it names nobody")?;
        contact.addresses.retain(|told| *told != address);
        contact.addresses.insert(0, address);
        Ok(Contact { token: None, named: false, ..contact })
    }
}

#[async_trait]
impl Source for Host {
    fn name(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn pause(&self) -> Duration {
        PAUSE
    }

    async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
        let silent = |reason| SourceError::Silent { name: self.name(), reason };
        let found = timeout(DEADLINE, lookup_host((self.host.as_str(), self.port))).await;
        let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let found: Vec<SocketAddr> =
            found.map_err(|error| silent(format!("the name cannot be looked up: {error}")))?.collect();
        let (mut contacts, mut reasons) = (Vec::new(), Vec::new());
        for address in found.into_iter().take(ADDRESSES_MAX) {
            match self.ask(address).await {
                Ok(contact) => contacts.push(contact),
                Err(reason) => reasons.push(format!("{address} (TCP): {reason}")),
            }
        }
        if contacts.is_empty() {
            return Err(silent(format!("no member there: {}", reasons.join("; "))));
        }
        Ok(contacts)
    }
}

/// Tells whoever connects who this node is: its registry file without the token. Reads nothing.
pub struct Introduction {
    listener: TcpListener,
}

impl Introduction {
    /// Listens where links are accepted, over TCP, and tells for as long as the node runs. Where the port
    /// is taken the node goes on without.
    pub async fn keep(context: NodeContext, address: SocketAddr, own: Registry) {
        match TcpListener::bind(address).await {
            Ok(listener) => Self { listener }.serve(context, own).await,
            Err(error) => {
                tracing::warn!(address = %address, err = %error, "nobody can join by this node's address (TCP)");
            }
        }
    }

    async fn serve(self, context: NodeContext, own: Registry) {
        let words: Arc<str> = Registry { token: None, ..own }.to_json().into();
        let room = Arc::new(Semaphore::new(ASKERS_MAX));
        loop {
            // The semaphore is never closed.
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let mut stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(err = %error, "an asker could not be taken");
                    context.clock.sleep_until(context.clock.now() + ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let words = words.clone();
            context.spawn("introduction", async move {
                let telling = async {
                    stream.write_all(words.as_bytes()).await?;
                    stream.shutdown().await
                };
                // Whoever does not listen misses it.
                timeout(TELL_DEADLINE, telling).await.ok();
                drop(place);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use blixard_core::discovery::contact::Contact;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::{Host, Source};
    use crate::discovery::testing::{World, run};

    /// What is found at an address where `words` are said.
    fn look(words: &'static str) -> Result<Vec<Contact>, String> {
        run(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let telling = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(words.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            };
            let host = Host::new("127.0.0.1".to_owned(), port);
            let world = World::default();
            let (looked, ()) = tokio::join!(host.look(world.seams()), telling);
            looked.map_err(|error| error.to_string())
        })
    }

    #[test]
    fn who_is_at_an_address_is_only_found_whatever_it_says() {
        let words = concat!(
            r#"{"iroh_node_id": "0808080808080808080808080808080808080808080808080808080808080808","#,
            r#" "direct_addresses": ["10.0.0.1:7001"], "cluster_node_id": 3,"#,
            r#" "join_token": "0101010101010101.0202020202020202020202020202020202020202020202020202020202020202"}"#
        );
        let found = look(words).unwrap();
        assert_eq!((found.len(), found[0].named, found[0].token.clone()), (1, false, None));
        assert_eq!(found[0].addresses.len(), 2);
        assert!(found[0].addresses[0].ip().is_loopback(), "where it answered comes first");
        for strange in ["", "SSH-2.0-OpenSSH_9.2", "[]", "{\"iroh_node_id\": 7}"] {
            let error = look(strange).unwrap_err();
            assert!(error.contains("no member there"), "{strange}: {error}");
        }
    }
}

//! The QUIC endpoint: what it binds, what it never does, and how long silence lasts.
//!
//! Nothing here looks anything up in the internet, multicasts or maps ports; a relay is used only
//! when one is configured.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iroh::endpoint::{Connection, IdleTimeout, PortmapperConfig, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, EndpointAddr, PublicKey, RelayMode, RelayUrl, SecretKey, TransportAddr};
use thiserror::Error;

use blixard_core::id::NodeKey;
use blixard_core::wire::PROTOCOL_VERSION;

/// The protocol of members. Its number is [`PROTOCOL_VERSION`], so different ones never meet.
pub(super) const ALPN_MEMBER: &[u8] = b"blixard/1";
/// The protocol of those who want to become members.
pub(super) const ALPN_JOIN: &[u8] = b"blixard-join/1";
const _: () = assert!(PROTOCOL_VERSION == 1);

/// Idle links say something this often; an established link has no other failover.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A link silent for this long is dead. Several keep-alives may be lost; longer delays the redial
/// of a machine that vanished.
const IDLE_MAX: Duration = Duration::from_secs(3);
const _: () = assert!(KEEP_ALIVE.as_millis() * 4 < IDLE_MAX.as_millis());
/// The round trip assumed before one is measured: it sets when a lost first packet is repeated
/// (three times this). A local network's would be shorter, a slow one only costs a repeat.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Streams the other side may have open at once on one link.
const STREAMS_MAX: u32 = 1024;
/// Bytes one stream may have in flight: what a heartbeat or an entry finds before it on the way while an
/// image or a volume is sent, so few: 21 ms at 100 Mbit/s. It fills 1 Gbit/s at 2 ms, 40 Mbit/s at 50 ms.
/// noq gives a connection up whose stream has more than [`GAPS_MAX`] gaps; in these bytes no loss of whole
/// packets makes as many.
const STREAM_WINDOW: u32 = 128 << 10;
/// `MAX_CHUNKS` of noq-proto's `connection::assembler`.
const GAPS_MAX: u32 = 1024;
/// What a packet carries at least when there is much to send: QUIC's smallest datagram less headers.
const PACKET_BYTES: u32 = 1_100;
const _: () = assert!(STREAM_WINDOW / (2 * PACKET_BYTES) < GAPS_MAX);
/// Bytes all streams of one link may have in flight.
const LINK_WINDOW: u32 = 32 << 20;

/// Why the node cannot listen for links.
#[derive(Debug, Error)]
pub enum BindError {
    /// The address cannot be bound.
    #[error("cannot listen for links on {address} (UDP): {reason}")]
    Address {
        /// Which address.
        address: SocketAddr,
        /// What the system says.
        reason: String,
    },
    /// The relay's URL is not one.
    #[error("`{url}` is not a relay's URL: {reason}; write it like https://relay.example.net")]
    Relay {
        /// The offending text.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// How long a failed endpoint has to let go of what it still holds.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// The first pause before binding is tried again; doubled each time.
const REBIND_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause before binding is tried again.
const REBIND_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The endpoint on one address, replaced by a new one there when it fails.
///
/// iroh binds its socket anew whenever the machine's interfaces change, and a network of containers
/// changes them often. A child process that is being started holds the old socket for a moment;
/// then the address is still in use, and iroh's endpoint ends for good.
pub(super) struct Listener {
    /// Absent while another is being bound.
    endpoint: Mutex<Option<Endpoint>>,
    secret_key: [u8; 32],
    address: SocketAddr,
    relay: Option<String>,
}

impl Listener {
    /// Binds `address`.
    pub(super) async fn bind(
        secret_key: [u8; 32],
        address: SocketAddr,
        relay: Option<&str>,
    ) -> Result<Self, BindError> {
        let endpoint = bind(secret_key, address, relay).await?;
        // With port 0 the system picked one, which is kept.
        let address = endpoint.bound_sockets().first().copied().map_or(address, unmapped);
        Ok(Self {
            endpoint: Mutex::new(Some(endpoint)),
            secret_key,
            address,
            relay: relay.map(str::to_owned),
        })
    }

    /// The endpoint of now; none while another is being bound.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.slot().clone()
    }

    /// Connects to another node.
    ///
    /// # Errors
    /// Why that is not possible, in words.
    pub(super) async fn connect(&self, target: EndpointAddr, alpn: &[u8]) -> Result<Connection, String> {
        let endpoint = self.endpoint().ok_or("this node is not listening for links at the moment")?;
        endpoint.connect(target, alpn).await.map_err(|error| chain(&error))
    }

    /// Ends it for good.
    pub(super) async fn close(&self) {
        let endpoint = self.slot().take();
        if let Some(endpoint) = endpoint {
            endpoint.close().await;
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a new endpoint in the place of one that ended, however long that takes.
    pub(super) async fn renew(&self) {
        // What a failed endpoint does not close in time it never will. Its socket goes with it.
        let _late = tokio::time::timeout(CLOSE_DEADLINE, self.close()).await;
        let mut pause = REBIND_PAUSE;
        loop {
            match bind(self.secret_key, self.address, self.relay.as_deref()).await {
                Ok(endpoint) => {
                    *self.slot() = Some(endpoint);
                    tracing::info!(address = %self.address, "listening for links again");
                    return;
                }
                Err(error) => tracing::warn!(err = %error, "cannot listen for links; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REBIND_PAUSE_MAX);
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds the endpoint to one address.
async fn bind(secret_key: [u8; 32], address: SocketAddr, relay: Option<&str>) -> Result<Endpoint, BindError> {
    let relay_mode = match relay {
        None => RelayMode::Disabled,
        Some(url) => RelayMode::custom([url
            .parse::<RelayUrl>()
            .map_err(|error| BindError::Relay { url: url.to_owned(), reason: error.to_string() })?]),
    };
    let failed = |reason: String| BindError::Address { address, reason };
    Endpoint::builder(presets::Minimal)
        .relay_mode(relay_mode)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .secret_key(SecretKey::from_bytes(&secret_key))
        .alpns(vec![ALPN_MEMBER.to_vec(), ALPN_JOIN.to_vec()])
        .transport_config(transport_config())
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|error| failed(error.to_string()))?
        .bind()
        .await
        .map_err(|error| failed(chain(&error)))
}

fn transport_config() -> QuicTransportConfig {
    let idle = IdleTimeout::try_from(IDLE_MAX).expect("three seconds fit a QUIC idle timeout");
    QuicTransportConfig::builder()
        .keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(idle))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(LINK_WINDOW))
        .send_window(u64::from(LINK_WINDOW))
        .build()
}

/// The public key that belongs to a secret one.
pub fn public_key(secret_key: &[u8; 32]) -> NodeKey {
    NodeKey(*SecretKey::from_bytes(secret_key).public().as_bytes())
}

/// What iroh dials: a key, its addresses and its relay. None when the key is not a point of the
/// curve, so that nobody can hold it.
pub(super) fn endpoint_addr(
    key: NodeKey,
    addresses: &[SocketAddr],
    relay: Option<&str>,
) -> Option<EndpointAddr> {
    let id = PublicKey::from_bytes(&key.0).ok()?;
    let relay = relay.and_then(|url| url.parse::<RelayUrl>().ok()).map(TransportAddr::Relay);
    let direct = addresses.iter().copied().map(TransportAddr::Ip);
    Some(EndpointAddr::from_parts(id, direct.chain(relay)))
}

/// The other side's proven key.
pub(super) fn remote_key(connection: &Connection) -> NodeKey {
    NodeKey(*connection.remote_id().as_bytes())
}

/// Where the other side's packets come from; none over a relay.
pub(super) fn remote_address(connection: &Connection) -> Option<SocketAddr> {
    let paths = connection.paths();
    let ip = |path: iroh::endpoint::Path<'_>| match path.remote_addr() {
        TransportAddr::Ip(address) => Some(unmapped(*address)),
        _ => None,
    };
    let selected = paths.iter().find(|path| path.is_selected()).and_then(ip);
    selected.or_else(|| paths.iter().find_map(ip))
}

/// The round trip of the path in use.
pub(super) fn round_trip(connection: &Connection) -> Option<Duration> {
    connection.paths().iter().find(|path| path.is_selected()).map(|path| path.rtt())
}

/// An IPv4 address, if this is one in IPv6's clothing.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An error and everything under it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

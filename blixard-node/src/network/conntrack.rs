//! The kernel's memory of connections, over netlink (ctnetlink).
//!
//! A translation is decided on by a connection's first packet and remembered. What is remembered of
//! a port whose rules changed, or of an address that was given up, is made to be forgotten here: a
//! datagram would otherwise be sent on for minutes to where nobody, or somebody else, is.
//!
//! The messages are written and read by hand: two of them, of a few attributes. See
//! linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use blixard_core::spec::Protocol;
use rtnetlink::sys::constants::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::NetworkError;

const NEW: u16 = 1 << 8;
const GET: u16 = NEW | 1;
const DELETE: u16 = NEW | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const FAMILY_IPV4: u8 = 2;
/// A message's header, and the one of netfilter after it, in bytes.
const HEADER: usize = 16;
pub(super) const NETFILTER_HEADER: usize = 4;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_STATE: u16 = 4;
const TIME_LEFT: u16 = 7;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// The state of TCP after the handshake.
const TCP_ESTABLISHED: u8 = 3;
/// How long the kernel remembers an established connection after its last packet, in seconds; but for
/// one with a packet that was not acknowledged, which it remembers for less than `UNACKNOWLEDGED`.
const ESTABLISHED_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
const UNACKNOWLEDGED: Duration = Duration::from_secs(301);
/// The states of TCP in which either side may still send: from the first packet until both ended.
const TCP_OPEN: std::ops::RangeInclusive<u8> = 1..=5;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) source: SocketAddrV4,
    pub(super) destination: SocketAddrV4,
}

/// A connection, or what passes for one with UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    /// As its first packet was, before any translation.
    pub(super) original: Direction,
    /// As answers are, which tells what it was translated to.
    pub(super) reply: Direction,
    /// Whether more of it may come, as far as the protocol tells.
    pub(super) open: bool,
    /// For how long the kernel goes on remembering it, when it is established.
    remembered: Option<Duration>,
    /// The attributes by which the kernel knows it.
    key: Vec<u8>,
}

impl Flow {
    /// Whether it has anything to do with `address`.
    pub(super) fn involves(&self, address: Ipv4Addr) -> bool {
        [self.original.source, self.original.destination, self.reply.source, self.reply.destination]
            .iter()
            .any(|end| *end.ip() == address)
    }

    /// For how long nothing of it came; zero when the kernel does not tell. `established` is what
    /// [`established_timeout`] gave.
    pub(super) fn silent_for(&self, established: Duration) -> Duration {
        let remembered = self.remembered.filter(|left| *left > UNACKNOWLEDGED);
        remembered.map_or(Duration::ZERO, |left| established.saturating_sub(left))
    }

    /// Whether `client` made it to `address`, without translation.
    pub(super) fn is_made_by(&self, client: Ipv4Addr, address: Ipv4Addr) -> bool {
        *self.original.source.ip() == client && *self.original.destination.ip() == address
    }

    /// Whether it was translated to `address`, rather than made to it.
    pub(super) fn is_translated_to(&self, address: Ipv4Addr) -> bool {
        *self.reply.source.ip() == address && *self.original.destination.ip() != address
    }
}

/// How long the kernel remembers an established connection after its last packet; zero when it does
/// not say.
pub(super) fn established_timeout() -> Duration {
    let text = std::fs::read_to_string(ESTABLISHED_TIMEOUT).ok();
    Duration::from_secs(text.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}

/// How many connections there are of those that `counts` is true of.
pub(super) async fn count(counts: impl Fn(&Flow) -> bool + Send + 'static) -> Result<usize, NetworkError> {
    blocking("count connections", move || Ok(list(&mut open()?, counts)?.len())).await
}

/// Makes the kernel forget the connections that `which` is true of, and says how many there were.
pub(super) async fn forget(which: impl Fn(&Flow) -> bool + Send + 'static) -> Result<usize, NetworkError> {
    let forget = move || {
        let mut socket = open()?;
        let flows = list(&mut socket, which)?;
        for flow in &flows {
            delete(&mut socket, flow)?;
        }
        Ok(flows.len())
    };
    blocking("forget connections", forget).await
}

/// The kernel answers at once, but a large table takes a while to read.
#[expect(clippy::disallowed_methods, reason = "this is the Linux implementation of a seam")]
async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, NetworkError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(NetworkError::io(what))
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn list(socket: &mut Socket, keep: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
    send(socket, GET, DUMP, &[])?;
    let mut flows = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&datagram) {
            match kind {
                NEW => flows.extend(flow(body).filter(&keep)),
                DONE => return Ok(flows),
                ERROR => refused(body)?,
                _ => {}
            }
        }
    }
}

/// Forgets one connection; one that ended meanwhile is forgotten already.
fn delete(socket: &mut Socket, flow: &Flow) -> io::Result<()> {
    send(socket, DELETE, ACK, &flow.key)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&datagram) {
            if kind == ERROR {
                return match refused(body) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    other => other,
                };
            }
        }
    }
}

fn send(socket: &mut Socket, kind: u16, flags: u16, attributes: &[u8]) -> io::Result<()> {
    let length = HEADER + NETFILTER_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[FAMILY_IPV4, 0, 0, 0]);
    message.extend_from_slice(attributes);
    socket.send(&message, 0).map(drop)
}

/// The messages of a datagram: their types and what follows their headers.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes in `bytes`: the type, the value, and both with their header.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let (value, whole) = (bytes.get(4..length)?, bytes.get(..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, ..)| *kind == wanted).map(|(_, value, _)| value)
}

/// The error in an answer, if it is one.
fn refused(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// Reads a connection of TCP or UDP over IPv4; others are nothing of ours.
fn flow(body: &[u8]) -> Option<Flow> {
    let body = body.get(NETFILTER_HEADER..)?;
    let (protocol, original) = direction(attribute(body, TUPLE_ORIGINAL)?)?;
    let (_, reply) = direction(attribute(body, TUPLE_REPLY)?)?;
    let tcp = attribute(body, PROTOCOL_STATE).and_then(|state| attribute(state, 1));
    let tcp = tcp.and_then(|tcp| attribute(tcp, 1)?.first().copied());
    let mut key = Vec::new();
    for (_, _, whole) in attributes(body).filter(|(kind, ..)| [TUPLE_ORIGINAL, ID, ZONE].contains(kind)) {
        key.extend_from_slice(whole);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    let open = tcp.is_none_or(|state| TCP_OPEN.contains(&state));
    let left = attribute(body, TIME_LEFT).and_then(|left| left.try_into().ok()).map(u32::from_be_bytes);
    let remembered =
        left.filter(|_| tcp == Some(TCP_ESTABLISHED)).map(|left| Duration::from_secs(left.into()));
    Some(Flow { protocol, original, reply, open, remembered, key })
}

fn direction(tuple: &[u8]) -> Option<(Protocol, Direction)> {
    let (addresses, ports) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    let protocol = match attribute(ports, 1)?.first()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(addresses, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(attribute(ports, kind)?.try_into().ok()?));
    let source = SocketAddrV4::new(address(1)?, port(2)?);
    let destination = SocketAddrV4::new(address(2)?, port(3)?);
    Some((protocol, Direction { source, destination }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        let value = parts.concat();
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
        let leaf = |kind, value: &[u8]| nested(kind, &[value.to_vec()]);
        nested(
            0x8000 | kind,
            &[
                nested(0x8001, &[leaf(1, &source.ip().octets()), leaf(2, &destination.ip().octets())]),
                nested(
                    0x8002,
                    &[
                        leaf(1, &[6]),
                        leaf(2, &source.port().to_be_bytes()),
                        leaf(3, &destination.port().to_be_bytes()),
                    ],
                ),
            ],
        )
    }

    #[test]
    fn a_translated_connection_is_read() {
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 254), 40_000);
        let node = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8080);
        let container = SocketAddrV4::new(Ipv4Addr::new(10, 210, 1, 2), 80);
        let state = nested(0x8000 | PROTOCOL_STATE, &[nested(0x8001, &[nested(1, &[vec![3]])])]);
        let id = nested(ID, &[vec![1, 2, 3, 4]]);
        let left = nested(TIME_LEFT, &[431_990_u32.to_be_bytes().to_vec()]);
        let original = tuple(TUPLE_ORIGINAL, client, node);
        let body =
            [vec![0; 4], original.clone(), tuple(TUPLE_REPLY, container, client), state, left, id.clone()]
                .concat();
        let flow = flow(&body).expect("it is one of TCP");
        assert_eq!(flow.original, Direction { source: client, destination: node });
        assert_eq!(flow.reply, Direction { source: container, destination: client });
        assert!(flow.open && flow.protocol == Protocol::Tcp);
        assert!(flow.is_translated_to(*container.ip()) && !flow.is_translated_to(*node.ip()));
        assert!(flow.involves(*container.ip()) && flow.involves(*client.ip()));
        assert_eq!(flow.silent_for(Duration::from_secs(432_000)), Duration::from_secs(10));
        assert_eq!(flow.silent_for(Duration::ZERO), Duration::ZERO);
        assert_eq!(flow.key, [original, id].concat());
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn answers_of_the_kernel_survive_every_damage() {
        let end = |host: u8, port| SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, host), port);
        let state = nested(0x8000 | PROTOCOL_STATE, &[nested(0x8001, &[nested(1, &[vec![3]])])]);
        let original = tuple(TUPLE_ORIGINAL, end(1, 40_000), end(2, 80));
        let reply = tuple(TUPLE_REPLY, end(3, 80), end(1, 40_000));
        let body = [vec![0; 4], original, reply, state].concat();
        let gone = message(ERROR, &(-2_i32).to_ne_bytes());
        let seeds = [[message(NEW, &body), message(NEW, &body), message(DONE, &[0; 4])].concat(), gone];
        damage::survives("answer of conntrack", &seeds, |input| {
            let mut left = 0;
            for (kind, body) in messages(input) {
                left += body.len();
                match kind {
                    ERROR => drop(refused(body)),
                    _ => assert!(flow(body).is_none_or(|flow| flow.key.len() <= body.len() + 12)),
                }
                // A table's name is looked for in any message that says it is of one.
                crate::network::guard::is_named(body, "blixard");
            }
            assert!(left <= input.len(), "each message is looked at once");
            Ok(())
        });
    }
}

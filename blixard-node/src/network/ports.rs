//! Holds published ports, so that two programs never believe they have the same one.
//!
//! Translation would silently take a port away from whoever listens on it. So each published port
//! is bound first, which fails when it is taken, and stays bound, which makes others fail. A TCP
//! socket listens only while connections that are not translated are led to another node: else the
//! kernel refuses them, where a listening socket would take them and never answer.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use blixard_core::id::ContainerId;
use blixard_core::spec::{PortSpec, Protocol};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{Shutdown, shutdown};

use super::NetworkError;

/// For how long a taken port is asked for again. One that was let go of stays bound in every process
/// forked meanwhile, until that runs its program: a replica that starts again must not fail for it.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long after each try the next one comes.
const PAUSE: Duration = Duration::from_millis(5);
/// How many connections wait to be taken.
const BACKLOG: i32 = 1024;

/// The bound sockets and which containers want them.
#[derive(Debug, Default)]
pub(super) struct HeldPorts {
    by_port: BTreeMap<(Protocol, u16), Held>,
}

/// A port, which containers of one service hold: on all addresses, or on those that each names.
#[derive(Debug, Default)]
struct Held {
    sockets: BTreeMap<Ipv4Addr, Socket>,
    holders: Vec<(Holder, Ipv4Addr)>,
}

/// Who wants a port.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    Container(ContainerId),
    /// The daemon, which listens on it.
    Routes,
}

impl Held {
    fn has(&self, address: Ipv4Addr) -> bool {
        [address, Ipv4Addr::UNSPECIFIED].iter().any(|held| self.sockets.contains_key(held))
    }
}

/// A bound socket, kept for being bound.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(#[expect(dead_code, reason = "held, never read")] UdpSocket),
}

impl Socket {
    fn bind(protocol: Protocol, at: (Ipv4Addr, u16)) -> std::io::Result<Self> {
        match protocol {
            Protocol::Tcp => {
                // Bound to be shared, so that ended connections of who had the port before are no
                // obstacle, and listening for a moment, since that alone keeps out another that
                // binds it likewise at the same time. What is not to be shared and was bound by
                // its number stays bound when it listens no more.
                let socket = Self::Tcp(TcpListener::bind(at)?);
                socket.hold()?;
                Ok(socket)
            }
            Protocol::Udp => UdpSocket::bind(at).map(Self::Udp),
        }
    }

    /// Keeps the port and takes no connections.
    fn hold(&self) -> std::io::Result<()> {
        let Self::Tcp(socket) = self else { return Ok(()) };
        set_socket_reuseaddr(socket, false)?;
        Ok(shutdown(socket, Shutdown::Both)?)
    }

    /// Takes connections; the listener that is returned is the same socket.
    fn listen(&self) -> std::io::Result<TcpListener> {
        let Self::Tcp(socket) = self else { return Err(ErrorKind::Unsupported.into()) };
        // Connections that ended a moment ago are no obstacle.
        set_socket_reuseaddr(socket, true)?;
        rustix::net::listen(socket, BACKLOG)?;
        socket.set_nonblocking(true)?;
        socket.try_clone()
    }
}

impl HeldPorts {
    /// Binds the host ports of `ports` for `id`: all of them or none.
    pub(super) async fn hold(&mut self, id: &ContainerId, ports: &[PortSpec]) -> Result<(), NetworkError> {
        for port in ports {
            let Some(host_port) = port.host_port else { continue };
            let address = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let holder = Holder::Container(id.clone());
            if let Err(error) = self.hold_one(holder, port.protocol, (address, host_port)).await {
                self.release(id);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn hold_one(
        &mut self,
        holder: Holder,
        protocol: Protocol,
        at: (Ipv4Addr, u16),
    ) -> Result<(), NetworkError> {
        let (address, port) = at;
        let held = self.by_port.entry((protocol, port)).or_default();
        held.holders.push((holder, address));
        if held.has(address) {
            return Ok(());
        }
        if address.is_unspecified() {
            // What another version of the service has of it would be in the way.
            held.sockets.clear();
        }
        let mut left = PATIENCE;
        let socket = loop {
            match Socket::bind(protocol, at) {
                Ok(socket) => break socket,
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                    return Err(NetworkError::NoSuchAddress { address, port });
                }
                Err(error) if error.kind() != ErrorKind::AddrInUse => {
                    return Err(NetworkError::Io {
                        what: format!("bind port {port}/{protocol}"),
                        source: error,
                    });
                }
                Err(_) if left.is_zero() => return Err(NetworkError::PortTaken { port, protocol }),
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    left = left.saturating_sub(PAUSE);
                }
            }
        };
        held.sockets.insert(address, socket);
        Ok(())
    }

    /// Takes connections to a TCP port on every address, beside the containers that hold it.
    pub(super) async fn listen(&mut self, port: u16) -> Result<TcpListener, NetworkError> {
        let at = (Ipv4Addr::UNSPECIFIED, port);
        self.unlisten(port);
        let held = self.hold_one(Holder::Routes, Protocol::Tcp, at).await;
        let listening = held.and_then(|()| {
            let held = self.by_port.get(&(Protocol::Tcp, port));
            let socket = held.and_then(|held| held.sockets.get(&at.0));
            let listening = socket.map_or(Err(ErrorKind::AddrNotAvailable.into()), Socket::listen);
            listening.map_err(|source| match source.kind() {
                ErrorKind::AddrInUse => NetworkError::PortTaken { port, protocol: Protocol::Tcp },
                _ => NetworkError::Io { what: format!("listen on port {port}"), source },
            })
        });
        if listening.is_err() {
            self.unlisten(port);
        }
        listening
    }

    /// Takes no more connections to a port. Containers that hold it go on to.
    pub(super) fn unlisten(&mut self, port: u16) {
        let Some(held) = self.by_port.get(&(Protocol::Tcp, port)) else { return };
        if !held.holders.iter().any(|(holder, _)| *holder == Holder::Routes) {
            return;
        }
        for socket in held.sockets.values() {
            // One that listens on would be noticed by clients that are never answered.
            if let Err(error) = socket.hold() {
                tracing::warn!(port, err = %error, "a port goes on taking connections");
            }
        }
        self.release_of(&Holder::Routes, |of| of == (Protocol::Tcp, port));
    }

    /// Lets go of what only `id` wants.
    pub(super) fn release(&mut self, id: &ContainerId) {
        self.release_of(&Holder::Container(id.clone()), |_| true);
    }

    fn release_of(&mut self, gone: &Holder, which: impl Fn((Protocol, u16)) -> bool) {
        self.by_port.retain(|(protocol, port), held| {
            if which((*protocol, *port)) {
                held.holders.retain(|(holder, _)| holder != gone);
            }
            let wanted: Vec<Ipv4Addr> = held.holders.iter().map(|(_, address)| *address).collect();
            held.sockets.retain(|address, _| wanted.contains(address));
            for address in wanted {
                // One that cannot be had now is not had: packets to it are translated all the same.
                if !held.has(address)
                    && let Ok(socket) = Socket::bind(*protocol, (address, *port))
                {
                    held.sockets.insert(address, socket);
                }
            }
            !held.holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;

    fn published(host_port: u16) -> Vec<PortSpec> {
        vec![PortSpec {
            container_port: 80,
            host_port: Some(host_port),
            protocol: Protocol::Tcp,
            host_ip: None,
            publish: Default::default(),
        }]
    }

    #[tokio::test]
    async fn a_port_of_another_program_is_refused_by_name() {
        let other = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = other.local_addr().expect("it is bound").port();
        let id = ContainerId("a".repeat(64));
        let mut held = HeldPorts::default();
        let error = held.hold(&id, &published(port)).await.expect_err("it is taken");
        assert!(error.to_string().contains(&format!("port {port}/tcp is taken")), "{error}");
        drop(other);
        held.hold(&id, &published(port)).await.expect("it is free now");
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "a held port is held");
        let second = HeldPorts::default().hold(&id, &published(port)).await;
        assert!(
            matches!(second, Err(NetworkError::PortTaken { .. })),
            "another daemon holds it too: {second:?}"
        );
    }

    #[tokio::test]
    async fn a_held_port_refuses_connections_and_takes_none_over_from_who_had_it() {
        let other = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = other.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).expect("it listens");
        // Whoever closes first keeps the port in the state TIME-WAIT for a minute.
        drop(other.accept().expect("it is connected"));
        assert_eq!(client.read(&mut [0]).expect("it is closed"), 0);
        drop((client, other));
        let mut held = HeldPorts::default();
        let id = ContainerId("a".repeat(64));
        held.hold(&id, &published(address.port())).await.expect("nobody listens");
        let refused = TcpStream::connect(address).expect_err("no container is there yet");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_shared_port_is_held_until_its_last_container_goes() {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free ports").port();
        let (first, second) = (ContainerId("a".repeat(64)), ContainerId("b".repeat(64)));
        let mut held = HeldPorts::default();
        held.hold(&first, &published(free)).await.expect("it is free");
        held.hold(&second, &published(free)).await.expect("it is shared");
        held.release(&first);
        assert!(TcpListener::bind(("127.0.0.1", free)).is_err(), "the second still wants it");
        held.release(&second);
        HeldPorts::default().hold(&first, &published(free)).await.expect("nobody wants it");
    }

    #[tokio::test]
    async fn a_port_is_listened_on_beside_the_containers_that_hold_it() {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free ports").port();
        let connect = || TcpStream::connect(("127.0.0.1", free)).map(drop).map_err(|error| error.kind());
        let id = ContainerId("a".repeat(64));
        let mut held = HeldPorts::default();
        held.hold(&id, &published(free)).await.expect("it is free");
        for _ in 0..2 {
            let listener = held.listen(free).await.expect("it is the daemon's own");
            connect().expect("somebody listens");
            let (accepted, _) = listener.accept().expect("it waits");
            held.unlisten(free);
            assert_eq!(connect(), Err(ErrorKind::ConnectionRefused), "nobody takes it");
            drop((listener, accepted));
            assert!(TcpListener::bind(("127.0.0.1", free)).is_err(), "the container holds it");
        }
        let listener = held.listen(free).await.expect("again");
        held.release(&id);
        connect().expect("it is listened on without containers, too");
        held.unlisten(free);
        drop(listener);
        let other = TcpListener::bind(("127.0.0.1", free)).expect("nobody wants it");
        let taken = held.listen(free).await;
        assert!(matches!(taken, Err(NetworkError::PortTaken { .. })), "{taken:?}");
        drop(other);
        held.listen(free).await.expect("it is free again");
    }

    #[tokio::test]
    async fn a_port_of_one_address_leaves_the_others() {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free ports").port();
        let on =
            |address: [u8; 4]| vec![PortSpec { host_ip: Some(address.into()), ..published(free)[0].clone() }];
        let (first, second) = (ContainerId("a".repeat(64)), ContainerId("b".repeat(64)));
        let mut held = HeldPorts::default();
        held.hold(&first, &on([127, 0, 0, 1])).await.expect("it is free");
        assert!(TcpListener::bind(("127.0.0.1", free)).is_err(), "it is held");
        TcpListener::bind(("127.0.0.2", free)).expect("nobody holds it there");
        // A version that publishes it everywhere, and goes again.
        held.hold(&second, &published(free)).await.expect("the service has it");
        assert!(TcpListener::bind(("127.0.0.2", free)).is_err(), "it is held everywhere");
        held.release(&second);
        assert!(TcpListener::bind(("127.0.0.1", free)).is_err(), "it is held still");
        TcpListener::bind(("127.0.0.2", free)).expect("nobody holds it there");
        held.release(&first);
        TcpListener::bind(("127.0.0.1", free)).expect("nobody wants it");
        let error = held.hold(&first, &on([192, 0, 2, 1])).await.expect_err("no host has it");
        assert!(error.to_string().contains("192.0.2.1: this node has no such address"), "{error}");
    }
}

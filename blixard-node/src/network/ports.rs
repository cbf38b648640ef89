//! Holds published ports, so that two programs never believe they have the same one.
//!
//! Translation would silently take a port away from whoever listens on it. So each published port
//! is bound first, which fails when it is taken, and stays bound, which makes others fail. No
//! packet reaches these sockets: the rules translate all of them away.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use blixard_core::id::ContainerId;
use blixard_core::spec::{PortSpec, Protocol};

use super::NetworkError;

/// The bound sockets and which containers want them.
#[derive(Debug, Default)]
pub(super) struct HeldPorts {
    by_port: BTreeMap<(Protocol, u16), (Socket, Vec<ContainerId>)>,
}

/// A bound socket, kept for being bound.
#[derive(Debug)]
enum Socket {
    Tcp(#[expect(dead_code, reason = "held, never read")] TcpListener),
    Udp(#[expect(dead_code, reason = "held, never read")] UdpSocket),
}

impl HeldPorts {
    /// Binds the host ports of `ports` for `id`: all of them or none.
    pub(super) fn hold(&mut self, id: &ContainerId, ports: &[PortSpec]) -> Result<(), NetworkError> {
        for port in ports {
            let Some(host_port) = port.host_port else { continue };
            if let Err(error) = self.hold_one(id, port.protocol, host_port) {
                self.release(id);
                return Err(error);
            }
        }
        Ok(())
    }

    fn hold_one(&mut self, id: &ContainerId, protocol: Protocol, port: u16) -> Result<(), NetworkError> {
        if let Some((_, holders)) = self.by_port.get_mut(&(protocol, port)) {
            holders.push(id.clone());
            return Ok(());
        }
        let any = (Ipv4Addr::UNSPECIFIED, port);
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind(any).map(Socket::Tcp),
            Protocol::Udp => UdpSocket::bind(any).map(Socket::Udp),
        };
        match bound {
            Ok(socket) => {
                self.by_port.insert((protocol, port), (socket, vec![id.clone()]));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(NetworkError::PortTaken { port, protocol })
            }
            Err(source) => Err(NetworkError::Io { what: format!("bind port {port}/{protocol}"), source }),
        }
    }

    /// Lets go of what only `id` wants.
    pub(super) fn release(&mut self, id: &ContainerId) {
        self.by_port.retain(|_, (_, holders)| {
            holders.retain(|holder| holder != id);
            !holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host_port: u16) -> Vec<PortSpec> {
        vec![PortSpec { container_port: 80, host_port: Some(host_port), protocol: Protocol::Tcp }]
    }

    #[test]
    fn a_port_of_another_program_is_refused_by_name() {
        let other = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = other.local_addr().expect("it is bound").port();
        let id = ContainerId("a".repeat(64));
        let mut held = HeldPorts::default();
        let error = held.hold(&id, &published(port)).expect_err("it is taken");
        assert!(error.to_string().contains(&format!("port {port}/tcp is taken")), "{error}");
        drop(other);
        held.hold(&id, &published(port)).expect("it is free now");
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "a held port is held");
    }

    #[test]
    fn a_shared_port_is_held_until_its_last_container_goes() {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free ports").port();
        let (first, second) = (ContainerId("a".repeat(64)), ContainerId("b".repeat(64)));
        let mut held = HeldPorts::default();
        held.hold(&first, &published(free)).expect("it is free");
        held.hold(&second, &published(free)).expect("it is shared");
        held.release(&first);
        assert!(TcpListener::bind(("127.0.0.1", free)).is_err(), "the second still wants it");
        held.release(&second);
        TcpListener::bind(("127.0.0.1", free)).expect("nobody wants it");
    }
}

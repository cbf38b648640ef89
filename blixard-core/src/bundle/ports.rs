//! `ports`: which container ports are published.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::diagnostic::{Fault, shorten};
use super::number;
use super::walk::{Section, Walk};
use crate::spec::{NetworkMode, PortSpec, Protocol, Publish, is_host_address};

const EXAMPLE: &str = "[{container_port: 80, host_port: 8080}]";

pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>, network: NetworkMode) -> Vec<PortSpec> {
    let Some(field) = root.get("ports") else { return Vec::new() };
    let mut ports = Vec::new();
    let mut taken = Taken::default();
    for item in walk.list(&field, EXAMPLE) {
        let keys = ["container_port", "host_port", "host_ip", "protocol", "publish"];
        let Some(section) = walk.section(&item, &keys, "{container_port: 80, host_port: 8080}") else {
            continue;
        };
        let container_port = walk.required(&section, "container_port", number::port);
        let host_port = walk.key(&section, "host_port", number::port);
        let host_ip = walk.key(&section, "host_ip", host_ip).flatten();
        let protocol = walk.key(&section, "protocol", protocol).unwrap_or_default();
        let publish = walk.key(&section, "publish", publish).unwrap_or_default();
        let Some(container_port) = container_port else { continue };
        let port = PortSpec { container_port, host_port, protocol, host_ip, publish };
        for (key, fault) in taken.check(&port, network, |key| match section.get(key) {
            Some(field) => format!("line {}", field.node.place.line),
            None => section.path_of(key),
        }) {
            if let Some(field) = section.get(key) {
                walk.fail(&field, fault);
            }
        }
        ports.push(port);
    }
    ports
}

/// The ports of the host that a specification's ports take, each with where it is said.
#[derive(Default)]
pub(super) struct Taken(BTreeMap<(u16, Protocol), String>);

impl Taken {
    /// What is wrong with a port beside those before it, by its keys: an address of the host where no
    /// port of it is mapped, a port of the host that is taken twice, or mapped where nothing can be.
    /// `said` tells where the value of a key is.
    pub(super) fn check(
        &mut self,
        port: &PortSpec,
        network: NetworkMode,
        said: impl FnOnce(&str) -> String,
    ) -> Vec<(&'static str, Fault)> {
        let PortSpec { container_port, host_port, protocol, host_ip, publish } = *port;
        let mut faults: Vec<_> = host_ip
            .and_then(|_| unmapped(host_port, network))
            .map(|fault| ("host_ip", fault))
            .into_iter()
            .collect();
        if publish == Publish::Node
            && let Some(fault) = unmapped(host_port, network)
        {
            faults.push(("publish", fault));
        }
        let (claimed, key) = match (network, host_port) {
            (NetworkMode::Host, Some(mapped)) if mapped != container_port => {
                let message = format!("is {mapped}, but on the host's network the port is {container_port}");
                let fault = Fault::new(message).hint("leave host_port out, or use network: bridge");
                faults.push(("host_port", fault));
                return faults;
            }
            (NetworkMode::Host, _) => (container_port, "container_port"),
            (NetworkMode::Bridge, Some(mapped)) => (mapped, "host_port"),
            (NetworkMode::Bridge, None) => return faults,
        };
        match self.0.get(&(claimed, protocol)) {
            Some(first) => {
                let message = format!("is {claimed}/{protocol}, which {first} takes already");
                faults.push((key, Fault::new(message).hint("a port of the host is published once")));
            }
            None => drop(self.0.insert((claimed, protocol), said(key))),
        }
        faults
    }
}

/// Why an address of the host, or which nodes answer, has no meaning for a port.
fn unmapped(host_port: Option<u16>, network: NetworkMode) -> Option<Fault> {
    if network == NetworkMode::Host {
        let fault = Fault::new("has no meaning on the host's network: the program says where it listens");
        return Some(fault.hint("leave it out, or use network: bridge"));
    }
    let fault = || Fault::new("needs a host_port: the port is not published without one");
    host_port.is_none().then(fault)
}

/// An address of the host; 0.0.0.0 names all, as saying nothing does.
pub(super) fn host_ip(text: &str) -> Result<Option<Ipv4Addr>, Fault> {
    let fault = |what: &str| Fault::new(format!("takes {what}, not `{}`", shorten(text)));
    match text.parse() {
        Ok(Ipv4Addr::UNSPECIFIED) => Ok(None),
        Ok(address) if is_host_address(address) => Ok(Some(address)),
        Ok(_) => Err(fault("an address that one host has")),
        Err(_) if text.parse::<Ipv6Addr>().is_ok() => {
            Err(fault("an IPv4 address").hint("published ports do not answer on IPv6"))
        }
        Err(_) => Err(fault("an IPv4 address such as 127.0.0.1")),
    }
}

fn publish(text: &str) -> Result<Publish, Fault> {
    match text {
        "cluster" => Ok(Publish::Cluster),
        "node" => Ok(Publish::Node),
        other => Err(Fault::new(format!("takes cluster or node, not `{}`", shorten(other)))),
    }
}

fn protocol(text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => Err(Fault::new(format!("takes tcp or udp, not `{}`", shorten(other)))),
    }
}

//! `ports`: which container ports are published.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::diagnostic::{Fault, shorten};
use super::number;
use super::source::Place;
use super::walk::{Section, Walk};
use crate::spec::{NetworkMode, PortSpec, Protocol, is_host_address};

const EXAMPLE: &str = "[{container_port: 80, host_port: 8080}]";

pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>, network: NetworkMode) -> Vec<PortSpec> {
    let Some(field) = root.get("ports") else { return Vec::new() };
    let mut ports = Vec::new();
    let mut taken = BTreeMap::new();
    for item in walk.list(&field, EXAMPLE) {
        let keys = ["container_port", "host_port", "host_ip", "protocol"];
        let Some(section) = walk.section(&item, &keys, "{container_port: 80, host_port: 8080}") else {
            continue;
        };
        let container_port = walk.required(&section, "container_port", number::port);
        let host_port = walk.key(&section, "host_port", number::port);
        let host_ip = walk.key(&section, "host_ip", host_ip).flatten();
        let protocol = walk.key(&section, "protocol", protocol).unwrap_or_default();
        let Some(container_port) = container_port else { continue };
        let port = PortSpec { container_port, host_port, protocol, host_ip };
        check_address(walk, &section, &port, network);
        check(walk, &section, &port, network, &mut taken);
        ports.push(port);
    }
    ports
}

/// Refuses an address of the host where no port of it is mapped.
fn check_address(walk: &mut Walk<'_>, section: &Section<'_>, port: &PortSpec, network: NetworkMode) {
    let Some(field) = section.get("host_ip").filter(|_| port.host_ip.is_some()) else { return };
    if network == NetworkMode::Host {
        let fault = Fault::new("has no meaning on the host's network: the program says where it listens");
        walk.fail(&field, fault.hint("leave host_ip out, or use network: bridge"));
    } else if port.host_port.is_none() {
        walk.fail(&field, Fault::new("needs a host_port: the port is not published without one"));
    }
}

/// Refuses a port of the host that is taken twice, or mapped where nothing can be.
fn check(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    port: &PortSpec,
    network: NetworkMode,
    taken: &mut BTreeMap<(u16, Protocol), Place>,
) {
    let PortSpec { container_port, host_port, protocol, host_ip: _ } = *port;
    let (claimed, key) = match (network, host_port) {
        (NetworkMode::Host, Some(mapped)) if mapped != container_port => {
            if let Some(field) = section.get("host_port") {
                let message = format!("is {mapped}, but on the host's network the port is {container_port}");
                walk.fail(&field, Fault::new(message).hint("leave host_port out, or use network: bridge"));
            }
            return;
        }
        (NetworkMode::Host, _) => (container_port, "container_port"),
        (NetworkMode::Bridge, Some(mapped)) => (mapped, "host_port"),
        (NetworkMode::Bridge, None) => return,
    };
    let Some(field) = section.get(key) else { return };
    match taken.get(&(claimed, protocol)) {
        Some(first) => {
            let message = format!("is {claimed}/{protocol}, which line {} takes already", first.line);
            walk.fail(&field, Fault::new(message).hint("a port of the host is published once"));
        }
        None => drop(taken.insert((claimed, protocol), field.node.place)),
    }
}

/// An address of the host; 0.0.0.0 names all, as saying nothing does.
fn host_ip(text: &str) -> Result<Option<Ipv4Addr>, Fault> {
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

fn protocol(text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => Err(Fault::new(format!("takes tcp or udp, not `{}`", shorten(other)))),
    }
}

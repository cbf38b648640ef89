//! `ports`: which container ports are published.

use std::collections::BTreeMap;

use super::diagnostic::{Fault, shorten};
use super::number;
use super::source::Place;
use super::walk::{Section, Walk};
use crate::spec::{NetworkMode, PortSpec, Protocol};

const EXAMPLE: &str = "[{container_port: 80, host_port: 8080}]";

pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>, network: NetworkMode) -> Vec<PortSpec> {
    let Some(field) = root.get("ports") else { return Vec::new() };
    let mut ports = Vec::new();
    let mut taken = BTreeMap::new();
    for item in walk.list(&field, EXAMPLE) {
        let keys = ["container_port", "host_port", "protocol"];
        let Some(section) = walk.section(&item, &keys, "{container_port: 80, host_port: 8080}") else {
            continue;
        };
        let container_port = walk.required(&section, "container_port", number::port);
        let host_port = walk.key(&section, "host_port", number::port);
        let protocol = walk.key(&section, "protocol", protocol).unwrap_or_default();
        let Some(container_port) = container_port else { continue };
        let port = PortSpec { container_port, host_port, protocol };
        check(walk, &section, &port, network, &mut taken);
        ports.push(port);
    }
    ports
}

/// Refuses a port of the host that is taken twice, or mapped where nothing can be.
fn check(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    port: &PortSpec,
    network: NetworkMode,
    taken: &mut BTreeMap<(u16, Protocol), Place>,
) {
    let PortSpec { container_port, host_port, protocol } = *port;
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

fn protocol(text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => Err(Fault::new(format!("takes tcp or udp, not `{}`", shorten(other)))),
    }
}

//! The ports of a Compose file's service. One that a bundle cannot publish as it is said is left out: it
//! must not answer on addresses that it was kept from. On the host's network nothing is mapped,
//! as with Docker.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::super::diagnostic::shorten;
use super::super::tree::{Node, Value};
use super::super::{number, ports};
use super::{Entries, Out, get, said, text};

/// What is said of a port that is mapped on the host's network.
const UNMAPPED: &str =
    "maps nothing on the host's network, as Docker ignores it there: the program says where it listens";

pub(super) fn ports(out: &mut Out, entries: &Entries) {
    let Some(node) = get(entries, "ports") else { return };
    let Value::List(items) = &node.value else { return out.unsaid("ports", "write a list") };
    let on_host = get(entries, "network_mode").and_then(text) == Some("host");
    let mut lines = Vec::new();
    for item in items {
        let Some(mut port) = Port::of(item) else {
            out.unsaid("ports", "one without a port of the container: write container_port: N");
            continue;
        };
        let shown = shorten(&port.shown());
        if on_host && port.unmap() {
            out.unsaid("ports", &format!("`{shown}` {UNMAPPED}"));
        }
        match port.line().map(|line| format!("  - {{{line}}}")) {
            // Two that were mapped to one port of the container.
            Ok(line) if on_host && lines.contains(&line) => {}
            Ok(line) => lines.push(line),
            Err(why) => out.unsaid("ports", &format!("`{shown}` {why}")),
        }
    }
    out.section("ports:", &lines);
}

/// A port as it is written.
struct Port<'n> {
    address: Option<&'n str>,
    host: Option<&'n str>,
    container: &'n str,
    protocol: &'n str,
    /// Whether only nodes that run a replica answer.
    of_node: bool,
}

impl<'n> Port<'n> {
    /// `8080:80/udp`, `127.0.0.1:8080:80`, `80`, or the long form.
    fn of(item: &'n Node) -> Option<Self> {
        match &item.value {
            Value::Text(text) => {
                let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
                let mut parts = ports.rsplitn(3, ':');
                let (container, host, address) = (parts.next()?, parts.next(), parts.next());
                Some(Self { address, host, container, protocol, of_node: false })
            }
            Value::Mapping(entries) => {
                let of = |key| get(entries, key).and_then(text);
                Some(Self {
                    address: of("host_ip"),
                    host: of("published"),
                    container: of("target")?,
                    protocol: of("protocol").unwrap_or("tcp"),
                    of_node: of("mode") == Some("host"),
                })
            }
            _ => None,
        }
    }

    /// Leaves out where and how the host publishes it; whether that said anything.
    fn unmap(&mut self) -> bool {
        let host = self.host.take().filter(|host| !host.is_empty() && *host != self.container);
        let address = self.address.take().filter(|address| !address.is_empty());
        let of_node = std::mem::take(&mut self.of_node);
        host.is_some() || address.is_some() || of_node
    }

    fn shown(&self) -> String {
        let parts = [self.address, self.host, Some(self.container)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(":")
    }

    /// It in a bundle, or why it cannot be there.
    fn line(&self) -> Result<String, String> {
        if self.shown().contains('$') {
            return Err("holds a variable, which is not replaced: write the numbers".to_owned());
        }
        let host = self.host.filter(|host| !host.is_empty());
        if is_range(self.container) || host.is_some_and(is_range) {
            return Err("is a range: write each port by itself".to_owned());
        }
        let mut line = format!("container_port: {}", number::port(self.container).map_err(said)?);
        if let Some(host) = host {
            let _ = write!(line, ", host_port: {}", number::port(host).map_err(said)?);
        }
        match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" => {}
            "udp" => line.push_str(", protocol: udp"),
            other => return Err(format!("is of `{}`: tcp and udp are what there is", shorten(other))),
        }
        match self.address()? {
            Some(address) if host.is_some() => {
                let _ = write!(line, ", host_ip: {address}");
            }
            Some(_) => return Err("has an address of the host and no port of it: write host_port".to_owned()),
            None => {}
        }
        if self.of_node && host.is_some() {
            line.push_str(", publish: node");
        }
        Ok(line)
    }

    /// The address of the host. None is all of them.
    fn address(&self) -> Result<Option<Ipv4Addr>, String> {
        match self.address.map(|address| address.trim_start_matches('[').trim_end_matches(']')) {
            None | Some("") => Ok(None),
            Some("localhost") => Ok(Some(Ipv4Addr::LOCALHOST)),
            Some(address) => ports::host_ip(address).map_err(said),
        }
    }
}

fn is_range(ports: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    ports.split_once('-').is_some_and(|(first, last)| number(first) && number(last))
}

//! What a node tells the cluster of itself and its machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use blixard_core::cluster::level::LEVEL;
use blixard_core::cluster::node::NodeFacts;

use crate::config::{BIND_PORT, HttpListen, NodeConfig};
use crate::daemon::Error;

/// This machine's address on its default route. Nothing is sent: connecting a UDP socket only
/// chooses a route.
///
/// # Errors
/// When there is no such route.
pub(crate) fn default_bind() -> Result<SocketAddr, Error> {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // RFC 5737's documentation range: nobody's.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    let address = probe().map_err(|error| {
        format!("this machine has no default route to tell its address by ({error}): use --bind IP")
    })?;
    Ok(SocketAddr::new(address.ip(), BIND_PORT))
}

/// What the node tells of itself when it listens for links on `bind` and is reached at `addresses`.
///
/// # Errors
/// When the kernel does not tell the machine's memory.
pub(crate) fn facts(
    config: &NodeConfig,
    bind: SocketAddr,
    addresses: Vec<SocketAddr>,
) -> Result<NodeFacts, Error> {
    let host = rustix::system::uname();
    let name = config.name.clone().unwrap_or_else(|| host.nodename().to_string_lossy().into_owned());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let facts = NodeFacts {
        name,
        addresses: addresses.into_iter().filter(|address| usable(address.ip())).collect(),
        labels: config.labels.clone(),
        cpu_millis: u64::try_from(cpus)? * 1000,
        memory_bytes: memory_bytes()?,
        arch: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned(),
        os: std::env::consts::OS.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: LEVEL,
        reserved_ports: own_ports(bind, config.http),
    };
    facts.check_size()?;
    Ok(facts)
}

/// The ports this daemon itself listens on. A published port answers on every address of a node,
/// loopback included, so a replica that published one of these would cut the daemon off.
fn own_ports(bind: SocketAddr, http: HttpListen) -> Vec<u16> {
    let http = match http {
        HttpListen::Off => None,
        HttpListen::Asked(address) | HttpListen::Default(address) => Some(address.port()),
    };
    let mut ports: Vec<u16> = [bind.port()].into_iter().chain(http).filter(|port| *port != 0).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn usable(address: IpAddr) -> bool {
    !address.is_unspecified()
}

fn memory_bytes() -> Result<u64, Error> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| "/proc/meminfo has no MemTotal in kB".into())
}

#[cfg(test)]
mod tests {
    use super::own_ports;
    use crate::config::HttpListen;

    #[test]
    fn the_daemons_own_ports_are_reserved() {
        let at = |text: &str| text.parse().unwrap();
        let check = |http: HttpListen, expect: &[u16]| {
            assert_eq!(own_ports(at("10.77.0.1:7001"), http), expect, "{http:?}");
        };
        check(HttpListen::Off, &[7001]);
        check(HttpListen::Default(at("127.0.0.1:8082")), &[7001, 8082]);
        check(HttpListen::Asked(at("0.0.0.0:80")), &[80, 7001]);
        check(HttpListen::Asked(at("127.0.0.1:7001")), &[7001]);
        check(HttpListen::Asked(at("127.0.0.1:0")), &[7001]);
    }
}

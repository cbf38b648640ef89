//! The node's nftables table: published ports in, masqueraded traffic out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;

use blixard_core::spec::Protocol;
use tokio::io::AsyncWriteExt;

use super::{Lease, NetworkError};

/// The whole table as nftables text, which replaces the one before in one transaction. A host
/// port that several containers publish, as replicas of one service do, alternates among them.
///
/// Ports are translated for packets that arrive (`prerouting`) and for the node's own (`output`)
/// when they are for one of the node's addresses. What reaches a container through a translation
/// from the node's localhost or from its own network is masqueraded, so that the answer comes back
/// the same way.
pub(super) fn ruleset<'a>(name: &str, subnet: Ipv4Addr, leases: impl Iterator<Item = &'a Lease>) -> String {
    let mut targets: BTreeMap<(Protocol, u16), Vec<(Ipv4Addr, u16)>> = BTreeMap::new();
    for lease in leases {
        for port in &lease.ports {
            if let Some(host_port) = port.host_port {
                let target = (lease.address, port.container_port);
                targets.entry((port.protocol, host_port)).or_default().push(target);
            }
        }
    }
    let mut ports = String::new();
    for ((protocol, port), targets) in targets {
        let choices: Vec<String> = targets
            .iter()
            .enumerate()
            .map(|(choice, (address, port))| format!("{choice} : {address} . {port}"))
            .collect();
        // Writing to a string cannot fail.
        writeln!(
            ports,
            "    {protocol} dport {port} dnat ip addr . port to numgen inc mod {} map {{ {} }}",
            targets.len(),
            choices.join(", ")
        )
        .ok();
    }
    format!(
        "table ip {name} {{}}
delete table ip {name}
table ip {name} {{
  chain ports {{
{ports}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    fib daddr type local jump ports
  }}
  chain output {{
    type nat hook output priority -100
    fib daddr type local jump ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {subnet}/24 oifname != \"{name}\" masquerade
    oifname \"{name}\" ct status dnat ip saddr {{ 127.0.0.0/8, {subnet}/24 }} masquerade
  }}
}}
"
    )
}

/// Loads `ruleset`.
pub(super) async fn load(ruleset: &str) -> Result<(), NetworkError> {
    let failed = |error: std::io::Error| {
        NetworkError::Firewall(if error.kind() == std::io::ErrorKind::NotFound {
            "the program `nft` is missing: install the package nftables".to_owned()
        } else {
            error.to_string()
        })
    };
    let mut nft = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(ruleset.as_bytes()).await.map_err(failed)?;
    }
    let output = nft.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetworkError::Firewall(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Deletes the table, if there is one.
pub(super) async fn delete(name: &str) -> Result<(), NetworkError> {
    load(&format!("table ip {name} {{}}\ndelete table ip {name}\n")).await
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use blixard_core::spec::PortSpec;

    use super::*;

    fn lease(host: u8, ports: &[(u16, Option<u16>, Protocol)]) -> Lease {
        let ports = ports
            .iter()
            .map(|&(container_port, host_port, protocol)| PortSpec { container_port, host_port, protocol })
            .collect();
        Lease { netns_path: PathBuf::new(), address: Ipv4Addr::new(10, 210, 1, host), ports }
    }

    #[test]
    fn published_ports_become_translations() {
        let check = |leases: &[Lease], expect: &[&str]| {
            let rules = ruleset("bx", Ipv4Addr::new(10, 210, 1, 0), leases.iter());
            let found: Vec<&str> =
                rules.lines().map(str::trim).filter(|line| line.contains("dport")).collect();
            assert_eq!(found, expect);
        };
        check(&[], &[]);
        check(&[lease(2, &[(80, None, Protocol::Tcp)])], &[]);
        check(
            &[lease(2, &[(80, Some(8080), Protocol::Tcp), (53, Some(53), Protocol::Udp)])],
            &[
                "tcp dport 8080 dnat ip addr . port to numgen inc mod 1 map { 0 : 10.210.1.2 . 80 }",
                "udp dport 53 dnat ip addr . port to numgen inc mod 1 map { 0 : 10.210.1.2 . 53 }",
            ],
        );
        check(
            &[lease(2, &[(80, Some(8080), Protocol::Tcp)]), lease(3, &[(80, Some(8080), Protocol::Tcp)])],
            &[
                "tcp dport 8080 dnat ip addr . port to numgen inc mod 2 map { 0 : 10.210.1.2 . 80, 1 : 10.210.1.3 . 80 }",
            ],
        );
    }
}

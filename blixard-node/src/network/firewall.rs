//! The node's nftables table: published ports in, masqueraded traffic out, and nothing else between
//! containers and the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;
use std::time::Duration;

use blixard_core::spec::Protocol;
use tokio::io::AsyncWriteExt;

use super::forwarding::Forwarded;
use super::{BRIDGES, Lease, NetworkError};

/// How long `nft` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A port of the node: on all of its addresses, or on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Published {
    /// Later ones come first in the rules: one address goes before all.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Published {
    /// The beginning of a rule that is for packets to it.
    fn matching(self) -> String {
        let address = self.address.map(|address| format!("ip daddr {address} ")).unwrap_or_default();
        format!("{address}{} dport {}", self.protocol, self.port)
    }
}

/// Where connections to published ports are dealt to; a port without anybody is refused.
pub(super) type Targets = BTreeMap<Published, Vec<SocketAddrV4>>;

/// The published ports of `leases`, with the containers among them that `leads_to` is true of.
pub(super) fn targets<'a>(leases: impl Iterator<Item = (&'a Lease, bool)>) -> Targets {
    let mut targets = Targets::new();
    for (lease, leads_to) in leases {
        for port in &lease.ports {
            let Some(host_port) = port.host_port else { continue };
            let published = Published { address: port.host_ip, protocol: port.protocol, port: host_port };
            let dealt = targets.entry(published).or_default();
            if leads_to {
                dealt.push(SocketAddrV4::new(lease.address, port.container_port));
            }
        }
    }
    targets
}

/// What the table is made of.
pub(super) struct Rules<'a> {
    /// The bridge's and the table's name.
    pub(super) name: &'a str,
    /// The /24 of containers.
    pub(super) subnet: Ipv4Addr,
    /// Where published ports lead.
    pub(super) targets: &'a Targets,
    /// Ports of the node itself that containers may reach: of services on the host's network.
    pub(super) served: &'a BTreeSet<(Protocol, u16)>,
    /// Where the node forwards for containers alone: what else is let through.
    pub(super) closed: Option<&'a Forwarded>,
}

impl Rules<'_> {
    /// The whole table as nftables text: its rules take the place of those before in one transaction.
    ///
    /// No packet may meet neither. A transaction takes effect at one moment, and a rule that a packet
    /// has reached by then is followed to its end; but a chain that a table made anew hooks in stands
    /// before the one that it replaces, so that a packet between the two is judged by none, and the
    /// elements of a map that a translation looks into are gone at that moment. So chains stay where
    /// they are, and translations look into no map. (Either was seen to refuse a connection: two in
    /// 200,000 beside 1,400 changes.)
    ///
    /// Ports are translated for packets that arrive (`prerouting`) and for the node's own (`output`)
    /// when they are for one of the node's addresses; its loopback addresses are for its own alone.
    /// A port that several containers publish, as replicas of one service do, alternates among them.
    /// What reaches a container through a translation from the node's localhost or from its own
    /// network is masqueraded, so that the answer comes back the same way.
    ///
    /// Of all else only packets that come or go by the bridge are judged. To containers goes what is
    /// translated to a published port, and answers. To the node goes what it serves containers, and
    /// answers; `route_localnet`, without which localhost could not reach a published port, would open
    /// loopback addresses to containers, so those are turned away before anything looks at them.
    pub(super) fn text(&self) -> String {
        let Self { name, subnet, .. } = self;
        let own = |published: &Published| published.address.is_some_and(|address| address.is_loopback());
        let translated = |own_only: bool| -> String {
            let chosen = self.targets.iter().rev().filter(|(published, _)| own(published) == own_only);
            chosen.filter_map(|(published, to)| translation(*published, to)).collect()
        };
        let (ports, localhost) = (translated(false), translated(true));
        format!(
            "table inet {name} {{}}
flush table inet {name}
table inet {name} {{
  set refused {{
    typeof ip daddr . tcp dport
    size 65536
    flags dynamic,timeout
    timeout 4s
  }}
  chain ports {{
{ports}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    ip daddr != 127.0.0.0/8 fib daddr type local jump ports
  }}
  chain output {{
    type nat hook output priority -100
{localhost}    meta nfproto ipv4 fib daddr type local jump ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {subnet}/24 oifname != \"{name}\" masquerade
    oifname \"{name}\" ct status dnat ip saddr {{ 127.0.0.0/8, {subnet}/24 }} masquerade
  }}
  chain arriving {{
    type filter hook prerouting priority raw
    iifname \"{name}\" ip daddr 127.0.0.0/8 drop
    iifname \"{name}\" ip saddr != {subnet}/24 drop
  }}
  chain refusals {{
    type filter hook prerouting priority mangle
{refusals}  }}
  chain retried {{
    ip daddr . tcp dport @refused accept
    add @refused {{ ip daddr . tcp dport }} drop
  }}
  chain input {{
    type filter hook input priority filter
    iifname \"{name}\" jump to_node
{unanswered}  }}
  chain to_node {{
    ct state established,related accept
{served}    fib daddr type != local drop
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain forward {{
    type filter hook forward priority filter
    iifname \"{name}\" oifname \"{name}\" accept
    oifname \"{name}\" jump to_containers
    iifname \"{name}\" meta nfproto ipv6 drop
{others}  }}
  chain to_containers {{
    ct state established,related accept
{containers}    drop
  }}
}}
",
            refusals = self.refusals(),
            unanswered = self.unanswered(),
            served = self.served(),
            others = self.others(),
            containers = self.containers(),
        )
    }

    /// What becomes of packets that are no containers'.
    fn others(&self) -> String {
        let Some(Forwarded { routers, others }) = self.closed else { return String::new() };
        let mut text = String::new();
        for name in routers {
            writeln!(text, "    iifname \"{name}\" accept").expect("strings take everything");
        }
        for name in others {
            writeln!(text, "    iifname \"{name}\" oifname \"{name}\" meta iifkind \"bridge\" accept")
                .expect("strings take everything");
        }
        // Another node on this machine judges what its own containers send and get.
        text + &format!("    iifname \"{BRIDGES}*\" accept\n    oifname \"{BRIDGES}*\" accept\n    drop\n")
    }

    /// Where a port has several containers, one that refuses a connection is not the last word: it
    /// may have ended a moment ago, or not listen yet. Its first refusal is kept from the client,
    /// whose kernel asks again after a second, and is dealt on then.
    fn refusals(&self) -> String {
        let several =
            self.targets.iter().filter(|(published, to)| published.protocol == Protocol::Tcp && to.len() > 1);
        let ports: BTreeSet<u16> = several.map(|(published, _)| published.port).collect();
        if ports.is_empty() {
            return String::new();
        }
        format!(
            "    iifname \"{}\" tcp flags & rst == rst ct direction reply ct status & (assured|dnat) == dnat \
             ct original proto-dst {{ {} }} jump retried\n",
            self.name,
            list(&ports)
        )
    }

    /// A datagram to a port without a container is answered that there is nobody: the socket that
    /// holds the port would swallow it.
    fn unanswered(&self) -> String {
        let nobody = self
            .targets
            .iter()
            .filter(|(published, to)| published.protocol == Protocol::Udp && to.is_empty());
        nobody.map(|(published, _)| format!("    {} reject\n", published.matching())).collect()
    }

    fn served(&self) -> String {
        if self.served.is_empty() {
            return String::new();
        }
        let ports: Vec<String> =
            self.served.iter().map(|(protocol, port)| format!("{protocol} . {port}")).collect();
        format!("    fib daddr type local meta l4proto . th dport {{ {} }} accept\n", ports.join(", "))
    }

    fn containers(&self) -> String {
        let reached: BTreeSet<(Protocol, SocketAddrV4)> = self
            .targets
            .iter()
            .flat_map(|(published, to)| to.iter().map(|target| (published.protocol, *target)))
            .collect();
        if reached.is_empty() {
            return String::new();
        }
        let reached: Vec<String> = reached
            .iter()
            .map(|(protocol, target)| format!("{protocol} . {} . {}", target.ip(), target.port()))
            .collect();
        format!("    ct status dnat meta l4proto . ip daddr . th dport {{ {} }} accept\n", reached.join(", "))
    }
}

/// The rules that deal connections to a published port out, when there is anybody: to each container in
/// turn. The first takes every nth connection, the second every one of those left but for one in n - 1,
/// and so on; the last takes what is left.
fn translation(published: Published, to: &[SocketAddrV4]) -> Option<String> {
    let mut rules = String::new();
    for (target, left) in to.iter().zip((1..=to.len()).rev()) {
        let turn = if left > 1 { format!("numgen inc mod {left} 0 ") } else { String::new() };
        writeln!(rules, "    {} {turn}dnat ip to {target}", published.matching())
            .expect("strings take everything");
    }
    (!to.is_empty()).then_some(rules)
}

fn list(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Loads the rules of the table `name`. With `first` they may be the first that this process loads: then
/// an earlier release's table of IPv4 alone goes in the same transaction, and a table whose chains are
/// another release's, which cannot stay, is made anew.
pub(super) async fn replace(name: &str, rules: &str, first: bool) -> Result<(), NetworkError> {
    if !first {
        return load(rules).await;
    }
    match load(&(deletion("ip", name) + rules)).await {
        Ok(()) => Ok(()),
        Err(_) => load(&(deletion("ip", name) + &deletion("inet", name) + rules)).await,
    }
}

/// Deletes the table, if there is one, also an earlier release's.
pub(super) async fn delete(name: &str) -> Result<(), NetworkError> {
    load(&(deletion("ip", name) + &deletion("inet", name))).await
}

fn deletion(family: &str, name: &str) -> String {
    format!("table {family} {name} {{}}\ndelete table {family} {name}\n")
}

async fn load(ruleset: &str) -> Result<(), NetworkError> {
    let loading = tokio::time::timeout(PATIENCE, run(ruleset));
    loading.await.unwrap_or_else(|_| {
        Err(NetworkError::Firewall(format!("`nft` does not end within {} s", PATIENCE.as_secs())))
    })
}

/// Whether the table is there.
pub(super) async fn is_loaded(name: &str) -> bool {
    let mut nft = tokio::process::Command::new("nft");
    let listing = nft.args(["list", "table", "inet", name]).stdin(Stdio::null()).kill_on_drop(true).output();
    matches!(tokio::time::timeout(PATIENCE, listing).await, Ok(Ok(output)) if output.status.success())
}

async fn run(ruleset: &str) -> Result<(), NetworkError> {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use blixard_core::spec::PortSpec;

    use super::*;

    fn lease(host: u8, ports: &[(u16, Option<u16>, Protocol)]) -> Lease {
        let ports = ports
            .iter()
            .map(|&(container_port, host_port, protocol)| PortSpec {
                container_port,
                host_port,
                protocol,
                host_ip: None,
                publish: Default::default(),
            })
            .collect();
        Lease { netns_path: PathBuf::new(), address: Ipv4Addr::new(10, 210, 1, host), ports }
    }

    fn lines(leases: &[(Lease, bool)], served: &[(Protocol, u16)], closed: bool, with: &str) -> Vec<String> {
        let named = |name: &str| [name.to_owned()].into();
        let forwarded = Forwarded { routers: named("wan0"), others: named("br0") };
        let targets = targets(leases.iter().map(|(lease, leads_to)| (lease, *leads_to)));
        let rules = Rules {
            name: "bx",
            subnet: Ipv4Addr::new(10, 210, 1, 0),
            targets: &targets,
            served: &served.iter().copied().collect(),
            closed: closed.then_some(&forwarded),
        };
        rules.text().lines().map(str::trim).filter(|line| line.contains(with)).map(str::to_owned).collect()
    }

    fn web(host: u8) -> Lease {
        lease(host, &[(80, Some(8080), Protocol::Tcp)])
    }

    #[test]
    fn published_ports_become_translations() {
        let check = |leases: &[(Lease, bool)], expect: &[&str]| {
            assert_eq!(lines(leases, &[], false, "dnat ip to"), expect);
        };
        check(&[], &[]);
        check(&[(lease(2, &[(80, None, Protocol::Tcp)]), true)], &[]);
        check(
            &[(lease(2, &[(80, Some(8080), Protocol::Tcp), (53, Some(53), Protocol::Udp)]), true)],
            &["udp dport 53 dnat ip to 10.210.1.2:53", "tcp dport 8080 dnat ip to 10.210.1.2:80"],
        );
        check(
            &[(web(2), true), (web(3), true), (web(4), false)],
            &[
                "tcp dport 8080 numgen inc mod 2 0 dnat ip to 10.210.1.2:80",
                "tcp dport 8080 dnat ip to 10.210.1.3:80",
            ],
        );
        check(&[(web(2), false)], &[]);
    }

    #[test]
    fn a_port_of_one_address_is_that_addresss_alone() {
        let at = |host, address: [u8; 4]| {
            let mut lease = web(host);
            lease.ports[0].host_ip = Some(address.into());
            lease
        };
        let leases = [(web(2), true), (at(3, [10, 77, 0, 1]), true), (at(4, [127, 0, 0, 1]), true)];
        assert_eq!(
            lines(&leases, &[], false, "dnat ip to"),
            [
                "ip daddr 10.77.0.1 tcp dport 8080 dnat ip to 10.210.1.3:80",
                "tcp dport 8080 dnat ip to 10.210.1.2:80",
                "ip daddr 127.0.0.1 tcp dport 8080 dnat ip to 10.210.1.4:80",
            ]
        );
        // Whoever sends the node a packet for its loopback address is not translated.
        let targets = targets(leases.iter().map(|(lease, leads_to)| (lease, *leads_to)));
        let served = BTreeSet::new();
        let subnet = Ipv4Addr::new(10, 210, 1, 0);
        let rules = Rules { name: "bx", subnet, targets: &targets, served: &served, closed: None }.text();
        let own = rules.split("chain output").nth(1).and_then(|rest| rest.split("chain postrouting").next());
        assert!(own.is_some_and(|own| own.contains("ip daddr 127.0.0.1 tcp")), "{rules}");
    }

    #[test]
    fn containers_are_reached_by_what_is_published_alone() {
        let check = |leases: &[(Lease, bool)], expect: &[&str]| {
            assert_eq!(lines(leases, &[], false, "ct status dnat meta"), expect);
        };
        check(&[(web(2), false)], &[]);
        check(
            &[(web(2), true)],
            &["ct status dnat meta l4proto . ip daddr . th dport { tcp . 10.210.1.2 . 80 } accept"],
        );
    }

    #[test]
    fn the_node_is_reached_by_what_it_serves_and_forwards_for_containers_where_it_is_no_router() {
        let served = [(Protocol::Tcp, 9000), (Protocol::Udp, 53)];
        assert_eq!(
            lines(&[], &served, false, "fib daddr type local meta"),
            ["fib daddr type local meta l4proto . th dport { tcp . 9000, udp . 53 } accept"]
        );
        assert!(lines(&[], &[], false, "fib daddr type local meta").is_empty());
        assert!(lines(&[], &[], false, "iifname \"bx*\" accept").is_empty());
        assert_eq!(lines(&[], &[], true, "iifname \"bx*\" accept").len(), 1);
        assert_eq!(
            lines(&[], &[], true, "0\" "),
            ["iifname \"wan0\" accept", "iifname \"br0\" oifname \"br0\" meta iifkind \"bridge\" accept"]
        );
    }

    #[test]
    fn datagrams_to_nobody_are_refused_and_connections_tried_elsewhere() {
        let dns = || lease(2, &[(53, Some(53), Protocol::Udp)]);
        assert_eq!(lines(&[(dns(), false)], &[], false, "udp dport"), ["udp dport 53 reject"]);
        assert!(lines(&[(dns(), true)], &[], false, "udp dport 53 reject").is_empty());
        assert!(lines(&[(web(2), true), (web(3), false)], &[], false, "jump retried").is_empty());
        assert_eq!(lines(&[(web(2), true), (web(3), true)], &[], false, "proto-dst { 8080 }").len(), 1);
    }
}

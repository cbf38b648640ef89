//! What a container on the container network asks for names: the host's `resolv.conf` without what
//! nobody answers at from there.
//!
//! The lines of resolv.conf(5) are read as the C library reads them. A server on the host's loopback
//! is a stub: whom it asks is in a file of its own, which is looked into when no other server is left.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where stubs on loopback addresses say whom they ask: systemd-resolved, then NetworkManager's dnsmasq.
const BEHIND_STUBS: [&str; 2] =
    ["/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];
/// The most of a file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A container's `resolv.conf`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// The file's text.
    pub(crate) text: String,
    /// Whether it names a server that a container can reach, whose network is IPv4's.
    pub(crate) reachable: bool,
}

/// What the host's files give a container on the container network.
///
/// # Errors
/// When a file is there and cannot be read.
pub(crate) fn of_host() -> io::Result<Resolver> {
    let host = read(Path::new(RESOLV_CONF))?;
    let mut behind = Vec::new();
    for path in BEHIND_STUBS {
        behind.push(read(Path::new(path))?);
    }
    Ok(filtered(&host, behind.iter().map(String::as_str)))
}

/// The host's file as it is, for a container on the host's network.
///
/// # Errors
/// When it is there and cannot be read.
pub(crate) fn host_file() -> io::Result<String> {
    read(Path::new(RESOLV_CONF))
}

/// Reads a file that need not be there, and that a program of the host may have made anyhow.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(file) => drop(file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What of `host` is of use to a container; its servers are those of the first of `behind` that has
/// any when it has none.
fn filtered<'a>(host: &str, behind: impl Iterator<Item = &'a str>) -> Resolver {
    let mut found = Parsed::of(host);
    for other in behind.map(Parsed::of) {
        if found.servers.iter().any(IpAddr::is_ipv4) {
            break;
        }
        if !other.servers.is_empty() {
            found.servers = other.servers;
        }
        found.search = found.search.or(other.search);
    }
    let servers = found.servers.iter().map(|server| format!("nameserver {server}"));
    let lines = found.search.into_iter().chain(servers).chain(found.others);
    Resolver {
        text: lines.map(|line| line + "\n").collect(),
        reachable: found.servers.iter().any(IpAddr::is_ipv4),
    }
}

/// The lines that are kept.
#[derive(Default)]
struct Parsed {
    servers: Vec<IpAddr>,
    /// The last line of `search` or `domain`, the one that counts.
    search: Option<String>,
    /// Lines of `options` and `sortlist`.
    others: Vec<String>,
}

impl Parsed {
    fn of(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            // A comment begins with either sign, at the line's start or after a blank.
            let words = line.split_whitespace().take_while(|word| !word.starts_with(['#', ';']));
            let words: Vec<&str> = words.collect();
            match words.as_slice() {
                ["nameserver", server, ..] => parsed.servers.extend(usable(server)),
                ["search" | "domain", _, ..] => parsed.search = Some(words.join(" ")),
                ["options" | "sortlist", _, ..] => parsed.others.push(words.join(" ")),
                _ => {}
            }
        }
        parsed
    }
}

/// The address of a server, when it is the same server in every network namespace. One with a zone
/// is not: its interface is not there.
fn usable(server: &str) -> Option<IpAddr> {
    let address = server.parse::<IpAddr>().ok()?.to_canonical();
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let usable = !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast());
    usable.then_some(address)
}

#[cfg(test)]
mod tests {
    use super::filtered;

    #[track_caller]
    fn check(host: &str, behind: &[&str], expect: &str, reachable: bool) {
        let found = filtered(host, behind.iter().copied());
        assert_eq!((found.text.as_str(), found.reachable), (expect, reachable));
    }

    #[test]
    fn search_and_options_are_kept_and_servers_that_nobody_reaches_are_not() {
        check(
            "search lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0\n",
            &[],
            "search lan\nnameserver 192.0.2.1\noptions edns0\n",
            true,
        );
        check(
            "nameserver 127.0.0.1\nsearch lan.example\noptions ndots:2\n",
            &[],
            "search lan.example\noptions ndots:2\n",
            false,
        );
        check("# nameserver 192.0.2.9\n;nameserver 192.0.2.8\n", &[], "", false);
        check("nameserver 0.0.0.0\nnameserver ::\nnameserver 255.255.255.255\n", &[], "", false);
        check("nameserver fe80::1%eth0\nnameserver fe80::2\nnameserver ::ffff:127.0.0.1\n", &[], "", false);
        check("nameserver\nnameserver none\noptions\nsearch\nnonsense 1\n", &[], "", false);
        check("\u{feff}\r\n nameserver\t192.0.2.1 # the router\r\n", &[], "nameserver 192.0.2.1\n", true);
        check("nameserver ::ffff:192.0.2.1\n", &[], "nameserver 192.0.2.1\n", true);
        check("domain a\nsearch b c\n", &[], "search b c\n", false);
        check("nameserver 2001:db8::1\n", &[], "nameserver 2001:db8::1\n", false);
    }

    #[test]
    fn behind_a_stub_are_its_own_servers() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n";
        let resolved = "# made by a program\nnameserver 192.0.2.1\nnameserver fe80::1%2\nsearch lan\n";
        check(stub, &[resolved], "search .\nnameserver 192.0.2.1\noptions edns0 trust-ad\n", true);
        check("nameserver 127.0.0.1\n", &["", resolved], "search lan\nnameserver 192.0.2.1\n", true);
        check("", &[resolved], "search lan\nnameserver 192.0.2.1\n", true);
        check("nameserver 192.0.2.7\n", &[resolved], "nameserver 192.0.2.7\n", true);
        check("nameserver 127.0.0.1\n", &["nameserver 127.0.0.54\n", ""], "", false);
    }

    #[test]
    fn resolver_files_survive_every_damage() {
        let file = "# made by hand\nsearch lan.example a.b\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver \
                    fd00::1 ; the router\noptions edns0 ndots:2\nsortlist 192.0.2.0/255.255.255.0\n";
        damage::survives("resolv.conf", &[file.as_bytes().to_vec()], |input| {
            let text = String::from_utf8_lossy(input);
            let found = filtered(&text, ["nameserver 192.0.2.7"].into_iter());
            for line in found.text.lines() {
                let known = ["search ", "domain ", "options ", "sortlist ", "nameserver "];
                assert!(known.iter().any(|key| line.starts_with(key)), "{line}");
            }
            // What was filtered once stays as it is.
            assert_eq!(filtered(&found.text, std::iter::empty()), found);
            Ok(())
        });
    }
}

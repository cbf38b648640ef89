//! What a value of `--join` means.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use super::ticket::{PREFIX, Ticket, TicketError};
use crate::text::printable;

/// Something to join by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinTarget {
    /// A registry or static file.
    File(PathBuf),
    /// A ticket.
    Ticket(Box<Ticket>),
    /// A file that holds a ticket, `@FILE`; `-` is standard input when nothing was there.
    TicketFile(PathBuf),
    /// A registry or static file that a web server gives.
    Url(String),
    /// A program that prints what a registry or static file holds, `exec:PROGRAM`.
    Program(PathBuf),
    /// Whoever announces itself on the local network, `mdns`. The same holds for it as for an address.
    Announced,
    /// Where a member may be, `HOST:PORT`. Who is there has to prove that it knows the join token.
    Address {
        /// Its name or IP address.
        host: String,
        /// Its port, the one that links are accepted on.
        port: u16,
    },
}

/// Why a value of `--join` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is nothing in it.
    #[error(
        "--join takes a registry file, its http(s) URL, mdns, HOST:PORT, exec:PROGRAM, @FILE with a ticket, or - for one on standard input; it is empty"
    )]
    Empty,
    /// It looks like a ticket and is not one.
    #[error("--join: {0}")]
    Ticket(#[from] TicketError),
    /// It looks like an address and is not one.
    #[error(
        "--join {}: not a host and a port; write it like 10.0.0.1:7001, box1:7001 or [fd00::1]:7001",
        printable(address)
    )]
    Address {
        /// The address.
        address: String,
    },
    /// It is no URL that can be read.
    #[error("--join {}: {reason}; give the http:// or https:// URL of a registry file", printable(url))]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl JoinTarget {
    /// Tells a file, a ticket, a file with one, an address, a program and a URL apart. A file whose name
    /// looks like one of the others is named with its directory, `./name`.
    ///
    /// # Errors
    /// When it is a damaged ticket, or something that cannot be joined by.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(TargetError::Empty);
        }
        if trimmed == "-" {
            return Ok(Self::TicketFile(PathBuf::from("-")));
        }
        if trimmed.eq_ignore_ascii_case("mdns") {
            return Ok(Self::Announced);
        }
        let path = |path: &str| match path.trim() {
            "" => Err(TargetError::Empty),
            path => Ok(PathBuf::from(path)),
        };
        if let Some(file) = trimmed.strip_prefix('@') {
            return path(file).map(Self::TicketFile);
        }
        if let Some(program) = trimmed.strip_prefix("exec:") {
            return path(program).map(Self::Program);
        }
        if let Some((scheme, rest)) = trimmed.split_once("://") {
            return parse_url(trimmed, scheme, rest);
        }
        let is_path = trimmed.contains(['/', '\\']) || trimmed.ends_with(".json");
        let prefix = trimmed.get(..PREFIX.len());
        if !is_path && prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX)) {
            return Ok(Self::Ticket(Box::new(trimmed.parse()?)));
        }
        if !is_path && let Some((host, port)) = trimmed.rsplit_once(':') {
            return parse_address(trimmed, host, port);
        }
        if trimmed.parse::<IpAddr>().is_ok() {
            return Err(TargetError::Address { address: trimmed.to_owned() });
        }
        Ok(Self::File(PathBuf::from(trimmed)))
    }
}

fn parse_url(text: &str, scheme: &str, rest: &str) -> Result<JoinTarget, TargetError> {
    let refused = |reason| Err(TargetError::Url { url: text.to_owned(), reason });
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" if host.is_empty() => refused("it names no server"),
        "http" | "https" => Ok(JoinTarget::Url(text.to_owned())),
        _ => refused("only web servers are asked"),
    }
}

fn parse_address(text: &str, host: &str, port: &str) -> Result<JoinTarget, TargetError> {
    let refused = || TargetError::Address { address: text.to_owned() };
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
    let name = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok().then_some(v6),
        None => Some(host).filter(|host| is_host(host)),
    };
    Ok(JoinTarget::Address { host: name.ok_or_else(refused)?.to_owned(), port })
}

/// Whether a text is an IPv4 address or may be a name in the DNS (RFC 1123, and `_` as people write it).
fn is_host(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (1..=253).contains(&text.len()) && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::{JoinTarget, TargetError};
    use crate::discovery::ticket::TicketError;

    #[test]
    fn values_of_join_are_told_apart() {
        for path in
            ["data/node1/node-registry.json", "node-registry.json", "registry", "./bxt1", "./a:1", "/x:7001"]
        {
            assert_eq!(JoinTarget::parse(path), Ok(JoinTarget::File(path.into())));
        }
        let address = |text: &str, host: &str, port| {
            let expect = JoinTarget::Address { host: host.to_owned(), port };
            assert_eq!(JoinTarget::parse(text), Ok(expect));
        };
        address("10.0.0.1:7001", "10.0.0.1", 7001);
        address("[fd00::1]:7001", "fd00::1", 7001);
        address("box1:7001", "box1", 7001);
        address("host.example.net:1", "host.example.net", 1);
        for wrong in
            ["host:", "host:0", "host:70000", ":7001", "fd00::1", "[fd00::1:7001", "a b:1", "é:1", "10.0.0.1"]
        {
            assert_eq!(JoinTarget::parse(wrong), Err(TargetError::Address { address: wrong.to_owned() }));
        }
        for url in ["https://host/registry.json", "http://10.0.0.1:8000/r?x#y", "HTTPS://user:pw@h"] {
            assert_eq!(JoinTarget::parse(url), Ok(JoinTarget::Url(url.to_owned())));
        }
        for url in ["ftp://host/registry.json", "http://", "https:///r", "file:///r.json"] {
            assert!(matches!(JoinTarget::parse(url), Err(TargetError::Url { .. })), "{url}");
        }
        assert_eq!(JoinTarget::parse("exec:/bin/ls"), Ok(JoinTarget::Program("/bin/ls".into())));
        assert_eq!(JoinTarget::parse("mDNS"), Ok(JoinTarget::Announced));
        assert_eq!(JoinTarget::parse("./mdns"), Ok(JoinTarget::File("./mdns".into())));
        assert_eq!(JoinTarget::parse("exec: "), Err(TargetError::Empty));
        assert_eq!(JoinTarget::parse(" "), Err(TargetError::Empty));
        let truncated = TicketError::Truncated { characters: 6, characters_expected: 8 };
        assert_eq!(JoinTarget::parse("bxt1ab"), Err(TargetError::Ticket(truncated)));
    }

    #[test]
    fn a_file_with_a_ticket_is_told_by_its_sign() {
        assert_eq!(JoinTarget::parse(" @/run/t "), Ok(JoinTarget::TicketFile("/run/t".into())));
        assert_eq!(JoinTarget::parse("@t.json"), Ok(JoinTarget::TicketFile("t.json".into())));
        assert_eq!(JoinTarget::parse("-"), Ok(JoinTarget::TicketFile("-".into())));
        assert_eq!(JoinTarget::parse("./@t"), Ok(JoinTarget::File("./@t".into())));
        assert_eq!(JoinTarget::parse("@"), Err(TargetError::Empty));
    }
}

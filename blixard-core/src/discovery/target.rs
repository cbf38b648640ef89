//! What a value of `--join` means.

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
}

/// Why a value of `--join` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is nothing in it.
    #[error("--join takes a registry file, @FILE with a ticket, or - for one on standard input; it is empty")]
    Empty,
    /// It looks like a ticket and is not one.
    #[error("--join: {0}")]
    Ticket(#[from] TicketError),
    /// It is an address: nothing in it says who should answer there.
    #[error(
        "--join {}: an address alone has no key to trust; use the node's registry file (node-registry.json in its data directory) or a ticket from it",
        printable(address)
    )]
    Address {
        /// The address.
        address: String,
    },
    /// It is a URL.
    #[error(
        "--join {}: joining by URL is not supported; download the registry file and name it, or use a ticket",
        printable(url)
    )]
    Url {
        /// The URL.
        url: String,
    },
}

impl JoinTarget {
    /// Tells a file, a ticket, a file with one, an address and a URL apart. A file whose name looks like
    /// one of the others is named with its directory, `./name`.
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
        if let Some(path) = trimmed.strip_prefix('@') {
            let path = if path.is_empty() { Err(TargetError::Empty) } else { Ok(PathBuf::from(path)) };
            return path.map(Self::TicketFile);
        }
        if trimmed.contains("://") {
            return Err(TargetError::Url { url: trimmed.to_owned() });
        }
        let is_path = trimmed.contains(['/', '\\']) || trimmed.ends_with(".json");
        let prefix = trimmed.get(..PREFIX.len());
        if !is_path && prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX)) {
            return Ok(Self::Ticket(Box::new(trimmed.parse()?)));
        }
        let port = trimmed.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !is_path && matches!(port, Some(Ok(_))) {
            return Err(TargetError::Address { address: trimmed.to_owned() });
        }
        Ok(Self::File(PathBuf::from(trimmed)))
    }
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
        for address in ["10.0.0.1:7001", "[fd00::1]:7001", "host:7001", "host.example.net:1"] {
            assert_eq!(JoinTarget::parse(address), Err(TargetError::Address { address: address.to_owned() }));
        }
        let url = "https://host/registry.json".to_owned();
        assert_eq!(JoinTarget::parse(&url), Err(TargetError::Url { url }));
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

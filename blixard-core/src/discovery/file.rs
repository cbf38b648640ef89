//! The registry file, which a node writes about itself for others to join by, and the static file,
//! a list of members. Both are JSON; keys that are not known are ignored.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::contact::Contact;
use super::text::{AddressText, KeyText, NodeText, TimeText, TokenText};
use crate::api::token::Secret;
use crate::id::{ClusterId, NodeId, NodeKey};
use crate::text::one_line;
use crate::wire::Peer;

/// The largest file read, in bytes: hundreds of members.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file is not a registry or static file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// There is nothing in it.
    #[error(
        "{file}: the file is empty; a registry file holds the JSON object that a node writes as node-registry.json"
    )]
    Empty {
        /// Which file.
        file: String,
    },
    /// It ends in the middle.
    #[error(
        "{file}:{line}:{column}: the file ends in the middle: it was cut short, or is still being written"
    )]
    Truncated {
        /// Which file.
        file: String,
        /// The line of its end, from 1.
        line: usize,
        /// The column of its end.
        column: usize,
    },
    /// Something in it is not as it must be.
    #[error("{file}:{line}:{column}: {message}")]
    Invalid {
        /// Which file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column.
        column: usize,
        /// What is wrong and what is allowed.
        message: String,
    },
}

/// What a node writes of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Its id.
    pub node: NodeId,
    /// Where and who it is.
    pub peer: Peer,
    /// Its cluster.
    pub cluster: ClusterId,
    /// What admits others to it; absent when what the node has admits nobody any more.
    pub token: Option<Secret>,
}

#[derive(Serialize)]
struct RegistryOut<'a> {
    cluster_node_id: NodeId,
    iroh_node_id: KeyText,
    direct_addresses: Vec<AddressText>,
    relay_url: Option<&'a str>,
    address: Option<AddressText>,
    cluster_id: ClusterId,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<TokenText>,
}

#[derive(Deserialize)]
#[serde(expecting = "a registry object like node-registry.json, or an array of members")]
struct RegistryIn {
    #[serde(default)]
    cluster_node_id: Option<NodeText>,
    iroh_node_id: KeyText,
    #[serde(default)]
    direct_addresses: Vec<AddressText>,
    #[serde(default)]
    relay_url: Option<String>,
    #[serde(default)]
    address: Option<AddressText>,
    #[serde(default)]
    cluster_id: Option<ClusterId>,
    #[serde(default)]
    join_token: Option<TokenText>,
}

#[derive(Deserialize)]
#[serde(expecting = "a member: an object with iroh_node_id and direct_addresses")]
struct MemberIn {
    #[serde(default)]
    node_id: Option<NodeText>,
    #[serde(default)]
    iroh_node_id: Option<KeyText>,
    #[serde(default)]
    direct_addresses: Vec<AddressText>,
    #[serde(default)]
    relay_url: Option<String>,
    #[serde(default)]
    discovered_at: Option<TimeText>,
}

impl Registry {
    /// The file's text.
    pub fn to_json(&self) -> String {
        let out = RegistryOut {
            cluster_node_id: self.node,
            iroh_node_id: KeyText(self.peer.key),
            direct_addresses: self.peer.addresses.iter().copied().map(AddressText).collect(),
            relay_url: self.peer.relay_url.as_deref(),
            address: self.peer.addresses.first().copied().map(AddressText),
            cluster_id: self.cluster,
            join_token: self.token.clone().map(TokenText),
        };
        let text = serde_json::to_string_pretty(&out).expect("a registry has only text keys");
        text + "\n"
    }
}

/// Reads a registry file's object or a static file's array, whichever `text` is. `file` names it
/// in errors.
///
/// # Errors
/// With line and column, what is wrong and what is allowed.
pub fn parse(file: &str, text: &str) -> Result<Vec<Contact>, FileError> {
    let text = text.trim_start_matches('\u{feff}');
    match text.trim_start().chars().next() {
        None => Err(FileError::Empty { file: file.to_owned() }),
        Some('[') => {
            let members: Vec<MemberIn> = json(file, text)?;
            members
                .into_iter()
                .enumerate()
                .map(|(place, member)| static_member(file, place, member))
                .collect()
        }
        Some(_) => Ok(vec![registry(json(file, text)?)]),
    }
}

fn registry(read: RegistryIn) -> Contact {
    let node = match read.cluster_node_id {
        Some(NodeText::Id(node)) => Some(node),
        Some(NodeText::Key(_)) | None => None,
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for AddressText(address) in read.direct_addresses.into_iter().chain(read.address) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Contact {
        key: read.iroh_node_id.0,
        node,
        addresses,
        relay_url: read.relay_url,
        cluster: read.cluster_id,
        token: read.join_token.map(|token| token.0),
        seen_at: None,
        named: true,
    }
}

fn static_member(file: &str, place: usize, read: MemberIn) -> Result<Contact, FileError> {
    let (node, named_key) = match read.node_id {
        Some(NodeText::Id(node)) => (Some(node), None),
        Some(NodeText::Key(key)) => (None, Some(key)),
        None => (None, None),
    };
    let key: Option<NodeKey> = read.iroh_node_id.map(|key| key.0).or(named_key);
    let key = key.ok_or_else(|| FileError::Invalid {
        file: file.to_owned(),
        line: 1,
        column: 1,
        message: format!(
            "member {} of the list has no iroh_node_id: without a key nobody can be trusted",
            place + 1
        ),
    })?;
    Ok(Contact {
        key,
        node,
        addresses: read.direct_addresses.into_iter().map(|address| address.0).collect(),
        relay_url: read.relay_url,
        cluster: None,
        token: None,
        seen_at: read.discovered_at.map(|time| time.0),
        named: true,
    })
}

fn json<T: for<'de> Deserialize<'de>>(file: &str, text: &str) -> Result<T, FileError> {
    serde_json::from_str(text).map_err(|error| {
        let (file, line, column) = (file.to_owned(), error.line(), error.column());
        if error.is_eof() {
            return FileError::Truncated { file, line, column };
        }
        // serde_json repeats the position at the end of its message.
        let message = error.to_string();
        let message = one_line(&message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message));
        FileError::Invalid { file, line, column, message }
    })
}

#[cfg(test)]
mod tests {
    use super::{Registry, parse};
    use crate::api::token::Secret;
    use crate::discovery::contact::Contact;
    use crate::id::{ClusterId, NodeId, NodeKey, TokenId};
    use crate::time::UtcMs;
    use crate::wire::Peer;

    const HEX: &str = "0808080808080808080808080808080808080808080808080808080808080808";

    fn contact(addresses: &[&str]) -> Contact {
        Contact {
            key: NodeKey([8; 32]),
            node: Some(NodeId(1)),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            relay_url: None,
            cluster: None,
            token: None,
            seen_at: None,
            named: true,
        }
    }

    #[test]
    fn a_registry_is_read_as_written() {
        let registry = Registry {
            node: NodeId(1),
            peer: Peer {
                key: NodeKey([8; 32]),
                addresses: vec!["10.77.0.1:7001".parse().unwrap(), "[fd00::1]:7001".parse().unwrap()],
                relay_url: None,
            },
            cluster: ClusterId([3; 16]),
            token: Some(Secret { id: TokenId([1; 8]), secret: [2; 32] }),
        };
        let expect = Contact {
            cluster: Some(registry.cluster),
            token: registry.token.clone(),
            ..contact(&["10.77.0.1:7001", "[fd00::1]:7001"])
        };
        assert_eq!(parse("node-registry.json", &registry.to_json()), Ok(vec![expect.clone()]));
        let spent = Registry { token: None, ..registry };
        assert!(!spent.to_json().contains("join_token"));
        assert_eq!(
            parse("node-registry.json", &spent.to_json()),
            Ok(vec![Contact { token: None, ..expect }])
        );
    }

    #[test]
    fn files_of_old_versions_are_read() {
        let registry = format!(
            r#"{{"cluster_node_id": 1, "iroh_node_id": "{HEX}", "direct_addresses": ["10.0.0.1:1"],
                 "relay_url": null, "address": "10.0.0.1:2", "new_key": {{}}}}"#
        );
        assert_eq!(parse("f", &registry), Ok(vec![contact(&["10.0.0.1:1", "10.0.0.1:2"])]));

        let list = |entry: &str| parse("f", &format!("[{entry}]"));
        let base64 = "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=";
        let entry = format!(
            r#"{{"node_id": "1", "iroh_node_id": "{base64}", "direct_addresses": ["10.0.0.1:1"],
                 "relay_url": null, "source": "static", "discovered_at": "1970-01-01T00:00:05Z"}}"#
        );
        let expect = Contact { seen_at: Some(UtcMs(5000)), ..contact(&["10.0.0.1:1"]) };
        assert_eq!(list(&entry), Ok(vec![expect.clone()]));
        let as_system_time = entry
            .replace("\"1970-01-01T00:00:05Z\"", r#"{"secs_since_epoch": 5, "nanos_since_epoch": 999999}"#);
        assert_eq!(list(&as_system_time), Ok(vec![expect]));
        let by_node_id = format!(r#"{{"node_id": "{HEX}", "direct_addresses": []}}"#);
        assert_eq!(list(&by_node_id), Ok(vec![Contact { node: None, ..contact(&[]) }]));
        assert_eq!(parse("f", "[]"), Ok(vec![]));
    }

    #[test]
    fn every_fault_says_where_it_is_and_what_is_allowed() {
        let check = |text: &str, expect: &str| {
            let error = parse("reg.json", text).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{error}\nshould start with\n{expect}");
        };
        check("", "reg.json: the file is empty");
        check(" \n", "reg.json: the file is empty");
        check("{\n \"iroh_node_id\": \"08", "reg.json:2:20: the file ends in the middle");
        check(&format!("{{\n \"iroh_node_id\": \"{HEX}\","), "reg.json:2:84: the file ends in the middle");
        check("{}", "reg.json:1:2: missing field `iroh_node_id`");
        check(
            "{\n \"iroh_node_id\": \"xyz\"}",
            "reg.json:2:22: invalid value: string \"xyz\", expected a node's key: 64 hexadecimal digits",
        );
        check(
            &format!("{{\"iroh_node_id\": \"{HEX}\",\n \"direct_addresses\": [\"localhost:1\"]}}"),
            "reg.json:2:35: invalid value: string \"localhost:1\", expected an address: IP:PORT, like",
        );
        check(
            &format!("{{\"iroh_node_id\": \"{HEX}\",\n \"cluster_node_id\": 0}}"),
            "reg.json:2:21: invalid value: integer `0`, expected a node's id (a number from 1 on)",
        );
        check(
            &format!("{{\"iroh_node_id\": \"{HEX}\",\n \"join_token\": \"a.b\"}}"),
            "reg.json:2:21: a token is 16 hexadecimal digits, a full stop and 64 more",
        );
        check("7", "reg.json:1:1: invalid type: integer `7`, expected a registry object");
        check("{]", "reg.json:1:2: key must be a string");
        check("[{\"direct_addresses\": []}]", "reg.json:1:1: member 1 of the list has no iroh_node_id");
        check("[7]", "reg.json:1:2: invalid type: integer `7`, expected a member");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _parsed = parse("f", &text);
        }
    }
}

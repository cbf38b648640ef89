//! Identifiers. Each is a newtype, so that one cannot stand where another belongs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::text::printable;

/// A member's number: the Raft id, bound to one key, never reused after removal. At least 1.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

/// One instance of a service, numbered by `apply` in the order of placement. Never reused.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

macro_rules! display_number {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}
display_number!(NodeId, ReplicaId, VolumeId);

/// A volume, numbered by `apply` in the order in which they are made. Never reused.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct VolumeId(pub u64);

/// Why a piece of text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is not the right number of hexadecimal digits.
    #[error("`{}` is not a {what}: it takes {digits} hexadecimal digits", printable(text))]
    Hex {
        /// The offending text.
        text: String,
        /// The identifier that was expected.
        what: &'static str,
        /// How many digits it has.
        digits: usize,
    },
    /// The text cannot be a volume's name.
    #[error(
        "`{}` is not a volume name: use 1 to 63 letters, digits, `_`, `.` and hyphens, starting with a letter or digit",
        printable(text)
    )]
    VolumeName {
        /// The offending text.
        text: String,
    },
    /// The text cannot be a service's name.
    #[error(
        "`{}` is not a service name: use 1 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit",
        printable(text)
    )]
    ServiceName {
        /// The offending text.
        text: String,
    },
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError::Hex {
                    text: text.to_owned(),
                    what: $what,
                    digits: $bytes * 2,
                })?;
                Ok(Self(bytes))
            }
        }

        /// Hexadecimal digits where people read, the bytes themselves elsewhere.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Bytes;

                impl serde::de::Visitor<'_> for Bytes {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what))
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        bytes.try_into().map($name).map_err(|_| E::invalid_length(bytes.len(), &self))
                    }
                }

                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Bytes)
                } else {
                    deserializer.deserialize_bytes(Bytes)
                }
            }
        }
    };
}

hex_id!(
    /// A client's name for one write, so that a retry applies once. Random, 128 bits.
    RequestId, 16, "request id"
);
hex_id!(
    /// A cluster's identity, drawn at bootstrap. A data directory belongs to one cluster for ever.
    ClusterId, 16, "cluster id"
);
hex_id!(
    /// A member's Ed25519 public key: what a link authenticates.
    NodeKey, 32, "node key"
);
hex_id!(
    /// Stands for all that a volume held at one time.
    VolumeRoot, 32, "root of a volume"
);
hex_id!(
    /// The public half of a join token. The secret half is kept only as a hash.
    TokenId, 8, "token id"
);

/// A service's name: a DNS label (RFC 1123), 1 to 63 lower-case letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServiceName {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits = (1..=63).contains(&text.len())
            && text.chars().all(label)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits { Ok(Self(text)) } else { Err(IdError::ServiceName { text }) }
    }
}

impl FromStr for ServiceName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.to_owned().try_into()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A volume's name, as compose files write them: 1 to 63 letters, digits, `_`, `.` and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct VolumeName(String);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let fits = (1..=63).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if fits { Ok(Self(text)) } else { Err(IdError::VolumeName { text }) }
    }
}

impl FromStr for VolumeName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.to_owned().try_into()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A container's id: 64 hexadecimal digits. Its first 12, the short form, are never all decimal
/// digits, so that no tool takes one for a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// How many digits the short form has.
    pub const SHORT: usize = 12;

    /// Derives the id of a replica's container from what names it: every node computes the same.
    pub fn new(cluster: ClusterId, replica: ReplicaId, attempt: u32) -> Self {
        let mut salt = 0_u32;
        loop {
            let mut hash = Sha256::new();
            hash.update(cluster.0);
            hash.update(replica.0.to_be_bytes());
            hash.update(attempt.to_be_bytes());
            hash.update(salt.to_be_bytes());
            let text = hex::encode(hash.finalize());
            if text.bytes().take(Self::SHORT).any(|digit| digit.is_ascii_alphabetic()) {
                return Self(text);
            }
            salt += 1;
        }
    }

    /// The first 12 digits.
    pub fn short(&self) -> &str {
        self.0.get(..Self::SHORT).unwrap_or(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

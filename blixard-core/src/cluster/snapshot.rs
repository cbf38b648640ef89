//! The one encoding: of log entries, snapshots of the state, and peer messages.
//!
//! Four bytes, format and feature level, both big-endian, then MessagePack with named fields. The
//! four bytes are checked before anything else is read, so that software meeting what is newer
//! than itself says so and stops, instead of guessing or skipping. Within a level, fields are
//! only ever added, with a default: a reader passes over those it does not know. The rules, and
//! what raising the level takes, are in docs/adr.
//!
//! Decoding never panics and allocates in proportion to its input, whatever that holds.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command::{FIRST_LEVEL, FORMAT, LEVEL};
use super::{ClusterState, Command, Entry};
use crate::time::UtcMs;

/// How deep values may nest: several times what any type here does, and shallow enough for any
/// stack.
const DEPTH_MAX: usize = 64;
const HEADER_BYTES: usize = 4;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are in another format.
    #[error(
        "the {what} is in format {found}, this software reads {FORMAT}: use the version that wrote it, or migrate"
    )]
    Format {
        /// What was to be decoded.
        what: &'static str,
        /// The format found.
        found: u16,
    },
    /// They need newer software.
    #[error("the {what} needs feature level {found}, this software knows {LEVEL}: upgrade it")]
    Level {
        /// What was to be decoded.
        what: &'static str,
        /// The level needed.
        found: u16,
    },
    /// They are not what they should be.
    #[error("the {what} is damaged: {reason}")]
    Corrupt {
        /// What was to be decoded.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What follows an entry's header.
#[derive(Serialize)]
struct EntryBodyRef<'a> {
    at: UtcMs,
    commands: &'a [Command],
}

#[derive(Deserialize)]
struct EntryBody {
    at: UtcMs,
    commands: Vec<Command>,
}

/// Encodes a log entry.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    encode_as(entry.format, entry.level, &EntryBodyRef { at: entry.at, commands: &entry.commands })
}

/// Decodes a log entry.
///
/// # Errors
/// When it is of another format, needs a higher level, or is damaged: an unknown command too.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let (level, body): (u16, EntryBody) = decode_as("log entry", bytes)?;
    Ok(Entry { format: FORMAT, level, at: body.at, commands: body.commands })
}

/// Encodes the state, as a snapshot holds it.
pub fn encode_state(state: &ClusterState) -> Vec<u8> {
    encode_as(FORMAT, state.level, state)
}

/// Decodes the state and rebuilds what is not encoded.
///
/// # Errors
/// When it is of another format, needs a higher level, is damaged, or has a replica of nothing.
pub fn decode_state(bytes: &[u8]) -> Result<ClusterState, DecodeError> {
    const WHAT: &str = "snapshot";
    let (_, mut state): (u16, ClusterState) = decode_as(WHAT, bytes)?;
    if let Some(name) = state.services.iter().find(|(_, service)| service.versions.is_empty()) {
        return Err(DecodeError::Corrupt {
            what: WHAT,
            reason: format!("service `{}` has no version", name.0),
        });
    }
    if let Some((id, _)) = state.replicas.iter().find(|(_, replica)| state.spec_of(replica).is_none()) {
        return Err(DecodeError::Corrupt {
            what: WHAT,
            reason: format!("replica {id} runs no known version"),
        });
    }
    state.reindex();
    Ok(state)
}

/// Encodes a peer message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    encode_as(FORMAT, FIRST_LEVEL, message)
}

/// Decodes a peer message.
///
/// # Errors
/// When it is of another format, needs a higher level, or is damaged.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode_as("message", bytes).map(|(_, message)| message)
}

/// SHA-256 of the encoded state: equal on every member that has applied the same entries.
pub fn digest(state: &ClusterState) -> [u8; 32] {
    Sha256::digest(encode_state(state)).into()
}

/// How many bytes `value` takes, without its header.
pub(super) fn encoded_len<T: Serialize>(value: &T) -> usize {
    struct Count(usize);

    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    rmp_serde::encode::write_named(&mut count, value).expect("a counter takes every byte");
    count.0
}

fn encode_as<T: Serialize>(format: u16, level: u16, body: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&format.to_be_bytes());
    bytes.extend_from_slice(&level.to_be_bytes());
    rmp_serde::encode::write_named(&mut bytes, body)
        .expect("a vector takes every byte, and every type here has an encoding");
    bytes
}

fn decode_as<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<(u16, T), DecodeError> {
    let corrupt = |reason: String| DecodeError::Corrupt { what, reason };
    let Some((&[f0, f1, l0, l1], body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(corrupt(format!("it ends after {} bytes", bytes.len())));
    };
    let (format, level) = (u16::from_be_bytes([f0, f1]), u16::from_be_bytes([l0, l1]));
    if format != FORMAT {
        return Err(DecodeError::Format { what, found: format });
    }
    if level > LEVEL {
        return Err(DecodeError::Level { what, found: level });
    }
    let mut reader = rmp_serde::Deserializer::from_read_ref(body);
    reader.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut reader).map_err(|error| corrupt(error.to_string()))?;
    // A unit takes one byte, so that only the end of the input makes it fail to read a marker.
    match <()>::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok((level, value)),
        _ => Err(corrupt("something follows its end".to_owned())),
    }
}

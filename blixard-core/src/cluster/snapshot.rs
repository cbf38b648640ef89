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

use super::command::FORMAT;
use super::level::{FIRST_LEVEL, LEVEL};
use super::{ClusterState, Command, Entry};
use crate::text;
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

/// SHA-256 of the encoded state: equal on every member that has applied the same entries. Takes no
/// memory for the encoding.
pub fn digest(state: &ClusterState) -> [u8; 32] {
    /// How much is hashed at once, in bytes: an encoder writes a few at a time.
    const CHUNK_BYTES: usize = 8 << 10;
    struct Hashed(Sha256);

    impl io::Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut hasher = io::BufWriter::with_capacity(CHUNK_BYTES, Hashed(Sha256::new()));
    write_as(&mut hasher, FORMAT, state.level, state);
    let hasher = hasher.into_inner().map_err(|error| error.into_error()).expect("a hash takes every byte");
    hasher.0.finalize().into()
}

/// How many bytes `value` takes, without its header.
pub(crate) fn encoded_len<T: Serialize>(value: &T) -> usize {
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
    write_as(&mut bytes, format, level, body);
    bytes
}

/// Writes to what takes every byte.
fn write_as<T: Serialize>(to: &mut impl io::Write, format: u16, level: u16, body: &T) {
    let header = [format.to_be_bytes(), level.to_be_bytes()].concat();
    to.write_all(&header).expect("it takes every byte");
    rmp_serde::encode::write_named(to, body).expect("it takes every byte, and every type has an encoding");
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
    decode_exactly(body).map(|value| (level, value)).map_err(corrupt)
}

/// Decodes MessagePack that is one value and nothing after it.
///
/// # Errors
/// In one line of [`crate::limits::TEXT_BYTES_MAX`] bytes at most: when the bytes are cut short, of
/// another shape, followed by others, or nest deeper than any value here does.
pub fn decode_exactly<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut reader).map_err(|error| text::one_line(&error))?;
    // A unit takes one byte, so that only the end of the input makes it fail to read a marker.
    match <()>::deserialize(&mut reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err("something follows its end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::testing::{Cluster, START, bootstrap, name, place, spec};
    use crate::wire::HeartbeatAck;

    fn entry() -> Vec<u8> {
        encode_entry(&Entry::new(START, vec![bootstrap()]))
    }

    fn with_header(format: u16, level: u16, body: &[u8]) -> Vec<u8> {
        [&format.to_be_bytes()[..], &level.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn what_is_newer_is_refused_before_it_is_read() {
        let check = |bytes: &[u8], expect: &str| {
            let found = decode_entry(bytes).expect_err("it is refused").to_string();
            assert!(found.contains(expect), "`{found}` lacks `{expect}`");
        };
        check(&with_header(2, 1, &[0xc1]), "the log entry is in format 2, this software reads 1");
        check(
            &with_header(1, 7, &[0xc1]),
            "the log entry needs feature level 7, this software knows 2: upgrade it",
        );
        check(&[0, 1, 0], "ends after 3 bytes");
        check(&with_header(1, 1, &[0xc1]), "the log entry is damaged");
        check(&[entry(), vec![0]].concat(), "something follows its end");
        check(&[entry(), vec![0xc0]].concat(), "something follows its end");
        check(&entry()[..entry().len() - 1], "the log entry is damaged");
    }

    #[test]
    fn an_unknown_command_is_an_error() {
        #[derive(Serialize)]
        enum Newer {
            Teleport { node: u64 },
        }
        #[derive(Serialize)]
        struct Body {
            at: UtcMs,
            commands: Vec<Newer>,
        }
        let body = Body { at: START, commands: vec![Newer::Teleport { node: 1 }] };
        let found =
            decode_entry(&encode_as(FORMAT, FIRST_LEVEL, &body)).expect_err("it is unknown").to_string();
        assert!(found.contains("Teleport"), "{found}");
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        #[derive(Serialize)]
        struct Newer {
            term: u64,
            mood: &'static str,
            generation: u64,
        }
        let bytes = encode(&Newer { term: 3, mood: "good", generation: 4 });
        assert_eq!(decode(&bytes), Ok(HeartbeatAck { term: 3, generation: 4, ..HeartbeatAck::default() }));
    }

    #[test]
    fn lengths_that_nothing_follows_allocate_nothing() {
        let huge_array = [0xdd, 0xff, 0xff, 0xff, 0xff];
        let huge_map = [0xdf, 0xff, 0xff, 0xff, 0xff];
        for huge in [huge_array, huge_map] {
            for field in ["nodes", "services", "replicas", "requests", "events", "commands"] {
                let mut body = vec![0x81, 0xa0 | u8::try_from(field.len()).expect("a short name")];
                body.extend_from_slice(field.as_bytes());
                body.extend_from_slice(&huge);
                let bytes = with_header(1, 1, &body);
                assert!(decode_state(&bytes).is_err());
                assert!(decode_entry(&bytes).is_err());
            }
        }
    }

    #[test]
    fn a_digest_is_of_what_a_snapshot_holds() {
        let mut cluster = Cluster::of(3);
        cluster.submit(spec("web", 1, 1));
        let encoded = encode_state(&cluster.state);
        let expect: [u8; 32] = Sha256::digest(&encoded).into();
        assert_eq!(digest(&cluster.state), expect);
        assert_eq!(decode_state(&encoded).map(|state| digest(&state)), Ok(expect));
    }

    #[test]
    fn a_snapshot_with_a_replica_of_nothing_is_refused() {
        let mut cluster = Cluster::of(1);
        cluster.submit(spec("web", 1, 1));
        cluster.planned(vec![place("web", 0, 1, 1)]);
        let mut state = cluster.state;
        assert_eq!(decode_state(&encode_state(&state)), Ok(state.clone()));
        state.services.remove(&name("web"));
        let found = decode_state(&encode_state(&state)).expect_err("it is refused").to_string();
        assert!(found.contains("replica 1 runs no known version"), "{found}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_fault_of_the_decoder(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for headed in [false, true] {
                if headed {
                    bytes.splice(0..0, [0, 1, 0, 1]);
                }
                let _ = decode_entry(&bytes);
                let _ = decode_state(&bytes);
                let _ = decode::<crate::wire::Heartbeat>(&bytes);
            }
        }

        #[test]
        fn damaged_bytes_are_no_fault_of_the_decoder(
            hits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut cluster = Cluster::of(3);
            cluster.submit(spec("web", 1, 3));
            cluster.planned(vec![place("web", 0, 1, 2)]);
            for mut bytes in [entry(), encode_state(&cluster.state)] {
                for (at, byte) in &hits {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                let _ = decode_entry(&bytes);
                if let Ok(mut state) = decode_state(&bytes) {
                    let next = state.applied.saturating_add(1);
                    if next > state.applied {
                        state.apply(next, &Entry::new(START, vec![bootstrap()]));
                    }
                }
            }
        }
    }
}

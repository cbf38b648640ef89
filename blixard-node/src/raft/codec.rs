//! What Raft's data looks like on disk and on the wire.
//!
//! Everything is one version byte, then MessagePack with named fields of the records below, which
//! mirror openraft's types: those change their serialised form from release to release and are
//! never written as they are. Commands and states are blixard_core's to encode: here they are bytes. A field added later is skipped by older software; anything older
//! software must not skip needs a new version byte, which it refuses.
//!
//! What is on disk also carries a checksum, of the record and of the key it is stored under: see
//! [`seal`]. Records without one are those of the first release.

use std::collections::BTreeSet;
use std::fmt;

use blixard_core::cluster::snapshot::decode_exactly;
use bytes::Bytes;
use openraft::EntryPayload;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::types::{LogEntry, LogId, Membership, Proposal, SnapshotMeta, StoredMembership, Vote};
use crate::database::damaged;

/// The version byte of a plain record. A reader refuses others than this and [`SEALED`].
const VERSION: u8 = 1;
/// The version byte of a record behind its checksum, as it is on disk.
const SEALED: u8 = 2;
/// The checksum: CRC-32, big-endian.
const CHECKSUM_BYTES: usize = 4;

/// Why bytes were not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodecError {
    /// They were written by other software, most likely newer.
    #[error("written in version {found} of the encoding, and this software reads version {VERSION}")]
    Version {
        /// The version they start with.
        found: u8,
    },
    /// They are damaged.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl CodecError {
    pub(super) fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}

/// What is wrong with a record on disk: an error of the kind [`std::io::ErrorKind::InvalidData`],
/// unless it is of newer software.
pub(super) fn in_record(what: impl fmt::Display, error: CodecError) -> std::io::Error {
    match error {
        CodecError::Version { .. } => std::io::Error::other(format!("{what} is {error}")),
        CodecError::Damaged(reason) => damaged(format!("{what}: {reason}")),
    }
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Encodes a record behind the version byte.
pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write_named(&mut bytes, record)
        .expect("records hold nothing that MessagePack cannot, and memory takes every write");
    bytes
}

/// Decodes what [`encode`] wrote.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&VERSION, record)) => decode_exactly(record).map_err(CodecError::damaged),
        Some((&found, _)) => Err(CodecError::Version { found }),
        None => Err(CodecError::damaged("empty")),
    }
}

/// Encodes a record as it is on disk under `key`: version byte, checksum of key and record, record.
pub(super) fn seal(key: &[u8], record: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![SEALED, 0, 0, 0, 0];
    rmp_serde::encode::write_named(&mut bytes, record)
        .expect("records hold nothing that MessagePack cannot, and memory takes every write");
    let checksum = checksum(key, &bytes[1 + CHECKSUM_BYTES..]);
    bytes[1..=CHECKSUM_BYTES].copy_from_slice(&checksum);
    bytes
}

/// Checks and decodes what [`seal`] wrote under `key`, or what the first release wrote there.
pub(super) fn unseal<'a, T: Deserialize<'a>>(key: &[u8], bytes: &'a [u8]) -> Result<T, CodecError> {
    let Some((&SEALED, sealed)) = bytes.split_first() else { return decode(bytes) };
    let Some((expect, record)) = sealed.split_first_chunk::<CHECKSUM_BYTES>() else {
        return Err(CodecError::damaged("it ends within its checksum"));
    };
    if checksum(key, record) != *expect {
        return Err(CodecError::damaged("its checksum differs"));
    }
    decode_exactly(record).map_err(CodecError::damaged)
}

fn checksum(key: &[u8], record: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(record);
    hasher.finalize().to_be_bytes()
}

/// Mirrors a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VoteRecord {
    term: u64,
    node: u64,
    committed: bool,
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        let VoteRecord { term, node, committed } = record;
        if committed { Self::new_committed(term, node) } else { Self::new(term, node) }
    }
}

/// Mirrors a log id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct LogIdRecord {
    term: u64,
    index: u64,
}

impl From<&LogId> for LogIdRecord {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        Self::new_term_index(record.term, record.index)
    }
}

/// Mirrors a membership. A node that votes in no configuration is a learner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembershipRecord {
    configurations: Vec<BTreeSet<u64>>,
    nodes: BTreeSet<u64>,
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> Self {
        Self {
            configurations: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }
}

impl TryFrom<MembershipRecord> for Membership {
    type Error = CodecError;

    fn try_from(record: MembershipRecord) -> Result<Self, CodecError> {
        Self::new(record.configurations, record.nodes).map_err(CodecError::damaged)
    }
}

/// Mirrors a log entry. Borrows the proposal from the bytes it is decoded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryRecord<'a> {
    term: u64,
    index: u64,
    #[serde(borrow)]
    payload: PayloadRecord<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum PayloadRecord<'a> {
    Blank,
    #[serde(borrow)]
    Commands(ByteString<'a>),
    Membership(MembershipRecord),
}

impl<'a> From<&'a LogEntry> for EntryRecord<'a> {
    fn from(entry: &'a LogEntry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadRecord::Blank,
            EntryPayload::Normal(proposal) => PayloadRecord::Commands(ByteString(&proposal.0)),
            EntryPayload::Membership(membership) => PayloadRecord::Membership(membership.into()),
        };
        Self { term: entry.log_id.leader_id.term, index: entry.log_id.index, payload }
    }
}

impl EntryRecord<'_> {
    /// The entry. `own` makes the proposal's bytes its own.
    pub(super) fn into_entry(self, own: impl FnOnce(&[u8]) -> Bytes) -> Result<LogEntry, CodecError> {
        let payload = match self.payload {
            PayloadRecord::Blank => EntryPayload::Blank,
            PayloadRecord::Commands(ByteString(bytes)) => EntryPayload::Normal(Proposal(own(bytes))),
            PayloadRecord::Membership(record) => EntryPayload::Membership(record.try_into()?),
        };
        Ok(LogEntry { log_id: LogId::new_term_index(self.term, self.index), payload })
    }
}

/// Encodes an entry as the log keeps it, under its index.
pub(super) fn seal_entry(entry: &LogEntry) -> Vec<u8> {
    seal(&entry.log_id.index.to_be_bytes(), &EntryRecord::from(entry))
}

/// Checks and decodes the entry that the log keeps under `index`.
pub(super) fn unseal_entry(index: u64, bytes: &[u8]) -> Result<LogEntry, CodecError> {
    let record: EntryRecord<'_> = unseal(&index.to_be_bytes(), bytes)?;
    if record.index != index {
        return Err(CodecError::damaged(format!("it is entry {}", record.index)));
    }
    record.into_entry(Bytes::copy_from_slice)
}

/// Mirrors what a snapshot covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotMetaRecord {
    last: Option<LogIdRecord>,
    membership_at: Option<LogIdRecord>,
    membership: MembershipRecord,
}

impl From<&SnapshotMeta> for SnapshotMetaRecord {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(LogIdRecord::from),
            membership_at: meta.last_membership.log_id().as_ref().map(LogIdRecord::from),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<SnapshotMetaRecord> for SnapshotMeta {
    type Error = CodecError;

    fn try_from(record: SnapshotMetaRecord) -> Result<Self, CodecError> {
        let membership = Membership::try_from(record.membership)?;
        Ok(Self {
            last_log_id: record.last.map(LogId::from),
            last_membership: StoredMembership::new(record.membership_at.map(LogId::from), membership),
        })
    }
}

/// Bytes that MessagePack keeps as bytes rather than as a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ByteString<'a>(&'a [u8]);

impl Serialize for ByteString<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ByteString<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;

        impl<'de> Visitor<'de> for Borrowed {
            type Value = &'de [u8];

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(bytes)
            }
        }

        deserializer.deserialize_bytes(Borrowed).map(Self)
    }
}

//! What the log's file is made of: units with headers, and groups of records.
//!
//! The file is a row of places of one size. A place is free or holds a unit, which begins with a
//! header of one [`BLOCK`]. What units hold after their headers, in the order of their numbers, is
//! one stream of bytes. Groups follow each other in it, each at the start of a block, perhaps from
//! one unit into the next. A group is written whole and flushed before the next one is, so nothing
//! that is durable is ever written again, and only the last group can be torn.
//!
//! ```text
//! header: magic 8 | checksum 4 | length 4 | record in MessagePack
//! group:  magic 4 | checksum 4 | number 8 | length of the records 4 | checksum of the group before 4 | records
//! record: kind 1 | length 4 | what it says
//! ```
//!
//! Integers are big-endian. A group's checksum begins with the log's salt, which is drawn when the log
//! is made and leaves the machine never: nobody can write an entry that reads as a group of its own.

use blixard_core::limits::ENTRY_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::raft::codec::{CodecError, LogIdRecord, VoteRecord, decode, encode, seal_entry};
use crate::raft::owner::Owner;
use crate::raft::tail::next_index;
use crate::raft::types::{LogEntry, LogId, Vote};

/// What is written at once at least, in bytes: what a disk writes whole or not at all at most, and
/// what a header has.
pub(super) const BLOCK: u64 = 4096;
/// How long a group's records are at most, in bytes: more than the largest entry and what may share
/// its group.
pub(super) const RECORDS_BYTES_MAX: usize = 4 * ENTRY_BYTES_MAX;
/// When a group has so many bytes of records, no more writes share it.
pub(super) const GROUP_BYTES: usize = 4 << 20;
/// How long what precedes a group's records is.
pub(super) const GROUP_HEAD: usize = 24;

const HEADER_MAGIC: [u8; 8] = *b"bxwal1\r\n";
const HEADER_HEAD: usize = 16;
const GROUP_MAGIC: [u8; 4] = *b"bxg1";
const RECORD_HEAD: usize = 5;

/// A change of the log, as openraft asks for it.
#[derive(Debug, Clone)]
pub(in crate::raft) enum Change {
    /// Entries that follow the last one.
    Append(Vec<LogEntry>),
    /// Whom this member votes for.
    Vote(Vote),
    /// The entries after this one are no more.
    Truncate(Option<LogId>),
    /// The entries up to this one are covered by a snapshot.
    Purge(LogId),
    /// The entries up to this one are committed.
    Committed(LogId),
}

/// What the log says beside its entries, and where it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::raft) struct Facts {
    pub(in crate::raft) vote: Option<VoteRecord>,
    pub(in crate::raft) purged: Option<LogIdRecord>,
    pub(in crate::raft) committed: Option<LogIdRecord>,
    /// The last entry; when there is none, the last one purged.
    pub(in crate::raft) last: Option<LogIdRecord>,
}

impl Facts {
    /// Takes up what a change says of them.
    pub(super) fn note(&mut self, change: &Change) {
        match change {
            Change::Append(entries) => {
                self.last = entries.last().map(|entry| LogIdRecord::from(&entry.log_id)).or(self.last);
            }
            Change::Truncate(after) => self.truncated(after.as_ref().map(LogIdRecord::from)),
            Change::Vote(vote) => self.vote = Some(vote.into()),
            Change::Purge(upto) => self.purged(upto.into()),
            Change::Committed(upto) => self.committed = Some(upto.into()),
        }
    }

    /// The entries after this one are no more.
    pub(super) fn truncated(&mut self, after: Option<LogIdRecord>) {
        self.last = self.last.min(after).max(self.purged);
    }

    /// The entries up to this one are covered by a snapshot.
    pub(super) fn purged(&mut self, upto: LogIdRecord) {
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(self.purged);
    }
}

/// What a unit begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Of whose log.
    pub(super) owner: Owner,
    /// What the checksums of the log's groups begin with.
    pub(super) salt: [u8; 16],
    /// How large a place is, in bytes.
    pub(super) place_bytes: u64,
    /// The number of the unit: one more than that of the unit before.
    pub(super) unit: u64,
    /// Where in the stream the first group begins that does not begin before this unit.
    pub(super) begins: u64,
    /// The number of that group.
    pub(super) group: u64,
    /// The checksum of the group before it.
    pub(super) before: u32,
    /// What the log says up to there.
    pub(super) facts: Facts,
}

impl Header {
    /// The block that a unit begins with.
    pub(super) fn to_block(&self) -> Vec<u8> {
        let record = encode(self);
        let mut block = vec![0; HEADER_HEAD];
        block[..8].copy_from_slice(&HEADER_MAGIC);
        block[12..].copy_from_slice(&length(&record));
        block.extend_from_slice(&record);
        let checksum = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&checksum.to_be_bytes());
        debug_assert!(block.len() as u64 <= BLOCK, "a header fits into its block");
        block.resize(BLOCK_LENGTH, 0);
        block
    }

    /// Reads the block that a place begins with; absent where no header is.
    ///
    /// # Errors
    /// When newer software wrote it.
    pub(super) fn read(block: &[u8]) -> Result<Option<Self>, CodecError> {
        let Some((head, rest)) = block.split_first_chunk::<HEADER_HEAD>() else { return Ok(None) };
        let record = head.starts_with(&HEADER_MAGIC).then(|| rest.get(..read_length(&head[12..])?)).flatten();
        let Some(record) = record else { return Ok(None) };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head[12..]);
        hasher.update(record);
        if hasher.finalize().to_be_bytes() != head[8..12] {
            return Ok(None);
        }
        decode(record).map(Some)
    }
}

const BLOCK_LENGTH: usize = 4096;

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("records are far shorter").to_be_bytes()
}

fn read_length(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.first_chunk().copied()?)).ok()
}

/// An entry in a group: its place counted from the group's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) id: LogId,
    pub(super) start: usize,
    pub(super) length: usize,
}

/// What a group changes of which entries there are, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Written(Written),
    /// The entries from this index on are no more.
    Truncated(u64),
    /// Those up to this one are no more.
    Purged(LogId),
}

/// A group that is being put together.
#[derive(Debug)]
pub(super) struct Group {
    bytes: Vec<u8>,
    effects: Vec<Effect>,
}

impl Group {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; GROUP_HEAD], effects: Vec::new() }
    }

    /// Adds what a change says.
    pub(super) fn push(&mut self, change: &Change) {
        match change {
            Change::Append(entries) => {
                for entry in entries {
                    let sealed = seal_entry(entry);
                    self.record(Kind::Entry, &[&entry.log_id.index.to_be_bytes(), &sealed]);
                    let start = self.bytes.len() - sealed.len();
                    let written = Written { id: entry.log_id, start, length: sealed.len() };
                    self.effects.push(Effect::Written(written));
                }
            }
            Change::Vote(vote) => self.record(Kind::Vote, &[&encode(&VoteRecord::from(vote))]),
            Change::Truncate(after) => {
                self.record(Kind::Truncate, &[&encode(&after.as_ref().map(LogIdRecord::from))]);
                self.effects.push(Effect::Truncated(next_index(*after)));
            }
            Change::Purge(upto) => {
                self.record(Kind::Purge, &[&encode(&LogIdRecord::from(upto))]);
                self.effects.push(Effect::Purged(*upto));
            }
            Change::Committed(upto) => self.record(Kind::Committed, &[&encode(&LogIdRecord::from(upto))]),
        }
    }

    fn record(&mut self, kind: Kind, parts: &[&[u8]]) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(&u32::try_from(bytes).expect("entries are far shorter").to_be_bytes());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// Whether it is as long as a group gets before others wait for the next.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= GROUP_BYTES
    }

    /// The group as it is written, in whole blocks, its checksum and what it changes.
    pub(super) fn seal(self, salt: &[u8; 16], number: u64, before: u32) -> (Vec<u8>, u32, Vec<Effect>) {
        let Self { mut bytes, effects } = self;
        let records = length(&bytes[GROUP_HEAD..]);
        bytes[..4].copy_from_slice(&GROUP_MAGIC);
        bytes[8..16].copy_from_slice(&number.to_be_bytes());
        bytes[16..20].copy_from_slice(&records);
        bytes[20..24].copy_from_slice(&before.to_be_bytes());
        let checksum = checksum(salt, &bytes);
        bytes[4..8].copy_from_slice(&checksum.to_be_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LENGTH), 0);
        (bytes, checksum, effects)
    }
}

/// The checksum of a group, of which nothing is counted that holds it.
fn checksum(salt: &[u8; 16], group: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(salt);
    hasher.update(&group[8..]);
    hasher.finalize()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Entry = 1,
    Vote = 2,
    Truncate = 3,
    Purge = 4,
    Committed = 5,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        [Self::Entry, Self::Vote, Self::Truncate, Self::Purge, Self::Committed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What precedes a group's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHead {
    pub(super) number: u64,
    pub(super) checksum: u32,
    /// The checksum of the group before it.
    pub(super) before: u32,
    /// How long it is with its head, without what fills its last block, in bytes.
    pub(super) length: usize,
}

impl GroupHead {
    /// Reads what may be the head of a group.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<GROUP_HEAD>()?;
        let records = read_length(&head[16..])?;
        if !head.starts_with(&GROUP_MAGIC) || records > RECORDS_BYTES_MAX {
            return None;
        }
        Some(Self {
            number: u64::from_be_bytes(head[8..16].try_into().ok()?),
            checksum: u32::from_be_bytes(head[4..8].try_into().ok()?),
            before: u32::from_be_bytes(head[20..].try_into().ok()?),
            length: GROUP_HEAD + records,
        })
    }

    /// Whether `group`, which begins with this head, is as it was written.
    pub(super) fn is_whole(&self, salt: &[u8; 16], group: &[u8]) -> bool {
        group.len() == self.length && checksum(salt, group) == self.checksum
    }
}

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// An entry: its index, where it is in the group, and as it is sealed.
    Entry {
        index: u64,
        start: usize,
        sealed: &'a [u8],
    },
    Vote(VoteRecord),
    Truncate(Option<LogIdRecord>),
    Purge(LogIdRecord),
    Committed(LogIdRecord),
}

/// The records of a group, in order.
pub(super) fn records(group: &[u8]) -> impl Iterator<Item = Result<Found<'_>, CodecError>> {
    let mut at = GROUP_HEAD;
    std::iter::from_fn(move || {
        if at >= group.len() {
            return None;
        }
        let found = record(group, at);
        at = found.as_ref().map_or(usize::MAX, |(_, end)| *end);
        Some(found.map(|(found, _)| found))
    })
}

/// The record that begins at a byte of a group, and where it ends.
fn record(group: &[u8], at: usize) -> Result<(Found<'_>, usize), CodecError> {
    let short = || CodecError::damaged("a record does not end");
    let head = group.get(at..at + RECORD_HEAD).ok_or_else(short)?;
    let start = at + RECORD_HEAD;
    let end = read_length(&head[1..]).and_then(|length| start.checked_add(length)).ok_or_else(short)?;
    let said = group.get(start..end).ok_or_else(short)?;
    let kind = Kind::read(head[0]).ok_or(CodecError::Version { found: head[0] })?;
    let found = match kind {
        Kind::Entry => {
            let (index, sealed) = said.split_first_chunk().ok_or_else(short)?;
            Found::Entry { index: u64::from_be_bytes(*index), start: end - sealed.len(), sealed }
        }
        Kind::Vote => Found::Vote(decode(said)?),
        Kind::Truncate => Found::Truncate(decode(said)?),
        Kind::Purge => Found::Purge(decode(said)?),
        Kind::Committed => Found::Committed(decode(said)?),
    };
    Ok((found, end))
}

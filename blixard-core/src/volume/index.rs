//! What a tree holds.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::TreePath;
use crate::id::VolumeRoot;

/// How much of a file one hash is of, in bytes. Smaller pieces make larger indexes (16 bytes each), larger
/// ones make a page that a database rewrites cost more than itself.
pub const LEAF_BYTES: u64 = 4_096;

/// A hash of one piece of a file: half a BLAKE3, enough to tell any two apart that nobody made on purpose.
/// Who may write to a volume may put anything there anyway.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf([u8; Self::BYTES]);

impl Leaf {
    /// Of a hash, in bytes.
    const BYTES: usize = 16;
    /// What is known of a piece whose length has just changed: nothing. No piece hashes to it.
    pub(super) const UNKNOWN: Self = Self([0xff; Self::BYTES]);
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The hash of a piece: at most [`LEAF_BYTES`] of a file.
pub fn leaf_of(piece: &[u8]) -> Leaf {
    let hash = blake3::hash(piece);
    let mut leaf = [0; Leaf::BYTES];
    leaf.copy_from_slice(&hash.as_bytes()[..Leaf::BYTES]);
    Leaf(leaf)
}

/// How many pieces a file of `size` bytes has.
pub fn leaves_of(size: u64) -> u64 {
    size.div_ceil(LEAF_BYTES)
}

/// The bytes of the piece at `at` of a file of `size` bytes.
pub(super) fn leaf_bytes(size: u64, at: u64) -> u64 {
    size.saturating_sub(at.saturating_mul(LEAF_BYTES)).min(LEAF_BYTES)
}

/// The hash of a piece that is all zeros.
pub(super) fn zero_leaf(bytes: u64) -> Leaf {
    const ZEROS: [u8; LEAF_BYTES as usize] = [0; LEAF_BYTES as usize];
    leaf_of(&ZEROS[..usize::try_from(bytes.min(LEAF_BYTES)).expect("a piece is small")])
}

/// What every file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permissions, with setuid, setgid and sticky: the lower 12 bits of `st_mode`. 0 of a symbolic link.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When its content was last changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What a file is. Devices, sockets and pipes are no part of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// The hash of each of its pieces, in order.
        leaves: Leaves,
    },
    /// A symbolic link, to whatever its text says.
    Symlink {
        /// Its text.
        #[serde(with = "bytes")]
        target: Vec<u8>,
    },
    /// Another name of a regular file: of the first of its names.
    Link {
        /// That first name.
        to: TreePath,
    },
}

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// What it has besides. Of a [`Kind::Link`], the same as its file's.
    pub attributes: Attributes,
}

/// What a tree holds: every name below its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The root directory's own attributes.
    pub top: Attributes,
    /// Everything below it: a directory before what it holds.
    pub entries: BTreeMap<TreePath, Entry>,
}

impl Index {
    /// A tree that holds nothing.
    pub fn empty() -> Self {
        let top = Attributes { mode: 0o755, uid: 0, gid: 0, mtime_ns: 0 };
        Self { top, entries: BTreeMap::new() }
    }

    /// Stands for all that the tree holds: BLAKE3 over every name in order, what it is and has, and the
    /// hash of a regular file's content.
    pub fn root(&self) -> VolumeRoot {
        let mut hash = blake3::Hasher::new_derive_key("blixard 2026-11 the root of a volume");
        attributes(&mut hash, &self.top);
        for (path, Entry { kind, attributes: own }) in &self.entries {
            bytes_of(&mut hash, path.as_bytes());
            attributes(&mut hash, own);
            match kind {
                Kind::Directory => {
                    hash.update(b"d");
                }
                Kind::File { size, leaves } => {
                    hash.update(b"f");
                    hash.update(&size.to_le_bytes());
                    hash.update(leaves.content().as_bytes());
                }
                Kind::Symlink { target } => {
                    hash.update(b"s");
                    bytes_of(&mut hash, target);
                }
                Kind::Link { to } => {
                    hash.update(b"l");
                    bytes_of(&mut hash, to.as_bytes());
                }
            }
        }
        VolumeRoot(*hash.finalize().as_bytes())
    }

    /// How many names it has, and how many bytes its regular files do.
    pub fn size(&self) -> (u64, u64) {
        let bytes = self.entries.values().map(|entry| match &entry.kind {
            Kind::File { size, .. } => *size,
            Kind::Directory | Kind::Symlink { .. } | Kind::Link { .. } => 0,
        });
        (self.entries.len() as u64, bytes.fold(0, u64::saturating_add))
    }

    /// What is at `path`.
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        self.entries.get(path)
    }
}

fn attributes(hash: &mut blake3::Hasher, own: &Attributes) {
    let Attributes { mode, uid, gid, mtime_ns } = own;
    for number in [mode, uid, gid] {
        hash.update(&number.to_le_bytes());
    }
    hash.update(&mtime_ns.to_le_bytes());
}

fn bytes_of(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// The hashes of a file's pieces, in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Leaves(Vec<Leaf>);

impl Leaves {
    /// The hashes of pieces.
    pub fn new(leaves: Vec<Leaf>) -> Self {
        Self(leaves)
    }

    /// Stands for the file's content.
    pub fn content(&self) -> blake3::Hash {
        let mut hash = blake3::Hasher::new_derive_key("blixard 2026-11 the content of a file");
        for leaf in &self.0 {
            hash.update(&leaf.0);
        }
        hash.finalize()
    }

    /// The hashes.
    pub fn as_slice(&self) -> &[Leaf] {
        &self.0
    }

    pub(super) fn as_mut(&mut self) -> &mut Vec<Leaf> {
        &mut self.0
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leaves, {}", self.0.len(), self.content())
    }
}

impl Serialize for Leaves {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all: Vec<u8> = self.0.iter().flat_map(|leaf| leaf.0).collect();
        serializer.serialize_bytes(&all)
    }
}

impl<'de> Deserialize<'de> for Leaves {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = bytes::deserialize(deserializer)?;
        let (leaves, rest) = all.as_chunks::<{ Leaf::BYTES }>();
        if !rest.is_empty() {
            return Err(serde::de::Error::custom("hashes are cut short"));
        }
        Ok(Self(leaves.iter().map(|leaf| Leaf(*leaf)).collect()))
    }
}

/// Bytes as bytes: MessagePack would write a list of numbers.
pub(super) mod bytes {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(in crate::volume) fn serialize<S: Serializer>(
        bytes: &[u8],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(in crate::volume) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

//! Files and directories as a stream: what `cp` sends between a machine and a container.
//!
//! The stream is a sequence of `Entry`s, each as a length (4 bytes, big endian) and MessagePack. A file's
//! entry is followed by its content in chunks, each a length and that many bytes, ended by a length of 0.
//! Paths count from what is copied: its own is empty. The last entry is `Entry::End`; a stream without it
//! was cut off.
//!
//! Whoever unpacks trusts nothing in it: no path leads out of the directory that is unpacked into, and no
//! symbolic link is followed on the way, whether it was there before or came with the stream. Everything is
//! opened by descriptors, so that a container that changes its files meanwhile gains nothing by it.

mod pack;
mod pipe;
#[cfg(test)]
mod tests;
mod unpack;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use blixard_core::wire;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

pub use self::pack::{pack, pack_path};
pub use self::pipe::{ChunkReader, ChunkWriter};
pub use self::unpack::{Target, unpack};

/// The media type of the stream.
pub const MEDIA_TYPE: &str = "application/x-blixard-tree-1";
/// The longest encoded entry, in bytes: two paths of the longest that Linux takes, and room.
const ENTRY_BYTES_MAX: u32 = 32 << 10;
/// The largest chunk of a file, in bytes.
const CHUNK_BYTES_MAX: usize = 64 << 10;
/// How deep directories are copied. Each that is being read holds a descriptor.
const DEPTH_MAX: usize = 128;

/// One thing of what is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Entry {
    /// A directory, before what is in it.
    Directory {
        /// Where it is, in components that each name something.
        path: Vec<Vec<u8>>,
        /// Its permissions.
        mode: u32,
        /// When it was changed, in seconds since 1970.
        modified: i64,
    },
    /// A regular file; its content follows.
    File {
        /// Where it is.
        path: Vec<Vec<u8>>,
        /// Its permissions.
        mode: u32,
        /// When it was changed, in seconds since 1970.
        modified: i64,
    },
    /// A symbolic link.
    Link {
        /// Where it is.
        path: Vec<Vec<u8>>,
        /// Where it leads, as it says.
        target: Vec<u8>,
    },
    /// Copying ends here, since something failed.
    Failed {
        /// What failed, for people.
        message: String,
    },
    /// That is all.
    End,
}

fn write_entry(out: &mut dyn Write, entry: &Entry) -> io::Result<()> {
    let bytes = wire::encode(entry);
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= ENTRY_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("a path is too long to be copied"))?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(&bytes)
}

fn read_entry(from: &mut dyn Read) -> io::Result<Entry> {
    let length = read_length(from)?;
    if length > ENTRY_BYTES_MAX {
        return Err(io::Error::other("what arrives is no stream of files"));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    wire::decode(&bytes).map_err(|_| io::Error::other("what arrives is no stream of files"))
}

fn read_length(from: &mut dyn Read) -> io::Result<u32> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    Ok(u32::from_be_bytes(length))
}

/// Opens what is at `path` in the directory `root` as seen by somebody whose root it is, without touching
/// what is there. Symbolic links are followed and lead nowhere out of it.
///
/// # Errors
/// When nothing is there.
pub fn open_in_root(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

//! Reads a tree that others write to meanwhile.
//!
//! A file whose number, size and times of change are as they were is not read again. One that changed
//! within the last second is, each time: its time may not tell of the next change.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use blixard_core::limits::{VOLUME_BYTES_MAX, VOLUME_FILES_MAX};
use blixard_core::volume::{
    Attributes, Entry, Index, Kind, LEAF_BYTES, Leaves, TreePath, leaf_of, leaves_of,
};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::files::BENEATH;

/// How much is read at a time.
const READ_BYTES: u64 = 256 * LEAF_BYTES;
/// Changes within this time before a scan may be followed by others that leave no trace, in nanoseconds.
const GRANULARITY_NS: i64 = 1_000_000_000;

/// What tells that a file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    number: u64,
    size: u64,
    changed_ns: i64,
    modified_ns: i64,
}

/// What the last scan of a tree found.
#[derive(Default)]
pub(super) struct Seen {
    files: BTreeMap<TreePath, (Fingerprint, Leaves)>,
}

/// What a scan found.
pub(super) struct Found {
    pub(super) index: Index,
    /// What is no part of a volume: sockets, pipes and devices.
    pub(super) skipped: u64,
}

/// Reads the tree at `root`.
pub(super) fn scan(root: &OwnedFd, seen: &mut Seen) -> io::Result<Found> {
    let begun = now_ns();
    let top = attributes(&rustix::fs::fstat(root)?);
    let mut scan = Scan {
        root,
        before: std::mem::take(&mut seen.files),
        after: BTreeMap::new(),
        names: BTreeMap::new(),
        bytes: 0,
        begun,
        found: Found { index: Index { top, entries: BTreeMap::new() }, skipped: 0 },
    };
    let mut open: Vec<Option<TreePath>> = vec![None];
    let walked = loop {
        let Some(directory) = open.pop() else { break Ok(()) };
        if let Err(error) = scan.directory(directory.as_ref(), &mut open) {
            break Err(error);
        }
    };
    seen.files = scan.after;
    walked?;
    let mut found = scan.found;
    settle_links(&mut found.index, scan.names);
    Ok(found)
}

struct Scan<'a> {
    root: &'a OwnedFd,
    before: BTreeMap<TreePath, (Fingerprint, Leaves)>,
    after: BTreeMap<TreePath, (Fingerprint, Leaves)>,
    /// The names of each file that has several.
    names: BTreeMap<(u64, u64), Vec<TreePath>>,
    bytes: u64,
    begun: i64,
    found: Found,
}

impl Scan<'_> {
    fn directory(&mut self, path: Option<&TreePath>, open: &mut Vec<Option<TreePath>>) -> io::Result<()> {
        let shown = path.map_or(OsStr::new("."), |path| OsStr::from_bytes(path.as_bytes()));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat2(self.root, shown, flags, Mode::empty(), BENEATH) {
            // It went, or became something else, since its name was read.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened?,
        };
        for name in Dir::read_from(&directory)? {
            let name = name?;
            let name = name.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let path = TreePath::in_directory(path, name).map_err(io::Error::other)?;
            self.name(&directory, OsStr::from_bytes(name), path, open)?;
        }
        Ok(())
    }

    fn name(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: TreePath,
        open: &mut Vec<Option<TreePath>>,
    ) -> io::Result<()> {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                open.push(Some(path.clone()));
                Kind::Directory
            }
            FileType::RegularFile => match self.file(directory, name, &path, &stat)? {
                Some(kind) => kind,
                None => return Ok(()),
            },
            FileType::Symlink => match rustix::fs::readlinkat(directory, name, Vec::new()) {
                Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                target => Kind::Symlink { target: target?.into_bytes() },
            },
            _ => {
                self.found.skipped += 1;
                return Ok(());
            }
        };
        if self.found.index.entries.len() as u64 >= VOLUME_FILES_MAX {
            return Err(io::Error::other(format!("it holds more than {VOLUME_FILES_MAX} files")));
        }
        self.found.index.entries.insert(path, Entry { kind, attributes: attributes(&stat) });
        Ok(())
    }

    /// A regular file; none when it went meanwhile.
    fn file(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &TreePath,
        stat: &Stat,
    ) -> io::Result<Option<Kind>> {
        let print = fingerprint(stat);
        if stat.st_nlink > 1 {
            self.names.entry((print.device, print.number)).or_default().push(path.clone());
        }
        self.bytes = self.bytes.saturating_add(print.size);
        if self.bytes > VOLUME_BYTES_MAX {
            return Err(io::Error::other(format!("its files have more than {} GiB", VOLUME_BYTES_MAX >> 30)));
        }
        let known = self.before.remove(path).filter(|(known, _)| *known == print).map(|(_, leaves)| leaves);
        let leaves = match known {
            Some(leaves) => leaves,
            None => {
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
                    file => file?,
                };
                let opened = fingerprint(&rustix::fs::fstat(&file)?);
                if (opened.device, opened.number) != (print.device, print.number) {
                    return Ok(None);
                }
                read_leaves(&File::from(file), print.size)?
            }
        };
        if print.changed_ns.max(print.modified_ns) + GRANULARITY_NS < self.begun {
            self.after.insert(path.clone(), (print, leaves.clone()));
        }
        Ok(Some(Kind::File { size: print.size, leaves }))
    }
}

/// The hashes of the first `size` bytes of a file; what it lacks of them counts as zeros.
fn read_leaves(file: &File, size: u64) -> io::Result<Leaves> {
    let mut leaves = Vec::with_capacity(usize::try_from(leaves_of(size)).map_err(io::Error::other)?);
    let mut buffer = vec![0; usize::try_from(READ_BYTES.min(size)).map_err(io::Error::other)?];
    let mut at = 0;
    while at < size {
        let wanted = usize::try_from(READ_BYTES.min(size - at)).map_err(io::Error::other)?;
        let piece = &mut buffer[..wanted];
        let read = read_up_to(file, piece, at)?;
        piece[read..].fill(0);
        leaves.extend(piece.chunks(LEAF_BYTES as usize).map(leaf_of));
        at += wanted as u64;
    }
    Ok(Leaves::new(leaves))
}

/// Fills `buffer` as far as the file goes.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Reads a part of a file in the tree at `root`, in full.
///
/// # Errors
/// Also when the file is shorter, or gone.
pub(super) fn read_part(root: &OwnedFd, path: &TreePath, from: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, OsStr::from_bytes(path.as_bytes()), flags, Mode::empty(), BENEATH)?;
    let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    let file = File::from(file);
    if read_up_to(&file, &mut buffer, from)? < buffer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

/// Has files with several names be files under the first of them, and links to it under the others. A
/// name outside the tree counts for nothing.
fn settle_links(index: &mut Index, names: BTreeMap<(u64, u64), Vec<TreePath>>) {
    for mut names in names.into_values() {
        names.sort();
        let Some((first, others)) = names.split_first() else { continue };
        // A name that was replaced while the tree was read is none of its any more.
        let Some(kept) = index.entries.get(first).cloned() else { continue };
        for other in others {
            if let Some(entry) = index.entries.get_mut(other)
                && entry.kind == kept.kind
            {
                *entry = Entry { kind: Kind::Link { to: first.clone() }, attributes: kept.attributes };
            }
        }
    }
}

fn attributes(stat: &Stat) -> Attributes {
    let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    Attributes {
        mode: if link { 0 } else { stat.st_mode & 0o7777 },
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn fingerprint(stat: &Stat) -> Fingerprint {
    Fingerprint {
        device: stat.st_dev,
        number: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn nanoseconds(seconds: i64, nanoseconds: impl TryInto<i64>) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.try_into().unwrap_or(0))
}

/// The clock that files' times are of.
fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    nanoseconds(now.tv_sec, now.tv_nsec)
}

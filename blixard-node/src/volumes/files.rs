//! Does steps to a tree of files.
//!
//! Every one may be done again, from the first on, after any of them was (see `blixard_core::volume`):
//! what is to be removed may be gone, and what is to be made may be there, also as something else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blixard_core::volume::{Attributes, LEAF_BYTES, Step, TreePath};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

/// No part of a path may be a link, or lead out of the tree.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A tree, and where files are kept whose names change.
pub(super) struct Tree {
    root: OwnedFd,
    stage: OwnedFd,
}

/// The directory that a path is in, and its name there.
struct Place<'a> {
    directory: OwnedFd,
    name: &'a OsStr,
}

/// Opens a directory itself, no link to one.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Tree {
    /// The tree at `root`, with `stage` for what is kept; both exist.
    pub(super) fn open(root: &Path, stage: &Path) -> io::Result<Self> {
        Ok(Self { root: open_directory(root)?, stage: open_directory(stage)? })
    }

    /// Waits until everything done so far is durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// Does one step.
    pub(super) fn step(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::Stash { path, slot } => self.stash(path, *slot),
            Step::Remove { path } => match self.place(path) {
                Ok(place) => place.clear(),
                // The directory that it was in is gone as well, or is something else by now.
                Err(error) if is_gone(&error) => Ok(()),
                Err(error) => Err(error),
            },
            Step::Directory { path } => self.place(path)?.make_directory(),
            Step::Restore { slot, path } => {
                let place = self.place(path)?;
                place.clear()?;
                let (from, name) = (slot.to_string(), place.name);
                Ok(rustix::fs::linkat(&self.stage, from, &place.directory, name, AtFlags::empty())?)
            }
            Step::File { path, size } => self.place(path)?.make_file(*size),
            Step::Resize { path, size } => self.file(path)?.set_len(*size),
            Step::Write { path, leaf, content } => self.file(path)?.write_all_at(content, leaf * LEAF_BYTES),
            Step::Symlink { path, target } => {
                let place = self.place(path)?;
                place.clear()?;
                let target = OsStr::from_bytes(target);
                Ok(rustix::fs::symlinkat(target, &place.directory, place.name)?)
            }
            Step::Link { path, to } => {
                let (place, to) = (self.place(path)?, self.place(to)?);
                place.clear()?;
                let flags = AtFlags::empty();
                Ok(rustix::fs::linkat(&to.directory, to.name, &place.directory, place.name, flags)?)
            }
            Step::Set { path: None, attributes } => set(self.root.as_fd(), OsStr::new("."), attributes),
            Step::Set { path: Some(path), attributes } => {
                let place = self.place(path)?;
                set(place.directory.as_fd(), place.name, attributes)
            }
        }
    }

    fn stash(&self, path: &TreePath, slot: u32) -> io::Result<()> {
        let place = self.place(path);
        let kept = slot.to_string();
        let linked = place.and_then(|place| {
            let flags = AtFlags::empty();
            Ok(rustix::fs::linkat(&place.directory, place.name, &self.stage, &kept, flags)?)
        });
        match linked {
            // Kept by an earlier try; what has the name now may be something else.
            Err(_)
                if rustix::fs::accessat(&self.stage, &kept, rustix::fs::Access::EXISTS, AtFlags::empty())
                    .is_ok() =>
            {
                Ok(())
            }
            linked => linked,
        }
    }

    fn place<'a>(&self, path: &'a TreePath) -> io::Result<Place<'a>> {
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = rustix::fs::openat2(&self.root, parent, flags, Mode::empty(), BENEATH)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Place { directory, name })
    }

    /// Opens a regular file to be written to.
    fn file(&self, path: &TreePath) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = OsStr::from_bytes(path.as_bytes());
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), BENEATH)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(file.into())
    }
}

impl Place<'_> {
    /// Removes what has the name, unless it is a directory that holds something: what is in it was made by
    /// an earlier try, after what is to go was gone.
    fn clear(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(&self.directory, self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn make_directory(&self) -> io::Result<()> {
        let make = || rustix::fs::mkdirat(&self.directory, self.name, Mode::RWXU);
        match make() {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        let stat = rustix::fs::statat(&self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        self.clear()?;
        Ok(make()?)
    }

    fn make_file(&self, size: u64) -> io::Result<()> {
        self.clear()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, self.name, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).set_len(size)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// Sets what a file has besides its content. The owner first: it takes setuid away.
fn set(directory: BorrowedFd<'_>, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
    let Attributes { mode, uid, gid, mtime_ns } = *attributes;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    let second = 1_000_000_000;
    let modified = Timespec { tv_sec: mtime_ns.div_euclid(second), tv_nsec: mtime_ns.rem_euclid(second) };
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified };
    Ok(rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

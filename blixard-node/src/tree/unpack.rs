//! Makes files and directories of a stream.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{CHUNK_BYTES_MAX, DEPTH_MAX, Entry, read_entry, read_length};

/// Where a stream is unpacked.
pub struct Target {
    /// The directory that what is copied becomes an entry of.
    pub directory: OwnedFd,
    /// The entry's name; without one, what is in a copied directory becomes entries itself.
    pub name: Option<OsString>,
    /// Which permissions are kept.
    pub mode_mask: u32,
}

/// A directory whose content is being made.
struct Open {
    path: Vec<Vec<u8>>,
    mode: u32,
    modified: i64,
}

/// Unpacks a stream. Files and symbolic links that are there already are replaced, directories are merged;
/// in the place of anything else, such as a device, nothing is made.
///
/// # Errors
/// When the stream ends early, or says what would lead elsewhere, or something cannot be made.
pub fn unpack(target: &Target, from: &mut dyn Read) -> io::Result<()> {
    let mut open: Vec<Open> = Vec::new();
    loop {
        let entry = read_entry(from).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("it was cut off"),
            _ => error,
        })?;
        let path = match &entry {
            Entry::Directory { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. } => path,
            Entry::Failed { message } => return Err(io::Error::other(message.clone())),
            Entry::End => break,
        };
        while open.last().is_some_and(|last| !path.starts_with(&last.path)) {
            target.close(open.pop())?;
        }
        let place = target.place(path)?;
        match entry {
            Entry::Directory { path, mode, modified } => {
                place.make_directory()?;
                open.push(Open { path, mode, modified });
            }
            Entry::File { mode, modified, .. } => place.make_file(mode & target.mode_mask, modified, from)?,
            Entry::Link { target, .. } => place.make_link(&target)?,
            Entry::Failed { .. } | Entry::End => {}
        }
    }
    while let Some(last) = open.pop() {
        target.close(Some(last))?;
    }
    Ok(())
}

impl Target {
    /// Checks a path of the stream and opens the directory that it is in.
    fn place(&self, path: &[Vec<u8>]) -> io::Result<Place> {
        let mut names: Vec<OsString> = self.name.iter().cloned().collect();
        names.extend(path.iter().map(|name| OsString::from_vec(name.clone())));
        let shown = names.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>().join("/");
        let harmless = |name: &OsString| {
            let bytes = name.as_bytes();
            !bytes.is_empty()
                && bytes != b"."
                && bytes != b".."
                && !bytes.iter().any(|byte| b"/\0".contains(byte))
        };
        if !names.iter().all(harmless) || names.len() > DEPTH_MAX + 1 {
            return Err(io::Error::other(format!("`{shown}` is no path that may be copied")));
        }
        let name = names.pop();
        let mut parent = PathBuf::from(".");
        parent.extend(names);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat2(&self.directory, &parent, flags, Mode::empty(), resolve);
        let directory = directory.map_err(|error| said(&shown, error))?;
        Ok(Place { directory, name, shown })
    }

    /// Gives a directory whose content is there its permissions and time.
    fn close(&self, open: Option<Open>) -> io::Result<()> {
        let Some(Open { path, mode, modified }) = open else { return Ok(()) };
        if path.is_empty() && self.name.is_none() {
            return Ok(());
        }
        let place = self.place(&path)?;
        let Some(name) = &place.name else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&place.directory, name, flags, Mode::empty());
        let directory = directory.map_err(|error| said(&place.shown, error))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode & self.mode_mask))
            .map_err(|error| said(&place.shown, error))?;
        rustix::fs::futimens(&directory, &times(modified)).map_err(|error| said(&place.shown, error))
    }
}

/// Where something is made.
struct Place {
    directory: OwnedFd,
    /// Absent for the directory itself.
    name: Option<OsString>,
    shown: String,
}

impl Place {
    fn make_directory(&self) -> io::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        match rustix::fs::mkdirat(&self.directory, name, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if self.is_directory(name) => Ok(()),
            Err(error) => Err(said(&self.shown, error)),
        }
    }

    fn is_directory(&self, name: &OsStr) -> bool {
        self.type_of(name).is_some_and(FileType::is_dir)
    }

    fn type_of(&self, name: &OsStr) -> Option<FileType> {
        let stat = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }

    /// Makes a file. One that is there stays as it is until all of the new one is.
    fn make_file(&self, mode: u32, modified: i64, from: &mut dyn Read) -> io::Result<()> {
        let name = self.name_to_take()?;
        self.replace(name, |new| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.directory, new, flags, Mode::RUSR | Mode::WUSR);
            let file = File::from(file.map_err(|error| said(&self.shown, error))?);
            self.fill(file, mode, modified, from)
        })
    }

    /// Has `make` make something under a name of its own, which then takes the place of what is there.
    fn replace(&self, name: &OsStr, make: impl FnOnce(&str) -> io::Result<()>) -> io::Result<()> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let new = format!(".blixard-cp-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        // What a process of this number left that was ended in the middle.
        rustix::fs::unlinkat(&self.directory, new.as_str(), AtFlags::empty()).ok();
        let made = make(&new).and_then(|()| {
            let renamed = rustix::fs::renameat(&self.directory, new.as_str(), &self.directory, name);
            renamed.map_err(|error| said(&self.shown, error))
        });
        if made.is_err() {
            // The first error is the one to tell.
            rustix::fs::unlinkat(&self.directory, new.as_str(), AtFlags::empty()).ok();
        }
        made
    }

    fn fill(&self, mut file: File, mode: u32, modified: i64, from: &mut dyn Read) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES_MAX];
        loop {
            let length = read_length(from)? as usize;
            if length == 0 {
                break;
            }
            let bytes = chunk.get_mut(..length).ok_or_else(|| io::Error::other("a chunk is too long"))?;
            from.read_exact(bytes)?;
            file.write_all(bytes).map_err(|error| io::Error::other(format!("{}: {error}", self.shown)))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|error| said(&self.shown, error))?;
        rustix::fs::futimens(file.as_fd(), &times(modified)).map_err(|error| said(&self.shown, error))
    }

    fn make_link(&self, target: &[u8]) -> io::Result<()> {
        let name = self.name_to_take()?;
        self.replace(name, |new| {
            let made = rustix::fs::symlinkat(OsStr::from_bytes(target), &self.directory, new);
            made.map_err(|error| said(&self.shown, error))
        })
    }

    /// The name, where nothing is or what may be replaced: a file or a symbolic link.
    fn name_to_take(&self) -> io::Result<&OsStr> {
        let name = self.name.as_deref();
        let name =
            name.ok_or_else(|| io::Error::other("it is no directory, of which the content could be copied"))?;
        let in_the_way = match self.type_of(name) {
            None | Some(FileType::RegularFile | FileType::Symlink) => None,
            Some(FileType::Directory) => Some("a directory"),
            Some(FileType::CharacterDevice | FileType::BlockDevice) => Some("a device"),
            Some(FileType::Fifo) => Some("a pipe"),
            Some(_) => Some("neither a file nor a directory"),
        };
        match in_the_way {
            None => Ok(name),
            Some(what) => Err(io::Error::other(format!("{} is {what} there", self.shown))),
        }
    }
}

fn times(modified: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified, tv_nsec: 0 },
    }
}

fn said(shown: &str, error: Errno) -> io::Error {
    let why = match error {
        Errno::LOOP => "a symbolic link is on the way".to_owned(),
        error => io::Error::from(error).to_string(),
    };
    io::Error::other(format!("{shown}: {why}"))
}

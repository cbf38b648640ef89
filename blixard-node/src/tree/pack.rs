//! Writes files and directories as a stream.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::{CHUNK_BYTES_MAX, DEPTH_MAX, Entry, write_entry};

/// File systems whose files are made up as they are read, some without an end (`PROC_SUPER_MAGIC`,
/// `SYSFS_MAGIC` of linux/magic.h).
const MADE_UP: [i64; 2] = [0x9fa0, 0x6265_6572];

/// Writes what is at `path` on this machine.
///
/// # Errors
/// When it cannot be opened. What fails later is in the stream.
pub fn pack_path(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    pack(&rustix::fs::open(path, flags, Mode::empty())?, out)
}

/// Writes what `top` is opened on, which need be opened for nothing (`O_PATH`). Sockets, pipes and devices
/// are left out.
///
/// # Errors
/// When it is nothing that can be copied, or nobody takes the stream.
pub fn pack(top: &OwnedFd, out: &mut dyn Write) -> io::Result<()> {
    let stat = rustix::fs::fstat(top)?;
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory) {
        return Err(io::Error::other("it is neither a file nor a directory"));
    }
    if is_made_up(top.as_fd())? {
        return Err(io::Error::other("it is made up by the kernel as it is read, and is not copied"));
    }
    let last = match add(top.as_fd(), &stat, &mut Vec::new(), out) {
        Ok(()) => Entry::End,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
        Err(error) => Entry::Failed { message: error.to_string() },
    };
    write_entry(out, &last)?;
    out.flush()
}

fn add(fd: BorrowedFd<'_>, stat: &Stat, path: &mut Vec<Vec<u8>>, out: &mut dyn Write) -> io::Result<()> {
    let (mode, modified) = (stat.st_mode & 0o7777, stat.st_mtime);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            if path.len() >= DEPTH_MAX {
                return Err(at(path, &io::Error::other("directories are nested too deep")));
            }
            write_entry(out, &Entry::Directory { path: path.clone(), mode, modified })?;
            let directory = reopen(fd, OFlags::DIRECTORY).map_err(|error| at(path, &error))?;
            add_entries(directory, path, out)
        }
        FileType::RegularFile => {
            write_entry(out, &Entry::File { path: path.clone(), mode, modified })?;
            let file = reopen(fd, OFlags::empty()).map_err(|error| at(path, &error))?;
            add_content(File::from(file), path, out)
        }
        FileType::Symlink => {
            let target =
                rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(|error| at(path, &error.into()))?;
            write_entry(out, &Entry::Link { path: path.clone(), target: target.into_bytes() })
        }
        _ => Ok(()),
    }
}

fn add_entries(directory: OwnedFd, path: &mut Vec<Vec<u8>>, out: &mut dyn Write) -> io::Result<()> {
    let entries = Dir::read_from(&directory).map_err(|error| at(path, &error.into()))?;
    for entry in entries {
        let entry = entry.map_err(|error| at(path, &error.into()))?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Ok(child) => child,
            // Removed meanwhile.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(at(path, &error.into())),
        };
        let stat =
            rustix::fs::statat(&child, c"", AtFlags::EMPTY_PATH).map_err(|error| at(path, &error.into()))?;
        if is_made_up(child.as_fd()).unwrap_or(false) {
            continue;
        }
        path.push(name.to_bytes().to_vec());
        add(child.as_fd(), &stat, path, out)?;
        path.pop();
    }
    Ok(())
}

fn add_content(mut file: File, path: &[Vec<u8>], out: &mut dyn Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        let length = file.read(&mut chunk).map_err(|error| at(path, &error))?;
        let bytes = chunk.get(..length).unwrap_or_default();
        out.write_all(&u32::try_from(length).unwrap_or(0).to_be_bytes())?;
        out.write_all(bytes)?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Opens for reading what was opened for nothing and turned out to be harmless.
fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn is_made_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(MADE_UP.contains(&rustix::fs::fstatfs(fd)?.f_type))
}

fn at(path: &[Vec<u8>], error: &io::Error) -> io::Error {
    let names: Vec<_> = path.iter().map(|name| OsStr::from_bytes(name).to_string_lossy()).collect();
    io::Error::other(format!("{}: {error}", names.join("/")))
}

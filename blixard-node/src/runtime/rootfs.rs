//! Reads files of a container's root file system before anything is mounted, from the layers of
//! its snapshot: symbolic links, whiteouts and opaque directories mean what overlayfs makes of
//! them, and no link leads out of the layers. The image may be hostile: a layer is walked by the
//! kernel's rules against links (`openat2`), and only a regular file is ever opened for reading.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use blixard_core::limits::IMAGE_ACCOUNTS_BYTES_MAX;
use containerd_client::types::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links followed for one path before it counts as a loop; the kernel's own number.
const LINKS_MAX: usize = 40;
/// Where a container sees the kernel's files, whatever its image holds there: who opens one may read for ever
/// or wait for ever, and the runtime opens the accounts itself before the container runs.
const KERNELS: [&str; 3] = ["proc", "sys", "dev"];
/// No link is followed, and no way leads out, also not by what the kernel makes links of.
const CONFINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The layers of one root file system.
#[derive(Debug, Clone)]
pub(crate) struct Rootfs {
    /// The uppermost first.
    layers: Vec<PathBuf>,
}

enum Found {
    Directory,
    Link(PathBuf),
    File(OwnedFd),
    /// A device, a fifo or a socket.
    Other,
}

impl Rootfs {
    /// The layers behind a snapshot's mounts; none when they are of a kind whose layers are not
    /// directories.
    pub(crate) fn from_mounts(mounts: &[Mount]) -> Option<Self> {
        let [mount] = mounts else { return None };
        if mount.r#type == "bind" {
            return Some(Self { layers: vec![mount.source.clone().into()] });
        }
        if mount.r#type != "overlay" {
            return None;
        }
        let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
        let upper = option("upperdir=").map(PathBuf::from);
        let lower = option("lowerdir=").into_iter().flat_map(|list| list.split(':')).map(PathBuf::from);
        Some(Self { layers: upper.into_iter().chain(lower).collect() })
    }

    /// Reads the file at `path`, an absolute path in the root file system; nothing when it is absent.
    ///
    /// # Errors
    /// When the layers cannot be read; of kind `InvalidData` when the links form a loop or lead to the
    /// kernel's files, when it is no regular file, or larger than is read.
    pub(crate) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let mut pending: VecDeque<OsString> = parts(Path::new(path)).collect();
        let mut resolved = PathBuf::new();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            if resolved.as_os_str().is_empty() && KERNELS.iter().any(|kernels| part == *kernels) {
                return Err(invalid(format!(
                    "{path} leads to /{}, which is not the image's",
                    part.display()
                )));
            }
            match self.find(&next)? {
                None => return Ok(None),
                Some(Found::Directory) => resolved = next,
                Some(Found::Link(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(invalid(format!("{path}: too many symbolic links")));
                    }
                    if target.is_absolute() {
                        resolved = PathBuf::new();
                    }
                    for part in parts(&target).rev() {
                        pending.push_front(part);
                    }
                }
                Some(Found::File(file)) if pending.is_empty() => return read(path, &file).map(Some),
                Some(Found::File(_)) => return Ok(None),
                Some(Found::Other) => break,
            }
        }
        Err(invalid(format!("{path} is no regular file")))
    }

    /// Finds the uppermost entry at `path`, whose parents are directories in the merged tree.
    fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        for layer in &self.layers {
            match in_layer(layer, path)? {
                Layered::Found(found) => return Ok(Some(found)),
                Layered::Hidden => return Ok(None),
                Layered::Below => {}
            }
        }
        Ok(None)
    }
}

/// What one layer says of a path.
enum Layered {
    Found(Found),
    /// That nothing is there, in the layers below it either.
    Hidden,
    /// Nothing: the layers below it count.
    Below,
}

fn in_layer(layer: &Path, path: &Path) -> io::Result<Layered> {
    let mut at = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut opaque = false;
    let mut parts = path.iter().peekable();
    while let Some(part) = parts.next() {
        opaque |= is_opaque(at.as_fd());
        let Some(entry) = open_entry(at.as_fd(), part)? else {
            return Ok(if opaque { Layered::Hidden } else { Layered::Below });
        };
        let stat = rustix::fs::fstat(&entry)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Layered::Hidden),
            FileType::Directory if parts.peek().is_some() => at = entry,
            FileType::Directory => return Ok(Layered::Found(Found::Directory)),
            // A layer above has a directory in its place, which hides it and all that is below.
            _ if parts.peek().is_some() => return Ok(Layered::Hidden),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&entry, "", Vec::new())?;
                let target = OsString::from(String::from_utf8_lossy(target.as_bytes()).into_owned());
                return Ok(Layered::Found(Found::Link(target.into())));
            }
            FileType::RegularFile => return Ok(Layered::Found(Found::File(entry))),
            _ => return Ok(Layered::Found(Found::Other)),
        }
    }
    Ok(Layered::Found(Found::Directory))
}

/// The entry itself, a link too; nothing when there is none.
fn open_entry(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(directory, name, flags, Mode::empty(), CONFINED) {
        Ok(entry) => Ok(Some(entry)),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 1];
    let length = rustix::fs::getxattr(through_proc(directory), "trusted.overlay.opaque", &mut value[..]);
    length == Ok(1) && value == *b"y"
}

/// The path of what a descriptor refers to, for calls that take no descriptor of a path alone.
fn through_proc(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Reads a regular file that is open as a path.
fn read(path: &str, file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(through_proc(file.as_fd()))?;
    file.take(IMAGE_ACCOUNTS_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > IMAGE_ACCOUNTS_BYTES_MAX {
        return Err(invalid(format!(
            "{path} is longer than the {IMAGE_ACCOUNTS_BYTES_MAX} bytes that are read"
        )));
    }
    Ok(bytes)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::Rootfs;

    #[test]
    fn files_are_found_as_overlayfs_would_show_them() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        for path in [upper.join("etc"), lower.join("etc"), lower.join("nix/store")] {
            fs::create_dir_all(path).expect("directory");
        }
        fs::write(lower.join("etc/passwd"), "lower").expect("file");
        fs::write(lower.join("etc/group"), "group").expect("file");
        fs::write(upper.join("etc/passwd"), "upper").expect("file");
        fs::write(lower.join("nix/store/shadow"), "linked").expect("file");
        fs::write(directory.path().join("outside"), "secret").expect("file");
        symlink("/nix/store/shadow", lower.join("etc/absolute")).expect("link");
        symlink("../nix/store/shadow", upper.join("etc/relative")).expect("link");
        symlink("../../../../outside", upper.join("etc/escape")).expect("link");
        symlink("loop", upper.join("etc/loop")).expect("link");
        let rootfs = Rootfs { layers: vec![upper, lower] };
        let check = |path: &str, expect: Option<&str>| {
            let text = rootfs.read(path).expect(path).map(|bytes| String::from_utf8(bytes).expect("text"));
            assert_eq!(text.as_deref(), expect, "{path}");
        };
        check("/etc/passwd", Some("upper"));
        check("/etc/group", Some("group"));
        check("/etc/absolute", Some("linked"));
        check("/etc/relative", Some("linked"));
        check("/etc/escape", None);
        check("/etc/passwd/more", None);
        check("/absent", None);
        for path in ["/etc/loop", "/etc"] {
            assert_eq!(rootfs.read(path).expect_err(path).kind(), std::io::ErrorKind::InvalidData, "{path}");
        }
    }

    #[test]
    fn nothing_outside_the_layers_is_read_and_nothing_blocks() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        let host = directory.path().join("host");
        for path in [upper.join("etc"), upper.join("run"), lower.join("var"), host.clone()] {
            fs::create_dir_all(path).expect("directory");
        }
        fs::write(host.join("passwd"), "secret").expect("file");
        // The merged tree has the upper directory; the lower layer's link must not lead elsewhere.
        symlink(&host, lower.join("etc")).expect("link");
        fs::write(lower.join("run"), "a file where the merged tree has a directory").expect("file");
        let fifo = upper.join("etc/group");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("fifo");
        fs::File::create(upper.join("etc/large"))
            .and_then(|file| file.set_len(1 << 40))
            .expect("sparse file");
        symlink("/proc/self/environ", upper.join("etc/proc")).expect("link");
        symlink("/etc/../zero", upper.join("etc/dev")).expect("link");
        symlink("dev/zero", upper.join("zero")).expect("link");
        fs::create_dir_all(upper.join("dev")).expect("directory");
        fs::write(upper.join("dev/zero"), "what the container does not see").expect("file");
        symlink("/etc/../../../../../etc/../host/passwd", upper.join("etc/up")).expect("link");
        let rootfs = Rootfs { layers: vec![upper, lower] };
        for path in ["/etc/passwd", "/etc/up", "/run/passwd", "/var/../../host/passwd"] {
            assert_eq!(rootfs.read(path).expect(path), None, "{path}");
        }
        for (path, why) in [
            ("/etc/group", "is no regular file"),
            ("/etc/proc", "leads to /proc"),
            ("/etc/dev", "leads to /dev"),
        ] {
            let error = rootfs.read(path).expect_err(path);
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{path}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = rootfs.read("/etc/large").expect_err("too large");
        assert!(error.to_string().contains("/etc/large is longer than"), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}

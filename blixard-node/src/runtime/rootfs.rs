//! Reads files of a container's root file system before anything is mounted, from the layers of
//! its snapshot: symbolic links, whiteouts and opaque directories mean what overlayfs makes of
//! them, and no link leads out of the layers.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount;

/// Links followed for one path before it counts as a loop; the kernel's own number.
const LINKS_MAX: usize = 40;
/// The largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The layers of one root file system.
#[derive(Debug, Clone)]
pub(crate) struct Rootfs {
    /// The uppermost first.
    layers: Vec<PathBuf>,
}

enum Found {
    Directory,
    Link(PathBuf),
    Other(PathBuf),
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

    /// Reads the file at `path`, an absolute path in the root file system; nothing when it is
    /// absent or no regular file.
    ///
    /// # Errors
    /// When the layers cannot be read, or the links form a loop.
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
            match self.find(&next)? {
                None => return Ok(None),
                Some(Found::Directory) => resolved = next,
                Some(Found::Link(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::other(format!("{path}: too many symbolic links")));
                    }
                    if target.is_absolute() {
                        resolved = PathBuf::new();
                    }
                    for part in parts(&target).rev() {
                        pending.push_front(part);
                    }
                }
                Some(Found::Other(file)) if pending.is_empty() => return read_regular(&file),
                Some(Found::Other(_)) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Finds the uppermost entry at `path`, whose parents are directories in the merged tree.
    fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        for layer in &self.layers {
            let mut at = layer.clone();
            let mut opaque = false;
            let mut entry = None;
            for part in path {
                opaque |= is_opaque(&at);
                at.push(part);
                entry = match std::fs::symlink_metadata(&at) {
                    Ok(metadata) => Some(metadata),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
                    Err(error) => return Err(error),
                };
                match &entry {
                    Some(metadata) if metadata.file_type().is_char_device() && metadata.rdev() == 0 => {
                        return Ok(None);
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            if let Some(metadata) = entry {
                return Ok(Some(if metadata.is_dir() {
                    Found::Directory
                } else if metadata.is_symlink() {
                    Found::Link(std::fs::read_link(&at)?)
                } else {
                    Found::Other(at)
                }));
            }
            if opaque {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0_u8; 1];
    let length = rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut value[..]);
    length == Ok(1) && value == *b"y"
}

fn read_regular(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
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
        check("/etc", None);
        check("/etc/passwd/more", None);
        check("/absent", None);
        assert!(rootfs.read("/etc/loop").is_err());
    }
}

//! The files of an image: a tar that only grows.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// What packages hold and containers do not need.
const LEFT_OUT: [&str; 5] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bash-completion/",
];

/// A user and group, by number.
pub(super) type Owner = (u64, u64);
/// The superuser.
pub(super) const ROOT: Owner = (0, 0);

/// One layer of an image.
pub(super) struct Layer {
    tar: Builder<Vec<u8>>,
    /// What is in it already: the first of two files with one path counts.
    paths: BTreeSet<String>,
}

impl Layer {
    pub(super) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()), paths: BTreeSet::new() }
    }

    /// The tar as far as it is written.
    pub(super) fn bytes(&self) -> &[u8] {
        self.tar.get_ref()
    }

    pub(super) fn into_tar(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }

    pub(super) fn directory(mut self, path: &str, mode: u32, owner: Owner) -> Self {
        let mut header = header(EntryType::Directory, mode, owner);
        if self.paths.insert(path.to_owned()) {
            self.tar.append_data(&mut header, path, std::io::empty()).expect("into memory");
        }
        self
    }

    pub(super) fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, mode, ROOT);
        header.set_size(content.len() as u64);
        if self.paths.insert(path.to_owned()) {
            self.tar.append_data(&mut header, path, content).expect("into memory");
        }
        self
    }

    pub(super) fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(EntryType::Symlink, 0o777, ROOT);
        if self.paths.insert(path.to_owned()) {
            self.tar.append_link(&mut header, path, target).expect("into memory");
        }
        self
    }

    /// Adds the files of a package, as the package has them.
    pub(super) fn add_package(&mut self, package: &Path) -> Result<()> {
        let mut unpacked = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpkg-deb")?;
        let output = unpacked.stdout.take().context("dpkg-deb has no output")?;
        let mut archive = tar::Archive::new(output);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            if path.is_empty() || LEFT_OUT.iter().any(|folder| path.starts_with(folder)) {
                continue;
            }
            if !self.paths.insert(path.clone()) {
                continue;
            }
            let mut header = entry.header().clone();
            match entry.link_name()?.map(|target| target.to_path_buf()) {
                Some(target) => {
                    let target = target.to_string_lossy();
                    self.tar.append_link(&mut header, &path, target.trim_start_matches("./"))?;
                }
                None => self.tar.append_data(&mut header, &path, &mut entry)?,
            }
        }
        // The archive's end may come before the stream's.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
        let status = unpacked.wait()?;
        ensure!(status.success(), "dpkg-deb cannot unpack {}: {status}", package.display());
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32, (user, group): Owner) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(user);
    header.set_gid(group);
    header.set_mtime(0);
    header.set_size(0);
    header
}

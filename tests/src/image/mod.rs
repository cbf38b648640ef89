//! Images that tests run: built here from Debian's own packages, as OCI archives.
//!
//! An archive is built once and kept under `target/test-images`, named by a hash of what it is made
//! of, so that a second run finds it. A newer version of a package is taken when that folder is
//! removed. Nothing is installed or started on the machine.

mod archive;
mod catalog;
mod debian;
mod layer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::archive::{Layout, digest_of};
pub use self::catalog::{bulky, busybox, nginx, postgres, redis, stand_in, web};
use self::layer::Layer;

/// An image as an archive on disk.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its full name with a tag, `blixard.test/web:1`.
    pub reference: String,
    /// The OCI archive.
    pub path: PathBuf,
}

impl Image {
    /// The archive's path as the client's argument.
    pub fn archive(&self) -> &str {
        self.path.to_str().expect("the workspace's path is UTF-8, or cargo would not have built this")
    }

    /// The same image under another name, as an archive in `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn renamed(&self, reference: &str, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.tar", digest_of(reference.as_bytes()).replace(':', "-")));
        Layout::read(&self.path)?.write(&path, reference)?;
        Ok(path)
    }
}

/// What an image is made of.
struct Recipe {
    /// The path within its registry, and the tag: `web:1`.
    name: &'static str,
    /// Debian packages whose files it holds, with all they depend on.
    packages: &'static [&'static str],
    /// What is added to the packages' files.
    files: Layer,
    /// The `config` of the image's configuration.
    config: Value,
}

impl Recipe {
    /// Builds the archive, or finds it built.
    fn build(self) -> Result<Image> {
        let folder = cache();
        fs::create_dir_all(&folder)?;
        let mut hash = Sha256::new();
        hash.update(self.files.bytes());
        hash.update(self.config.to_string());
        self.packages.iter().for_each(|package| hash.update(format!("{package}\n")));
        let hash = hex::encode(hash.finalize());
        let file = self.name.replace([':', '/'], "-");
        let path = folder.join(format!("{file}-{}.tar", &hash[..16]));
        let reference = format!("blixard.test/{}", self.name);
        // Tests of several processes may want the same image at the same time.
        let lock = File::create(folder.join(format!("{file}.lock")))?;
        lock.lock()?;
        if !path.is_file() {
            let mut layer = self.files;
            for package in debian::fetch(self.packages, &folder.join("packages"))? {
                layer.add_package(&package)?;
            }
            let unfinished = path.with_extension("new");
            archive::write(&unfinished, &reference, layer.into_tar()?, &self.config)
                .with_context(|| format!("cannot build the image {reference}"))?;
            fs::rename(&unfinished, &path)?;
        }
        Ok(Image { reference, path })
    }
}

fn cache() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    workspace.join("target/test-images")
}

#[cfg(test)]
mod tests {
    use super::{Image, Layout, busybox, nginx, postgres, redis, web};

    #[test]
    fn images_are_built_once_and_hold_what_their_names_say() {
        let check = |build: fn() -> anyhow::Result<Image>, file: &str| {
            let image = build().expect("it is built");
            let written = image.path.metadata().and_then(|data| data.modified()).expect("it exists");
            let again = build().expect("it is found");
            let found = again.path.metadata().and_then(|data| data.modified()).expect("it exists");
            assert_eq!((again.path, found), (image.path.clone(), written), "it was built twice");
            let layout = Layout::read(&image.path).expect("an archive");
            let holds = layout.blobs.values().filter(|blob| blob.starts_with(&[0x1f, 0x8b])).any(|layer| {
                let mut layer = tar::Archive::new(flate2::read::GzDecoder::new(layer.as_slice()));
                let mut entries = layer.entries().expect("a tar");
                entries.any(|entry| entry.expect("whole").path().expect("text").to_str() == Some(file))
            });
            assert!(holds, "{} has no {file}", image.reference);
        };
        check(busybox, "bin/sh");
        check(web, "serve");
        check(nginx, "usr/sbin/nginx");
        check(redis, "usr/bin/redis-server");
        check(postgres, "usr/lib/postgresql/15/bin/postgres");
    }
}

//! What this node's containers, their images, their logs and its own data take on disk.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::client::disk;
use super::containers::Containers;
use crate::platform::{DiskUsage, RuntimeError};

/// What `du` counts in.
const BLOCK_BYTES: u64 = 512;
/// How deep directories are looked into: none of ours is deeper.
const DEPTH_MAX: usize = 16;

impl Containers {
    /// What is on disk; `data` is the node's data directory.
    pub(crate) async fn disk_usage(&self, data: PathBuf) -> Result<DiskUsage, RuntimeError> {
        let images = self.images.usage().await?;
        let image_count = self.images.images().await?.len();
        let containers = self.client.all_containers().await?.len();
        let logs = self.files.logs();
        super::blocking(move || {
            let measure = |path: &Path, without: &[PathBuf]| {
                size_of(path, without, DEPTH_MAX).map_err(|error| disk("measure the data directory", &error))
            };
            // A private containerd's directory holds the images and the containers counted above.
            let others = [logs.clone(), data.join("containerd")];
            Ok(DiskUsage {
                images: image_count as u64,
                image_bytes: images.blobs,
                unpacked_bytes: images.unpacked,
                containers: containers as u64,
                container_bytes: images.writable,
                log_bytes: measure(&logs, &[])?,
                data_bytes: measure(&data, &others)?,
            })
        })
        .await
    }
}

/// The bytes on disk below a directory, without those below some. What goes meanwhile is not counted.
fn size_of(path: &Path, without: &[PathBuf], depth: usize) -> std::io::Result<u64> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes: u64 = 0;
    for entry in entries {
        let path = entry?.path();
        if without.contains(&path) {
            continue;
        }
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let own = if metadata.is_dir() && depth > 0 {
            size_of(&path, without, depth - 1)?
        } else {
            metadata.blocks().saturating_mul(BLOCK_BYTES)
        };
        bytes = bytes.saturating_add(own);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::size_of;

    #[test]
    fn a_directory_is_measured_without_what_others_count() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("logs/1")).expect("directory");
        std::fs::write(at("logs/1/0.log"), vec![1; 100_000]).expect("file");
        std::fs::write(at("raft.redb"), vec![1; 50_000]).expect("file");
        std::os::unix::fs::symlink("/", at("root")).expect("link");
        let whole = size_of(directory.path(), &[], 16).expect("measured");
        let rest = size_of(directory.path(), &[at("logs")], 16).expect("measured");
        assert!((150_000..400_000).contains(&whole), "{whole}");
        assert!((50_000..100_000).contains(&rest), "{rest}");
        assert_eq!(size_of(&at("absent"), &[], 16).expect("nothing"), 0);
    }
}

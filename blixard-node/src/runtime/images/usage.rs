//! What images take on disk, and how that ends.

use containerd_client::services::v1::ListContentRequest;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};

use super::ImageStore;
use super::containerd::{Containerd, SNAPSHOTTER, fault};
use crate::platform::RuntimeError;

/// What the images of a namespace and the containers started from them take on disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Blobs as registries send them.
    pub blobs: u64,
    /// Their layers unpacked, which containers share.
    pub unpacked: u64,
    /// What containers wrote onto their own root file systems.
    pub writable: u64,
}

impl ImageStore {
    /// Removes images by their full names, as [`ImageStore::images`] lists them, and waits until what
    /// no other image and no container needs is gone. Gives the bytes that this freed.
    ///
    /// # Errors
    /// `Unavailable` when containerd is in trouble; then it may be called again.
    pub async fn remove(&self, names: &[String]) -> Result<u64, RuntimeError> {
        let before = self.usage().await?;
        for name in names {
            self.containerd.delete_image(name).await?;
            tracing::info!(image = name, "image removed");
        }
        // Deleting a lease is the only way to have containerd collect garbage while we wait.
        self.containerd.with_lease("collect").await?.release(true).await?;
        let after = self.usage().await?;
        Ok((before.blobs + before.unpacked).saturating_sub(after.blobs + after.unpacked))
    }

    /// What images and containers take on disk, as far as containerd can measure it.
    ///
    /// # Errors
    /// `Unavailable` when containerd is in trouble.
    pub async fn usage(&self) -> Result<StoreUsage, RuntimeError> {
        let mut usage = StoreUsage { blobs: self.containerd.blob_bytes().await?, ..StoreUsage::default() };
        for (name, kind) in self.containerd.snapshot_names().await? {
            let bytes = match self.containerd.snapshot_usage(&name).await {
                Ok(usage) => usage.bytes,
                // It went meanwhile.
                Err(RuntimeError::NotFound(_)) => 0,
                // What a container makes of its files may be more than containerd can measure: no image is
                // kept for that.
                Err(err) => {
                    tracing::warn!(snapshot = name, err = %err, "what it takes on disk is not counted");
                    0
                }
            };
            let sum = if kind == Kind::Committed { &mut usage.unpacked } else { &mut usage.writable };
            *sum = sum.saturating_add(bytes);
        }
        Ok(usage)
    }
}

impl Containerd {
    async fn blob_bytes(&self) -> Result<u64, RuntimeError> {
        let failed = |status| fault("list blobs", &status);
        let request = self.request(ListContentRequest { filters: Vec::new() });
        let mut parts =
            ContentClient::new(self.channel.clone()).list(request).await.map_err(failed)?.into_inner();
        let mut bytes: u64 = 0;
        while let Some(part) = parts.message().await.map_err(failed)? {
            let sizes = part.info.iter().map(|info| u64::try_from(info.size).unwrap_or(0));
            bytes = sizes.fold(bytes, u64::saturating_add);
        }
        Ok(bytes)
    }

    async fn snapshot_names(&self) -> Result<Vec<(String, Kind)>, RuntimeError> {
        let failed = |status| fault("list snapshots", &status);
        let request =
            self.request(ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters: Vec::new() });
        let mut parts =
            SnapshotsClient::new(self.channel.clone()).list(request).await.map_err(failed)?.into_inner();
        let mut names = Vec::new();
        while let Some(part) = parts.message().await.map_err(failed)? {
            names.extend(part.info.into_iter().map(|info| (info.kind(), info.name)).map(|(k, n)| (n, k)));
        }
        Ok(names)
    }
}

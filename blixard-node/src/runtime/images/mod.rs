//! The images of one node: fetched from registries or taken from archives, kept and unpacked in
//! containerd.
//!
//! Goes through containerd's content, diff, snapshot, image and lease services alone, not its
//! transfer service, so that every containerd from 1.6.20 on works the same. The container runtime
//! calls it; it knows nothing of containers.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "behind a seam the simulator replaces: containerd's messages hold hash maps, leases carry the time, \
              an export is written by a task"
)]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use blixard_core::image_reference::{ImageReference, is_digest};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;
use tokio::sync::OwnedMutexGuard;
use tonic::transport::Channel;

mod archive;
mod compression;
mod config;
mod containerd;
mod content;
mod export;
mod import;
mod manifest;
mod names;
mod pull;
mod reach;
mod registries;
mod registry;
mod registry_auth;
mod tree;
mod unpack;
mod usage;

pub use config::ImageConfig;
pub use containerd::SNAPSHOTTER;
pub use registries::{Registries, RegistriesError};
pub use usage::StoreUsage;

use crate::platform::{ImageInfo, ImportedImages, OnProgress, RuntimeError};
use containerd::{Containerd, LEASE_PREFIX, Named};
use manifest::{Descriptor, Platform};

/// The images in one containerd namespace.
pub struct ImageStore {
    containerd: Containerd,
    registries: Registries,
    platform: Platform,
    /// Tells this store's leases from another process's.
    instance: String,
    locks: Locks,
}

/// What a container of an image starts from.
#[derive(Debug, Clone)]
pub struct ImageRootfs {
    /// The snapshot of [`SNAPSHOTTER`] to prepare the container's from; empty for an image without
    /// layers.
    pub chain_id: String,
    /// The image's configuration: its user, environment, command and so on.
    pub config: ImageConfig,
    /// The digest of this platform's manifest.
    pub manifest_digest: String,
    /// The full reference.
    pub reference: String,
}

impl ImageStore {
    /// The images in `namespace` of the containerd behind `channel`. Connects on first use.
    ///
    /// # Errors
    /// `Invalid` when the namespace has characters that containerd does not allow.
    pub fn new(channel: Channel, namespace: String, registries: Registries) -> Result<Self, RuntimeError> {
        // An error says that another part of the process installed a provider first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            containerd: Containerd::new(channel, &namespace)?,
            registries,
            platform: Platform::of_node(),
            instance: format!("{:08x}", rand::random::<u32>()),
            locks: Locks::default(),
        })
    }

    /// The full reference of what a user wrote.
    ///
    /// # Errors
    /// `Invalid` when it is no reference.
    pub fn reference(&self, text: &str) -> Result<ImageReference, RuntimeError> {
        self.registries.reference(text).map_err(|err| RuntimeError::Invalid(err.to_string()))
    }

    /// The digest a reference stands for now, as its registry says.
    ///
    /// # Errors
    /// `NotFound` when it has no such image, `Invalid` when it denies access, `Unavailable` when it
    /// cannot be reached.
    pub async fn resolve(&self, reference: &str) -> Result<String, RuntimeError> {
        let reference = self.reference(reference)?;
        if let Some(digest) = reference.digest() {
            return Ok(digest.to_owned());
        }
        let session = registry::RegistrySession::new(&self.registries, &reference)?;
        session.digest().await
    }

    /// What the name stands for here; none when there is no image of that name.
    ///
    /// # Errors
    /// `Invalid` for what is no reference, `Unavailable` when containerd is in trouble.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let reference = self.reference(reference)?;
        match self.containerd.image(&reference.to_string()).await? {
            Some(named) => self.info(named).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether the image is here in full, unpacked for this platform: by `digest` under any name,
    /// else by the name.
    ///
    /// # Errors
    /// `Invalid` for what is no reference or digest, `Unavailable` when containerd is in trouble.
    pub async fn has_image(&self, reference: &str, digest: Option<&str>) -> Result<bool, RuntimeError> {
        let reference = self.reference(reference)?;
        let Some(root) = self.find(&reference, digest).await? else {
            return Ok(false);
        };
        let tree = match self.tree(&self.containerd, &root).await {
            Ok(tree) => tree,
            Err(RuntimeError::NotFound(_)) => return Ok(false),
            Err(err) => return Err(err),
        };
        let unpacked = match tree.chains.last() {
            Some(top) => self.containerd.has_snapshot(top).await?,
            None => true,
        };
        Ok(unpacked && self.missing_blob(&self.containerd, &tree).await?.is_none())
    }

    /// Fetches an image from its registry; by `digest` when given. Blobs that are here are not
    /// fetched again. Returns the digest of what the reference stands for here from now on.
    ///
    /// # Errors
    /// `NotFound` when the registry has no such image; `Invalid` when it denies access, sends
    /// content that its digest does not match, or has nothing for this platform; `Unavailable`
    /// when it cannot be reached or breaks off, then the next pull goes on from there.
    ///
    /// # Cancel safety
    /// The next pull goes on from where this one was dropped.
    pub async fn pull(
        &self,
        reference: &str,
        digest: Option<&str>,
        progress: OnProgress,
    ) -> Result<String, RuntimeError> {
        let reference = self.reference(reference)?;
        let digest = wanted_digest(&reference, digest)?;
        let name = reference.to_string();
        self.pull_image(&reference, digest, progress).await.map_err(|err| match err {
            RuntimeError::Invalid(text) if !text.contains(&name) => {
                RuntimeError::Invalid(format!("image {name}: {text}"))
            }
            err => err,
        })
    }

    /// Takes in every image of an OCI or Docker archive (tar, perhaps compressed with gzip, zstd or
    /// xz) that is for this platform, all or none; under `name`, when given, instead of the archive's
    /// own. Those for other platforms are passed over.
    ///
    /// # Errors
    /// `Invalid` when the archive is damaged, incomplete, names no image, or has none for this
    /// platform; nothing of it stays.
    pub async fn import(
        &self,
        archive: Pin<Box<dyn AsyncRead + Send>>,
        name: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        self.import_archive(archive, name).await
    }

    /// Writes an image as an OCI archive that [`ImageStore::import`] takes, for this platform,
    /// under its whole digest. A fault on the way shows as the reader's error.
    ///
    /// # Errors
    /// `NotFound` when the image is not here in full.
    pub async fn export(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>, RuntimeError> {
        let reference = self.reference(reference)?;
        let root = self.found(&reference, digest).await?;
        self.export_image(&reference, &root).await
    }

    /// The images here, by name.
    ///
    /// # Errors
    /// `Unavailable` when containerd is in trouble.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let mut images = Vec::new();
        for named in self.containerd.images().await? {
            images.push(self.info(named).await?);
        }
        Ok(images)
    }

    async fn info(&self, named: Named) -> Result<ImageInfo, RuntimeError> {
        let bytes = match self.tree(&self.containerd, &named.root).await {
            Ok(tree) => self.bytes(&tree).await?,
            Err(RuntimeError::Unavailable(err)) => return Err(RuntimeError::Unavailable(err)),
            Err(_) => 0,
        };
        let Named { name: reference, root, imported } = named;
        Ok(ImageInfo { reference, digest: root.digest, bytes, imported })
    }

    /// What a container of the image starts from.
    ///
    /// # Errors
    /// `NotFound` when the image is not here.
    pub async fn rootfs(&self, reference: &str, digest: Option<&str>) -> Result<ImageRootfs, RuntimeError> {
        let reference = self.reference(reference)?;
        let root = self.found(&reference, digest).await?;
        let tree = self.tree(&self.containerd, &root).await?;
        Ok(ImageRootfs {
            chain_id: tree.chains.last().cloned().unwrap_or_default(),
            manifest_digest: tree.found.manifest_digest().to_owned(),
            config: tree.found.config,
            reference: reference.to_string(),
        })
    }

    /// Removes every image of the namespace and waits until containerd has let go of their
    /// content. What containers still use stays.
    ///
    /// # Errors
    /// `Unavailable` when containerd is in trouble; then it may be called again.
    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        for image in self.containerd.images().await? {
            self.containerd.delete_image(&image.name).await?;
        }
        for lease in self.containerd.leases().await? {
            if lease.id.starts_with(LEASE_PREFIX) {
                self.containerd.delete_lease(&lease.id, false).await?;
            }
        }
        self.containerd.abort_all().await?;
        // Deleting a lease is the only way to have containerd collect garbage while we wait.
        self.containerd.with_lease("collect").await?.release(true).await
    }

    /// What the image's name, or with a digest any name, stands for here.
    async fn find(
        &self,
        reference: &ImageReference,
        digest: Option<&str>,
    ) -> Result<Option<Descriptor>, RuntimeError> {
        let digest = wanted_digest(reference, digest)?;
        let named = self.containerd.image(&reference.to_string()).await?.map(|named| named.root);
        match digest {
            None => Ok(named),
            Some(digest) if named.as_ref().is_some_and(|root| root.digest == digest) => Ok(named),
            Some(digest) => {
                let images = self.containerd.images().await?;
                Ok(images.into_iter().map(|named| named.root).find(|root| root.digest == digest))
            }
        }
    }

    /// Whether somebody imported that image under the name.
    async fn is_imported(&self, reference: &ImageReference, root: &Descriptor) -> Result<bool, RuntimeError> {
        let named = self.containerd.image(&reference.to_string()).await?;
        Ok(named.is_some_and(|named| named.imported && named.root.digest == root.digest))
    }

    async fn found(
        &self,
        reference: &ImageReference,
        digest: Option<&str>,
    ) -> Result<Descriptor, RuntimeError> {
        self.find(reference, digest).await?.ok_or_else(|| {
            let digest = digest.map(|digest| format!(" with digest {digest}")).unwrap_or_default();
            RuntimeError::NotFound(format!("no image {reference}{digest} on this node: pull or import it"))
        })
    }

    /// The size of the blobs that are here.
    async fn bytes(&self, tree: &tree::Tree) -> Result<u64, RuntimeError> {
        let mut bytes = 0;
        for digest in tree.digests() {
            bytes +=
                self.containerd.blob(digest).await?.map_or(0, |info| u64::try_from(info.size).unwrap_or(0));
        }
        Ok(bytes)
    }
}

/// The digest asked for, which must not contradict the reference's own.
fn wanted_digest<'a>(
    reference: &'a ImageReference,
    digest: Option<&'a str>,
) -> Result<Option<&'a str>, RuntimeError> {
    match (reference.digest(), digest) {
        (_, Some(digest)) if !is_digest(digest) => {
            Err(RuntimeError::Invalid(format!("{digest:?} is not a sha256 digest")))
        }
        (Some(own), Some(digest)) if own != digest => {
            Err(RuntimeError::Invalid(format!("{reference} is asked for by another digest, {digest}")))
        }
        (own, digest) => Ok(digest.or(own)),
    }
}

/// The digest of bytes, as images write it.
fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Keeps calls on the same image, blob or snapshot apart, so that work is not done twice at once.
#[derive(Default)]
struct Locks(Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// Waits for, and takes, the lock of `key`.
    async fn hold(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

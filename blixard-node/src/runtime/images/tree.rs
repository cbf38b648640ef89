//! An image as it lies in containerd: its documents for this node's platform, read and checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use oci_spec::image::ImageConfiguration;

use super::ImageStore;
use super::containerd::{Containerd, SNAPSHOTTER};
use super::manifest::{Descriptor, Document, Manifest, Platform, chain_ids};
use super::registry::RegistrySession;
use crate::platform::RuntimeError;

/// Indexes may hold indexes; no sane image nests deeper.
const INDEX_DEPTH_MAX: usize = 3;

/// An image's documents for one platform.
#[derive(Debug)]
pub(super) struct Tree {
    /// What the image's name stands for.
    pub(super) root: Descriptor,
    /// From the root down: indexes, each with the digest it leads to here.
    pub(super) indexes: Vec<(String, String)>,
    pub(super) manifest_digest: String,
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfiguration,
    /// The snapshots its layers build up, lowest first.
    pub(super) chains: Vec<String>,
}

impl Tree {
    /// Every blob of the image that this node has use for: documents first.
    pub(super) fn digests(&self) -> Vec<&str> {
        let indexes = self.indexes.iter().map(|(index, _)| index.as_str());
        let blobs = self.manifest.blobs().into_iter().map(|blob| blob.digest.as_str());
        indexes.chain([self.manifest_digest.as_str()]).chain(blobs).collect()
    }
}

/// Where documents are read from: containerd, and what is not there, when given, from the registry.
pub(super) struct Documents<'a> {
    pub(super) containerd: &'a Containerd,
    pub(super) registry: Option<&'a RegistrySession>,
}

impl Documents<'_> {
    /// Walks from a root document to a platform's manifest. What came from the registry is in
    /// containerd afterwards; with a registry everything read is kept by the lease.
    pub(super) async fn walk(
        &self,
        root: &str,
        platform: &Platform,
    ) -> Result<(Vec<(String, String)>, String, Manifest), RuntimeError> {
        let mut indexes = Vec::new();
        let mut digest = root.to_owned();
        loop {
            match Document::parse(&self.read(&digest).await?)? {
                Document::Manifest(manifest) => return Ok((indexes, digest, manifest)),
                Document::Index(_) if indexes.len() == INDEX_DEPTH_MAX => {
                    return Err(RuntimeError::Invalid(format!(
                        "index {root} nests deeper than {INDEX_DEPTH_MAX}"
                    )));
                }
                Document::Index(index) => {
                    let chosen = index.select(platform)?.digest.clone();
                    indexes.push((std::mem::replace(&mut digest, chosen.clone()), chosen));
                }
            }
        }
    }

    async fn read(&self, digest: &str) -> Result<Bytes, RuntimeError> {
        let here = self.containerd.read_document(digest).await;
        let Some(registry) = self.registry else { return here };
        match here {
            Err(RuntimeError::NotFound(_)) => {
                let bytes = registry.document(digest).await?;
                self.containerd.write_document(&bytes).await?;
                Ok(bytes)
            }
            here => {
                let bytes = here?;
                self.containerd.keep("content", digest).await?;
                Ok(bytes)
            }
        }
    }
}

impl ImageStore {
    /// Reads an image's documents.
    ///
    /// # Errors
    /// `NotFound` when one of them is not here.
    pub(super) async fn tree(
        &self,
        containerd: &Containerd,
        root: &Descriptor,
    ) -> Result<Tree, RuntimeError> {
        let documents = Documents { containerd, registry: None };
        let (indexes, manifest_digest, manifest) = documents.walk(&root.digest, &self.platform).await?;
        let config = containerd.read_document(&manifest.config.digest).await?;
        let config = manifest.configuration(&config, &self.platform)?;
        let chains = chain_ids(config.rootfs().diff_ids());
        Ok(Tree { root: root.clone(), indexes, manifest_digest, manifest, config, chains })
    }

    /// The digest of a blob of the image that is not here.
    pub(super) async fn missing_blob(
        &self,
        containerd: &Containerd,
        tree: &Tree,
    ) -> Result<Option<String>, RuntimeError> {
        for layer in &tree.manifest.layers {
            if containerd.blob(&layer.digest).await?.is_none() {
                return Ok(Some(layer.digest.clone()));
            }
        }
        Ok(None)
    }

    /// Unpacks an image whose blobs are all here, and ties its parts together, so that garbage
    /// collection keeps all of them as long as a name stands for the root.
    pub(super) async fn install(&self, containerd: &Containerd, tree: &Tree) -> Result<(), RuntimeError> {
        for (index, chosen) in &tree.indexes {
            let label = ("containerd.io/gc.ref.content.m.0".to_owned(), chosen.clone());
            containerd.label_blob(index, BTreeMap::from([label])).await?;
        }
        containerd.label_blob(&tree.manifest_digest, tree.manifest.gc_labels()).await?;
        self.unpack(containerd, tree).await?;
        if let Some(top) = tree.chains.last() {
            let label = (format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), top.clone());
            containerd.label_blob(&tree.manifest.config.digest, BTreeMap::from([label])).await?;
        }
        Ok(())
    }
}

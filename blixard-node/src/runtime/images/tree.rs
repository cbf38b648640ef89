//! An image as it lies in containerd: its documents for this node's platform, read and checked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ImageStore;
use super::config::ImageConfig;
use super::containerd::{Containerd, SNAPSHOTTER};
use super::manifest::{Candidate, Descriptor, Document, Foreign, Manifest, Platform, Roots, chain_ids};
use super::registry::RegistrySession;
use crate::platform::RuntimeError;

/// Indexes may hold indexes; no sane image nests deeper.
const INDEX_DEPTH_MAX: usize = 3;
/// The most documents read to find a platform's manifest.
const DOCUMENTS_MAX: usize = 64;

/// An image's documents for one platform.
#[derive(Debug)]
pub(super) struct Tree {
    /// What the image's name stands for.
    pub(super) root: Descriptor,
    pub(super) found: Found,
    /// The snapshots its layers build up, lowest first.
    pub(super) chains: Vec<String>,
}

/// A platform's manifest below a root.
#[derive(Debug)]
pub(super) struct Found {
    /// From the root down: indexes, then the manifest.
    pub(super) trail: Vec<String>,
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfig,
}

impl Found {
    /// The digest of the root.
    pub(super) fn root(&self) -> &str {
        self.trail.first().map_or("", String::as_str)
    }

    pub(super) fn manifest_digest(&self) -> &str {
        self.trail.last().map_or("", String::as_str)
    }
}

impl Tree {
    /// Every blob of the image that this node has use for: documents first.
    pub(super) fn digests(&self) -> Vec<&str> {
        let documents = self.found.trail.iter().map(String::as_str);
        documents.chain(self.found.manifest.blobs().into_iter().map(|blob| blob.digest.as_str())).collect()
    }
}

/// What a search for a platform's manifest came to.
pub(super) enum Search {
    Found(Box<Found>),
    /// It is for other platforms alone, of which there is at least one.
    Foreign(BTreeSet<Foreign>),
    /// What may fit is named and not here.
    Missing {
        fault: RuntimeError,
        /// What is named for other platforms.
        foreign: BTreeSet<Foreign>,
    },
}

/// Where documents are read from: containerd, and what is not there, when given, from the registry.
pub(super) struct Documents<'a> {
    pub(super) containerd: &'a Containerd,
    pub(super) registry: Option<&'a RegistrySession>,
}

impl Documents<'_> {
    /// Walks from root documents, the best first, to a platform's manifest. What came from the
    /// registry is in containerd afterwards; with a registry everything read is kept by the lease.
    ///
    /// What an index says of a manifest's platform counts. Of a manifest that no index says anything
    /// of, its configuration counts, and one that says nothing either is taken.
    ///
    /// # Errors
    /// `Invalid` when none fits, naming the platforms offered; `NotFound` when what may fit is missing.
    pub(super) async fn walk(&self, roots: Roots, platform: &Platform) -> Result<Found, RuntimeError> {
        match self.search(roots, platform).await? {
            Search::Found(found) => Ok(*found),
            Search::Foreign(foreign) => {
                let offered = Vec::from_iter(platforms_of(&foreign)).join(", ");
                Err(offered_for(&offered, platform))
            }
            Search::Missing { fault, .. } => Err(fault),
        }
    }

    /// The same, for those to whom an image for other platforms is no fault.
    ///
    /// # Errors
    /// `Invalid` when there is nothing for any platform, or what is for this one is no image;
    /// `NotFound` when a root or a configuration is missing.
    pub(super) async fn search(&self, roots: Roots, platform: &Platform) -> Result<Search, RuntimeError> {
        let Roots { candidates, mut foreign } = roots;
        let only = candidates.len() == 1 && foreign.is_empty();
        // The first manifest that is not here, the first that is for this platform but broken, and the
        // first that is perhaps no image at all.
        let (mut missing, mut broken, mut odd) = (None, None, None);
        let mut waiting: Vec<(Vec<String>, Candidate)> =
            candidates.into_iter().rev().map(|root| (Vec::new(), root)).collect();
        let mut documents = 0;
        while let Some((mut trail, Candidate { digest, vouched })) = waiting.pop() {
            documents += 1;
            if documents > DOCUMENTS_MAX || trail.len() > INDEX_DEPTH_MAX {
                return Err(RuntimeError::Invalid(format!(
                    "its index nests deeper than {INDEX_DEPTH_MAX}, or has more than {DOCUMENTS_MAX} entries without a platform"
                )));
            }
            let is_root = only && trail.is_empty();
            trail.push(digest.clone());
            let mut here = false;
            let fits = async {
                let bytes = self.read(&digest).await?;
                here = true;
                match Document::parse(&bytes)? {
                    Document::Index(index) => {
                        foreign.extend(index.foreign(platform));
                        let below = index.candidates(platform).into_iter().rev();
                        waiting.extend(below.map(|candidate| (trail.clone(), candidate)));
                        Ok(None)
                    }
                    Document::Manifest(manifest) => {
                        let config = manifest.configuration(&self.read_config(&manifest.config).await?)?;
                        if vouched || platform.runs(&config.os, &config.architecture) {
                            return Ok(Some((manifest, config)));
                        }
                        let platform = format!("{}/{}", config.os, config.architecture);
                        foreign.insert(Foreign { platform, digest });
                        Ok(None)
                    }
                }
            };
            match fits.await {
                Ok(Some((manifest, config))) => {
                    return Ok(Search::Found(Box::new(Found { trail, manifest, config })));
                }
                Ok(None) => {}
                Err(err) if is_root => return Err(err),
                // One of several may be something else than an image, or of another platform and
                // therefore not here.
                Err(err) => {
                    let first = match &err {
                        RuntimeError::NotFound(_) if !here => &mut missing,
                        RuntimeError::Invalid(_) if !vouched => &mut odd,
                        RuntimeError::NotFound(_) | RuntimeError::Invalid(_) => &mut broken,
                        _ => return Err(err),
                    };
                    first.get_or_insert(err);
                }
            }
        }
        match (broken, missing, odd) {
            (Some(fault), _, _) => Err(fault),
            (None, Some(fault), _) => Ok(Search::Missing { fault, foreign }),
            (None, None, Some(fault)) if foreign.is_empty() => Err(fault),
            _ if foreign.is_empty() => Err(offered_for("none", platform)),
            _ => Ok(Search::Foreign(foreign)),
        }
    }

    async fn read(&self, digest: &str) -> Result<Bytes, RuntimeError> {
        let Some(registry) = self.registry else { return self.containerd.read_document(digest).await };
        self.read_or(digest, registry.document(digest)).await
    }

    async fn read_config(&self, config: &Descriptor) -> Result<Bytes, RuntimeError> {
        let digest = &config.digest;
        let Some(registry) = self.registry else { return self.containerd.read_document(digest).await };
        self.read_or(digest, registry.small_blob(digest)).await
    }

    /// Reads what is here, else takes it from the registry.
    async fn read_or(
        &self,
        digest: &str,
        fetch: impl Future<Output = Result<Bytes, RuntimeError>>,
    ) -> Result<Bytes, RuntimeError> {
        match self.containerd.read_document(digest).await {
            Err(RuntimeError::NotFound(_)) => {
                let bytes = fetch.await?;
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

/// The platforms of what is for other machines, each once.
pub(super) fn platforms_of<'a>(foreign: impl IntoIterator<Item = &'a Foreign>) -> BTreeSet<&'a str> {
    foreign.into_iter().map(|foreign| foreign.platform.as_str()).collect()
}

fn offered_for(offered: &str, platform: &Platform) -> RuntimeError {
    RuntimeError::Invalid(format!(
        "no image for this node's platform {platform}; it is offered for: {offered}"
    ))
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
        // Whether it runs here was checked when it came here.
        let found = documents.walk(Roots::one(root.digest.clone(), true), &self.platform).await?;
        let chains = chain_ids(&found.config.diff_ids);
        Ok(Tree { root: root.clone(), found, chains })
    }

    /// The digest of a blob of the image that is not here.
    pub(super) async fn missing_blob(
        &self,
        containerd: &Containerd,
        tree: &Tree,
    ) -> Result<Option<String>, RuntimeError> {
        for layer in &tree.found.manifest.layers {
            if containerd.blob(&layer.digest).await?.is_none() {
                return Ok(Some(layer.digest.clone()));
            }
        }
        Ok(None)
    }

    /// Unpacks an image whose blobs are all here, and ties its parts together, so that garbage
    /// collection keeps all of them as long as a name stands for the root.
    pub(super) async fn install(&self, containerd: &Containerd, tree: &Tree) -> Result<(), RuntimeError> {
        for pair in tree.found.trail.windows(2) {
            let label = ("containerd.io/gc.ref.content.m.0".to_owned(), pair[1].clone());
            containerd.label_blob(&pair[0], BTreeMap::from([label])).await?;
        }
        let manifest = &tree.found.manifest;
        containerd.label_blob(tree.found.manifest_digest(), manifest.gc_labels()).await?;
        self.unpack(containerd, tree).await?;
        if let Some(top) = tree.chains.last() {
            let label = (format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), top.clone());
            containerd.label_blob(&manifest.config.digest, BTreeMap::from([label])).await?;
        }
        Ok(())
    }
}

//! Takes in archives of images as `docker save`, `podman save`, `skopeo` and buildx write them:
//! OCI layouts and Docker's older form.
//!
//! The documents that say what is what usually come last, so every file goes into the content
//! store as it streams by. A lease keeps it there; when the import ends, what no image uses goes.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;

use super::ImageStore;
use super::archive::{Archive, Entry, EntryKind};
use super::containerd::Containerd;
use super::content::{FRAME_BYTES_MAX, Opened};
use super::manifest::{DOCUMENT_BYTES_MAX, Descriptor, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use super::tree::Tree;
use crate::platform::{ImageInfo, RuntimeError};

/// The most files of an archive.
const FILES_MAX: usize = 100_000;
/// Links that lead to links: more are taken for a circle.
const LINKS_MAX: usize = 8;
/// Where the two common kinds of tools write an image's name.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// What an archive held.
#[derive(Default)]
struct Contents {
    index: Option<Bytes>,
    docker_manifest: Option<Bytes>,
    blobs: BTreeMap<String, Blob>,
    links: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Blob {
    digest: String,
    size: u64,
}

/// An entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    pub(super) async fn import_archive(
        &self,
        archive: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        let lease = format!("import-{:016x}", rand::random::<u64>());
        let containerd = self.containerd.with_lease(&lease).await?;
        let imported = self.import_under(&containerd, archive).await;
        if let Err(err) = containerd.release(imported.is_err()).await {
            tracing::warn!(%err, "what no image uses stays until its lease ends");
        }
        imported
    }

    async fn import_under(
        &self,
        containerd: &Containerd,
        archive: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        let mut archive = Archive::open(archive).await?;
        let contents = store(containerd, &mut archive).await?;
        archive.drain().await;
        let mut roots = self.oci_roots(&contents)?;
        if roots.is_empty() {
            roots = self.docker_roots(containerd, &contents).await?;
        }
        if roots.is_empty() {
            return Err(RuntimeError::Invalid(
                "the archive names no image: save it by name, as in `docker save NAME:TAG`".into(),
            ));
        }
        let mut trees = BTreeMap::new();
        for (name, digest) in roots {
            let tree = self.complete(containerd, &digest).await.map_err(|err| incomplete(&name, err))?;
            trees.insert(name, tree);
        }
        for tree in trees.values() {
            self.install(containerd, tree).await?;
        }
        let mut images = Vec::with_capacity(trees.len());
        for (reference, tree) in trees {
            containerd.set_image(&reference, &tree.root).await?;
            tracing::info!(image = reference, digest = tree.root.digest, "image imported");
            let bytes = self.bytes(&tree).await?;
            images.push(ImageInfo { reference, digest: tree.root.digest, bytes });
        }
        Ok(images)
    }

    /// Reads an image's documents, and sees to it that all of its blobs are here and stay.
    async fn complete(&self, containerd: &Containerd, digest: &str) -> Result<Tree, RuntimeError> {
        let root = self.root(containerd, digest).await?;
        let tree = self.tree(containerd, &root).await?;
        if let Some(digest) = self.missing_blob(containerd, &tree).await? {
            return Err(RuntimeError::NotFound(format!("no blob {digest}")));
        }
        for digest in tree.digests() {
            containerd.keep("content", digest).await?;
        }
        Ok(tree)
    }

    /// The named images of an OCI layout, each with the digest of its root.
    fn oci_roots(&self, contents: &Contents) -> Result<BTreeMap<String, String>, RuntimeError> {
        let Some(bytes) = &contents.index else { return Ok(BTreeMap::new()) };
        let index: Index = serde_json::from_slice(bytes)
            .map_err(|err| RuntimeError::Invalid(format!("not an image archive: index.json: {err}")))?;
        let mut named: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in index.manifests {
            let annotations = descriptor.annotations.as_ref();
            if let Some(name) = NAME_ANNOTATIONS.iter().find_map(|key| annotations?.get(*key)) {
                named.entry(self.reference(name)?.to_string()).or_default().push(descriptor);
            }
        }
        let mut roots = BTreeMap::new();
        for (name, mut manifests) in named {
            manifests.dedup_by(|a, b| a.digest == b.digest);
            let digest = match manifests.as_slice() {
                [only] => only.digest.clone(),
                _ => {
                    let platforms = Index { schema_version: 2, media_type: None, manifests };
                    platforms.select(&self.platform)?.digest.clone()
                }
            };
            roots.insert(name, digest);
        }
        Ok(roots)
    }

    /// The named images of Docker's older form, each with the digest of a manifest made for it.
    async fn docker_roots(
        &self,
        containerd: &Containerd,
        contents: &Contents,
    ) -> Result<BTreeMap<String, String>, RuntimeError> {
        let Some(bytes) = &contents.docker_manifest else {
            if contents.index.is_some() {
                return Ok(BTreeMap::new());
            }
            return Err(RuntimeError::Invalid(
                "not an image archive: it has neither index.json nor manifest.json".into(),
            ));
        };
        let images: Vec<DockerImage> = serde_json::from_slice(bytes)
            .map_err(|err| RuntimeError::Invalid(format!("not an image archive: manifest.json: {err}")))?;
        let mut roots = BTreeMap::new();
        for image in images {
            let names = image.repo_tags.clone().unwrap_or_default();
            if names.is_empty() {
                continue;
            }
            let digest = docker_manifest(containerd, contents, &image).await?;
            for name in names {
                roots.insert(self.reference(&name)?.to_string(), digest.clone());
            }
        }
        Ok(roots)
    }
}

/// Writes the manifest that Docker's older form lacks. The same archive gives the same manifest,
/// and so the same digest, on every node.
async fn docker_manifest(
    containerd: &Containerd,
    contents: &Contents,
    image: &DockerImage,
) -> Result<String, RuntimeError> {
    let descriptor = |media_type: String, blob: Blob| Descriptor {
        media_type,
        digest: blob.digest,
        size: blob.size,
        platform: None,
        annotations: None,
    };
    let config = descriptor(OCI_CONFIG.into(), contents.blob(&image.config)?);
    let mut layers = Vec::with_capacity(image.layers.len());
    for path in &image.layers {
        let blob = contents.blob(path)?;
        let suffix = compression(containerd, &blob.digest).await?;
        layers.push(descriptor(format!("{OCI_LAYER}{suffix}"), blob));
    }
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has only strings and numbers");
    containerd.write_document(&bytes).await
}

/// How a layer is compressed, as media types say it.
async fn compression(containerd: &Containerd, digest: &str) -> Result<&'static str, RuntimeError> {
    let size = containerd.blob(digest).await?.map_or(0, |info| info.size);
    let mut start = Vec::new();
    if size >= 4 {
        let mut stream = containerd.read_blob(digest, 0, 4).await?;
        while let Ok(Some(frame)) = stream.message().await {
            start.extend_from_slice(&frame.data);
        }
    }
    Ok(match start.as_slice() {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "+zstd",
        _ => "",
    })
}

impl Contents {
    /// The content of a file, through links.
    fn blob(&self, path: &str) -> Result<Blob, RuntimeError> {
        let mut at = path;
        for _ in 0..=LINKS_MAX {
            if let Some(blob) = self.blobs.get(at) {
                return Ok(blob.clone());
            }
            match self.links.get(at) {
                Some(link) => at = link,
                None => break,
            }
        }
        Err(RuntimeError::Invalid(format!(
            "the archive is incomplete: manifest.json names {path}, which it lacks"
        )))
    }
}

/// Writes every file of an archive into the content store.
async fn store(containerd: &Containerd, archive: &mut Archive) -> Result<Contents, RuntimeError> {
    let mut contents = Contents::default();
    for number in 0.. {
        let Some(entry) = archive.next().await? else { break };
        if number == FILES_MAX {
            return Err(RuntimeError::Invalid(format!(
                "not an image archive: it has more than {FILES_MAX} files"
            )));
        }
        match (&entry.kind, entry.path.as_str()) {
            (EntryKind::File, "index.json") => {
                contents.index = Some(archive.whole(DOCUMENT_BYTES_MAX).await?)
            }
            (EntryKind::File, "manifest.json") => {
                contents.docker_manifest = Some(archive.whole(DOCUMENT_BYTES_MAX).await?);
            }
            (EntryKind::File, "oci-layout" | "repositories") => {}
            (EntryKind::File, _) => {
                let reference = format!("{}-{number}", containerd.lease_id());
                match store_file(containerd, archive, &entry, &reference).await {
                    Ok(blob) => contents.blobs.insert(entry.path, blob),
                    Err(err) => {
                        if let Err(abort) = containerd.abort(&reference).await {
                            tracing::warn!(err = %abort, "an unfinished import stays until its lease ends");
                        }
                        return Err(err);
                    }
                };
            }
            (EntryKind::Link(_), _) => {
                if let EntryKind::Link(target) = entry.kind {
                    contents.links.insert(entry.path, target);
                }
            }
            (EntryKind::Other, _) => {}
        }
    }
    Ok(contents)
}

async fn store_file(
    containerd: &Containerd,
    archive: &mut Archive,
    entry: &Entry,
    reference: &str,
) -> Result<Blob, RuntimeError> {
    let named = entry.path.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
    let named = named.filter(|digest| blixard_core::image_reference::is_digest(digest));
    let expected = named.as_deref().unwrap_or_default();
    let mut ingest = match containerd.open_blob(reference, expected, entry.size).await? {
        Opened::Present => return Ok(Blob { digest: expected.to_owned(), size: entry.size }),
        Opened::Writing(ingest) => ingest,
    };
    // Another namespace has the content: containerd takes it over as it is.
    if ingest.offset() < entry.size || expected.is_empty() {
        ingest.rewind();
        let mut hasher = Sha256::new();
        while let Some(chunk) = archive.chunk(FRAME_BYTES_MAX).await? {
            if expected.is_empty() {
                hasher.update(&chunk);
            }
            ingest.write(chunk).await?;
        }
        if expected.is_empty() {
            let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
            ingest.commit().await?;
            return Ok(Blob { digest, size: entry.size });
        }
    }
    ingest.commit().await.map_err(|err| match err {
        RuntimeError::Invalid(reason) => {
            RuntimeError::Invalid(format!("the archive is damaged: {}: {reason}", entry.path))
        }
        err => err,
    })?;
    Ok(Blob { digest: expected.to_owned(), size: entry.size })
}

/// A blob that an archive should have held and that is not here is the archive's fault.
fn incomplete(name: &str, err: RuntimeError) -> RuntimeError {
    match err {
        RuntimeError::NotFound(reason) => {
            RuntimeError::Invalid(format!("the archive is incomplete: of image {name}, {reason}"))
        }
        RuntimeError::Invalid(reason) => RuntimeError::Invalid(format!("image {name}: {reason}")),
        err => err,
    }
}

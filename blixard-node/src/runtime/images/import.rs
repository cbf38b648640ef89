//! Takes in archives of images as `docker save`, `podman save`, `skopeo` and buildx write them:
//! OCI layouts and Docker's older form.
//!
//! The documents that say what is what usually come last, so every file goes into the content
//! store as it streams by. A lease keeps it there; when the import ends, what no image uses goes.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use blixard_core::api::image::PassedOverImage;
use blixard_core::limits::IMAGE_DOCUMENT_BYTES_MAX;
use blixard_core::text::one_line;
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;

use super::ImageStore;
use super::archive::{Archive, Entry, EntryKind, normalise};
use super::compression::Compression;
use super::config::{ImageConfig, or_default, read_json};
use super::containerd::Containerd;
use super::content::{FRAME_BYTES_MAX, Opened};
use super::manifest::{
    Candidate, Descriptor, Foreign, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform, Roots,
};
use super::names::{self, Name};
use super::tree::{Documents, Search, Tree, platforms_of};
use crate::platform::{ImageInfo, ImportedImages, RuntimeError};

/// The most files of an archive.
const FILES_MAX: usize = 100_000;
/// Links that lead to links: more are taken for a circle.
const LINKS_MAX: usize = 8;
/// The most images of an archive.
const IMAGES_MAX: usize = 1_000;
/// How many platforms are told of an image for other machines.
const PLATFORMS_TOLD_MAX: usize = 16;
/// How many such images are told of an archive that holds nothing else.
const IMAGES_TOLD_MAX: usize = 16;

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

/// What a member that pulled an image notes on it when it sends it to another.
pub(super) const PULLED: &str = "blixard.pulled";

/// An entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    #[serde(default, deserialize_with = "or_default")]
    config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

impl ImageStore {
    pub(super) async fn import_archive(
        &self,
        archive: Pin<Box<dyn AsyncRead + Send>>,
        name: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        if let Some(name) = name {
            self.reference(name)?;
        }
        let lease = format!("import-{:016x}", rand::random::<u64>());
        let containerd = self.containerd.with_lease(&lease).await?;
        let imported = self.import_under(&containerd, archive, name).await;
        if let Err(err) = containerd.release(imported.is_err()).await {
            tracing::warn!(%err, "what no image uses stays until its lease ends");
        }
        imported
    }

    async fn import_under(
        &self,
        containerd: &Containerd,
        archive: Pin<Box<dyn AsyncRead + Send>>,
        name: Option<&str>,
    ) -> Result<ImportedImages, RuntimeError> {
        let mut archive = Archive::open(archive).await?;
        let contents = store(containerd, &mut archive).await?;
        archive.drain().await;
        let mut images = contents.oci_images(&self.platform)?;
        if !images.keys().any(|name| matches!(name, Name::Full(_))) {
            let docker = docker_images(containerd, &contents, &self.platform).await?;
            if images.is_empty() || docker.keys().any(|name| matches!(name, Name::Full(_))) {
                images = docker;
            }
        }
        let mut passed_over = BTreeMap::new();
        let mut roots = BTreeMap::new();
        for (called, image) in &images {
            match self.choose(containerd, &contents, image.roots.clone()).await {
                Ok(Chosen::Root(digest)) => drop(roots.insert(called.clone(), Ok(digest))),
                Ok(Chosen::Foreign(platforms)) if called.is_asked(name) => {
                    passed_over.insert(called.clone(), self.passed_over(called, platforms));
                }
                Ok(Chosen::Foreign(_)) => {}
                Err(err @ RuntimeError::Unavailable(_)) => return Err(err),
                // It matters when the image is imported, and is told by the name that it then gets.
                Err(err) => drop(roots.insert(called.clone(), Err(err))),
            }
        }
        let named: Vec<Name> =
            images.keys().filter(|called| !passed_over.contains_key(called)).cloned().collect();
        let passed_over: Vec<PassedOverImage> = passed_over.into_values().collect();
        // What has no name and is for this machine may still be given one.
        let is_here = roots.iter().any(|(called, root)| root.is_ok() || called.is_asked(name));
        if !is_here && !passed_over.is_empty() {
            return Err(nothing_here(&passed_over, &self.platform));
        }
        let references = names::references(&named, name).map_err(RuntimeError::Invalid)?;
        let mut trees = BTreeMap::new();
        for (name, reference) in references {
            let reference = self.reference(&reference)?.to_string();
            let (Some(image), Some(root)) = (images.get(&name), roots.remove(&name)) else { continue };
            let tree = async { self.complete(containerd, &root?).await }.await;
            let tree = tree.map_err(|err| incomplete(&reference, err))?;
            trees.insert(reference, (tree, !image.pulled));
        }
        for (reference, (tree, _)) in &trees {
            self.install(containerd, tree).await.map_err(|err| incomplete(reference, err))?;
        }
        let mut images = Vec::with_capacity(trees.len());
        for (reference, (tree, imported)) in trees {
            containerd.name_image(&reference, &tree.root, imported, !imported).await?;
            tracing::info!(image = reference, digest = tree.root.digest, "image imported");
            let bytes = self.bytes(&tree).await?;
            images.push(ImageInfo { reference, digest: tree.root.digest, bytes, imported });
        }
        for PassedOverImage { name, platforms, .. } in &passed_over {
            let platforms = platforms.join(", ");
            tracing::info!(image = name, platforms, "image passed over: it is for other machines");
        }
        Ok(ImportedImages { images, passed_over })
    }

    /// Looks for what of an image is for this machine.
    async fn choose(
        &self,
        containerd: &Containerd,
        contents: &Contents,
        roots: Roots,
    ) -> Result<Chosen, RuntimeError> {
        let documents = Documents { containerd, registry: None };
        match documents.search(roots, &self.platform).await? {
            Search::Found(found) => Ok(Chosen::Root(found.root().to_owned())),
            Search::Foreign(foreign) => Ok(Chosen::Foreign(told(&foreign))),
            // Of an image that was pulled for another platform, `docker save` writes the whole index
            // and that platform's manifest alone.
            Search::Missing { fault, foreign } => {
                let held: BTreeSet<&str> = contents.blobs.values().map(|blob| blob.digest.as_str()).collect();
                let platforms = told(foreign.iter().filter(|foreign| held.contains(foreign.digest.as_str())));
                if platforms.is_empty() { Err(fault) } else { Ok(Chosen::Foreign(platforms)) }
            }
        }
    }

    /// What is told of an image for other machines. Its name is of use to people alone, so one that is
    /// no reference is told as it is.
    fn passed_over(&self, name: &Name, platforms: Vec<String>) -> PassedOverImage {
        let reference = match name {
            Name::Full(text) => self.reference(text).ok(),
            Name::Tag(_) | Name::None => None,
        };
        PassedOverImage {
            name: reference.map_or_else(|| one_line(&name.as_str()), |reference| reference.to_string()),
            platforms,
            node_platform: self.platform.to_string(),
        }
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
}

/// What of an image is for this machine.
enum Chosen {
    /// All of it that is below the document with this digest.
    Root(String),
    /// Nothing: it is for these platforms.
    Foreign(Vec<String>),
}

/// The platforms as they are told, in order. An archive may name any number of any length.
fn told<'a>(foreign: impl IntoIterator<Item = &'a Foreign>) -> Vec<String> {
    let platforms = platforms_of(foreign).into_iter().take(PLATFORMS_TOLD_MAX);
    platforms.map(|platform| one_line(&platform.chars().take(100).collect::<String>())).collect()
}

/// Why an archive that has images only for other machines cannot be imported.
fn nothing_here(passed_over: &[PassedOverImage], platform: &Platform) -> RuntimeError {
    let found: Vec<String> = passed_over
        .iter()
        .take(IMAGES_TOLD_MAX)
        .map(|PassedOverImage { name, platforms, .. }| format!("{name} is for {}", platforms.join(", ")))
        .collect();
    let more = match passed_over.len() - found.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    RuntimeError::Invalid(format!(
        "the archive holds nothing for this machine, which is {platform}: {}{more}",
        found.join("; ")
    ))
}

/// The images of an archive by what each is called.
type Images = BTreeMap<Name, Found>;

/// An image of an archive.
#[derive(Default)]
struct Found {
    /// What may be its root here.
    roots: Roots,
    /// Whether a member sent it that had pulled it: then a registry's word on its name counts.
    pulled: bool,
}

/// The images of Docker's older form, each with a manifest made for it.
async fn docker_images(
    containerd: &Containerd,
    contents: &Contents,
    platform: &Platform,
) -> Result<Images, RuntimeError> {
    let Some(bytes) = &contents.docker_manifest else {
        if contents.index.is_some() {
            return Ok(Images::new());
        }
        return Err(RuntimeError::Invalid(
            "not an image archive: it has neither index.json nor manifest.json".into(),
        ));
    };
    let mut images = Images::new();
    for image in docker_list(bytes)? {
        // Of an image for another machine the layers may be left out.
        let foreign = docker_foreign(containerd, contents, &image, platform).await?;
        let digest = match &foreign {
            Some(_) => None,
            None => Some(docker_manifest(containerd, contents, &image).await?),
        };
        let names = Name::of_tags(image.repo_tags);
        check_number(images.len() + names.len())?;
        for name in names {
            let roots = &mut images.entry(name).or_default().roots;
            roots.foreign.extend(foreign.clone());
            // A name that is given twice stands for the last, as Docker takes it.
            if let Some(digest) = &digest {
                roots.candidates = vec![Candidate { digest: digest.clone(), vouched: false }];
            }
        }
    }
    Ok(images)
}

/// Whether an image of Docker's older form is for another machine, and for which.
async fn docker_foreign(
    containerd: &Containerd,
    contents: &Contents,
    image: &DockerImage,
    platform: &Platform,
) -> Result<Option<Foreign>, RuntimeError> {
    let Blob { digest, .. } = contents.blob(&image.config)?;
    let config = match containerd.read_document(&digest).await {
        Ok(bytes) => ImageConfig::parse(&bytes),
        Err(RuntimeError::Invalid(fault)) => Err(fault),
        Err(err) => return Err(err),
    };
    // What is wrong with one that cannot be read is told when it is imported.
    let Ok(ImageConfig { os, architecture, .. }) = config else { return Ok(None) };
    let foreign = !platform.runs(&os, &architecture);
    Ok(foreign.then(|| Foreign { platform: format!("{os}/{architecture}"), digest }))
}

/// Reads Docker's `manifest.json`.
fn docker_list(bytes: &[u8]) -> Result<Vec<DockerImage>, RuntimeError> {
    let not = |err: String| RuntimeError::Invalid(format!("not an image archive: manifest.json: {err}"));
    let images: Vec<DockerImage> = read_json(bytes).map_err(|err| not(err.to_string()))?;
    check_number(images.len())?;
    if let Some(number) = images.iter().position(|image| image.config.is_empty()) {
        return Err(not(format!("image {} names no Config", number + 1)));
    }
    Ok(images)
}

fn check_number(images: usize) -> Result<(), RuntimeError> {
    if images > IMAGES_MAX {
        return Err(RuntimeError::Invalid(format!(
            "the archive holds more than the {IMAGES_MAX} images that are taken"
        )));
    }
    Ok(())
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
        let suffix = match containerd.compression(&blob.digest).await? {
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
            _ => "",
        };
        layers.push(descriptor(format!("{OCI_LAYER}{suffix}"), blob));
    }
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has only strings and numbers");
    containerd.write_document(&bytes).await
}

impl Contents {
    /// The images of an OCI layout.
    fn oci_images(&self, platform: &Platform) -> Result<Images, RuntimeError> {
        let Some(bytes) = &self.index else { return Ok(Images::new()) };
        let not = |err: String| RuntimeError::Invalid(format!("not an image archive: index.json: {err}"));
        let index: Index = read_json(bytes).map_err(|err| not(err.to_string()))?;
        index.check().map_err(not)?;
        let mut named: BTreeMap<Name, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in index.manifests.into_iter().filter(|entry| !entry.is_about_an_image()) {
            named.entry(Name::of(descriptor.annotations.as_ref())).or_default().push(descriptor);
        }
        let found = named.into_iter().map(|(name, manifests)| {
            let pulled = manifests
                .iter()
                .any(|entry| entry.annotations.as_ref().is_some_and(|notes| notes.contains_key(PULLED)));
            let index = Index { schema_version: 2, media_type: None, manifests };
            (name, Found { roots: index.roots(platform), pulled })
        });
        Ok(found.collect())
    }

    /// The content of a file, through links.
    fn blob(&self, path: &str) -> Result<Blob, RuntimeError> {
        let asked = normalise(path);
        let mut at = &asked;
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
                contents.index = Some(archive.whole(IMAGE_DOCUMENT_BYTES_MAX).await?)
            }
            (EntryKind::File, "manifest.json") => {
                contents.docker_manifest = Some(archive.whole(IMAGE_DOCUMENT_BYTES_MAX).await?);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::api::image::PassedOverImage;

    use super::{Blob, Contents, IMAGES_MAX, docker_list, nothing_here, told};
    use crate::runtime::images::manifest::{Foreign, Platform};
    use crate::runtime::images::names::references;

    #[test]
    fn lists_of_an_archives_images_survive_every_damage() {
        let digest = format!("sha256:{:064x}", 1);
        let index = format!(
            r#"{{"schemaVersion": 2, "manifests": [{{"mediaType": "m", "digest": "{digest}", "size": 3, "annotations":
            {{"io.containerd.image.name": "docker.io/a/b:1", "org.opencontainers.image.ref.name": "1"}}}},
            {{"mediaType": "m", "digest": "{digest}", "size": 3, "platform": {{"os": "linux", "architecture": "amd64"}}}}]}}"#
        );
        let platform = Platform::of_node();
        damage::survives("index.json of an archive", &[index.into_bytes()], |input| {
            let contents = Contents { index: Some(input.to_vec().into()), ..Contents::default() };
            let images = contents.oci_images(&platform).map_err(|error| error.to_string())?;
            let names: Vec<_> = images.into_keys().collect();
            for wanted in [None, Some("team/app"), Some("team/app:1")] {
                // What names cannot be had of is told, whatever they are.
                let _ = references(&names, wanted);
            }
            Ok(())
        });
        let list =
            br#"[{"Config": "c.json", "RepoTags": ["a:1", "b:2"], "Layers": ["l/layer.tar", "link"]}]"#;
        let blob = Blob { digest, size: 3 };
        let links = [("link", "other"), ("other", "l/layer.tar"), ("circle", "circle")];
        let contents = Contents {
            blobs: [("c.json".to_owned(), blob.clone()), ("l/layer.tar".to_owned(), blob)].into(),
            links: links.map(|(from, to)| (from.to_owned(), to.to_owned())).into(),
            ..Contents::default()
        };
        assert!(contents.blob("circle").is_err());
        for path in ["./c.json", "/c.json", "x/../c.json", ".//l/layer.tar", "./link"] {
            assert!(contents.blob(path).is_ok(), "{path}");
        }
        damage::survives("manifest.json of an archive", &[list.to_vec()], |input| {
            let images = docker_list(input).map_err(|error| error.to_string())?;
            assert!(images.len() <= IMAGES_MAX);
            for path in images.iter().flat_map(|image| image.layers.iter().chain([&image.config])) {
                contents.blob(path).map_err(|error| error.to_string())?;
            }
            Ok(())
        });
    }

    #[test]
    fn what_is_told_of_images_for_other_machines_is_bounded() {
        let foreign = |number: usize| Foreign {
            platform: format!("linux/{number:03}\n{}", "x".repeat(5_000)),
            digest: format!("sha256:{number:064x}"),
        };
        let foreign: BTreeSet<Foreign> = (0..900).map(foreign).collect();
        let platforms = told(&foreign);
        assert_eq!(platforms.len(), 16);
        assert!(platforms.iter().all(|platform| platform.len() < 1_000 && !platform.contains('\n')));
        assert!(platforms[1].starts_with("linux/001\\"), "{}", platforms[1]);

        let image = |number: usize| PassedOverImage {
            name: format!("docker.io/test/app:{number}"),
            platforms: vec!["linux/riscv64".into(), "linux/s390x".into()],
            node_platform: "linux/amd64".into(),
        };
        let check = |images: usize, expect: &str| {
            let images: Vec<_> = (0..images).map(image).collect();
            let error = nothing_here(&images, &Platform::of_node()).to_string();
            assert!(error.ends_with(expect), "{error}");
        };
        check(1, ": docker.io/test/app:0 is for linux/riscv64, linux/s390x");
        check(16, "; docker.io/test/app:15 is for linux/riscv64, linux/s390x");
        check(19, "; docker.io/test/app:15 is for linux/riscv64, linux/s390x; and 3 more");
    }

    #[test]
    fn what_is_left_out_is_none_and_not_a_fault_of_json() {
        let list = "\u{feff}[{\"Config\": \"c.json\", \"RepoTags\": null, \"Layers\": null}]";
        let images = docker_list(list.as_bytes()).expect("valid");
        assert!(images[0].layers.is_empty() && images[0].repo_tags.is_empty());
        let error = docker_list(br#"[{"Config": "c.json"}, {"Config": null}]"#).err().expect("refused");
        assert!(error.to_string().contains("manifest.json: image 2 names no Config"), "{error}");
        let index = "\u{feff}{\"schemaVersion\": 2, \"manifests\": null}";
        let contents = Contents { index: Some(index.into()), ..Contents::default() };
        assert!(contents.oci_images(&Platform::of_node()).expect("valid").is_empty());
    }
}

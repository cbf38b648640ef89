//! The documents of an image: index and manifest. Reads them, picks the platform, computes chain ids
//! and garbage-collection labels. Pure.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::image_reference::is_digest;
use blixard_core::limits::{IMAGE_BYTES_MAX, IMAGE_INDEX_ENTRIES_MAX};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::config::{ImageConfig, or_default, read_json};
use super::digest_of;
use crate::platform::RuntimeError;

/// The most layers of an image; overlayfs stacks at most 500 directories.
pub(super) const LAYERS_MAX: usize = 500;
/// What annotates an index's entries that are about an image rather than one: attestations.
const REFERENCE_ANNOTATION: &str = "vnd.docker.reference.type";

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What to ask a registry for.
pub(super) const MEDIA_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// A machine that an image is for, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

/// The manifests of an image, one for each platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) manifests: Vec<Descriptor>,
}

/// An image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<Descriptor>,
}

/// An index or a manifest.
#[derive(Debug)]
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    /// Reads an index or a manifest. What it is shows by its content, not by what it is called.
    ///
    /// # Errors
    /// `Invalid` when it is neither, or too large.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, RuntimeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u32>,
            manifests: Option<IgnoredAny>,
            /// Within: `null`, which tools write for no layers at all, is said too.
            #[serde(default, deserialize_with = "said")]
            layers: Option<Option<IgnoredAny>>,
        }
        fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<IgnoredAny>>, D::Error> {
            Option::deserialize(from).map(Some)
        }
        let not = |reason: String| RuntimeError::Invalid(format!("not an image manifest: {reason}"));
        let shape: Shape = read_json(bytes).map_err(|err| not(err.to_string()))?;
        match shape {
            Shape { schema_version: Some(1), .. } => {
                Err(not("it has the outdated schema 1: push the image again with a current tool".into()))
            }
            Shape { manifests: Some(_), layers: None | Some(None), .. } => {
                let index: Index = read_json(bytes).map_err(|err| not(err.to_string()))?;
                index.check().map_err(not)?;
                Ok(Self::Index(index))
            }
            Shape { manifests: None, layers: Some(_), .. } => {
                let manifest: Manifest = read_json(bytes).map_err(|err| not(err.to_string()))?;
                check_digests(std::slice::from_ref(&manifest.config)).map_err(not)?;
                check_digests(&manifest.layers).map_err(not)?;
                manifest.check_bounds().map_err(not)?;
                Ok(Self::Manifest(manifest))
            }
            Shape { manifests: Some(_), layers: Some(Some(_)), .. } => {
                Err(not("it claims to be both an index and a manifest".into()))
            }
            Shape { manifests: None, layers: None, .. } => {
                Err(not("it has neither manifests nor layers".into()))
            }
        }
    }

    /// The media type to record when its sender named none.
    pub(super) fn media_type(&self) -> &str {
        match self {
            Self::Index(index) => index.media_type.as_deref().unwrap_or(OCI_INDEX),
            Self::Manifest(manifest) => manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST),
        }
    }
}

/// An entry of an index that may be the image for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) digest: String,
    /// Whether the index says that it runs on the node. Then that counts; else its configuration does.
    pub(super) vouched: bool,
}

/// Where the search for a platform's manifest begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roots {
    /// The best first.
    pub(super) candidates: Vec<Candidate>,
    /// What is for other platforms.
    pub(super) foreign: BTreeSet<Foreign>,
}

/// A manifest for a platform that is not the node's, or a configuration where there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Foreign {
    pub(super) platform: String,
    pub(super) digest: String,
}

impl Roots {
    pub(super) fn one(digest: String, vouched: bool) -> Self {
        Self { candidates: vec![Candidate { digest, vouched }], foreign: BTreeSet::new() }
    }
}

impl Index {
    /// # Errors
    /// In words, what is out of bounds.
    pub(super) fn check(&self) -> Result<(), String> {
        let entries = self.manifests.len();
        if entries > IMAGE_INDEX_ENTRIES_MAX {
            return Err(format!("it has {entries} entries, at most {IMAGE_INDEX_ENTRIES_MAX} work"));
        }
        check_digests(&self.manifests)
    }

    /// What may be the image for `node`, the best first: what is said to be for its very variant,
    /// then for the nearest that runs there, then what no platform is said of.
    pub(super) fn candidates(&self, node: &Platform) -> Vec<Candidate> {
        let mut found: Vec<(u32, Candidate)> = Vec::new();
        for entry in self.manifests.iter().filter(|entry| !entry.is_about_an_image()) {
            let (preference, vouched) = match entry.platform.as_ref().filter(|platform| platform.is_said()) {
                Some(platform) => match node.preference(platform) {
                    Some(preference) => (preference, true),
                    None => continue,
                },
                None => (u32::MAX, false),
            };
            found.push((preference, Candidate { digest: entry.digest.clone(), vouched }));
        }
        found.sort_by_key(|(preference, _)| *preference);
        found.into_iter().map(|(_, candidate)| candidate).collect()
    }

    /// A search among the entries, each once.
    pub(super) fn roots(&self, node: &Platform) -> Roots {
        let mut seen = BTreeSet::new();
        let mut candidates = self.candidates(node);
        candidates.retain(|candidate| seen.insert(candidate.digest.clone()));
        Roots { candidates, foreign: self.foreign(node) }
    }

    /// The entries that are said to be for other platforms than `node`'s.
    pub(super) fn foreign(&self, node: &Platform) -> BTreeSet<Foreign> {
        let images = self.manifests.iter().filter(|entry| !entry.is_about_an_image());
        let said = images.filter_map(|entry| Some((entry, entry.platform.as_ref()?)));
        said.filter(|(_, platform)| platform.is_said() && node.preference(platform).is_none())
            .map(|(entry, platform)| Foreign { platform: platform.to_string(), digest: entry.digest.clone() })
            .collect()
    }
}

impl Descriptor {
    /// Whether this entry of an index is no image but says something about one.
    pub(super) fn is_about_an_image(&self) -> bool {
        self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
            || self.annotations.as_ref().is_some_and(|notes| notes.contains_key(REFERENCE_ANNOTATION))
    }
}

impl Platform {
    /// The platform of this build.
    pub(super) fn of_node() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { architecture: architecture.into(), os: "linux".into(), variant: variant.map(str::to_owned) }
    }

    /// Whether it names a machine at all: some tools write empty platforms.
    fn is_said(&self) -> bool {
        !self.architecture.is_empty()
    }

    /// How well an image for `offered` runs here, lower is better; none when it does not.
    fn preference(&self, offered: &Self) -> Option<u32> {
        if !self.runs(&offered.os, &offered.architecture) {
            return None;
        }
        let level = |platform: &Self| -> u32 {
            let (architecture, implied) = in_gos_words(&platform.architecture);
            let variant = platform.variant.as_deref().unwrap_or_default().trim_start_matches(['v', 'V']);
            implied.or_else(|| variant.parse().ok()).unwrap_or(match architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            })
        };
        level(self).checked_sub(level(offered))
    }

    /// Whether an image whose configuration names this platform runs here. Images made by hand
    /// often name none.
    pub(super) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os.eq_ignore_ascii_case(&self.os))
            && (architecture.is_empty() || in_gos_words(architecture).0 == self.architecture)
    }
}

/// A processor in Go's words, which not every tool writes, and the variant that such a word implies.
/// Knows the words that containerd knows.
fn in_gos_words(architecture: &str) -> (String, Option<u32>) {
    let architecture = architecture.to_ascii_lowercase();
    let (known, implied) = match architecture.as_str() {
        "x86_64" | "x86-64" => ("amd64", None),
        "i386" => ("386", None),
        "aarch64" => ("arm64", None),
        "armhf" => ("arm", Some(7)),
        "armel" => ("arm", Some(6)),
        _ => return (architecture, None),
    };
    (known.to_owned(), implied)
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Manifest {
    /// Every blob of the image, each once.
    pub(super) fn blobs(&self) -> Vec<&Descriptor> {
        let mut seen = BTreeSet::new();
        std::iter::once(&self.config).chain(&self.layers).filter(|blob| seen.insert(&blob.digest)).collect()
    }

    /// Labels that keep the manifest's blobs from garbage collection.
    pub(super) fn gc_labels(&self) -> BTreeMap<String, String> {
        let config = ("containerd.io/gc.ref.content.config".to_owned(), self.config.digest.clone());
        let layers = self.layers.iter().enumerate();
        std::iter::once(config)
            .chain(
                layers
                    .map(|(i, layer)| (format!("containerd.io/gc.ref.content.l.{i}"), layer.digest.clone())),
            )
            .collect()
    }

    /// Reads the configuration and checks that it fits this manifest.
    ///
    /// # Errors
    /// `Invalid` when it does not.
    pub(super) fn configuration(&self, bytes: &[u8]) -> Result<ImageConfig, RuntimeError> {
        let not = |reason: String| RuntimeError::Invalid(format!("not a container image: {reason}"));
        let config = ImageConfig::parse(bytes)
            .map_err(|err| not(format!("configuration {}: {err}", self.config.digest)))?;
        let (layers, diffs) = (self.layers.len(), config.diff_ids.len());
        if layers != diffs {
            let kind: String = self.config.media_type.chars().take(100).collect();
            return Err(not(format!(
                "its manifest has {layers} layers, its configuration (of type {kind:?}) {diffs}"
            )));
        }
        Ok(config)
    }

    fn check_bounds(&self) -> Result<(), String> {
        let layers = self.layers.len();
        if layers > LAYERS_MAX {
            return Err(format!("it has {layers} layers, at most {LAYERS_MAX} work"));
        }
        let sizes = std::iter::once(&self.config).chain(&self.layers).map(|blob| blob.size);
        match sizes.fold(0, u64::saturating_add) {
            bytes if bytes > IMAGE_BYTES_MAX => {
                Err(format!("its blobs have {bytes} bytes, at most {IMAGE_BYTES_MAX} work"))
            }
            _ => Ok(()),
        }
    }
}

/// The names of the snapshots that the layers build up, lowest first (image-spec, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        chains.push(match chains.last() {
            None => diff.clone(),
            Some(parent) => digest_of(format!("{parent} {diff}").as_bytes()),
        });
    }
    chains
}

fn check_digests(descriptors: &[Descriptor]) -> Result<(), String> {
    match descriptors.iter().find(|descriptor| !is_digest(&descriptor.digest)) {
        Some(descriptor) => {
            let digest: String = descriptor.digest.chars().take(100).collect();
            Err(format!("it names a blob {digest:?}, which is not a sha256 digest"))
        }
        None if descriptors.iter().any(|d| i64::try_from(d.size).is_err()) => {
            Err("it names a blob of impossible size".into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    #[test]
    fn an_index_gives_the_nearest_platform_that_runs() {
        let check = |offered: &[&str], node: &str, expect: &[(usize, bool)]| {
            let entry = |(i, text): (usize, &&str)| Descriptor {
                media_type: OCI_MANIFEST.into(),
                digest: format!("sha256:{i:064x}"),
                size: 1,
                platform: Some(*text).filter(|text| !text.is_empty() && *text != "attests").map(platform),
                annotations: (*text == "attests")
                    .then(|| [(REFERENCE_ANNOTATION.into(), String::new())].into()),
            };
            let manifests = offered.iter().enumerate().map(entry).collect();
            let index = Index { schema_version: 2, media_type: None, manifests };
            let expect: Vec<_> = expect
                .iter()
                .map(|&(i, vouched)| Candidate { digest: format!("sha256:{i:064x}"), vouched })
                .collect();
            assert_eq!(index.candidates(&platform(node)), expect, "{offered:?} on {node}");
        };
        check(&["linux/amd64", "linux/arm64/v8"], "linux/amd64", &[(0, true)]);
        check(&["linux/amd64", "linux/arm64/v8"], "linux/arm64/v8", &[(1, true)]);
        check(&["linux/amd64", "linux/arm64"], "linux/arm64/v8", &[(1, true)]);
        check(&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", &[(1, true), (0, true)]);
        check(&["linux/arm/v7", "linux/arm/v6"], "linux/arm/v6", &[(1, true)]);
        check(&["linux/amd64/v3", "linux/amd64"], "linux/amd64", &[(1, true)]);
        check(&["windows/amd64", "linux/s390x"], "linux/amd64", &[]);
        check(&["unknown/unknown", "attests"], "linux/amd64", &[]);
        check(&["", "linux/amd64", ""], "linux/amd64", &[(1, true), (0, false), (2, false)]);
        check(&["/amd64", "/"], "linux/amd64", &[(0, true), (1, false)]);
        check(&[], "linux/amd64", &[]);
        check(&["Linux/x86_64", "linux/aarch64"], "linux/amd64", &[(0, true)]);
        check(&["linux/amd64", "linux/aarch64/8"], "linux/arm64/v8", &[(1, true)]);
        check(&["linux/armel", "linux/armhf"], "linux/arm/v7", &[(1, true), (0, true)]);
        check(&["linux/armhf", "linux/ARM/V6"], "linux/arm/v6", &[(1, true)]);
    }

    #[test]
    fn platforms_are_known_in_the_words_of_every_tool() {
        let check = |node: &str, os: &str, architecture: &str, expect: bool| {
            assert_eq!(platform(node).runs(os, architecture), expect, "{os}/{architecture} on {node}");
        };
        for word in ["amd64", "x86_64", "x86-64", "X86_64", ""] {
            check("linux/amd64", "Linux", word, true);
            check("linux/amd64", "windows", word, false);
            check("linux/arm64/v8", "linux", word, word.is_empty());
        }
        for (node, word) in [("386", "i386"), ("arm64", "aarch64"), ("arm", "armhf"), ("arm", "armel")] {
            check(&format!("linux/{node}"), "LINUX", word, true);
            check("linux/s390x", "linux", word, false);
        }
    }

    #[test]
    fn documents_show_what_they_are_by_their_content() {
        let digest = format!("sha256:{:064x}", 1);
        let blob = format!(r#"{{"mediaType": "m", "digest": "{digest}", "size": 3, "annotations": null}}"#);
        let parse = |text: &str| Document::parse(text.as_bytes()).map_err(|err| err.to_string());
        assert!(matches!(
            parse(&format!(r#"{{"schemaVersion": 2, "manifests": [{blob}]}}"#)),
            Ok(Document::Index(_))
        ));
        let manifest = format!(r#"{{"schemaVersion": 2, "config": {blob}, "layers": [{blob}]}}"#);
        assert!(matches!(parse(&manifest), Ok(Document::Manifest(_))));
        let check = |text: &str, expect: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expect), "{text}: {error}");
        };
        let bare = format!("\u{feff}{{\"schemaVersion\": 2, \"config\": {blob}, \"layers\": null}}");
        assert!(matches!(parse(&bare), Ok(Document::Manifest(manifest)) if manifest.layers.is_empty()));
        check("{}", "neither");
        check(r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema 1");
        check(r#"{"schemaVersion": 2, "layers": []}"#, "missing field `config`");
        check(&manifest.replace("\"layers\"", "\"manifests\": [], \"layers\""), "both");
        check(&manifest.replace("sha256:0", "../../etc/0"), "not a sha256 digest");
        check(&manifest.replace("\"size\": 3", "\"size\": 18446744073709551615"), "impossible size");
        check("[", "not an image manifest");
        let huge = format!("\"size\": {}", u64::MAX / 4);
        check(&manifest.replace("\"size\": 3", &huge), "bytes, at most");
        let many = format!("{blob},").repeat(1_001);
        let many = many.trim_end_matches(',');
        check(&format!(r#"{{"schemaVersion": 2, "manifests": [{many}]}}"#), "1001 entries");
        check(&format!(r#"{{"schemaVersion": 2, "config": {blob}, "layers": [{many}]}}"#), "1001 layers");
        check(&manifest.replace("sha256:", "sha512:"), "not a sha256 digest");
    }

    #[test]
    fn chain_ids_follow_the_image_specification() {
        let diffs = [format!("sha256:{:064x}", 1), format!("sha256:{:064x}", 2)];
        let chains = chain_ids(&diffs);
        assert_eq!(chains[0], diffs[0]);
        assert_eq!(chains[1], digest_of(format!("{} {}", diffs[0], diffs[1]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn indexes_and_manifests_survive_every_damage() {
        let blob = |number: u32, platform: Option<Platform>| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: format!("sha256:{number:064x}"),
            size: 3,
            platform,
            annotations: Some([("io.containerd.image.name".to_owned(), "docker.io/a/b:1".to_owned())].into()),
        };
        let manifests =
            vec![blob(1, Some(platform("linux/amd64"))), blob(2, Some(platform("linux/arm64/v8")))];
        let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests };
        let layers = vec![blob(4, None), blob(5, None)];
        let manifest = Manifest { schema_version: 2, media_type: None, config: blob(3, None), layers };
        let seeds =
            [serde_json::to_vec(&index), serde_json::to_vec(&manifest)].map(|json| json.expect("JSON"));
        damage::survives("index or manifest of an image", &seeds, |input| {
            let document = Document::parse(input).map_err(|error| error.to_string())?;
            let again = match &document {
                Document::Index(index) => {
                    let roots = index.roots(&platform("linux/arm64/v8"));
                    assert!(roots.candidates.iter().all(|candidate| is_digest(&candidate.digest)));
                    serde_json::to_vec(index)
                }
                Document::Manifest(manifest) => {
                    assert!(manifest.blobs().iter().all(|blob| is_digest(&blob.digest)));
                    serde_json::to_vec(manifest)
                }
            };
            let again = Document::parse(&again.expect("JSON")).expect("what was read once is read again");
            assert_eq!(format!("{again:?}"), format!("{document:?}"));
            Ok(())
        });
    }
}

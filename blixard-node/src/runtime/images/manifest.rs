//! The documents of an image: index, manifest and configuration. Reads them, picks the platform,
//! computes chain ids and garbage-collection labels. Pure.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::image_reference::is_digest;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::digest_of;
use crate::platform::RuntimeError;

/// The largest manifest, index or configuration read, in bytes.
pub(super) const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// The most layers of an image; overlayfs stacks at most 500 directories.
const LAYERS_MAX: usize = 500;

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
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let not = |reason: String| RuntimeError::Invalid(format!("not an image manifest: {reason}"));
        let shape: Shape = serde_json::from_slice(bytes).map_err(|err| not(err.to_string()))?;
        match shape {
            Shape { schema_version: Some(1), .. } => {
                Err(not("it has the outdated schema 1: push the image again with a current tool".into()))
            }
            Shape { manifests: Some(_), layers: None, .. } => {
                let index: Index = serde_json::from_slice(bytes).map_err(|err| not(err.to_string()))?;
                check_digests(&index.manifests).map_err(not)?;
                Ok(Self::Index(index))
            }
            Shape { manifests: None, layers: Some(_), .. } => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(|err| not(err.to_string()))?;
                check_digests(std::slice::from_ref(&manifest.config)).map_err(not)?;
                check_digests(&manifest.layers).map_err(not)?;
                if manifest.layers.len() > LAYERS_MAX {
                    return Err(not(format!(
                        "it has {} layers, at most {LAYERS_MAX} work",
                        manifest.layers.len()
                    )));
                }
                Ok(Self::Manifest(manifest))
            }
            Shape { manifests: Some(_), layers: Some(_), .. } => {
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

impl Index {
    /// The manifest for `node`: the exact variant, else the nearest that runs there.
    ///
    /// # Errors
    /// `Invalid` when none fits, naming the platforms offered.
    pub(super) fn select(&self, node: &Platform) -> Result<&Descriptor, RuntimeError> {
        self.manifests
            .iter()
            .filter_map(|entry| Some((node.preference(entry.platform.as_ref()?)?, entry)))
            .min_by_key(|(preference, _)| *preference)
            .map(|(_, entry)| entry)
            .or_else(|| match self.manifests.as_slice() {
                [only] if only.platform.is_none() => Some(only),
                _ => None,
            })
            .ok_or_else(|| {
                let offered: BTreeSet<String> = self
                    .manifests
                    .iter()
                    .filter_map(|entry| entry.platform.as_ref())
                    .filter(|platform| platform.os != "unknown")
                    .map(Platform::to_string)
                    .collect();
                let offered = Vec::from_iter(offered).join(", ");
                let offered = if offered.is_empty() { "none" } else { &offered };
                RuntimeError::Invalid(format!(
                    "no image for this node's platform {node}; it is offered for: {offered}"
                ))
            })
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

    /// How well an image for `offered` runs here, lower is better; none when it does not.
    fn preference(&self, offered: &Self) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let level = |platform: &Self, default: u32| -> u32 {
            let variant = platform.variant.as_deref().unwrap_or("");
            variant.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(default)
        };
        let default = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        level(self, default).checked_sub(level(offered, default))
    }

    /// Whether an image whose configuration names this platform runs here. Images made by hand
    /// often name none.
    pub(super) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os) && (architecture.is_empty() || architecture == self.architecture)
    }
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

    /// Reads the configuration and checks that it fits this manifest and `node`.
    ///
    /// # Errors
    /// `Invalid` when it does not.
    pub(super) fn configuration(
        &self,
        bytes: &[u8],
        node: &Platform,
    ) -> Result<ImageConfiguration, RuntimeError> {
        let not = |reason: String| RuntimeError::Invalid(format!("not a container image: {reason}"));
        let config: ImageConfiguration = serde_json::from_slice(bytes)
            .map_err(|err| not(format!("configuration {}: {err}", self.config.digest)))?;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        if !node.runs(&os, &architecture) {
            return Err(RuntimeError::Invalid(format!(
                "the image is for {os}/{architecture}, this node is {node}"
            )));
        }
        let (layers, diffs) = (self.layers.len(), config.rootfs().diff_ids().len());
        if layers != diffs {
            return Err(not(format!("its manifest has {layers} layers, its configuration {diffs}")));
        }
        if let Some(diff) = config.rootfs().diff_ids().iter().find(|diff| !is_digest(diff)) {
            return Err(not(format!("its configuration names a layer {diff:?}")));
        }
        Ok(config)
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
            Err(format!("it names a blob {:?}, which is not a sha256 digest", descriptor.digest))
        }
        None if descriptors.iter().any(|d| i64::try_from(d.size).is_err()) => {
            Err("it names a blob of impossible size".into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let check = |offered: &[&str], node: &str, expect: Result<usize, &str>| {
            let entry = |(i, text): (usize, &&str)| Descriptor {
                media_type: OCI_MANIFEST.into(),
                digest: format!("sha256:{i:064x}"),
                size: 1,
                platform: Some(platform(text)),
                annotations: None,
            };
            let index = Index {
                schema_version: 2,
                media_type: None,
                manifests: offered.iter().enumerate().map(entry).collect(),
            };
            let chosen =
                index.select(&platform(node)).map(|d| d.digest.clone()).map_err(|err| err.to_string());
            match expect {
                Ok(i) => assert_eq!(chosen, Ok(format!("sha256:{i:064x}")), "{offered:?} on {node}"),
                Err(text) => {
                    let error = chosen.expect_err("none fits");
                    assert!(error.contains(text), "{error}");
                }
            }
        };
        check(&["linux/amd64", "linux/arm64/v8"], "linux/amd64", Ok(0));
        check(&["linux/amd64", "linux/arm64/v8"], "linux/arm64/v8", Ok(1));
        check(&["linux/amd64", "linux/arm64"], "linux/arm64/v8", Ok(1));
        check(&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Ok(1));
        check(&["linux/arm/v7", "linux/arm/v6"], "linux/arm/v6", Ok(1));
        check(&["linux/amd64/v3", "linux/amd64"], "linux/amd64", Ok(1));
        check(
            &["windows/amd64", "linux/s390x"],
            "linux/amd64",
            Err("offered for: linux/s390x, windows/amd64"),
        );
        check(&["unknown/unknown"], "linux/amd64", Err("offered for: none"));
        check(&[], "linux/amd64", Err("none"));
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
        check("{}", "neither");
        check(r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema 1");
        check(r#"{"schemaVersion": 2, "layers": []}"#, "missing field `config`");
        check(&manifest.replace("\"layers\"", "\"manifests\": [], \"layers\""), "both");
        check(&manifest.replace("sha256:0", "../../etc/0"), "not a sha256 digest");
        check(&manifest.replace("\"size\": 3", "\"size\": 18446744073709551615"), "impossible size");
        check("[", "not an image manifest");
    }

    #[test]
    fn chain_ids_follow_the_image_specification() {
        let diffs = [format!("sha256:{:064x}", 1), format!("sha256:{:064x}", 2)];
        let chains = chain_ids(&diffs);
        assert_eq!(chains[0], diffs[0]);
        assert_eq!(chains[1], digest_of(format!("{} {}", diffs[0], diffs[1]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes);
        }
    }
}

//! Writes OCI archives of one layer, and reads them back for pushing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The annotation that names an image in an archive.
const NAME: &str = "io.containerd.image.name";

/// The digest of `bytes` as images write it: `sha256:…`.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Writes the image `reference` of one layer, `tar`, to `path`.
pub(super) fn write(path: &Path, reference: &str, tar: Vec<u8>, config: &Value) -> Result<()> {
    let mut blobs = BTreeMap::new();
    let mut add = |media_type: &str, content: Vec<u8>| {
        let (digest, size) = (digest_of(&content), content.len());
        blobs.insert(digest.clone(), content);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    };
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let configuration = json!({
        "os": "linux", "architecture": architecture, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&tar)]},
    });
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&tar)?;
    drop(tar);
    let layer = add(LAYER, encoder.finish()?);
    let configuration = add(CONFIG, configuration.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": configuration, "layers": [layer],
    });
    let root = add(MANIFEST, manifest.to_string().into_bytes());
    pack(path, reference, root, &blobs)
}

/// Writes an archive of `blobs`, whose manifest is described by `root`, under a name.
fn pack(path: &Path, reference: &str, mut root: Value, blobs: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    root["annotations"] = json!({NAME: reference});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [root]}).to_string();

    let mut archive = tar::Builder::new(BufWriter::new(File::create(path)?));
    let mut append = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, path, content)
    };
    append("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append("index.json", index.as_bytes())?;
    for (digest, content) in blobs {
        append(&format!("blobs/{}", digest.replace(':', "/")), content)?;
    }
    archive.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

/// What an archive of one image holds.
#[derive(Debug)]
pub struct Layout {
    /// The digest of its manifest.
    pub root: String,
    /// Its blobs, the manifest among them, by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    /// The media type of the manifest.
    pub const ROOT_TYPE: &str = MANIFEST;

    /// Reads the archive at `path`.
    ///
    /// # Errors
    /// When it cannot be read or holds no image.
    pub fn read(path: &Path) -> Result<Self> {
        let mut blobs = BTreeMap::new();
        let mut index = Value::Null;
        for entry in tar::Archive::new(File::open(path)?).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{hex}"), content);
            } else if path == "index.json" {
                index = serde_json::from_slice(&content)?;
            }
        }
        let root = index["manifests"][0]["digest"].as_str().context("the archive holds no image")?.to_owned();
        Ok(Self { root, blobs })
    }

    /// Writes it to `path` under another name.
    pub(super) fn write(&self, path: &Path, reference: &str) -> Result<()> {
        let bytes = self.blobs.get(&self.root).context("the archive has no manifest")?.len();
        let root = json!({"mediaType": MANIFEST, "digest": self.root, "size": bytes});
        pack(path, reference, root, &self.blobs)
    }
}

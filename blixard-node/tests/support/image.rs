//! Images that tests build themselves, as archives.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is added to the mode of a directory.
pub const DIRECTORY: u32 = 0o040_000;
/// What is added to the mode of a symbolic link, whose content is its target.
pub const LINK: u32 = 0o120_000;

/// A file of a layer: its path, its mode and its content.
pub type File<'a> = (&'a str, u32, &'a [u8]);

/// An image to be built.
pub struct TestImage<'a> {
    /// Its full name with a tag.
    pub name: &'a str,
    pub layers: Vec<Vec<File<'a>>>,
    /// The `config` of its configuration: `Cmd`, `Env` and so on.
    pub config: Value,
    /// `os/architecture`; more than one, or none fitting this machine, make it an index.
    pub platforms: Vec<&'a str>,
}

/// An OCI archive (tar) of an image of one layer for this machine.
pub fn oci_archive(name: &str, files: &[File<'_>], config: Value) -> Vec<u8> {
    TestImage { name, layers: vec![files.to_vec()], config, platforms: vec![node_platform()] }.to_oci()
}

/// This machine, in the words of images.
pub fn node_platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        _ => "linux/amd64",
    }
}

/// Debian's statically linked busybox.
pub fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").expect("/bin/busybox: install the package busybox-static")
}

pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}

/// A tar of files.
pub fn tar_of(files: &[File<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode & 0o7777);
        header.set_mtime(0);
        if mode & LINK == LINK {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let target = std::str::from_utf8(content).expect("a path");
            builder.append_link(&mut header, path, target).expect("into memory");
            continue;
        }
        if mode & DIRECTORY == DIRECTORY {
            header.set_entry_type(tar::EntryType::Directory);
        }
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content).expect("into memory");
    }
    builder.into_inner().expect("into memory")
}

impl TestImage<'_> {
    fn configuration(&self, platform: &str, diff_ids: &[String]) -> Vec<u8> {
        let (os, architecture) = platform.split_once('/').expect("os/architecture");
        let config = json!({
            "os": os, "architecture": architecture, "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        config.to_string().into_bytes()
    }

    /// Its blobs, and the descriptor of its root.
    fn blobs(&self) -> (BTreeMap<String, Vec<u8>>, Value) {
        let mut blobs = BTreeMap::new();
        let mut add = |media_type: &str, content: Vec<u8>| {
            let (digest, size) = (digest_of(&content), content.len());
            blobs.insert(digest.clone(), content);
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let tars: Vec<_> = self.layers.iter().map(|files| tar_of(files)).collect();
        let diff_ids: Vec<_> = tars.iter().map(|tar| digest_of(tar)).collect();
        let layers: Vec<_> =
            tars.iter().map(|tar| add("application/vnd.oci.image.layer.v1.tar+gzip", gzip(tar))).collect();
        let mut manifests: Vec<Value> = Vec::new();
        for platform in &self.platforms {
            let config =
                add("application/vnd.oci.image.config.v1+json", self.configuration(platform, &diff_ids));
            let manifest =
                json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
            let mut descriptor = add(OCI_MANIFEST, manifest.to_string().into_bytes());
            let (os, architecture) = platform.split_once('/').expect("os/architecture");
            descriptor["platform"] = json!({"os": os, "architecture": architecture});
            manifests.push(descriptor);
        }
        let root = if self.platforms == [node_platform()] {
            manifests.remove(0)
        } else {
            let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
            add(OCI_INDEX, index.to_string().into_bytes())
        };
        (blobs, root)
    }

    /// The digest of its root.
    pub fn digest(&self) -> String {
        self.blobs().1["digest"].as_str().expect("text").to_owned()
    }

    /// An OCI archive of it.
    pub fn to_oci(&self) -> Vec<u8> {
        let (blobs, mut root) = self.blobs();
        root["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]}).to_string();
        let paths: Vec<_> = blobs
            .iter()
            .map(|(digest, content)| (format!("blobs/{}", digest.replace(':', "/")), content))
            .collect();
        let mut files: Vec<File<'_>> =
            paths.iter().map(|(path, content)| (path.as_str(), 0o644, content.as_slice())).collect();
        files.push(("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#));
        files.push(("index.json", 0o644, index.as_bytes()));
        tar_of(&files)
    }

    /// An archive of it as older versions of `docker save` write them.
    pub fn to_docker(&self) -> Vec<u8> {
        docker_archive(&[self])
    }
}

/// An archive of several images as older versions of `docker save` write them: equal layers are
/// symbolic links to the first.
pub fn docker_archive(images: &[&TestImage<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).expect("into memory");
    };
    let mut manifest = Vec::new();
    let mut links = Vec::new();
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for (number, image) in images.iter().enumerate() {
        let tars: Vec<_> = image.layers.iter().map(|files| tar_of(files)).collect();
        let diff_ids: Vec<_> = tars.iter().map(|tar| digest_of(tar)).collect();
        let config = image.configuration(image.platforms[0], &diff_ids);
        let config_path = format!("{}.json", &digest_of(&config)["sha256:".len()..]);
        add(&config_path, &config);
        let mut layers = Vec::new();
        for (layer, (tar, diff)) in tars.iter().zip(&diff_ids).enumerate() {
            let dir = format!("image{number}layer{layer}");
            add(&format!("{dir}/VERSION"), b"1.0");
            let path = format!("{dir}/layer.tar");
            match first.get(diff) {
                Some(target) => links.push((path.clone(), format!("../{target}"))),
                None => {
                    add(&path, tar);
                    first.insert(diff.clone(), path.clone());
                }
            }
            layers.push(path);
        }
        manifest.push(json!({"Config": config_path, "RepoTags": [image.name], "Layers": layers}));
    }
    for (path, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header, path, target).expect("into memory");
    }
    let manifest = Value::from(manifest).to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    builder.append_data(&mut header, "manifest.json", manifest.as_bytes()).expect("into memory");
    builder.into_inner().expect("into memory")
}

/// What an OCI archive of one image holds.
pub struct Layout {
    pub repository: String,
    pub tag: String,
    pub root: String,
    pub blobs: BTreeMap<String, Vec<u8>>,
    root_type: String,
}

impl Layout {
    pub fn read(archive: &[u8]) -> Self {
        let mut plain = Vec::new();
        let archive = match GzDecoder::new(archive).read_to_end(&mut plain) {
            Ok(_) => &plain,
            Err(_) => archive,
        };
        let mut blobs = BTreeMap::new();
        let mut index = Value::Null;
        let mut tar = tar::Archive::new(archive);
        for entry in tar.entries().expect("a tar") {
            let mut entry = entry.expect("a tar entry");
            let path = entry.path().expect("text").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("from memory");
            match path.strip_prefix("blobs/sha256/") {
                Some(hex) => drop(blobs.insert(format!("sha256:{hex}"), content)),
                None if path == "index.json" => index = serde_json::from_slice(&content).expect("JSON"),
                None => {}
            }
        }
        let root = &index["manifests"][0];
        let name = root["annotations"]["io.containerd.image.name"].as_str().expect("a named image");
        let (path, tag) = name.rsplit_once(':').expect("a name with a tag");
        let (_, repository) = path.split_once('/').expect("a name with a registry");
        Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            root: root["digest"].as_str().expect("text").to_owned(),
            root_type: root["mediaType"].as_str().expect("text").to_owned(),
            blobs,
        }
    }
}

/// The digest and media type of the root and of the manifests it lists.
pub fn manifests_below(layout: &Layout) -> Vec<(String, String)> {
    let mut manifests = vec![(layout.root.clone(), layout.root_type.clone())];
    let root: Value = serde_json::from_slice(&layout.blobs[&layout.root]).expect("JSON");
    for entry in root["manifests"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().expect("text").to_owned();
        manifests.push((text("digest"), text("mediaType")));
    }
    manifests
}

/// An OCI archive put together by hand, to hold what no tool should write.
#[derive(Default)]
pub struct ByHand {
    blobs: BTreeMap<String, Vec<u8>>,
    entries: Vec<Value>,
}

impl ByHand {
    /// Adds a blob. Its descriptor.
    pub fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = digest_of(content);
        self.blobs.insert(digest.clone(), content.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    /// Adds a manifest with layers, each as it lies in the archive, and a configuration with the
    /// digests of their tars. Its descriptor.
    pub fn manifest(&mut self, layers: &[(&str, &[u8], &[u8])], mut config: Value) -> Value {
        let diffs: Vec<_> = layers.iter().map(|(_, _, tar)| digest_of(tar)).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diffs});
        let layers: Vec<_> = layers.iter().map(|(kind, packed, _)| self.blob(kind, packed)).collect();
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.blob(OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds an index. Its descriptor.
    pub fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        self.blob(OCI_INDEX, index.to_string().as_bytes())
    }

    /// Lists an image in the archive's `index.json`.
    pub fn list(&mut self, mut descriptor: Value, annotations: Value) {
        descriptor["annotations"] = annotations;
        self.entries.push(descriptor);
    }

    /// Leaves a blob out of the archive, which still names it.
    pub fn leave_out(&mut self, descriptor: &Value) {
        self.blobs.remove(descriptor["digest"].as_str().expect("text")).expect("a blob of the archive");
    }

    /// The archive.
    pub fn archive(&self) -> Vec<u8> {
        let paths = self.blobs.iter();
        let paths: Vec<_> =
            paths.map(|(digest, content)| (format!("blobs/{}", digest.replace(':', "/")), content)).collect();
        let index = json!({"schemaVersion": 2, "manifests": self.entries}).to_string();
        let mut files: Vec<File<'_>> =
            paths.iter().map(|(path, content)| (path.as_str(), 0o644, content.as_slice())).collect();
        files.push(("index.json", 0o644, index.as_bytes()));
        tar_of(&files)
    }
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).expect("options");
    encoder.write_all(bytes).expect("into memory");
    encoder.finish().expect("into memory")
}

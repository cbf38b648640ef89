//! Archives that other tools write in forms of their own, on a real containerd. Needs root and the
//! package containerd.

#![expect(clippy::disallowed_methods, reason = "real components run in real time")]

mod support;

use std::io::Cursor;

use blixard_node::platform::{ImageInfo, RuntimeError};
use blixard_node::runtime::images::{ImageStore, Registries};
use serde_json::json;
use support::containerd::TestContainerd;
use support::image::{ByHand, digest_of, node_platform, tar_of};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn store(containerd: &TestContainerd) -> ImageStore {
    let store = ImageStore::new(containerd.channel.clone(), "images-odd".to_owned(), Registries::default());
    store.expect("valid namespace")
}

async fn import(
    store: &ImageStore,
    archive: Vec<u8>,
    name: Option<&str>,
) -> Result<Vec<ImageInfo>, RuntimeError> {
    store.import(Box::pin(Cursor::new(archive)), name).await.map(|imported| imported.images)
}

/// A tar of one hard link.
fn link_to(target: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_mode(0o644);
    header.set_size(0);
    builder.append_link(&mut header, "copy", target).expect("into memory");
    builder.into_inner().expect("into memory")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_link_to_a_lower_layer_is_explained() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let base = tar_of(&[("dir/orig", 0o644, b"x")]);
    let above = link_to("dir/orig");
    let mut parts = ByHand::default();
    let root = parts.manifest(&[(LAYER, &base, &base), (LAYER, &above, &above)], json!({}));
    parts.list(root, json!({"io.containerd.image.name": "test/app:1"}));
    let error = import(&store, parts.archive(), None).await.expect_err("refused");
    let expected = ["hard link to a file that is not in the layer itself", "which containerd cannot unpack"];
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if expected.iter().all(|words| text.contains(words))),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_older_form_is_read_however_it_is_written() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let (os, architecture) = node_platform().split_once('/').expect("os/architecture");
    let architecture = if architecture == "arm64" { "aarch64" } else { "x86_64" };
    let layer = tar_of(&[("a", 0o644, b"a")]);
    let archive = |layers: serde_json::Value, tags: &[&str]| {
        let diffs = if layers.is_null() { vec![] } else { vec![digest_of(&layer)] };
        let rootfs = json!({"type": "layers", "diff_ids": diffs});
        let config =
            json!({"os": os.to_uppercase(), "architecture": architecture, "rootfs": rootfs}).to_string();
        let list = json!([{"Config": "./c.json", "RepoTags": tags, "Layers": layers}]);
        let list = format!("\u{feff}{list}");
        let files: [(&str, u32, &[u8]); 3] = [
            ("./c.json", 0o644, config.as_bytes()),
            ("a/layer.tar", 0o644, &layer),
            ("manifest.json", 0o644, list.as_bytes()),
        ];
        tar_of(&files)
    };
    let images = import(&store, archive(json!(["./a/layer.tar"]), &["test/app:1"]), None).await;
    assert_eq!(images.expect("imports")[0].reference, "docker.io/test/app:1");
    let images = import(&store, archive(json!(null), &["test/bare:1"]), None).await.expect("imports");
    assert!(store.has_image("test/bare:1", Some(&images[0].digest)).await.expect("asks"));

    let untagged = || archive(json!(["a/layer.tar"]), &["<none>:<none>"]);
    let error = import(&store, untagged(), None).await.expect_err("no name");
    assert!(error.to_string().contains("names no image") && error.to_string().contains("--name"), "{error}");
    let images = import(&store, untagged(), Some("team/app:1")).await.expect("imports");
    assert_eq!(images[0].reference, "docker.io/team/app:1");
}

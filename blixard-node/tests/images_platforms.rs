//! Archives of images of which some are for other machines, on a real containerd. Needs root and the
//! package containerd.

#![expect(clippy::disallowed_methods, reason = "real components run in real time")]

mod support;

use std::io::Cursor;

use blixard_core::api::image::PassedOverImage;
use blixard_node::platform::{ImportedImages, RuntimeError};
use blixard_node::runtime::images::{ImageStore, Registries};
use serde_json::{Value, json};
use support::containerd::TestContainerd;
use support::image::{ByHand, File, TestImage, docker_archive, node_platform, tar_of};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Machines that this is none of.
const FOREIGN: &str = "linux/s390x";
const STRANGER: &str = "linux/riscv64";

fn store(containerd: &TestContainerd) -> ImageStore {
    let store =
        ImageStore::new(containerd.channel.clone(), "images-platforms".to_owned(), Registries::default());
    store.expect("valid namespace")
}

/// Imports into an empty store, and empties it again. What was imported, and what was passed over.
async fn import(
    store: &ImageStore,
    archive: Vec<u8>,
    name: Option<&str>,
) -> Result<(Vec<String>, Vec<String>), RuntimeError> {
    let imported = store.import(Box::pin(Cursor::new(archive)), name).await?;
    let ImportedImages { images, passed_over } = imported;
    for image in &images {
        let rootfs = store.rootfs(&image.reference, Some(&image.digest)).await.expect("a root");
        assert_eq!(rootfs.config.cmd, ["ours"], "{}", image.reference);
        assert!(store.has_image(&image.reference, Some(&image.digest)).await.expect("asks"));
    }
    store.remove_all().await.expect("removes");
    let told = |image: PassedOverImage| {
        assert!(image.node_platform.starts_with(node_platform()), "{image:?}");
        format!("{}: {}", image.name, image.platforms.join(", "))
    };
    let imported = images.into_iter().map(|image| image.reference).collect();
    Ok((imported, passed_over.into_iter().map(told).collect()))
}

async fn takes(store: &ImageStore, archive: Vec<u8>, name: Option<&str>, images: &[&str], passed: &[&str]) {
    let (imported, passed_over) = import(store, archive, name).await.expect("imports");
    assert_eq!(imported, images);
    assert_eq!(passed_over, passed);
}

async fn refuses(store: &ImageStore, archive: Vec<u8>, name: Option<&str>, expect: &str) {
    let error = import(store, archive, name).await.expect_err("refused");
    assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains(expect)), "{error:?}");
    assert!(store.images().await.expect("lists").is_empty());
}

fn parts_of(platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').expect("os/architecture");
    json!({"os": os, "architecture": architecture})
}

/// Adds a manifest for a platform, which nothing but its configuration says. Its layer is its own.
fn bare(parts: &mut ByHand, platform: &str) -> Value {
    let tar = tar_of(&[("platform", 0o644, platform.as_bytes())]);
    let mut config = parts_of(platform);
    config["config"] = json!({"Cmd": [if platform == node_platform() { "ours" } else { "theirs" }]});
    parts.manifest(&[(LAYER, &tar, &tar)], config)
}

/// The same, and its descriptor says the platform.
fn said(parts: &mut ByHand, platform: &str) -> Value {
    let mut descriptor = bare(parts, platform);
    descriptor["platform"] = parts_of(platform);
    descriptor
}

fn named(name: &str) -> Value {
    json!({"io.containerd.image.name": name})
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_this_machines_is_imported() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let app = "docker.io/test/app:1";
    // As `docker save`, `skopeo copy` without `--all` and buildah write them: the index is whole, the
    // other platforms' manifests are not in the archive.
    for describe in [said, bare] {
        for left_out in [false, true] {
            let mut parts = ByHand::default();
            let manifests =
                [FOREIGN, node_platform(), STRANGER].map(|platform| describe(&mut parts, platform));
            if left_out {
                parts.leave_out(&manifests[0]);
                parts.leave_out(&manifests[2]);
            }
            let index = parts.index(&manifests);
            parts.list(index, named("test/app:1"));
            takes(&store, parts.archive(), None, &[app], &[]).await;
        }
    }
    // The platforms stand side by side in index.json, under one name.
    let mut parts = ByHand::default();
    let manifests = [FOREIGN, node_platform()].map(|platform| said(&mut parts, platform));
    parts.leave_out(&manifests[0]);
    for manifest in manifests {
        parts.list(manifest, named("test/app:1"));
    }
    takes(&store, parts.archive(), None, &[app], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_images_those_for_other_machines_are_passed_over() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let both = |second: &dyn Fn(&mut ByHand) -> Value| {
        let mut parts = ByHand::default();
        let (ours, second) = (said(&mut parts, node_platform()), second(&mut parts));
        parts.list(ours, named("test/app:1"));
        parts.list(second, named("test/far:2"));
        parts.archive()
    };
    let app = ["docker.io/test/app:1"];
    let far = ["docker.io/test/far:2: linux/s390x"];
    takes(&store, both(&|parts| said(parts, FOREIGN)), None, &app, &far).await;
    takes(&store, both(&|parts| bare(parts, FOREIGN)), None, &app, &far).await;
    let without_blobs = both(&|parts| {
        let far = said(parts, FOREIGN);
        parts.leave_out(&far);
        far
    });
    takes(&store, without_blobs, None, &app, &far).await;
    let several = both(&|parts| {
        let manifests = [said(parts, FOREIGN), bare(parts, STRANGER)];
        parts.index(&manifests)
    });
    takes(&store, several, None, &app, &["docker.io/test/far:2: linux/riscv64, linux/s390x"]).await;
    // Its index names this machine's platform, but the archive holds another's alone, as after
    // `docker pull --platform linux/s390x`.
    let pulled_for_another = both(&|parts| {
        let manifests = [node_platform(), FOREIGN, STRANGER].map(|platform| {
            // Other than the image that is imported.
            let mut manifest = parts.manifest(&[], parts_of(platform));
            manifest["platform"] = parts_of(platform);
            manifest
        });
        parts.leave_out(&manifests[0]);
        parts.leave_out(&manifests[2]);
        parts.index(&manifests)
    });
    takes(&store, pulled_for_another, None, &app, &far).await;

    // What is meant for this machine and is not whole is the archive's fault.
    let tar = tar_of(&[("second", 0o644, b"2")]);
    let cut = both(&|parts| {
        let mut manifest = parts.manifest(&[(LAYER, &tar, &tar)], parts_of(node_platform()));
        manifest["platform"] = parts_of(node_platform());
        let layer = parts.blob(LAYER, &tar);
        parts.leave_out(&layer);
        let manifests = [manifest, said(parts, FOREIGN)];
        parts.index(&manifests)
    });
    refuses(&store, cut, None, "the archive is incomplete: of image docker.io/test/far:2").await;
    let damaged = both(&|parts| {
        let mut manifest =
            parts.blob("application/vnd.oci.image.manifest.v1+json", b"{\"schemaVersion\": 2}");
        manifest["platform"] = parts_of(node_platform());
        let manifests = [manifest, said(parts, FOREIGN)];
        parts.index(&manifests)
    });
    refuses(&store, damaged, None, "image docker.io/test/far:2: not an image manifest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_older_form_passes_over_images_for_other_machines() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let image = |name, platform, content| {
        let config = json!({"Cmd": [if platform == node_platform() { "ours" } else { "theirs" }]});
        let files: Vec<File<'_>> = vec![("a", 0o644, content)];
        TestImage { name, layers: vec![files], config, platforms: vec![platform] }
    };
    let ours = image("test/app:1", node_platform(), b"1");
    let far = image("test/far:2", FOREIGN, b"2");
    let app = ["docker.io/test/app:1"];
    takes(&store, docker_archive(&[&far, &ours]), None, &app, &["docker.io/test/far:2: linux/s390x"]).await;
    // One name for two platforms, in either order.
    let same = image("test/app:1", FOREIGN, b"2");
    takes(&store, docker_archive(&[&same, &ours]), None, &app, &[]).await;
    takes(&store, docker_archive(&[&ours, &same]), None, &app, &[]).await;
    refuses(&store, docker_archive(&[&far]), None, "docker.io/test/far:2 is for linux/s390x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_nothing_for_this_machine_names_the_platforms() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let mut parts = ByHand::default();
    let index = [FOREIGN, STRANGER].map(|platform| said(&mut parts, platform));
    let index = parts.index(&index);
    parts.list(index, named("test/app:1"));
    let nothing = format!("the archive holds nothing for this machine, which is {}", node_platform());
    refuses(&store, parts.archive(), None, &nothing).await;
    refuses(&store, parts.archive(), None, "docker.io/test/app:1 is for linux/riscv64, linux/s390x").await;
    let far = bare(&mut parts, FOREIGN);
    parts.list(far, named("test/far:2"));
    refuses(&store, parts.archive(), None, "docker.io/test/far:2 is for linux/s390x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_given_to_what_is_for_this_machine() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let tagged = |notes: [Value; 2]| {
        let mut parts = ByHand::default();
        for (platform, notes) in [node_platform(), FOREIGN].into_iter().zip(notes) {
            let manifest = said(&mut parts, platform);
            parts.list(manifest, notes);
        }
        parts.archive()
    };
    let tag = |tag: &str| json!({"org.opencontainers.image.ref.name": tag});
    let tags = || tagged([tag("1-here"), tag("1-far")]);
    takes(&store, tags(), Some("team/app"), &["docker.io/team/app:1-here"], &["1-far: linux/s390x"]).await;
    // One is left, so it may be given a tag.
    takes(&store, tags(), Some("team/app:3"), &["docker.io/team/app:3"], &["1-far: linux/s390x"]).await;
    takes(&store, tagged([json!({}), json!({})]), Some("team/app:3"), &["docker.io/team/app:3"], &[]).await;
    let nameless = tagged([tag("1"), json!({})]);
    takes(&store, nameless, Some("team/app:3"), &["docker.io/team/app:3"], &["<none>: linux/s390x"]).await;
    // What has no name where others have one is not asked for, so nothing is said of it.
    let ours_named = tagged([named("test/app:1"), json!({})]);
    takes(&store, ours_named, None, &["docker.io/test/app:1"], &[]).await;
    let far_named = || tagged([json!({}), named("test/far:2")]);
    refuses(&store, far_named(), None, "the archive names no image").await;
    let far = ["docker.io/test/far:2: linux/s390x"];
    takes(&store, far_named(), Some("team/app:3"), &["docker.io/team/app:3"], &far).await;
}

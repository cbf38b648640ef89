//! The image store on a real containerd and real registries. Needs root, and the packages
//! containerd, docker-registry, busybox-static and openssl.

#![expect(clippy::disallowed_methods, reason = "real components run in real time")]

mod support;

use std::io::Cursor;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use blixard_node::platform::{OnProgress, PullProgress, RuntimeError};
use blixard_node::runtime::images::{ImageStore, Registries, SNAPSHOTTER};
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    ListSnapshotsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{ListContentRequest, ListStatusesRequest};
use containerd_client::tonic::Request;
use containerd_client::{Client, with_namespace};
use serde_json::json;
use support::containerd::TestContainerd;
use support::fake_registry::{FakeRegistry, Faults};
use support::image::{
    ByHand, File, TestImage, busybox, docker_archive, gzip, node_platform, oci_archive, tar_of, xz, zstd,
};
use support::registry::{CREDENTIALS, TestRegistry};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const NAMESPACE: &str = "images-test";

fn store(containerd: &TestContainerd) -> ImageStore {
    store_with(containerd, NAMESPACE, "{}")
}

fn store_with(containerd: &TestContainerd, namespace: &str, registries: &str) -> ImageStore {
    let registries = Registries::parse(registries.as_bytes(), Path::new("registries.json")).expect("valid");
    ImageStore::new(containerd.channel.clone(), namespace.to_owned(), registries).expect("valid namespace")
}

fn quiet() -> OnProgress {
    Arc::new(|_| {})
}

fn recorder() -> (OnProgress, Arc<Mutex<Vec<PullProgress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    (Arc::new(move |progress| record.lock().expect("unpoisoned").push(progress)), seen)
}

fn reader(bytes: &[u8]) -> Pin<Box<dyn AsyncRead + Send>> {
    Box::pin(Cursor::new(bytes.to_vec()))
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn two_layers<'a>(name: &'a str, base: &'a [u8], own: &'a [u8]) -> TestImage<'a> {
    let layers: Vec<Vec<File<'a>>> = vec![vec![("base", 0o644, base)], vec![("own", 0o644, own)]];
    TestImage { name, layers, config: json!({"Cmd": ["/own"]}), platforms: vec![node_platform()] }
}

/// A file of an image's unpacked root filesystem.
async fn file_in_rootfs(containerd: &TestContainerd, chain_id: &str, path: &str) -> Option<Vec<u8>> {
    let mut client = SnapshotsClient::new(containerd.channel.clone());
    let key = format!("view-{:x}", rand::random::<u64>());
    let view = ViewSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.clone(),
        parent: chain_id.to_owned(),
        labels: [("containerd.io/gc.root".to_owned(), "test".to_owned())].into(),
    };
    let mounts = client.view(with_namespace!(view, NAMESPACE)).await.expect("view").into_inner().mounts;
    let mount = &mounts[0];
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let dirs: Vec<&str> = lower.map_or(vec![mount.source.as_str()], |dirs| dirs.split(':').collect());
    let content = dirs.iter().find_map(|dir| std::fs::read(Path::new(dir).join(path)).ok());
    let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key };
    client.remove(with_namespace!(remove, NAMESPACE)).await.expect("remove view");
    content
}

/// Has containerd collect garbage: a refused import waits for it.
async fn collect_garbage(store: &ImageStore) {
    store.import(reader(b"no archive"), None).await.expect_err("no archive");
}

/// Blobs, unfinished writes, snapshots and names of the namespace.
async fn leftovers(containerd: &TestContainerd) -> (usize, usize, usize, usize) {
    let client = Client::from(containerd.channel.clone());
    let list = with_namespace!(ListContentRequest { filters: vec![] }, NAMESPACE);
    let mut blobs = client.content().list(list).await.expect("list content").into_inner();
    let mut blob_count = 0;
    while let Some(part) = blobs.message().await.expect("list content") {
        blob_count += part.info.len();
    }
    let list = with_namespace!(ListStatusesRequest { filters: vec![] }, NAMESPACE);
    let writes = client.content().list_statuses(list).await.expect("list writes").into_inner().statuses.len();
    let list = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters: vec![] };
    let mut snapshots =
        client.snapshots().list(with_namespace!(list, NAMESPACE)).await.expect("list snapshots").into_inner();
    let mut snapshot_count = 0;
    while let Some(part) = snapshots.message().await.expect("list snapshots") {
        snapshot_count += part.info.len();
    }
    let names = store(containerd).images().await.expect("list images").len();
    (blob_count, writes, snapshot_count, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_unpacked_and_needs_its_registry_no_more() {
    let containerd = TestContainerd::start().await;
    let mut registry = TestRegistry::start().await;
    let files: [File<'_>; 2] = [("bin/busybox", 0o755, &busybox()), ("etc/motd", 0o644, b"hello")];
    let archive = oci_archive("docker.io/test/app:1", &files, json!({"Cmd": ["/bin/busybox"], "User": "7"}));
    let digest = registry.push(&archive).await;
    let store = store(&containerd);
    let reference = format!("{}/test/app:1", registry.host);

    assert_eq!(store.resolve(&reference).await.expect("resolves"), digest);
    assert!(!store.has_image(&reference, None).await.expect("asks"));
    assert!(matches!(store.rootfs(&reference, None).await, Err(RuntimeError::NotFound(_))));

    let (progress, seen) = recorder();
    let pulled = tokio::spawn(async move {
        let pulled = store.pull(&reference, None, progress).await;
        (store, reference, pulled)
    });
    let (store, reference, pulled) = pulled.await.expect("no panic");
    assert_eq!(pulled.expect("pulls"), digest);
    {
        let seen = seen.lock().expect("unpoisoned");
        let last = seen.last().expect("progress");
        assert!(last.bytes_total > 100_000 && last.bytes == last.bytes_total, "{last:?}");
        assert_eq!(seen[0].bytes, 0);
    }
    collect_garbage(&store).await;
    assert!(store.has_image(&reference, None).await.expect("asks"));
    assert!(store.has_image(&reference, Some(&digest)).await.expect("asks"));
    assert!(store.has_image("other/name:2", Some(&digest)).await.expect("asks"));
    assert!(!store.has_image("other/name:2", None).await.expect("asks"));
    assert!(!store.has_image(&reference, Some(&format!("sha256:{:064}", 1))).await.expect("asks"));

    let rootfs = store.rootfs(&reference, Some(&digest)).await.expect("rootfs");
    assert_eq!(rootfs.reference, reference);
    assert_eq!(rootfs.manifest_digest, digest);
    assert_eq!(rootfs.config.cmd, ["/bin/busybox"]);
    assert_eq!(rootfs.config.user, "7");
    assert_eq!(
        file_in_rootfs(&containerd, &rootfs.chain_id, "etc/motd").await.as_deref(),
        Some(&b"hello"[..])
    );

    registry.stop();
    assert_eq!(store.pull(&reference, Some(&digest), quiet()).await.expect("all is here"), digest);
    let named = store.image(&reference).await.expect("asks").expect("is here");
    assert_eq!((named.digest, named.imported), (digest.clone(), false));
    let images = store.images().await.expect("lists");
    assert_eq!(images.len(), 1);
    assert_eq!(
        (images[0].reference.as_str(), images[0].digest.as_str()),
        (reference.as_str(), digest.as_str())
    );
    assert!(images[0].bytes > 100_000);

    store.remove_all().await.expect("removes");
    assert_eq!(leftovers(&containerd).await, (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_lacks_or_hides_is_said() {
    let containerd = TestContainerd::start().await;
    let mut registry = TestRegistry::start_locked().await;
    let archive = oci_archive("docker.io/test/app:1", &[("a", 0o644, b"a")], json!({}));
    let digest = registry.push(&archive).await;
    let reference = format!("{}/test/app:1", registry.host);

    let anonymous = store(&containerd);
    let error = anonymous.pull(&reference, None, quiet()).await.expect_err("denied");
    assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains("set credentials")), "{error:?}");

    let with = |user: &str, password: &str| {
        let registries = json!({"registries": {&registry.host: {"username": user, "password": password}}});
        store_with(&containerd, NAMESPACE, &registries.to_string())
    };
    let wrong = with("alice", "wrong");
    let error = wrong.resolve(&reference).await.expect_err("denied");
    assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains("\"alice\"")), "{error:?}");
    assert!(!error.to_string().contains("wrong"), "{error}");

    let right = with(CREDENTIALS.0, CREDENTIALS.1);
    assert_eq!(right.pull(&reference, None, quiet()).await.expect("pulls"), digest);
    for missing in ["test/app:2", "test/none:1"] {
        let missing = format!("{}/{missing}", registry.host);
        let error = right.pull(&missing, None, quiet()).await.expect_err("missing");
        assert!(
            matches!(&error, RuntimeError::NotFound(text)
                if text.contains(&missing) && text.contains("check the name and tag")),
            "{error:?}"
        );
    }
    let error = right.pull("not a name", None, quiet()).await.expect_err("no reference");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");

    registry.stop();
    let gone = format!("{}/test/other:1", registry.host);
    let error = right.pull(&gone, None, quiet()).await.expect_err("gone");
    assert!(
        matches!(&error, RuntimeError::Unavailable(text) if text.contains("refused") && text.contains(&registry.host)),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_unless_told_otherwise() {
    let containerd = TestContainerd::start().await;
    let registry = TestRegistry::start_tls().await;
    let archive = oci_archive("docker.io/test/app:1", &[("a", 0o644, b"a")], json!({}));
    let digest = registry.push(&archive).await;
    let reference = format!("{}/test/app:1", registry.host);
    let with = |mut settings: serde_json::Value| {
        settings["plain_http"] = json!(false);
        let registries = json!({"registries": {&registry.host: settings}});
        store_with(&containerd, NAMESPACE, &registries.to_string())
    };
    let error = with(json!({})).resolve(&reference).await.expect_err("an unknown certificate");
    assert!(matches!(&error, RuntimeError::Unavailable(text) if text.contains("certificate")), "{error:?}");
    let missing = with(json!({"ca_file": "/nonexistent/ca.pem"}));
    let error = missing.resolve(&reference).await.expect_err("no such file");
    assert!(
        matches!(&error, RuntimeError::Invalid(text) if text.contains("/nonexistent/ca.pem")),
        "{error:?}"
    );
    assert_eq!(with(json!({"skip_verify": true})).resolve(&reference).await.expect("unchecked"), digest);
    let trusting = with(json!({"ca_file": registry.ca_file()}));
    assert_eq!(trusting.pull(&reference, None, quiet()).await.expect("trusted"), digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_refused() {
    let containerd = TestContainerd::start().await;
    let registry = TestRegistry::start().await;
    let noise = noise(1, 200_000);
    let archive = oci_archive("docker.io/test/app:1", &[("noise", 0o644, &noise)], json!({}));
    registry.push(&archive).await;
    let layout = support::image::Layout::read(&archive);
    let (layer, content) = layout.blobs.iter().max_by_key(|(_, content)| content.len()).expect("a layer");
    let mut damaged = content.clone();
    damaged[1000] ^= 1;
    std::fs::write(registry.blob_path(layer), damaged).expect("damage");

    let store = store(&containerd);
    let reference = format!("{}/test/app:1", registry.host);
    let error = store.pull(&reference, None, quiet()).await.expect_err("damaged");
    assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains(layer)), "{error:?}");
    assert!(!store.has_image(&reference, None).await.expect("asks"));

    std::fs::write(registry.blob_path(layer), content).expect("repair");
    store.pull(&reference, None, quiet()).await.expect("nothing of the damage stayed");
    assert!(store.has_image(&reference, None).await.expect("asks"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_platform_is_chosen_from_an_index() {
    let containerd = TestContainerd::start().await;
    let registry = TestRegistry::start().await;
    let layers: Vec<Vec<File<'_>>> = vec![vec![("a", 0o644, b"a")]];
    let image = |name, platforms| TestImage { name, layers: layers.clone(), config: json!({}), platforms };
    let both = image("docker.io/test/both:1", vec!["linux/s390x", node_platform()]);
    let digest = registry.push(&both.to_oci()).await;
    registry.push(&image("docker.io/test/foreign:1", vec!["linux/s390x", "windows/amd64"]).to_oci()).await;
    let store = store(&containerd);

    let reference = format!("{}/test/both:1", registry.host);
    assert_eq!(store.pull(&reference, None, quiet()).await.expect("pulls"), digest);
    let rootfs = store.rootfs(&reference, Some(&digest)).await.expect("rootfs");
    assert_ne!(rootfs.manifest_digest, digest);
    assert_eq!(format!("linux/{}", rootfs.config.architecture), node_platform());

    let foreign = format!("{}/test/foreign:1", registry.host);
    let error = store.pull(&foreign, None, quiet()).await.expect_err("foreign");
    assert!(
        matches!(&error, RuntimeError::Invalid(text)
            if text.contains("linux/s390x, windows/amd64") && text.contains(&foreign)),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_it_broke_off() {
    let containerd = TestContainerd::start().await;
    let noise = noise(2, 3_000_000);
    let archive = oci_archive("docker.io/test/app:1", &[("noise", 0o644, &noise)], json!({}));
    let check = async |namespace: &str, faults: Faults, resumed: bool| {
        let registry = FakeRegistry::start(&archive, faults).await;
        let store = store_with(&containerd, namespace, "{}");
        let reference = format!("{}/test/app:1", registry.host);
        let (progress, seen) = recorder();
        store.pull(&reference, None, progress).await.expect("pulls in spite of breaks");
        assert_eq!(registry.faults.breaks.load(Ordering::SeqCst), 0, "the breaks happened");
        let resumed_at = registry.faults.resumed_at.lock().expect("unpoisoned").clone();
        assert_eq!(!resumed_at.is_empty(), resumed, "{resumed_at:?}");
        let last = *seen.lock().expect("unpoisoned").last().expect("progress");
        assert_eq!(last.bytes, last.bytes_total);
        if resumed {
            assert_eq!(registry.faults.bytes_sent.load(Ordering::SeqCst), last.bytes_total);
        }
        assert!(store.has_image(&reference, None).await.expect("asks"));
        store.remove_all().await.expect("removes");
    };
    check("ranges", Faults { breaks: AtomicU32::new(2), ..Faults::default() }, true).await;
    check("whole", Faults { breaks: AtomicU32::new(2), ignores_ranges: true, ..Faults::default() }, false)
        .await;
    check("token", Faults { wants_token: true, ..Faults::default() }, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_dies_during_a_pull_is_named_and_the_bytes_wait() {
    let containerd = TestContainerd::start().await;
    let noise = noise(3, 3_000_000);
    let archive = oci_archive("docker.io/test/app:1", &[("noise", 0o644, &noise)], json!({}));
    let registry =
        FakeRegistry::start(&archive, Faults { breaks: AtomicU32::new(4), ..Faults::default() }).await;
    let reference = format!("{}/test/app:1", registry.host);
    let error = store(&containerd).pull(&reference, None, quiet()).await.expect_err("breaks off");
    assert!(matches!(&error, RuntimeError::Unavailable(text) if text.contains(&registry.host)), "{error:?}");
    let sent = registry.faults.bytes_sent.load(Ordering::SeqCst);
    assert!(!store(&containerd).has_image(&reference, None).await.expect("asks"));
    // Another store, as after a restart of the daemon.
    store(&containerd).pull(&reference, None, quiet()).await.expect("goes on");
    let rest = registry.faults.bytes_sent.load(Ordering::SeqCst) - sent;
    assert!(rest < 400_000, "{rest} bytes were sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_layers_are_pulled_at_once() {
    let containerd = TestContainerd::start().await;
    let registry = TestRegistry::start().await;
    let base = noise(4, 2_000_000);
    let store = Arc::new(store(&containerd));
    let mut references = Vec::new();
    for number in 0..4 {
        let name = format!("docker.io/test/app{number}:1");
        let own = vec![number; 10];
        registry.push(&two_layers(&name, &base, &own).to_oci()).await;
        references.push(format!("{}/test/app{number}:1", registry.host));
    }
    // The second store stands for another process: the first's locks do not hold it back.
    let second = Arc::new(self::store(&containerd));
    let mut pulls = Vec::new();
    for reference in references.iter().chain(&references) {
        for store in [store.clone(), second.clone()] {
            let reference = reference.clone();
            pulls.push(tokio::spawn(async move { store.pull(&reference, None, quiet()).await }));
        }
    }
    for pull in pulls {
        pull.await.expect("no panic").expect("pulls");
    }
    for reference in &references {
        let rootfs = store.rootfs(reference, None).await.expect("rootfs");
        assert_eq!(file_in_rootfs(&containerd, &rootfs.chain_id, "base").await.as_deref(), Some(&base[..]));
        assert!(file_in_rootfs(&containerd, &rootfs.chain_id, "own").await.is_some());
    }
    let (_, writes, snapshots, names) = leftovers(&containerd).await;
    assert_eq!((writes, snapshots, names), (0, 5, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_kind_are_imported() {
    let containerd = TestContainerd::start().await;
    let base = noise(5, 300_000);
    let image = two_layers("docker.io/test/app:1", &base, b"own");
    let other = two_layers("docker.io/test/other:1", &base, b"other");
    let check = async |archive: &[u8], names: &[&str]| {
        let store = store(&containerd);
        let images = store.import(reader(archive), None).await.expect("imports").images;
        let imported: Vec<_> = images.iter().map(|image| image.reference.as_str()).collect();
        assert_eq!(imported, names);
        collect_garbage(&store).await;
        for info in &images {
            assert!(info.bytes > 300_000, "{info:?}");
            assert!(store.has_image(&info.reference, Some(&info.digest)).await.expect("asks"));
            let rootfs = store.rootfs(&info.reference, None).await.expect("rootfs");
            assert_eq!(
                file_in_rootfs(&containerd, &rootfs.chain_id, "base").await.as_deref(),
                Some(&base[..])
            );
        }
        let again = store.import(reader(archive), None).await.expect("imports again").images;
        assert_eq!(again, images);
        store.remove_all().await.expect("removes");
        assert_eq!(leftovers(&containerd).await, (0, 0, 0, 0));
        images
    };
    let images = check(&image.to_oci(), &["docker.io/test/app:1"]).await;
    assert_eq!(images[0].digest, image.digest());
    for packed in [gzip(&image.to_oci()), zstd(&image.to_oci()), xz(&image.to_oci())] {
        let images = check(&packed, &["docker.io/test/app:1"]).await;
        assert_eq!(images[0].digest, image.digest());
    }
    let plain = check(&image.to_docker(), &["docker.io/test/app:1"]).await;
    let packed = check(&gzip(&image.to_docker()), &["docker.io/test/app:1"]).await;
    assert_eq!(plain, packed);
    check(&docker_archive(&[&image, &other]), &["docker.io/test/app:1", "docker.io/test/other:1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_archive_is_refused_and_leaves_nothing() {
    let containerd = TestContainerd::start().await;
    let base = noise(6, 300_000);
    let image = two_layers("docker.io/test/app:1", &base, b"own");
    let oci = image.to_oci();
    let check = async |what: &str, archive: &[u8], expect: &str| {
        let error = store(&containerd).import(reader(archive), None).await.expect_err(what);
        assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains(expect)), "{what}: {error:?}");
        assert_eq!(leftovers(&containerd).await, (0, 0, 0, 0), "{what}");
    };
    check("empty", b"", "the archive is empty").await;
    check("text", &b"no archive at all ".repeat(100), "no tar header").await;
    check("cut", &oci[..oci.len() / 2], "ends too early").await;
    let packed = gzip(&oci);
    check("cut gzip", &packed[..packed.len() / 2], "ends too early").await;
    let files = support::image::tar_of(&[("etc/passwd", 0o644, b"root")]);
    check("another tar", &files, "neither index.json nor manifest.json").await;

    let layout = support::image::Layout::read(&oci);
    let (layer, _) = layout.blobs.iter().max_by_key(|(_, content)| content.len()).expect("a layer");
    let rebuilt = |change: &dyn Fn(&str, &mut Vec<u8>) -> bool| {
        let mut files = Vec::new();
        let mut tar = tar::Archive::new(&oci[..]);
        for entry in tar.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("text").display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("from memory");
            if change(&path, &mut content) {
                files.push((path, content));
            }
        }
        let files: Vec<File<'_>> =
            files.iter().map(|(path, content)| (path.as_str(), 0o644, &content[..])).collect();
        support::image::tar_of(&files)
    };
    let hex = layer.trim_start_matches("sha256:");
    check("no layer", &rebuilt(&|path, _| !path.ends_with(hex)), layer).await;
    let flip = rebuilt(&|path, content| {
        if path.ends_with(hex) {
            content[5000] ^= 1;
        }
        true
    });
    check("damaged layer", &flip, "damaged").await;
    let nameless = rebuilt(&|path, content| {
        if path == "index.json" {
            *content = String::from_utf8_lossy(content).replace("io.containerd.image.name", "x").into_bytes();
        }
        true
    });
    check("nameless", &nameless, "names no image").await;
    let nonsense = rebuilt(&|path, content| {
        if path == "index.json" {
            content.truncate(20);
        }
        true
    });
    check("index.json is cut", &nonsense, "index.json").await;
    let foreign =
        TestImage { platforms: vec!["linux/s390x"], ..two_layers("docker.io/test/app:1", &base, b"o") };
    check("foreign", &foreign.to_oci(), "linux/s390x").await;
    check("foreign docker", &foreign.to_docker(), "linux/s390x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_keeps_its_digest_elsewhere() {
    let (here, there) = tokio::join!(TestContainerd::start(), TestContainerd::start());
    let registry = TestRegistry::start().await;
    let base = noise(7, 3_000_000);
    let image = TestImage {
        platforms: vec!["linux/s390x", node_platform()],
        ..two_layers("docker.io/test/app:1", &base, b"own")
    };
    let digest = registry.push(&image.to_oci()).await;
    let reference = format!("{}/test/app:1", registry.host);
    let source = store(&here);
    assert!(matches!(source.export(&reference, None).await, Err(RuntimeError::NotFound(_))));
    source.pull(&reference, None, quiet()).await.expect("pulls");

    let elsewhere = [store(&there), store_with(&here, "second", "{}")];
    for target in elsewhere {
        let archive = source.export(&reference, Some(&digest)).await.expect("exports");
        let images = target.import(archive, None).await.expect("imports").images;
        assert_eq!(
            (images[0].reference.as_str(), images[0].digest.as_str()),
            (reference.as_str(), digest.as_str())
        );
        collect_garbage(&target).await;
        assert!(target.has_image(&reference, Some(&digest)).await.expect("asks"));
    }
    let rootfs = store(&there).rootfs(&reference, None).await.expect("rootfs");
    assert_eq!(file_in_rootfs(&there, &rootfs.chain_id, "base").await.as_deref(), Some(&base[..]));

    let mut whole = Vec::new();
    source.export(&reference, None).await.expect("exports").read_to_end(&mut whole).await.expect("reads");
    let layout = support::image::Layout::read(&whole);
    assert_eq!(layout.root, digest);
    assert_eq!(layout.blobs.len(), 5, "index, one manifest, configuration and two layers");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_and_the_default_registry_are_used() {
    let containerd = TestContainerd::start().await;
    let mut origin = TestRegistry::start().await;
    let mirror = TestRegistry::start().await;
    let archive = oci_archive("docker.io/team/app:1", &[("a", 0o644, b"a")], json!({}));
    let digest = mirror.push(&archive).await;
    let dead = format!("127.0.0.1:{}", support::free_port());
    let registries = json!({
        "default_registry": &origin.host,
        "registries": {&origin.host: {"mirrors": [dead, &mirror.host]}},
    });
    let store = store_with(&containerd, NAMESPACE, &registries.to_string());
    assert_eq!(store.pull("team/app:1", None, quiet()).await.expect("from the mirror"), digest);
    assert_eq!(store.images().await.expect("lists")[0].reference, format!("{}/team/app:1", origin.host));
    let error = store.pull("team/app:2", None, quiet()).await.expect_err("nowhere");
    assert!(matches!(error, RuntimeError::NotFound(_)), "{error:?}");
    origin.stop();
    let error = store.pull("team/app:2", None, quiet()).await.expect_err("nowhere");
    assert!(matches!(error, RuntimeError::Unavailable(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_containerd_calls_fail_in_time() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    store.images().await.expect("lists");
    drop(containerd);
    let error = store.has_image("app", None).await.expect_err("containerd is gone");
    assert!(matches!(error, RuntimeError::Unavailable(_)), "{error:?}");
    let error = store.import(reader(b""), None).await.expect_err("containerd is gone");
    assert!(matches!(error, RuntimeError::Unavailable(_)), "{error:?}");
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn named(name: &str) -> serde_json::Value {
    json!({"io.containerd.image.name": name})
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_are_judged_as_well_as_what_is_said_of_them_allows() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let (os, here) = node_platform().split_once('/').expect("os/architecture");
    let platform = |architecture: &str| json!({"os": os, "architecture": architecture});
    let tar = tar_of(&[("a", 0o644, b"a")]);
    let layers: [(&str, &[u8], &[u8]); 1] = [(LAYER, &tar, &tar)];
    let check =
        async |what: &str, build: &dyn Fn(&mut ByHand) -> serde_json::Value, expect: Result<(), &str>| {
            let mut parts = ByHand::default();
            let root = build(&mut parts);
            parts.list(root, named("test/app:1"));
            let imported = store.import(reader(&parts.archive()), None).await.map(|imported| imported.images);
            match (imported, expect) {
                (Ok(images), Ok(())) => {
                    let rootfs = store.rootfs("test/app:1", Some(&images[0].digest)).await.expect(what);
                    assert_eq!(rootfs.config.cmd, ["fits"], "{what}");
                    assert!(store.has_image("test/app:1", None).await.expect(what), "{what}");
                }
                (Err(RuntimeError::Invalid(text)), Err(expect)) => {
                    assert!(text.contains(expect), "{what}: {text}")
                }
                (found, expect) => panic!("{what}: {found:?}, not {expect:?}"),
            }
            store.remove_all().await.expect("removes");
        };
    let config = |architecture: &str, cmd: &str| {
        let mut config = platform(architecture);
        config["config"] = json!({"Cmd": [cmd]});
        config
    };
    let said = |mut descriptor: serde_json::Value, architecture: &str| {
        descriptor["platform"] = platform(architecture);
        descriptor
    };
    check(
        "nothing is said at all",
        &|parts| parts.manifest(&layers, json!({"config": {"Cmd": ["fits"]}})),
        Ok(()),
    )
    .await;
    check("another machine's", &|parts| parts.manifest(&layers, config("s390x", "no")), Err("linux/s390x"))
        .await;
    check(
        "entries without a platform",
        &|parts| {
            let other = parts.manifest(&layers, config("s390x", "no"));
            let ours = parts.manifest(&layers, config(here, "fits"));
            parts.index(&[other, ours])
        },
        Ok(()),
    )
    .await;
    check(
        "the index's word against the configuration's",
        &|parts| {
            let wrong = parts.manifest(&layers, config("s390x", "fits"));
            let silent = parts.manifest(&layers, json!({"config": {"Cmd": ["no"]}}));
            let (wrong, silent) = (said(wrong, here), said(silent, "s390x"));
            parts.index(&[silent, wrong])
        },
        Ok(()),
    )
    .await;
    check(
        "attestations and an index within",
        &|parts| {
            let ours = parts.manifest(&layers, config(here, "fits"));
            let mut note = parts.blob("application/vnd.oci.image.manifest.v1+json", b"{}");
            note["platform"] = json!({"os": "unknown", "architecture": "unknown"});
            let within = parts.index(&[said(ours, here)]);
            parts.index(&[note, within])
        },
        Ok(()),
    )
    .await;
    check(
        "an entry that is no image",
        &|parts| {
            let other = parts.blob("application/vnd.oci.image.manifest.v1+json", b"{\"schemaVersion\": 2}");
            let ours = parts.manifest(&layers, config(here, "fits"));
            parts.index(&[other, ours])
        },
        Ok(()),
    )
    .await;
    check(
        "none fits",
        &|parts| {
            let one = parts.manifest(&layers, config("s390x", "no"));
            let two = parts.manifest(&layers, config("mips", "no"));
            parts.index(&[one, said(two, "riscv64")])
        },
        Err("docker.io/test/app:1 is for linux/riscv64, linux/s390x"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_unpacked_by_their_first_bytes() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let content = noise(8, 200_000);
    let tar = tar_of(&[("own", 0o644, &content)]);
    let import = async |kind: &str, packed: &[u8]| {
        let mut parts = ByHand::default();
        let root = parts.manifest(&[(kind, packed, &tar)], json!({}));
        parts.list(root, named("test/app:1"));
        store.import(reader(&parts.archive()), None).await.map(|imported| imported.images)
    };
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (kind, packed) in [
        (LAYER.to_owned(), gzip(&tar)),
        (format!("{LAYER}+gzip"), tar.clone()),
        (format!("{docker}.gzip"), zstd(&tar)),
        (format!("{LAYER}+zstd"), gzip(&tar)),
        (LAYER.to_owned(), xz(&tar)),
        (format!("{docker}.gzip"), xz(&tar)),
        ("application/octet-stream".to_owned(), [gzip(&tar[..512]), gzip(&tar[512..])].concat()),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".to_owned(), gzip(&tar)),
    ] {
        let images = import(&kind, &packed).await.expect(&kind);
        let rootfs = store.rootfs("test/app:1", Some(&images[0].digest)).await.expect("rootfs");
        assert!(
            file_in_rootfs(&containerd, &rootfs.chain_id, "own").await.as_deref() == Some(&content[..]),
            "{kind}"
        );
        store.remove_all().await.expect("removes");
        assert_eq!(leftovers(&containerd).await, (0, 0, 0, 0), "{kind}");
    }
    let refused = async |packed: &[u8], expect: &str| {
        let error = import(LAYER, packed).await.expect_err(expect);
        assert!(matches!(&error, RuntimeError::Invalid(text) if text.contains(expect)), "{error:?}");
        assert_eq!(leftovers(&containerd).await, (0, 0, 0, 0), "{expect}");
    };
    refused(b"BZh91AY&SY and so on", "compressed with bzip2").await;
    refused(&xz(b"something else"), "does not unpack to sha256:").await;
    let cut = xz(&tar);
    refused(&cut[..cut.len() / 2], "is damaged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_names_no_image_asks_for_a_name() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let tar = tar_of(&[("a", 0o644, b"a")]);
    let archive = |notes: serde_json::Value| {
        let mut parts = ByHand::default();
        let root = parts.manifest(&[(LAYER, &tar, &tar)], json!({}));
        parts.list(root, notes);
        parts.archive()
    };
    let tagged = archive(json!({"org.opencontainers.image.ref.name": "latest"}));
    let error = store.import(reader(&tagged), None).await.expect_err("a tag alone");
    assert!(error.to_string().contains("only \"latest\"") && error.to_string().contains("--name"), "{error}");
    let check = async |archive: &[u8], name: Option<&str>, expect: &str| {
        let images = store.import(reader(archive), name).await.expect(expect).images;
        let names: Vec<_> = images.iter().map(|image| image.reference.as_str()).collect();
        assert_eq!(names, [expect]);
    };
    check(&tagged, Some("team/app"), "docker.io/team/app:latest").await;
    check(&archive(json!({})), Some("reg.lan/app:2"), "reg.lan/app:2").await;
    check(&archive(json!({"org.opencontainers.image.ref.name": "reg.lan/app:3"})), None, "reg.lan/app:3")
        .await;
    let error = store.import(reader(&tagged), Some("No/Name")).await.expect_err("no name");
    assert!(matches!(error, RuntimeError::Invalid(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_leaves_what_it_stood_for() {
    let containerd = TestContainerd::start().await;
    let registry_image = oci_archive("docker.io/test/app:1", &[("a", 0o644, b"pulled")], json!({}));
    let registry = FakeRegistry::start(&registry_image, Faults::default()).await;
    let reference = format!("{}/test/app:1", registry.host);
    let store = store(&containerd);
    let import = async |content: &[u8]| {
        let archive = oci_archive(&reference, &[("a", 0o644, content)], json!({}));
        store.import(reader(&archive), None).await.expect("imports").images.remove(0).digest
    };
    let (first, second) = (import(b"1").await, import(b"2").await);
    collect_garbage(&store).await;
    let now =
        async || store.image(&reference).await.expect("asks").map(|image| (image.digest, image.imported));
    assert_eq!(now().await, Some((second.clone(), true)));
    assert!(store.has_image(&reference, Some(&first)).await.expect("asks"), "the first import is lost");
    // A replica's pull by digest takes no imported name away, somebody's pull does.
    let pulled = store.resolve(&reference).await.expect("the registry's");
    store.pull(&reference, Some(&pulled), quiet()).await.expect("pulls");
    assert_eq!(now().await, Some((second.clone(), true)));
    assert!(store.has_image(&reference, Some(&pulled)).await.expect("asks"));
    store.pull(&reference, None, quiet()).await.expect("pulls");
    assert_eq!(now().await, Some((pulled, false)));
    for digest in [first, second] {
        assert!(store.has_image(&reference, Some(&digest)).await.expect("asks"));
        assert!(store.rootfs(&reference, Some(&digest)).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_head_is_asked_by_get() {
    let containerd = TestContainerd::start().await;
    let archive = oci_archive("docker.io/test/app:1", &[("a", 0o644, b"a")], json!({}));
    let digest = support::image::Layout::read(&archive).root;
    let store = store(&containerd);
    for code in [400, 403, 404, 405, 500, 501] {
        let registry = FakeRegistry::start(&archive, Faults { head: Some(code), ..Faults::default() }).await;
        let reference = format!("{}/test/app:1", registry.host);
        assert_eq!(store.resolve(&reference).await.expect("by GET"), digest, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_containerd_cannot_unpack_says_why() {
    let containerd = TestContainerd::start().await;
    let store = store(&containerd);
    let base = tar_of(&[("dir/file", 0o644, b"x")]);
    let import = async |files: &[File<'_>]| {
        let above = tar_of(files);
        let mut parts = ByHand::default();
        let root = parts.manifest(&[(LAYER, &base, &base), (LAYER, &above, &above)], json!({}));
        parts.list(root, named("test/app:1"));
        store.import(reader(&parts.archive()), None).await.map(|imported| imported.images)
    };
    for order in [["dir/.wh.file", ".wh.dir"], [".wh.dir", "dir/.wh.file"]] {
        let error = import(&order.map(|path| (path, 0o644, &b""[..]))).await.expect_err("refused");
        assert!(error.to_string().contains("which containerd cannot unpack"), "{error}");
    }
    import(&[("dir/.wh.file", 0o644, b""), ("nowhere/.wh.file", 0o644, b"")]).await.expect("imports");
    import(&[("dir/.wh..wh..opq", 0o644, b""), ("dir/.wh.file", 0o644, b"")]).await.expect("imports");
}

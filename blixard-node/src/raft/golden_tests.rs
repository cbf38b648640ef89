//! A data directory of the first format, kept for ever: what is on users' disks must open. It was made by a
//! release that had its log in redb, so nothing here can make it anew.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::snapshot::digest;
use blixard_core::cluster::{Command, Write};
use blixard_core::id::{ClusterId, NodeId, RequestId};
use blixard_core::spec::ServiceSpec;
use blixard_core::time::UtcMs;
use flate2::read::GzDecoder;

use super::testing::{Links, platform};
use super::{LOG_FILE, OpenError, RaftConfig, RaftNode, STATE_FILE, log_store};
use crate::database::Mark;
use crate::disk::LinuxDisk;

const PATIENCE: Duration = Duration::from_secs(30);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-dir-v1")
}

async fn open(directory: &Path) -> RaftNode {
    let (platform, _spawner) = platform(NodeId(1), directory, &Links::default());
    let config = RaftConfig { snapshot_entries: 8, log_keep: 2, ..RaftConfig::default() };
    RaftNode::open(platform, ClusterId([7; 16]), NodeId(1), config).await.expect("the stores open")
}

/// Has a member that is alone apply `command`, once it has elected itself.
async fn propose(node: &RaftNode, command: Command) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = node.propose(vec![command.clone()], PATIENCE).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn submission(number: u8) -> Command {
    let spec = serde_json::json!({
        "name": format!("web-{number}"),
        "image": { "reference": "web:1" },
        "ports": [{ "container_port": 80, "host_port": 8000 + u16::from(number) }],
        "replicas": { "min": 1, "max": 3 },
    });
    let spec: ServiceSpec = serde_json::from_value(spec).expect("a specification");
    Command::Write {
        request: RequestId([number; 16]),
        made_at: UtcMs(1_700_000_000_000),
        write: Write::Submit { spec: Arc::new(spec), origin: NodeId(1) },
        by: None,
    }
}

/// Puts the data directory of the first format into `directory`.
fn put(directory: &Path) {
    for name in ["raft.redb", STATE_FILE] {
        let packed = std::fs::read(fixture().join(format!("{name}.gz"))).expect("the fixture is there");
        let mut bytes = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the fixture is whole");
        std::fs::write(directory.join(name), bytes).expect("the directory takes files");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_the_first_format_opens_with_its_state_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    put(directory.path());
    let expect = std::fs::read_to_string(fixture().join("digest")).expect("the fixture is there");
    let node = open(directory.path()).await;
    assert!(node.state().applied > 20, "a snapshot and the log behind it are there");
    assert_eq!(hex::encode(digest(&node.state())), expect, "the state is another than was stored");
    assert_eq!(node.state().services.len(), 20);
    propose(&node, submission(99)).await;
    assert_eq!(node.state().services.len(), 21);
    node.shutdown().await;
    // An earlier release does not find the log that is no longer the newest.
    assert!(!directory.path().join("raft.redb").exists());
    assert!(directory.path().join("raft.redb.migrated").exists());
    assert_eq!(open(directory.path()).await.state().services.len(), 21);
}

/// Wherever it was interrupted, a migration begins anew: the old log is there until the new one is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_migration_starts_over() {
    let whole = tempfile::tempdir().expect("a directory");
    put(whole.path());
    let state = |node: &RaftNode| hex::encode(digest(&node.state()));
    let node = open(whole.path()).await;
    let expect = state(&node);
    node.shutdown().await;
    let wal = std::fs::read(whole.path().join(LOG_FILE)).expect("the new log");
    for (kept, marked) in
        [(0, false), (5_000, false), (5_000, true), (wal.len() / 2, true), (wal.len(), true)]
    {
        let directory = tempfile::tempdir().expect("a directory");
        put(directory.path());
        std::fs::write(directory.path().join(LOG_FILE), &wal[..kept]).expect("there is room");
        if marked {
            let mark = whole.path().join(log_store::FILES.mark);
            std::fs::copy(mark, directory.path().join(log_store::FILES.mark)).expect("there is room");
        }
        let node = open(directory.path()).await;
        assert_eq!(state(&node), expect, "{kept} bytes were there");
        node.shutdown().await;
    }
}

/// Neither log is there any more: the member must not begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_an_earlier_release_that_is_lost_is_missed() {
    let directory = tempfile::tempdir().expect("a directory");
    put(directory.path());
    let disk = LinuxDisk::new(directory.path());
    Mark::open(&disk, "raft.mark").expect("a mark").write(7);
    std::fs::remove_file(directory.path().join("raft.redb")).expect("it is there");
    let (platform, _spawner) = platform(NodeId(1), directory.path(), &Links::default());
    let opened = RaftNode::open(platform, ClusterId([7; 16]), NodeId(1), RaftConfig::default()).await;
    assert!(matches!(opened.err(), Some(OpenError::Lost { file: "raft.redb", .. })));
}

//! Disks that lie: stores with flipped bits, torn ends and zeroed pages open as what they were, or
//! not at all.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use blixard_core::cluster::snapshot::{decode_entry, digest};
use blixard_core::cluster::{ClusterState, Command, Write};
use blixard_core::id::{ClusterId, NodeId, RequestId, TokenId};
use blixard_core::time::UtcMs;
use openraft::EntryPayload;
use openraft::RaftLogReader as _;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};

use super::owner::Owner;
use super::testing::{Links, context, platform};
use super::{
    LOG_FILE, OpenError, RaftConfig, RaftNode, STATE_FILE, database, open_log, open_state, snapshot,
};
use crate::platform::Platform;
use crate::watch;

const PATIENCE: Duration = Duration::from_secs(60);
const OWNER: Owner = Owner { cluster: ClusterId([7; 16]), node: NodeId(1) };
/// How many damages each file gets.
const DAMAGES: u64 = 200;

type Files = BTreeMap<String, Vec<u8>>;

fn write(number: u64) -> Command {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    let id = RequestId(id);
    let write = Write::RemoveToken { id: TokenId([1; 8]) };
    Command::Write { request: id, made_at: UtcMs(1_700_000_000_000), write, by: None }
}

fn files(directory: &Path) -> Files {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().expect("our names are text");
            (name, fs::read(entry.path()).expect("it can be read"))
        })
        .collect()
}

fn put(directory: &Path, files: &Files) {
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).expect("there is room");
    }
}

/// Stops a member, and waits until its files are as it leaves them, however busy the machine is.
async fn close(node: &RaftNode) {
    node.shutdown().await;
    for closing in &node.inner.closing {
        tokio::time::timeout(PATIENCE, closing.clone().closed()).await.expect("a store closes");
    }
}

async fn propose(node: &RaftNode, numbers: Range<u64>) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for number in numbers {
        while let Err(error) = node.propose(vec![write(number)], PATIENCE).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The stores of a member: a log that was purged, when `purged`, and a snapshot. As a killed daemon
/// leaves them, and as one that was stopped does.
async fn make(purged: bool) -> [Files; 2] {
    let directory = tempfile::tempdir().expect("a directory");
    let (platform, _spawner) = platform(OWNER.node, directory.path(), &Links::default());
    // openraft purges 64 entries or none.
    let (writes, log_keep) = if purged { (90, 2) } else { (30, 1_000) };
    let config = RaftConfig { snapshot_entries: 8, log_keep, ..RaftConfig::default() };
    let node = RaftNode::open(platform, OWNER.cluster, OWNER.node, config).await.expect("the stores open");
    node.initialize().await.expect("Raft runs");
    propose(&node, 0..writes).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Until it writes no more.
    let mut killed = files(directory.path());
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = files(directory.path());
        if std::mem::replace(&mut killed, now) == killed {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it goes on writing");
    }
    close(&node).await;
    [killed, files(directory.path())]
}

/// Everything a start reads: who was voted for, the log, and the state that comes of it.
async fn read(platform: &Platform) -> Result<String, OpenError> {
    let (failing, _) = watch::channel(None);
    let (since_snapshot, _) = watch::channel(0);
    let (mut log, log_closing) =
        open_log(platform, OWNER, &failing, RaftConfig::default().log_place_bytes).await?;
    let mut closing = None;
    let result = async {
        let (mut machine, state_closing) = match open_state(platform, OWNER, &failing, &since_snapshot).await
        {
            Err(OpenError::Damaged { .. }) if log.purged().is_none() => {
                database::reset(&*platform.disk, STATE_FILE, snapshot::FILES.mark).expect("room");
                open_state(platform, OWNER, &failing, &since_snapshot).await?
            }
            opened => opened?,
        };
        closing = Some(state_closing);
        let state = machine.published().borrow().clone();
        let (applied, _) = machine.applied_state().await.expect("it is in memory");
        let logged = log.get_log_state().await.expect("it is in memory");
        if logged.last_purged_log_id > applied {
            return Err(OpenError::Lost { file: STATE_FILE, node: OWNER.node });
        }
        let mut reader = log.get_log_reader().await;
        let store = |error: std::io::Error| super::unusable(LOG_FILE, OWNER.node, &error);
        let vote = reader.read_vote().await.map_err(store)?;
        let entries = reader.try_get_log_entries(0..).await.map_err(store)?;
        let mut state = ClusterState::clone(&state);
        for entry in &entries {
            let index = entry.log_id.index;
            match &entry.payload {
                _ if index <= state.applied => {}
                EntryPayload::Normal(proposal) => {
                    state.apply(index, &decode_entry(&proposal.0).expect("an entry"));
                }
                _ => state.apply_blank(index),
            }
        }
        let digest = hex::encode(digest(&state));
        Ok(format!("{vote:?} {logged:?} {entries:?} {digest}"))
    };
    let result = result.await;
    drop(log);
    for closing in closing.into_iter().chain([log_closing]) {
        closing.closed().await;
    }
    result
}

/// Damages `file` of a member's stores over and over: each start finds what was there, or refuses in
/// one line that says what to do. Returns how many were refused.
async fn check(file: &str, purged: bool) -> u64 {
    let mut random = damage::Random::new(u64::from(purged));
    let directory = tempfile::tempdir().expect("a directory");
    let (platform, _spawner) = platform(OWNER.node, directory.path(), &Links::default());
    let mut refused = 0;
    let images = make(purged).await;
    let mut expected = Vec::new();
    for image in &images {
        put(directory.path(), image);
        expected.push(read(&platform).await.unwrap_or_else(|error| panic!("what is whole opens: {error}")));
    }
    for (number, (image, expect)) in (0..DAMAGES).zip(images.iter().zip(&expected).cycle()) {
        put(directory.path(), image);
        let mut bytes = image[file].clone();
        let how = damage::file(&mut bytes, &mut random);
        fs::write(directory.path().join(file), bytes).expect("there is room");
        for start in 0..2 {
            match read(&platform).await {
                Ok(found) => {
                    assert!(found == *expect, "damage {number} of {file} ({how}) made a different state")
                }
                Err(error) => {
                    let words = error.to_string();
                    assert!(error.is_final(), "{file}: {how}: {words}");
                    assert!(!words.contains('\n') && words.contains("node rm 1 --force"), "{how}: {words}");
                    refused += u64::from(start == 0);
                }
            }
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_opens_as_it_was_or_not_at_all() {
    let refused = context(1).run(check(LOG_FILE, true)).await;
    assert!(refused > DAMAGES / 10, "only {refused} damages were found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_opens_as_it_was_or_not_at_all() {
    let refused = context(1).run(check(STATE_FILE, true)).await;
    assert!(refused > DAMAGES / 20, "only {refused} damages were found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_made_anew_of_a_log_that_is_whole() {
    assert_eq!(context(1).run(check(STATE_FILE, false)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_mark_is_passed_over() {
    let refused = context(1).run(check("raft.wal.mark", true)).await;
    assert_eq!(refused, 0, "a mark is only a precaution");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_a_log_is_refused() {
    let [_, image] = make(true).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (platform, _spawner) = platform(OWNER.node, directory.path(), &Links::default());
    put(directory.path(), &image);
    let context = context(1);
    let config = RaftConfig::default();
    let node = RaftNode::open(platform.clone(), OWNER.cluster, OWNER.node, config).await.expect("it opens");
    propose(&node, 90..95).await;
    close(&node).await;
    fs::write(directory.path().join(LOG_FILE), &image[LOG_FILE]).expect("there is room");
    let error = context.run(read(&platform)).await.expect_err("it lacks commits").to_string();
    assert!(error.contains("or it is an old copy"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_of_another_member_are_refused() {
    let image = make(true).await;
    let directory = tempfile::tempdir().expect("a directory");
    put(directory.path(), &image[1]);
    for (cluster, node) in [(ClusterId([8; 16]), NodeId(1)), (ClusterId([7; 16]), NodeId(2))] {
        for kept in [LOG_FILE, STATE_FILE] {
            let lone = tempfile::tempdir().expect("a directory");
            fs::copy(directory.path().join(kept), lone.path().join(kept)).expect("there is room");
            let (platform, _spawner) = platform(node, lone.path(), &Links::default());
            let opened = RaftNode::open(platform, cluster, node, RaftConfig::default()).await;
            let error = opened.err().expect("it is another's");
            assert!(matches!(&error, OpenError::Other { file, .. } if *file == kept), "{error}");
            assert!(error.to_string().contains("belongs to node 1 of cluster 0707"), "{error}");
        }
    }
    // The first release wrote no cluster beside the state.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-dir-v1/state.redb.gz");
    let lone = tempfile::tempdir().expect("a directory");
    let mut packed = flate2::read::GzDecoder::new(fs::File::open(fixture).expect("the fixture"));
    let mut file = fs::File::create(lone.path().join(STATE_FILE)).expect("there is room");
    std::io::copy(&mut packed, &mut file).expect("the fixture is whole");
    let (platform, _spawner) = platform(NodeId(1), lone.path(), &Links::default());
    let opened = RaftNode::open(platform, ClusterId([8; 16]), NodeId(1), RaftConfig::default()).await;
    let error = opened.err().expect("it is another's").to_string();
    assert!(error.contains("belongs to cluster 0707"), "{error}");
}

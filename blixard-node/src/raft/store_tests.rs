//! openraft's own suite on the stores, and what it does not ask.

use std::time::Duration;

use blixard_core::id::{ClusterId, NodeId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::time::timeout;

use super::log_store::{self, LogStore};
use super::owner::Owner;
use super::snapshot::{self, SnapshotStore};
use super::state_machine::StateMachine;
use super::types::Types;
use super::{RaftConfig, queue, store, testing, wal};
use crate::disk::LinuxDisk;
use crate::watch;

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let disk = LinuxDisk::new(directory.path());
        let owner = Owner { cluster: ClusterId([7; 16]), node: NodeId(1) };
        let (failing, _) = watch::channel(None);
        let place_bytes = RaftConfig::default().log_place_bytes;
        let opened = wal::open(&disk, log_store::FILES, place_bytes, owner, [3; 16]).expect("a new log");
        let queue = queue::start(&disk, opened.writer, failing.clone()).expect("a thread");
        let log = LogStore::new(opened.wal, &opened.facts, queue);
        let (reader, queue, _) = store::open(&disk, snapshot::FILES, failing.clone()).expect("a new state");
        let (since_snapshot, _) = watch::channel(0);
        let snapshots = SnapshotStore::open(reader, queue, owner).await.expect("a new state");
        let machine = StateMachine::open(snapshots, owner.cluster, since_snapshot, failing).await;
        Ok((directory, log, machine.expect("a new state")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_accepts_the_stores() {
    testing::context(1).run(Suite::test_all(Builder)).await.expect("the suite passes");
}

/// redb writes once more when the last lets go: until then the file is not what the next start finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_has_not_closed_while_somebody_reads_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = LinuxDisk::new(directory.path());
    let (failing, _) = watch::channel(None);
    let (reader, queue, closing) = store::open(&disk, snapshot::FILES, failing).expect("a new state");
    drop(queue);
    let still = timeout(Duration::from_millis(300), closing.clone().closed()).await;
    assert!(still.is_err(), "it is read");
    drop(reader);
    timeout(Duration::from_secs(60), closing.closed()).await.expect("it closes");
}

//! openraft's own suite on the stores, and what it does not ask.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::snapshot::SnapshotStore;
use super::state_machine::StateMachine;
use super::types::Types;
use super::{store, testing};
use crate::disk::LinuxDisk;
use crate::watch;

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let disk = LinuxDisk::new(directory.path());
        let (failing, _) = watch::channel(None);
        let (reader, queue, _) = store::open(&disk, "raft.redb", failing.clone()).expect("a new log");
        let log = LogStore::open(reader, queue, 1).await.expect("a new log");
        let (reader, queue, _) = store::open(&disk, "state.redb", failing.clone()).expect("a new state");
        let (since_snapshot, _) = watch::channel(0);
        let machine = StateMachine::open(SnapshotStore::new(reader, queue), since_snapshot, failing).await;
        Ok((directory, log, machine.expect("a new state")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_accepts_the_stores() {
    testing::context(1).run(Suite::test_all(Builder)).await.expect("the suite passes");
}

//! The latest snapshot on disk: what it covers and the encoded state, replaced in one transaction.
//!
//! With the log after it, a snapshot is everything a member needs to start. The log is purged only
//! up to a snapshot that is durable here, since openraft purges after a snapshot was built or
//! installed, and both end here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::snapshot::{decode_state, encode_state};
use blixard_core::limits::SNAPSHOT_BYTES_MAX;
use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use redb::{ReadableTable as _, TableDefinition};
use sha2::{Digest, Sha256};

use super::codec::{CodecError, SnapshotMetaRecord, in_record, seal, unseal};
use super::owner::{Owner, StoreError};
use super::queue::Queue;
use super::store::{Files, Reader, Write};
use super::types::{Snapshot, SnapshotMeta, Types};
use crate::context::NodeContext;
use crate::database::{Values, damaged, io_error};

pub(super) const SNAPSHOT: Values = TableDefinition::new("snapshot");
const CLUSTER: &str = "cluster";
const NODE: &str = "node";
const META: &str = "meta";
const DATA: &str = "data";
const SHA256: &str = "sha256";

/// The files of the snapshot.
pub(super) const FILES: Files = Files { name: super::STATE_FILE, mark: "state.mark", values: SNAPSHOT };

/// Keeps the latest snapshot. Cloning shares it.
#[derive(Clone)]
pub(super) struct SnapshotStore {
    database: Reader,
    queue: Queue<Write>,
}

impl SnapshotStore {
    /// The store of `owner`, which becomes its own when it is new.
    ///
    /// # Errors
    /// Whose the store is, when it is another's.
    pub(super) async fn open(
        database: Reader,
        queue: Queue<Write>,
        owner: Owner,
    ) -> Result<Self, StoreError> {
        let claim = Box::new(move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(SNAPSHOT)?;
            for (name, value) in [(NODE, seal(NODE.as_bytes(), &owner.node)), (CLUSTER, owner.seal(CLUSTER))]
            {
                if table.get(name)?.is_none() {
                    table.insert(name, value.as_slice())?;
                }
            }
            Ok(())
        });
        queue.write(claim).await?;
        let found = database.read(|transaction| {
            let table = transaction.open_table(SNAPSHOT).map_err(io_error)?;
            Ok(Owner { cluster: value(&table, CLUSTER)?, node: value(&table, NODE)? })
        });
        found?.check(owner)?;
        Ok(Self { database, queue })
    }

    /// Makes a snapshot the latest, durably. One that covers less than the latest is ignored.
    pub(super) async fn save(&self, meta: &SnapshotMeta, data: Bytes) -> io::Result<()> {
        self.put(meta, data, false).await
    }

    /// Makes a snapshot the latest, durably, also when it covers less: the latest is wrong.
    pub(super) async fn replace(&self, meta: &SnapshotMeta, data: Bytes) -> io::Result<()> {
        self.put(meta, data, true).await
    }

    async fn put(&self, meta: &SnapshotMeta, data: Bytes, whatever_is_there: bool) -> io::Result<()> {
        let (meta, last) = (meta.clone(), meta.last_log_id);
        let write = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(SNAPSHOT)?;
            let kept = table.get(META)?.map(|bytes| unseal_meta(bytes.value()));
            if let Some(Ok(kept)) = kept
                && !whatever_is_there
                && kept.last_log_id > last
            {
                return Ok(());
            }
            let record = seal(META.as_bytes(), &SnapshotMetaRecord::from(&meta));
            table.insert(META, record.as_slice())?;
            table.insert(SHA256, Sha256::digest(&data).as_slice())?;
            table.insert(DATA, &data[..])?;
            Ok(())
        };
        self.queue.write(Box::new(write)).await
    }

    /// The latest snapshot, checked against its digest.
    pub(super) async fn load(&self) -> io::Result<Option<Snapshot>> {
        let database = self.database.clone();
        NodeContext::current().blocking(move || read(&database)).await
    }
}

fn unseal_meta(bytes: &[u8]) -> Result<SnapshotMeta, CodecError> {
    unseal::<SnapshotMetaRecord>(META.as_bytes(), bytes)?.try_into()
}

/// What the snapshot in a table covers, when there is one.
pub(super) fn read_meta(table: &Table) -> io::Result<Option<SnapshotMeta>> {
    let meta = table.get(META).map_err(io_error)?;
    Ok(meta.map(|bytes| unseal_meta(bytes.value())).transpose()?)
}

/// Has `change` change the state that a snapshot holds. False where there is none.
pub(super) fn alter(
    transaction: &redb::WriteTransaction,
    change: impl FnOnce(&mut ClusterState),
) -> io::Result<bool> {
    let mut table = transaction.open_table(SNAPSHOT).map_err(io_error)?;
    let Some(mut state) = table
        .get(DATA)
        .map_err(io_error)?
        .map(|data| decode_state(data.value()))
        .transpose()
        .map_err(io::Error::other)?
    else {
        return Ok(false);
    };
    change(&mut state);
    let data = encode_state(&state);
    table.insert(SHA256, Sha256::digest(&data).as_slice()).map_err(io_error)?;
    table.insert(DATA, data.as_slice()).map_err(io_error)?;
    Ok(true)
}

type Table = redb::ReadOnlyTable<&'static str, &'static [u8]>;

fn part(table: &Table, name: &'static str) -> io::Result<redb::AccessGuard<'static, &'static [u8]>> {
    let part = table.get(name).map_err(io_error)?;
    part.ok_or_else(|| damaged(format!("it has no {name}")))
}

fn value<T: serde::de::DeserializeOwned>(table: &Table, name: &'static str) -> io::Result<T> {
    unseal(name.as_bytes(), part(table, name)?.value())
        .map_err(|error| in_record(format_args!("its {name}"), error))
}

fn read(database: &Reader) -> io::Result<Option<Snapshot>> {
    database.read(|transaction| {
        let table = transaction.open_table(SNAPSHOT).map_err(io_error)?;
        if table.get(META).map_err(io_error)?.is_none() {
            return Ok(None);
        }
        let (meta, sha256, data) = (part(&table, META)?, part(&table, SHA256)?, part(&table, DATA)?);
        if Sha256::digest(data.value()).as_slice() != sha256.value() {
            return Err(damaged("the digest of the snapshot differs".to_owned()));
        }
        let meta = unseal_meta(meta.value()).map_err(|error| in_record("its meta", error))?;
        Ok(Some(Snapshot { meta, snapshot: Bytes::copy_from_slice(data.value()) }))
    })
}

/// A state as it was when openraft asked for a snapshot of it.
pub(super) struct SnapshotBuilder {
    pub(super) store: SnapshotStore,
    pub(super) meta: SnapshotMeta,
    pub(super) state: ClusterState,
    /// Is told how many bytes the state takes.
    pub(super) size: Arc<AtomicU64>,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let state = self.state.clone();
        let data = Bytes::from(NodeContext::current().blocking(move || encode_state(&state)).await);
        if data.len() as u64 > SNAPSHOT_BYTES_MAX {
            tracing::error!(
                bytes = data.len(),
                bytes_max = SNAPSHOT_BYTES_MAX,
                "the snapshot is too large to be sent to another member: remove services"
            );
        }
        self.store.save(&self.meta, data.clone()).await?;
        self.size.store(data.len() as u64, Ordering::Relaxed);
        tracing::info!(raft.index = self.state.applied, bytes = data.len(), "snapshot taken");
        Ok(Snapshot { meta: self.meta.clone(), snapshot: data })
    }
}

//! The latest snapshot on disk: what it covers and the encoded state, replaced in one transaction.
//!
//! With the log after it, a snapshot is everything a member needs to start. The log is purged only
//! up to a snapshot that is durable here, since openraft purges after a snapshot was built or
//! installed, and both end here.

use std::io;

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::snapshot::encode_state;
use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use redb::{ReadableTable as _, TableDefinition, TableError};
use sha2::{Digest, Sha256};

use super::codec::{CodecError, SnapshotMetaRecord, decode, encode};
use super::store::{Queue, Reader, io_error};
use super::types::{Snapshot, SnapshotMeta, Types};
use crate::context::NodeContext;

const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
const META: &str = "meta";
const DATA: &str = "data";
const SHA256: &str = "sha256";

/// Keeps the latest snapshot. Cloning shares it.
#[derive(Clone)]
pub(super) struct SnapshotStore {
    database: Reader,
    queue: Queue,
}

impl SnapshotStore {
    pub(super) fn new(database: Reader, queue: Queue) -> Self {
        Self { database, queue }
    }

    /// Makes a snapshot the latest, durably. One that covers less than the latest is ignored.
    pub(super) async fn save(&self, meta: &SnapshotMeta, data: Bytes) -> io::Result<()> {
        let (meta, last) = (meta.clone(), meta.last_log_id);
        let write = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(SNAPSHOT)?;
            let kept = table.get(META)?.map(|bytes| decode_meta(bytes.value()));
            if let Some(Ok(kept)) = kept
                && kept.last_log_id > last
            {
                return Ok(());
            }
            table.insert(META, encode(&SnapshotMetaRecord::from(&meta)).as_slice())?;
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

fn decode_meta(bytes: &[u8]) -> Result<SnapshotMeta, CodecError> {
    decode::<SnapshotMetaRecord>(bytes)?.try_into()
}

fn read(database: &Reader) -> io::Result<Option<Snapshot>> {
    let transaction = database.begin()?;
    let table = match transaction.open_table(SNAPSHOT) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let part = |name: &str| {
        let part = table.get(name).map_err(io_error)?;
        part.ok_or_else(|| damaged(format!("it has no {name}")))
    };
    let (meta, sha256, data) = (part(META)?, part(SHA256)?, part(DATA)?);
    if Sha256::digest(data.value()).as_slice() != sha256.value() {
        return Err(damaged("its digest differs".to_owned()));
    }
    let meta = decode_meta(meta.value()).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(Snapshot { meta, snapshot: Bytes::copy_from_slice(data.value()) }))
}

fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot cannot be used: {reason}"))
}

/// A state as it was when openraft asked for a snapshot of it.
pub(super) struct SnapshotBuilder {
    pub(super) store: SnapshotStore,
    pub(super) meta: SnapshotMeta,
    pub(super) state: ClusterState,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let state = self.state.clone();
        let data = Bytes::from(NodeContext::current().blocking(move || encode_state(&state)).await);
        self.store.save(&self.meta, data.clone()).await?;
        tracing::info!(raft.index = self.state.applied, bytes = data.len(), "snapshot taken");
        Ok(Snapshot { meta: self.meta.clone(), snapshot: data })
    }
}

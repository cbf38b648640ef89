//! Who this node is: its key, the cluster and id it was admitted under, and how often it started.
//!
//! Kept in a database of its own on the [`Disk`] seam, apart from the log, so that a store that is
//! dropped and reopened never changes who the node is. Every method blocks on the disk.

use std::io;
use std::ops::Bound;

use blixard_core::id::{ClusterId, NodeId, NodeKey};
use redb::{BackendError, Database, ReadableTable, StorageBackend, TableDefinition};

use crate::platform::{Disk, RandomSource};

/// The database's file.
pub const IDENTITY_FILE: &str = "node.redb";
/// The format of what is in it; another is refused.
const FORMAT: u64 = 1;
/// The database's cache, in bytes: it holds a handful of values.
const CACHE_BYTES: usize = 64 << 10;

const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("identity");

/// Why the identity cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk refuses: try again when it works.
    #[error("cannot use {IDENTITY_FILE}: {0}")]
    Disk(#[source] Box<redb::Error>),
    /// What is there is not an identity. Nothing is overwritten.
    #[error(
        "{IDENTITY_FILE} is damaged ({reason}): restore it from a backup, or move the data directory away and join as a new node"
    )]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// It already belongs elsewhere.
    #[error(
        "this data directory belongs to node {node} of cluster {cluster}, not to node {node_asked} of cluster {cluster_asked}: use another --data-dir"
    )]
    Other {
        /// The cluster it belongs to.
        cluster: ClusterId,
        /// The node it is.
        node: NodeId,
        /// The cluster it was to belong to.
        cluster_asked: ClusterId,
        /// The node it was to be.
        node_asked: NodeId,
    },
}

macro_rules! from_redb {
    ($($error:ty),+) => {$(
        impl From<$error> for IdentityError {
            fn from(error: $error) -> Self {
                match redb::Error::from(error) {
                    redb::Error::Corrupted(reason) => Self::Damaged { reason },
                    redb::Error::UpgradeRequired(version) => {
                        Self::Damaged { reason: format!("it has the database format {version}") }
                    }
                    // A file that does not begin like a database is an I/O error to redb.
                    redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                        Self::Damaged { reason: error.to_string() }
                    }
                    other => Self::Disk(Box::new(other)),
                }
            }
        }
    )+};
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// A node's identity, open.
pub struct Identity {
    database: Database,
    secret_key: [u8; 32],
    membership: Option<(ClusterId, NodeId)>,
    boots: u64,
}

impl Identity {
    /// Opens the identity, counting this start, or makes a new one with a key of its own when
    /// there is none.
    ///
    /// # Errors
    /// When the disk refuses, or what is there is damaged.
    pub fn load_or_create(disk: &dyn Disk, rng: &dyn RandomSource) -> Result<Self, IdentityError> {
        let backend = disk.open(IDENTITY_FILE).map_err(redb::StorageError::Io)?;
        let mut builder = Database::builder();
        let database = builder.set_cache_size(CACHE_BYTES).create_with_backend(Backend(backend))?;
        let transaction = database.begin_write()?;
        let identity = {
            let mut table = transaction.open_table(VALUES)?;
            let format = value(&table, "format")?.map(u64::from_be_bytes);
            let (secret_key, boots) = match format {
                None if table.is_empty()? => {
                    let mut secret_key = [0; 32];
                    rng.fill(&mut secret_key);
                    table.insert("format", &FORMAT.to_be_bytes()[..])?;
                    table.insert("secret_key", &secret_key[..])?;
                    (secret_key, 0)
                }
                Some(FORMAT) => {
                    let secret_key = value(&table, "secret_key")?.ok_or_else(|| missing("secret_key"))?;
                    (secret_key, value(&table, "boots")?.map_or(0, u64::from_be_bytes))
                }
                None => return Err(missing("format")),
                Some(other) => {
                    return Err(IdentityError::Damaged {
                        reason: format!("its format is {other}, this version reads {FORMAT}"),
                    });
                }
            };
            let boots = boots + 1;
            table.insert("boots", &boots.to_be_bytes()[..])?;
            let membership = match (value(&table, "cluster")?, value(&table, "node")?) {
                (Some(cluster), Some(node)) => Some((ClusterId(cluster), NodeId(u64::from_be_bytes(node)))),
                (None, None) => None,
                (Some(_), None) => return Err(missing("node")),
                (None, Some(_)) => return Err(missing("cluster")),
            };
            (secret_key, membership, boots)
        };
        transaction.commit()?;
        let (secret_key, membership, boots) = identity;
        Ok(Self { database, secret_key, membership, boots })
    }

    /// The secret key. Only the transport needs it.
    pub fn secret_key(&self) -> [u8; 32] {
        self.secret_key
    }

    /// The public key.
    pub fn key(&self) -> NodeKey {
        crate::transport::public_key(&self.secret_key)
    }

    /// The cluster and id it was admitted under.
    pub fn membership(&self) -> Option<(ClusterId, NodeId)> {
        self.membership
    }

    /// How often the node has started, this time included.
    pub fn boots(&self) -> u64 {
        self.boots
    }

    /// Records durably under which id which cluster admitted this node. Repeating it changes
    /// nothing.
    ///
    /// # Errors
    /// When it was admitted as someone else before, or the disk refuses; then nothing changed.
    pub fn set_membership(&mut self, cluster: ClusterId, node: NodeId) -> Result<(), IdentityError> {
        match self.membership {
            Some(held) if held == (cluster, node) => return Ok(()),
            Some((held_cluster, held_node)) => {
                return Err(IdentityError::Other {
                    cluster: held_cluster,
                    node: held_node,
                    cluster_asked: cluster,
                    node_asked: node,
                });
            }
            None => {}
        }
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(VALUES)?;
            table.insert("cluster", &cluster.0[..])?;
            table.insert("node", &node.0.to_be_bytes()[..])?;
        }
        transaction.commit()?;
        self.membership = Some((cluster, node));
        Ok(())
    }
}

fn value<const N: usize>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<Option<[u8; N]>, IdentityError> {
    let Some(guard) = table.get(name)? else { return Ok(None) };
    let bytes = guard.value();
    bytes.try_into().map(Some).map_err(|_| IdentityError::Damaged {
        reason: format!("`{name}` has {} bytes instead of {N}", bytes.len()),
    })
}

fn missing(name: &str) -> IdentityError {
    IdentityError::Damaged { reason: format!("`{name}` is missing") }
}

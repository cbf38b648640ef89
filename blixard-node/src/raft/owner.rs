//! Whose a store is: written into it when it is made, and checked whenever it opens. A store that
//! was put in the place of another would give a member a past that it does not have.

use std::io;

use blixard_core::id::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::codec::seal;

/// A member of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
}

impl Owner {
    /// The cluster as a store keeps it under `key`.
    pub(super) fn seal(&self, key: &str) -> Vec<u8> {
        seal(key.as_bytes(), &self.cluster)
    }

    /// Checks that what was found is what was expected.
    pub(super) fn check(self, expected: Self) -> Result<(), StoreError> {
        let found = || format!("node {} of cluster {}", self.node, self.cluster);
        if self == expected { Ok(()) } else { Err(StoreError::Other { found: found() }) }
    }
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// It is another member's.
    #[error("it belongs to {found}")]
    Other {
        /// Whose, for people.
        found: String,
    },
    /// It cannot be read or written; [`io::ErrorKind::InvalidData`] when it is damaged.
    #[error(transparent)]
    Io(#[from] io::Error),
}

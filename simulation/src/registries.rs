//! The registry files by which machines find each other: real files, read by production's
//! `discovery::sources`, in a directory of the world. They may be missing, old, damaged or name
//! somebody nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blixard_core::discovery::file::Registry;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::NodeId;
use blixard_core::id::NodeKey;
use tempfile::TempDir;

/// What is wrong with a registry file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// It is not there.
    Missing,
    /// It is what a member that has left wrote.
    Stale,
    /// It ends in the middle.
    Malformed,
    /// It holds a key that nobody has.
    Stranger,
}

/// The files of a world. The directory goes with the value.
pub struct Registries {
    directory: TempDir,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    current: BTreeMap<u64, Registry>,
    former: BTreeMap<u64, Registry>,
    harmed: BTreeSet<u64>,
}

impl Registries {
    /// No files yet.
    ///
    /// # Panics
    /// When the machine that simulates has no place for temporary files.
    pub fn new() -> Self {
        // Nobody's before: what another process left would be read as this world's files.
        let directory = tempfile::Builder::new().prefix("simulation-").tempdir();
        let directory = directory.expect("there is room for temporary files");
        Self { directory, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, machine: u64) -> PathBuf {
        self.directory.path().join(format!("machine-{machine}.json"))
    }

    /// The files of all machines but `machine`, to join by.
    pub fn others(&self, machine: u64, machines: u64) -> Vec<JoinTarget> {
        (1..=machines)
            .filter(|other| *other != machine)
            .map(|other| JoinTarget::File(self.path(other)))
            .collect()
    }

    /// A node that has come up writes its file.
    pub fn publish(&self, machine: u64, node: NodeId, ticket: &Ticket) {
        let registry = Registry {
            node,
            peer: ticket.peer.clone(),
            cluster: ticket.cluster,
            token: Some(ticket.token.clone()),
        };
        let mut inner = self.lock();
        let former = inner.current.insert(machine, registry.clone());
        if let Some(former) = former.filter(|former| former.node != node) {
            inner.former.insert(machine, former);
        }
        if !inner.harmed.contains(&machine) {
            write(&self.path(machine), &registry.to_json());
        }
    }

    /// Harms a machine's file; false when it has none, or none that could be harmed so.
    pub fn harm(&self, machine: u64, harm: Harm) -> bool {
        let mut inner = self.lock();
        let Some(current) = inner.current.get(&machine).cloned() else { return false };
        let path = self.path(machine);
        match harm {
            Harm::Missing => {
                // It may be missing already.
                std::fs::remove_file(path).ok();
            }
            Harm::Stale => {
                let Some(former) = inner.former.get(&machine) else { return false };
                write(&path, &former.to_json());
            }
            Harm::Malformed => {
                let text = current.to_json();
                write(&path, &text[..text.len() / 2]);
            }
            Harm::Stranger => {
                let mut stranger = current;
                stranger.peer.key = NodeKey([0x5a; 32]);
                write(&path, &stranger.to_json());
            }
        }
        inner.harmed.insert(machine);
        true
    }

    /// Makes a machine's file what it should be.
    pub fn mend(&self, machine: u64) {
        let mut inner = self.lock();
        if inner.harmed.remove(&machine)
            && let Some(current) = inner.current.get(&machine)
        {
            write(&self.path(machine), &current.to_json());
        }
    }
}

impl Default for Registries {
    fn default() -> Self {
        Self::new()
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("there is room for temporary files");
}

//! Raft: [`RaftNode`], one member's part in agreeing on the log.
//!
//! The only users of openraft's and redb's types; what leaves this module are commands, states and
//! outcomes. Writes go to the leader ([`RaftNode::propose`]; forwarding is the caller's), reads are
//! of the applied state, after [`RaftNode::read_barrier`] when they must see every write
//! acknowledged before. Nothing here decides who should be a member or lead.
//!
//! A failed store ends Raft, not the process: [`RaftNode::failed`] tells the composition root, which
//! shuts this down and opens it again while containers run on. One that is damaged is not opened
//! again: a member that forgot what it agreed to must not agree to anything.

mod change;
mod codec;
mod config;
#[cfg(test)]
mod damage_tests;
mod digests;
#[cfg(test)]
mod golden_tests;
mod inbound;
pub mod inspect;
mod joining;
mod log_store;
mod message;
mod migrate;
mod network;
mod owner;
mod propose;
mod queue;
mod rebuild;
mod runtime;
mod snapshot;
mod state_machine;
mod status;
mod store;
#[cfg(test)]
mod store_tests;
mod tail;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod types;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_core::id::{ClusterId, NodeId};
use blixard_core::time::{LogClock, Mono};
use openraft::RaftLogReader as _;
use openraft::error::{InitializeError, RaftError};

pub use self::config::RaftConfig;
pub(crate) use self::digests::Compared;
use self::digests::Points;
use self::joining::Joining;
use self::log_store::LogStore;
use self::owner::{Owner, StoreError};
pub use self::propose::ProposeError;
use self::queue::{Closing, Queue};
pub(crate) use self::rebuild::Replacement;
use self::snapshot::SnapshotStore;
use self::state_machine::StateMachine;
pub use self::status::StatusWatch;
pub(crate) use self::store::Backend;
use self::store::Files;
use self::types::Raft;
use crate::context::NodeContext;
use crate::database;
use crate::platform::{Disk, Platform};
use crate::watch;

/// The file of the log.
pub(crate) const LOG_FILE: &str = "raft.wal";
/// The file of the snapshot.
const STATE_FILE: &str = "state.redb";
/// How long an opening store waits for the one before it to let go of its file.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// How long a shutdown waits for the stores to write what is queued.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long the byte count of the log is left alone after it called for a snapshot.
const COMPACTION_PAUSE: Duration = Duration::from_secs(1);

/// Why Raft could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A store is another member's.
    #[error(
        "{file} belongs to {found}, not to node {node} of cluster {cluster}: put the right file back, or use another --data-dir"
    )]
    Other {
        /// The store's file.
        file: &'static str,
        /// Whose it is, for people.
        found: String,
        /// Who opened it.
        node: NodeId,
        /// The opener's cluster.
        cluster: ClusterId,
    },
    /// What a store holds is not what was written: it cannot be said what this member agreed to.
    #[error(
        "{file} is damaged ({reason}), and with it what node {node} agreed to: give the node up: `blixard node rm {node} --force` on another member, `blixard node purge --yes` here, then join anew; containers go on until then. No copy of the file helps. If this was the only member, its cluster is lost with it"
    )]
    Damaged {
        /// The store's file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
        /// The member.
        node: NodeId,
    },
    /// A store that this member has written is not there any more. Starting without it would let
    /// the member vote and acknowledge again what it has forgotten.
    #[error(
        "{file} is missing or empty, and with it what node {node} agreed to: put the file back. If it is lost, give the node up: `blixard node rm {node} --force` on another member, `blixard node purge --yes` here, then join anew. If this was the only member, its cluster is lost with it"
    )]
    Lost {
        /// The store's file.
        file: &'static str,
        /// The member.
        node: NodeId,
    },
    /// Another process has the stores open.
    #[error("{0}")]
    InUse(String),
    /// The stores cannot be read or written, or hold what this software does not understand.
    #[error("{0}")]
    Store(String),
    /// The timings contradict each other.
    #[error("the Raft timings are no good: {0}")]
    Config(String),
}

impl OpenError {
    /// Whether trying again cannot help: somebody must act.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Other { .. } | Self::Damaged { .. } | Self::Lost { .. } | Self::Config(_) => true,
            Self::InUse(_) | Self::Store(_) => false,
        }
    }
}

/// One member's Raft. Cloning shares it.
#[derive(Clone)]
pub struct RaftNode {
    inner: Arc<Inner>,
}

struct Inner {
    id: NodeId,
    platform: Platform,
    context: NodeContext,
    config: RaftConfig,
    raft: Raft,
    state: watch::Receiver<Arc<ClusterState>>,
    /// About how many bytes the state takes encoded.
    state_bytes: Arc<AtomicU64>,
    joining: Joining,
    digests: Arc<Points>,
    failure: watch::Receiver<Option<Arc<str>>>,
    leader_contact: Mutex<Option<(NodeId, Mono)>>,
    /// Told when a leader is heard for the first time, or again after a silence.
    contacts: watch::Sender<()>,
    log_clock: Mutex<LogClock>,
    closing: Vec<Closing>,
}

/// Checks that the log of `node`, which has one, is on `disk` still.
///
/// # Errors
/// [`OpenError::Lost`] when it is not; [`OpenError::Store`] when the disk refuses to tell.
pub fn check_log(disk: &dyn Disk, node: NodeId) -> Result<(), OpenError> {
    if has_log(disk)? { Ok(()) } else { Err(OpenError::Lost { file: LOG_FILE, node }) }
}

/// Whether there is a log on `disk`.
///
/// # Errors
/// [`OpenError::Store`] when the disk refuses to tell.
pub fn has_log(disk: &dyn Disk) -> Result<bool, OpenError> {
    let begun = || Ok::<_, io::Error>(wal::is_begun(disk, log_store::FILES)? || migrate::is_there(disk)?);
    begun().map_err(|error| OpenError::Store(format!("cannot open {LOG_FILE}: {error}")))
}

impl RaftNode {
    /// Opens the stores of `id` in the platform's data directory, making them when absent, and
    /// starts Raft on what they hold.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::is_final`] says which may be tried again.
    pub async fn open(
        platform: Platform,
        cluster: ClusterId,
        id: NodeId,
        config: RaftConfig,
    ) -> Result<Self, OpenError> {
        Self::open_with(platform, Owner { cluster, node: id }, config, None).await
    }

    /// As [`RaftNode::open`], with the majority's state in the place of this member's snapshot.
    ///
    /// # Errors
    /// As there; [`OpenError::Store`] too when the log does not go on from that state.
    pub(crate) async fn rebuild(
        platform: Platform,
        cluster: ClusterId,
        id: NodeId,
        config: RaftConfig,
        replacement: Replacement,
    ) -> Result<Self, OpenError> {
        Self::open_with(platform, Owner { cluster, node: id }, config, Some(replacement)).await
    }

    async fn open_with(
        platform: Platform,
        owner: Owner,
        config: RaftConfig,
        replacement: Option<Replacement>,
    ) -> Result<Self, OpenError> {
        let context = NodeContext::new(&platform);
        context.clone().run(Self::open_in(context, platform, owner, config, replacement)).await
    }

    async fn open_in(
        context: NodeContext,
        platform: Platform,
        owner: Owner,
        config: RaftConfig,
        replacement: Option<Replacement>,
    ) -> Result<Self, OpenError> {
        let id = owner.node;
        let openraft = config.openraft().map_err(|error| OpenError::Config(error.to_string()))?;
        let (failing, failure) = watch::channel(None);

        let (log, log_closing) = open_log(&platform, owner, &failing, config.log_place_bytes).await?;
        let (since_snapshot, uncompacted) = watch::channel(0);
        if let Some(replacement) = replacement {
            replace_state(&platform, owner, &failing, &log, replacement).await?;
        }
        let opened = open_state(&platform, owner, &failing, &since_snapshot).await;
        let (machine, state_closing) = match opened {
            // The log begins with the cluster: the snapshot is only an abridgement of it.
            Err(error @ (OpenError::Damaged { .. } | OpenError::Lost { .. })) if log.purged().is_none() => {
                tracing::warn!(store = STATE_FILE, err = %error, "the snapshot is no good; the log makes it anew");
                let reset = database::reset(&*platform.disk, STATE_FILE, snapshot::FILES.mark);
                reset.map_err(|error| OpenError::Store(format!("cannot empty {STATE_FILE}: {error}")))?;
                open_state(&platform, owner, &failing, &since_snapshot).await?
            }
            opened => opened?,
        };
        // What the log no longer holds is in a snapshot, or nowhere.
        if log.purged() > machine.applied() {
            return Err(OpenError::Lost { file: STATE_FILE, node: id });
        }

        let mut reader = log.reader();
        let (state, state_bytes, digests) = (machine.published(), machine.size(), machine.digests());
        let network = network::Network { id: id.0, transport: Arc::clone(&platform.transport) };
        let started = Raft::new(id.0, openraft, network, log, machine).await;
        let raft = started.map_err(|fatal| {
            let words = failure.borrow().as_deref().map(str::to_owned);
            OpenError::Store(words.unwrap_or_else(|| fatal.to_string()))
        })?;
        let applied = Arc::clone(&state.borrow());
        let entries = reader.limited_get_log_entries(applied.applied + 1, u64::MAX).await;
        // Whoever needs what cannot be read says so.
        let joining = Joining::read(&applied, &entries.unwrap_or_default());
        context.spawn("state digests", digests::run(Arc::clone(&digests)));
        context.spawn("raft compaction", compact(raft.clone(), uncompacted, config.snapshot_bytes));
        let closing = vec![log_closing, state_closing];
        let leader_contact = Mutex::new(None);
        let (contacts, _) = watch::channel(());
        let inner = Inner {
            id,
            platform,
            context,
            config,
            raft,
            state,
            state_bytes,
            joining,
            digests,
            failure,
            leader_contact,
            contacts,
            log_clock: Mutex::default(),
            closing,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes this member a cluster of its own, its only voter. Does nothing when it has a log.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn initialize(&self) -> Result<(), ProposeError> {
        let alone = BTreeSet::from([self.inner.id.0]);
        match self.context().run(self.raft().initialize(alone)).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ProposeError::Fatal(self.words(&error))),
        }
    }

    /// Whether this member has a log or voted: it was initialized, or a leader reached it.
    pub async fn is_initialized(&self) -> bool {
        self.context().run(self.raft().is_initialized()).await.unwrap_or(false)
    }

    /// The state as this member has applied it; perhaps old.
    pub fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.inner.state.borrow())
    }

    /// Members that the log named when it was opened and the state did not have.
    pub(crate) fn joining(&self) -> &Joining {
        &self.inner.joining
    }

    /// About how many bytes the state takes encoded.
    pub fn state_bytes(&self) -> u64 {
        self.inner.state_bytes.load(Ordering::Relaxed)
    }

    /// The state, and every later one; a slow receiver skips some.
    pub fn watch_state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.state.clone()
    }

    /// Tells when leader, term or membership change.
    pub fn watch_status(&self) -> StatusWatch {
        StatusWatch::new(self)
    }

    /// How many entries a member's log lacks, as far as this leader knows; absent when this member
    /// does not lead or knows nothing of that one yet.
    pub fn replication_lag(&self, id: NodeId) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.as_ref()?.get(&id.0)?.as_ref()?;
        Some(metrics.last_log_index.unwrap_or(0).saturating_sub(matched.index))
    }

    /// How far every member's log is known to match this leader's; empty when it does not lead.
    pub fn matched(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        let known = metrics.replication.iter().flatten();
        known.filter_map(|(id, matched)| Some((NodeId(*id), matched.as_ref()?.index))).collect()
    }

    /// Which leader last sent this member entries or a heartbeat, and when.
    pub fn last_leader_contact(&self) -> Option<(NodeId, Mono)> {
        *self.leader_contact()
    }

    /// The same, for a member that begins to lead: it is the leader before it. Forgotten after that,
    /// since the one before this member's next term may be another that it never heard.
    pub fn take_leader_contact(&self) -> Option<(NodeId, Mono)> {
        self.leader_contact().take()
    }

    /// Has this member take a snapshot of what it has applied, in the background.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn trigger_snapshot(&self) -> Result<(), ProposeError> {
        let triggered = self.context().run(async { self.raft().trigger().snapshot().await }).await;
        triggered.map_err(|fatal| ProposeError::Fatal(self.words(&fatal)))
    }

    /// Has this member stand for election now rather than after its leader's silence.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn trigger_election(&self) -> Result<(), ProposeError> {
        let triggered = self.context().run(async { self.raft().trigger().elect(true).await }).await;
        triggered.map_err(|fatal| ProposeError::Fatal(self.words(&fatal)))
    }

    /// Waits until Raft has stopped, because a store failed, an entry could not be understood or it
    /// was shut down, and says why. Cancel safe.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft().metrics();
        let fatal = loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                break fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                break "raft stopped".to_owned();
            }
        };
        self.words(&fatal)
    }

    /// Stops Raft and closes the stores. Does not hand leadership over: see
    /// [`RaftNode::transfer_leader`].
    pub async fn shutdown(&self) {
        // The error says that Raft's task panicked: it is gone all the same.
        let _ = self.context().run(self.raft().shutdown()).await;
        for closing in &self.inner.closing {
            if tokio::time::timeout(CLOSE_WAIT, closing.clone().closed()).await.is_err() {
                tracing::warn!(within = ?CLOSE_WAIT, "a store did not close in time");
            }
        }
    }

    fn id(&self) -> NodeId {
        self.inner.id
    }

    fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    fn config(&self) -> &RaftConfig {
        &self.inner.config
    }

    fn context(&self) -> &NodeContext {
        &self.inner.context
    }

    fn leader_contact(&self) -> MutexGuard<'_, Option<(NodeId, Mono)>> {
        self.inner.leader_contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_clock(&self) -> MutexGuard<'_, LogClock> {
        self.inner.log_clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why Raft stopped: the store's words when it is the store, else openraft's.
    fn words(&self, fatal: &impl ToString) -> String {
        self.inner.failure.borrow().as_deref().map_or_else(|| fatal.to_string(), str::to_owned)
    }
}

async fn open_log(
    platform: &Platform,
    owner: Owner,
    failing: &watch::Sender<Option<Arc<str>>>,
    place_bytes: u64,
) -> Result<(LogStore, Closing), OpenError> {
    let mut salt = [0; 16];
    platform.rng.fill(&mut salt);
    let migrate =
        move |disk: &dyn Disk, _| migrate::migrate(disk, log_store::FILES, place_bytes, owner, salt);
    opened(platform, migrate::OLD_FILE, owner, failing, migrate).await?;
    let open = move |disk: &dyn Disk, failing| {
        let wal::Opened { wal, writer, owner: found, facts, closing } =
            wal::open(disk, log_store::FILES, place_bytes, owner, salt)?;
        found.check(owner)?;
        let queue = queue::start(disk, writer, failing)?;
        Ok((LogStore::new(wal, &facts, queue), closing))
    };
    opened(platform, LOG_FILE, owner, failing, open).await
}

async fn open_state(
    platform: &Platform,
    owner: Owner,
    failing: &watch::Sender<Option<Arc<str>>>,
    since_snapshot: &watch::Sender<u64>,
) -> Result<(StateMachine, Closing), OpenError> {
    let (reader, queue, closing) = open_store(platform, snapshot::FILES, owner, failing).await?;
    let opening = async {
        let snapshots = SnapshotStore::open(reader, queue, owner).await?;
        StateMachine::open(snapshots, owner.cluster, since_snapshot.clone(), failing.clone()).await
    };
    match opening.await {
        Ok(machine) => Ok((machine, closing)),
        Err(error) => {
            closing.closed().await;
            Err(refusal(STATE_FILE, owner, error))
        }
    }
}

/// Puts the majority's state in the place of this member's snapshot, durably.
async fn replace_state(
    platform: &Platform,
    owner: Owner,
    failing: &watch::Sender<Option<Arc<str>>>,
    log: &LogStore,
    replacement: Replacement,
) -> Result<(), OpenError> {
    let Replacement { meta, data } = replacement;
    if log.purged() > meta.last_log_id {
        return Err(OpenError::Store("the log begins after the state that was to be opened".to_owned()));
    }
    let (reader, queue, closing) = open_store(platform, snapshot::FILES, owner, failing).await?;
    let replacing = async {
        let snapshots = SnapshotStore::open(reader, queue, owner).await?;
        snapshots.replace(&meta, data).await.map_err(StoreError::Io)
    };
    let replaced = replacing.await;
    closing.closed().await;
    replaced.map_err(|error| refusal(STATE_FILE, owner, error))
}

fn refusal(file: &'static str, owner: Owner, error: StoreError) -> OpenError {
    let Owner { cluster, node } = owner;
    match error {
        StoreError::Other { found } => OpenError::Other { file, found, node, cluster },
        StoreError::Io(error) => unusable(file, node, &error),
    }
}

fn unusable(file: &'static str, node: NodeId, error: &io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::InvalidData => OpenError::Damaged { file, reason: error.to_string(), node },
        io::ErrorKind::NotFound => OpenError::Lost { file, node },
        _ => OpenError::Store(format!("cannot open {file}: {error}")),
    }
}

async fn open_store(
    platform: &Platform,
    files: Files,
    owner: Owner,
    failing: &watch::Sender<Option<Arc<str>>>,
) -> Result<(store::Reader, Queue<store::Write>, Closing), OpenError> {
    let open = move |disk: &dyn Disk, failing| Ok(store::open(disk, files, failing)?);
    opened(platform, files.name, owner, failing, open).await
}

/// Opens a file, waiting a little for one of this process, shut down a moment ago, to let go of it.
async fn opened<T: Send + 'static>(
    platform: &Platform,
    name: &'static str,
    owner: Owner,
    failing: &watch::Sender<Option<Arc<str>>>,
    open: impl Fn(&dyn Disk, watch::Sender<Option<Arc<str>>>) -> Result<T, StoreError> + Clone + Send + 'static,
) -> Result<T, OpenError> {
    let give_up = platform.clock.now() + LOCK_WAIT;
    loop {
        let (disk, failing, open) = (Arc::clone(&platform.disk), failing.clone(), open.clone());
        match NodeContext::current().blocking(move || open(&*disk, failing)).await {
            Err(StoreError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if platform.clock.now() >= give_up {
                    return Err(OpenError::InUse(format!("{name}: {error}")));
                }
                platform.clock.sleep_until(platform.clock.now() + LOCK_POLL).await;
            }
            opened => return opened.map_err(|error| refusal(name, owner, error)),
        }
    }
}

/// Takes a snapshot whenever `uncompacted` bytes of commands exceed `bytes_max`; openraft itself
/// counts entries only.
async fn compact(raft: Raft, mut uncompacted: watch::Receiver<u64>, bytes_max: u64) {
    while uncompacted.wait_for(|bytes| *bytes > bytes_max).await.is_ok() {
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        tokio::time::sleep(COMPACTION_PAUSE).await;
    }
}

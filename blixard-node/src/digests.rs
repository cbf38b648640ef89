//! Whether this node's state is the one that a majority has, and which members' are not: shared by
//! whoever learns of it, and said in the log. What is compared, and what follows of it, is decided in
//! [`blixard_core::cluster::digests`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::cluster::digests::{self, Agreed, Comparison, Difference, StateDigest};
use blixard_core::id::NodeId;
use blixard_core::time::Mono;

use crate::handle::RaftStatus;
use crate::raft::{Compared, RaftNode};
use crate::seldom::Seldom;
use crate::watch;

/// How long what was last said of who differs counts: it is said again with each sign of life.
const SAID_COUNTS: Duration = Duration::from_secs(8);

/// What this node knows of how members' states compare.
pub(crate) struct Digests {
    inner: Mutex<Inner>,
    /// What a majority agrees on and this node's state is not, while that is so.
    wrong: watch::Sender<Option<Arc<Agreed>>>,
    /// Whether the store was opened on the majority's state, and what is published is still from before.
    replaced: AtomicBool,
}

#[derive(Default)]
struct Inner {
    /// What members told this node as leader.
    told: digests::Digests,
    /// Who differs, as this node found as leader or as the leader said.
    differing: BTreeMap<NodeId, Difference>,
    said: Mono,
    warnings: BTreeMap<NodeId, Seldom>,
}

impl Default for Digests {
    fn default() -> Self {
        let (wrong, _) = watch::channel(None);
        Self { inner: Mutex::default(), wrong, replaced: AtomicBool::new(false) }
    }
}

impl Digests {
    /// What a member said with its sign of life, to this node as leader, or this node itself.
    pub(crate) fn member_told(&self, member: NodeId, digests: Vec<StateDigest>, now: Mono) {
        self.with(|inner| inner.told.member_told(member, digests, now));
    }

    /// Compares what members told, as leader.
    pub(crate) fn compare(&self, status: &RaftStatus, now: Mono) -> Comparison {
        let voters = status.voters();
        let members = status.members().collect();
        let comparison = self.with(|inner| inner.told.compare(&voters, &members, now));
        self.learn(comparison.differing.clone(), now);
        comparison
    }

    /// Takes in who differs: of the leader's answer, or found as leader.
    pub(crate) fn learn(&self, differing: BTreeMap<NodeId, Difference>, now: Mono) {
        self.with(|inner| {
            inner.warnings.retain(|node, _| differing.contains_key(node));
            for (node, difference) in &differing {
                if let Some(before) = inner.warnings.entry(*node).or_default().due(now) {
                    tracing::error!(peer.id = %node, before, "{}", difference.words(*node));
                }
            }
            (inner.differing, inner.said) = (differing, now);
        });
    }

    /// Who differs, as was last said.
    pub(crate) fn differing(&self, now: Mono) -> BTreeMap<NodeId, Difference> {
        self.with(|inner| match now.since(inner.said) < SAID_COUNTS {
            true => inner.differing.clone(),
            false => BTreeMap::new(),
        })
    }

    /// Other members that are to be given the majority's state, as was last said.
    pub(crate) fn replaced_members(&self, now: Mono) -> BTreeSet<NodeId> {
        let differing = self.differing(now).into_iter();
        differing.filter(|(_, difference)| difference.by_majority).map(|(node, _)| node).collect()
    }

    /// Compares this node's own state, which `raft` holds, with what a majority agrees on.
    pub(crate) fn judge(&self, raft: &RaftNode, agreed: &Agreed) {
        let known = self.wrong();
        match raft.compare_digest(agreed) {
            Compared::Differs => {
                if known.is_none() {
                    tracing::error!(
                        raft.index = agreed.digest.index,
                        "this node's state is not the majority's: it answers nobody until it has theirs; its containers run on"
                    );
                }
                raft.set_differs(true);
                self.wrong.send(Some(Arc::new(agreed.clone())));
            }
            // It was given a snapshot since.
            Compared::Same if known.is_some_and(|known| known.digest.index < agreed.digest.index) => {
                raft.set_differs(false);
                self.set_right();
            }
            Compared::Same | Compared::Unknown => {}
        }
    }

    /// What a majority agrees on, where this node's state is another.
    pub(crate) fn wrong(&self) -> Option<Arc<Agreed>> {
        self.wrong.borrow().clone()
    }

    /// Whether this node's state is known to be wrong.
    pub(crate) fn is_wrong(&self) -> bool {
        self.wrong.borrow().is_some()
    }

    /// Why this node answers nobody, if it does not.
    pub(crate) fn refusal(&self) -> Option<String> {
        let index = self.wrong()?.digest.index;
        Some(format!(
            "this node's state at log index {index} is not the one that the majority of the cluster has: it answers again once it has theirs"
        ))
    }

    /// Tells when this node's state is found to be wrong, and when it is right again.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Agreed>>> {
        self.wrong.subscribe()
    }

    /// Waits until this node's state is known to be wrong, and returns what the majority agrees on.
    /// Cancel safe.
    pub(crate) async fn wait_wrong(&self) -> Arc<Agreed> {
        let mut watched = self.watch();
        loop {
            if let Some(agreed) = &*watched.borrow_and_update() {
                return Arc::clone(agreed);
            }
            // The sender lives as long as `self`.
            watched.changed().await.ok();
        }
    }

    /// Waits until this node's state is not known to be wrong. Cancel safe.
    pub(crate) async fn wait_right(&self) {
        // The sender lives as long as `self`.
        self.watch().wait_for(Option::is_none).await.ok();
    }

    /// The store was opened on the majority's state.
    pub(crate) fn set_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Whether it was, and what is published is still from before.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// What is published is right.
    pub(crate) fn set_right(&self) {
        self.replaced.store(false, Ordering::Relaxed);
        if self.wrong.send_if_modified(|wrong| wrong.take().is_some()) {
            tracing::info!("this node has the majority's state, and answers again");
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! Signs of life on their way to the leader's task.
//!
//! They are kept apart from its queue, the latest of each member only, with the time at which it
//! arrived: a leader that has much to do, or waits for a commit, must take nobody to be dead whose
//! sign of life stands in line behind writes, and no member waits for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blixard_core::cluster::node::NodeFacts;
use blixard_core::id::NodeId;
use blixard_core::time::Mono;
use tokio::sync::Notify;

/// A member's sign of life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Beat {
    /// Which start of its daemon sent it.
    pub(crate) boot: u64,
    /// What it tells of itself.
    pub(crate) facts: NodeFacts,
    /// When it arrived.
    pub(crate) at: Mono,
}

/// The latest sign of life of each member that sent one.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    latest: Mutex<BTreeMap<NodeId, Beat>>,
    news: Notify,
}

impl Beats {
    /// Takes in a sign of life. It wakes the leader's task when it is news: most say what is known.
    pub(crate) fn put(&self, node: NodeId, beat: Beat, is_news: bool) {
        self.lock().insert(node, beat);
        if is_news {
            self.news.notify_one();
        }
    }

    /// What came since the last time.
    pub(crate) fn take(&self) -> BTreeMap<NodeId, Beat> {
        std::mem::take(&mut *self.lock())
    }

    /// Waits for news. Cancel safe.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Beat>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

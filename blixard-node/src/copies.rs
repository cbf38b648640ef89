//! Which nodes run twice, shared by whoever learns of it, and said in the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use blixard_core::discovery::copies::{self, Twice};
use blixard_core::id::NodeId;
use blixard_core::time::Mono;

use crate::seldom::Seldom;

/// The nodes that run twice, as far as this node knows.
#[derive(Default)]
pub(crate) struct Copies(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    known: copies::Copies,
    warnings: BTreeMap<NodeId, Seldom>,
}

impl Copies {
    /// This node refused a start of `node`, or was refused itself.
    pub(crate) fn refused(&self, node: NodeId, twice: Twice, now: Mono) {
        self.learn(now, |known| known.refused(node, twice, now));
    }

    /// What a member said with its sign of life, to this node as leader.
    pub(crate) fn member_told(&self, member: NodeId, twice: BTreeMap<NodeId, Twice>, now: Mono) {
        self.learn(now, |known| known.member_told(member, twice, now));
    }

    /// What the leader answered to a sign of life.
    pub(crate) fn leader_told(&self, twice: BTreeMap<NodeId, Twice>, now: Mono) {
        self.learn(now, |known| known.leader_told(twice, now));
    }

    /// What to tell the leader.
    pub(crate) fn for_leader(&self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.with(|inner| inner.known.for_leader(now))
    }

    /// What to tell members, as leader.
    pub(crate) fn for_members(&self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.with(|inner| inner.known.for_members(now))
    }

    /// What the leader said.
    pub(crate) fn by_leader(&self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.with(|inner| inner.known.by_leader(now))
    }

    /// All that run twice.
    pub(crate) fn all(&self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.with(|inner| inner.known.all(now))
    }

    fn learn(&self, now: Mono, learn: impl FnOnce(&mut copies::Copies)) {
        self.with(|Inner { known, warnings }| {
            learn(known);
            let all = known.all(now);
            warnings.retain(|node, _| all.contains_key(node));
            for (node, twice) in all {
                if let Some(before) = warnings.entry(node).or_default().due(now) {
                    tracing::error!(peer.id = %node, before, "{}", twice.words(node));
                }
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

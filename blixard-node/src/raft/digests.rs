//! Digests of this member's state, made off the path of commits.
//!
//! The state machine takes a copy of the state, which costs nothing, where a digest is due
//! ([`digests::is_due`]); the task here hashes it. While nothing is applied it hashes the state as it
//! stands. The states of the newest digests are kept for a member whose own differs. Whether digests
//! agree is decided elsewhere ([`digests::Digests`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blixard_core::cluster::ClusterState;
use blixard_core::cluster::digests::{self, Agreed, DIGEST_VERSION, StateDigest};
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::snapshot::digest;
use blixard_core::limits::{DIGEST_QUIET, DIGEST_QUIET_AGAIN, DIGEST_STATES_KEPT, DIGESTS_TOLD_MAX};
use blixard_core::time::{Mono, UtcMs};
use tokio::sync::Notify;

use super::types::{LogId, SnapshotMeta, StoredMembership};
use crate::context::NodeContext;

/// How many digests are kept: what the majority agreed on is heard of a little later.
const KEPT: usize = 4 * DIGESTS_TOLD_MAX;

/// A state and the entry it is of.
#[derive(Debug, Clone)]
struct Taken {
    last: LogId,
    membership: Arc<StoredMembership>,
    state: ClusterState,
}

/// A digest, and the state it is of while that is kept.
#[derive(Debug)]
struct Made {
    digest: StateDigest,
    last: LogId,
    membership: Arc<StoredMembership>,
    state: Option<ClusterState>,
}

/// How this member's state compares with what a majority agrees on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// It is the same.
    Same,
    /// It is another.
    Differs,
    /// It made no digest of that index, or forgot it.
    Unknown,
}

/// The digests of one open store, shared by the state machine, the task and who asks.
#[derive(Debug, Default)]
pub(super) struct Points {
    inner: Mutex<Inner>,
    due: Notify,
    /// Whether this member's state is known to be wrong.
    differs: AtomicBool,
    /// Members are sent a state one after another: encoding one takes memory.
    pub(super) sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How often the state was replaced as a whole.
    replaced: u64,
    /// The state as it stands.
    current: Option<Taken>,
    /// States whose digests are to be made, oldest first.
    due: VecDeque<Taken>,
    /// Digests, newest last.
    made: VecDeque<Made>,
}

impl Points {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry was applied, before which log time was `before`.
    pub(super) fn applied(
        &self,
        before: UtcMs,
        state: &ClusterState,
        last: LogId,
        membership: &Arc<StoredMembership>,
    ) {
        if !digests::is_due(before, state) || is_alone(membership) {
            return;
        }
        let taken = Taken { last, membership: Arc::clone(membership), state: state.clone() };
        let due = &mut self.lock().due;
        due.push_back(taken);
        // A member that applies what it missed comes by many.
        if due.len() > DIGESTS_TOLD_MAX {
            due.pop_front();
        }
        self.due.notify_one();
    }

    /// The state is published.
    pub(super) fn published(
        &self,
        state: &ClusterState,
        last: Option<LogId>,
        membership: &Arc<StoredMembership>,
    ) {
        let taken = |last| Taken { last, membership: Arc::clone(membership), state: state.clone() };
        self.lock().current = last.map(taken);
    }

    /// The state was replaced by a leader's snapshot: what it was before does not matter any more.
    pub(super) fn replaced(&self) {
        let inner = &mut *self.lock();
        inner.replaced += 1;
        (inner.due, inner.made) = (VecDeque::new(), VecDeque::new());
    }

    /// The newest digests.
    pub(super) fn newest(&self) -> Vec<StateDigest> {
        self.lock().made.iter().rev().take(DIGESTS_TOLD_MAX).map(|made| made.digest).collect()
    }

    /// Compares what a majority agrees on with this member's own.
    pub(super) fn compare(&self, agreed: &Agreed) -> Compared {
        let place = (agreed.digest.index, agreed.digest.version);
        let inner = self.lock();
        match inner.made.iter().rev().find(|made| (made.digest.index, made.digest.version) == place) {
            Some(made) if made.digest == agreed.digest => Compared::Same,
            Some(_) => Compared::Differs,
            None => Compared::Unknown,
        }
    }

    /// The state that has a digest, while it is kept.
    pub(super) fn state(&self, digest: &StateDigest) -> Option<ClusterState> {
        self.lock().made.iter().find(|made| made.digest == *digest)?.state.clone()
    }

    /// What a snapshot at an index covers by this member's own log, while its digest is kept.
    pub(super) fn covers(&self, index: u64) -> Option<SnapshotMeta> {
        let inner = self.lock();
        let made = inner.made.iter().rev().find(|made| made.digest.index == index)?;
        Some(SnapshotMeta { last_log_id: Some(made.last), last_membership: (*made.membership).clone() })
    }

    pub(super) fn set_differs(&self, differs: bool) {
        self.differs.store(differs, Ordering::Relaxed);
    }

    /// Whether this member's state is known to be wrong: then nothing more is made of it.
    pub(super) fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<(Taken, u64)> {
        let inner = &mut *self.lock();
        Some((inner.due.pop_front()?, inner.replaced))
    }

    /// The state as it stands, when it makes sense to compare it.
    fn current(&self) -> Option<(Taken, u64)> {
        let inner = self.lock();
        let current = inner.current.clone()?;
        let compared = current.state.knows(SECOND_LEVEL) && !is_alone(&current.membership);
        compared.then_some((current, inner.replaced))
    }

    /// Adds the digest of a state that was taken when the state had been `replaced` so often.
    fn add(&self, taken: Taken, replaced: u64, sha256: [u8; 32]) {
        let inner = &mut *self.lock();
        if inner.replaced != replaced {
            return;
        }
        let Taken { last, membership, state } = taken;
        let digest = StateDigest { index: state.applied, version: DIGEST_VERSION, sha256 };
        inner.made.retain(|made| made.digest.index != digest.index);
        let place = inner.made.partition_point(|made| made.digest.index < digest.index);
        inner.made.insert(place, Made { digest, last, membership, state: Some(state) });
        if inner.made.len() > KEPT {
            inner.made.pop_front();
        }
        let old = inner.made.len().saturating_sub(DIGEST_STATES_KEPT);
        inner.made.iter_mut().take(old).for_each(|made| made.state = None);
    }
}

/// Whether there is nobody to compare with.
fn is_alone(membership: &StoredMembership) -> bool {
    membership.membership().nodes().count() < 2
}

/// The task: makes digests until nobody else has the points, which is when the store was closed.
pub(super) async fn run(points: Arc<Points>) {
    let clock = NodeContext::current().clock;
    // The index last seen, and when a digest was made of it in rest.
    let mut seen: (u64, Option<Mono>) = (0, None);
    while Arc::strong_count(&points) > 1 {
        while let Some((taken, replaced)) = points.next() {
            make(&points, taken, replaced).await;
        }
        // Cancel safety: both only wait.
        tokio::select! {
            biased;
            () = points.due.notified() => continue,
            () = clock.sleep_until(clock.now() + DIGEST_QUIET) => {}
        }
        let Some((taken, replaced)) = points.current() else { continue };
        let (index, now) = (taken.state.applied, clock.now());
        match seen {
            (known, Some(made)) if known == index && now.since(made) < DIGEST_QUIET_AGAIN => {}
            (known, _) if known == index => {
                make(&points, taken, replaced).await;
                seen = (index, Some(now));
            }
            _ => seen = (index, None),
        }
    }
}

async fn make(points: &Points, taken: Taken, replaced: u64) {
    let state = taken.state.clone();
    let sha256 = NodeContext::current().blocking(move || digest(&state)).await;
    points.add(taken, replaced, sha256);
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::level::FIRST_LEVEL;
    use blixard_core::limits::DIGEST_SPACING;

    use super::super::testing::context;
    use super::super::types::Membership;
    use super::*;

    fn membership(members: u64) -> Arc<StoredMembership> {
        let members: std::collections::BTreeSet<u64> = (1..=members).collect();
        let membership = Membership::new(vec![members.clone()], members).expect("it is well formed");
        Arc::new(StoredMembership::new(Some(LogId::new_term_index(1, 0)), membership))
    }

    fn state(index: u64) -> ClusterState {
        ClusterState { level: SECOND_LEVEL, applied: index, time: UtcMs(index), ..ClusterState::new() }
    }

    /// Applies an entry at which a digest is due.
    fn apply(points: &Points, state: &ClusterState, members: u64) {
        let spacing = u64::try_from(DIGEST_SPACING.as_millis()).expect("short");
        let before = UtcMs(state.time.0 + spacing);
        points.applied(before, state, LogId::new_term_index(1, state.applied), &membership(members));
    }

    async fn make_all(points: &Points) {
        while let Some((taken, replaced)) = points.next() {
            context(1).run(make(points, taken, replaced)).await;
        }
    }

    fn agreed(state: &ClusterState) -> Agreed {
        let digest = StateDigest { index: state.applied, version: DIGEST_VERSION, sha256: digest(state) };
        Agreed { digest, holders: Default::default() }
    }

    #[tokio::test]
    async fn the_newest_digests_are_told_and_the_newest_states_kept() {
        let points = Points::default();
        for index in 1..=100 {
            apply(&points, &state(index), 3);
            make_all(&points).await;
        }
        let told: Vec<u64> = points.newest().iter().map(|digest| digest.index).collect();
        assert_eq!(told, [100, 99, 98, 97]);
        let kept = |index: u64| points.state(&agreed(&state(index)).digest).is_some();
        let kept: Vec<u64> = (1..=100).filter(|index| kept(*index)).collect();
        assert_eq!(kept, [98, 99, 100]);
        assert_eq!(points.lock().made.len(), KEPT);
        let other = ClusterState { time: UtcMs(0), ..state(100) };
        let compared = [state(100), other, state(1)].map(|state| points.compare(&agreed(&state)));
        assert_eq!(compared, [Compared::Same, Compared::Differs, Compared::Unknown]);
        assert_eq!(points.covers(99).and_then(|meta| meta.last_log_id).map(|last| last.index), Some(99));
    }

    #[tokio::test]
    async fn what_was_applied_before_a_snapshot_is_not_compared_after_it() {
        let points = Points::default();
        for index in [1, 2] {
            apply(&points, &state(index), 3);
        }
        let (taken, replaced) = points.next().expect("one is due");
        context(1).run(make(&points, taken, replaced)).await;
        let late = points.next().expect("another is due");
        points.replaced();
        // Its digest was being made when the snapshot came.
        context(1).run(make(&points, late.0, late.1)).await;
        assert_eq!((points.newest(), points.compare(&agreed(&state(2)))), (Vec::new(), Compared::Unknown));
    }

    #[tokio::test]
    async fn who_is_alone_or_of_the_first_level_makes_no_digests() {
        let points = Points::default();
        apply(&points, &state(1), 1);
        apply(&points, &ClusterState { level: FIRST_LEVEL, ..state(2) }, 3);
        points.published(&state(3), Some(LogId::new_term_index(1, 3)), &membership(1));
        assert!(points.next().is_none() && points.current().is_none());
        apply(&points, &state(4), 2);
        points.published(&state(4), Some(LogId::new_term_index(1, 4)), &membership(2));
        assert!(points.next().is_some() && points.current().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_in_rest_is_looked_at_again() {
        let points = Arc::new(Points::default());
        let (context, task) = (context(1), points.clone());
        context.clone().spawn("state digests", run(task));
        let mut wrong = state(7);
        for (state, within) in [(state(7), 3 * DIGEST_QUIET), (state(8), 3 * DIGEST_QUIET)] {
            points.published(&state, Some(LogId::new_term_index(1, state.applied)), &membership(3));
            tokio::time::sleep(within).await;
            assert_eq!(points.compare(&agreed(&state)), Compared::Same);
        }
        // Memory that is damaged in rest.
        wrong.applied = 8;
        points.published(&wrong, Some(LogId::new_term_index(1, 8)), &membership(3));
        tokio::time::sleep(DIGEST_QUIET_AGAIN + 2 * DIGEST_QUIET).await;
        assert_eq!(points.compare(&agreed(&state(8))), Compared::Differs);
    }
}

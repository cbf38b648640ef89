//! Tells the leader that this node lives and what its agent saw.
//!
//! Two loops, so that a slow commit never delays a sign of life: beats carry facts only; reports
//! are kept until the leader has them in the log, and sent again in full after a leader change.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blixard_core::cluster::digests::Agreed;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::cluster::replica::{Phase, ReplicaStatus};
use blixard_core::id::ReplicaId;
use blixard_core::limits;
use blixard_core::text;
use blixard_core::time::UtcMs;
use blixard_core::wire::{self, Channel, Heartbeat, HeartbeatAck};
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::batch::{Input, ReportNumber};
use crate::handle::NodeHandle;
use crate::shared::Shared;

/// How long a report waits for its acknowledgement before it is sent again.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);
/// Progress within this time shares a report: a burst of starting containers is one Raft round.
const REPORT_GAP: Duration = Duration::from_millis(100);
/// How long a failed report waits before it is sent again.
const REPORT_RETRY: Duration = Duration::from_millis(200);

/// Statuses that the leader has not acknowledged.
#[derive(Default)]
pub(crate) struct Outbox {
    unsent: Mutex<BTreeMap<ReplicaId, ReplicaStatus>>,
    changed: Notify,
}

impl Outbox {
    /// Adds a status, replacing an older one of the same replica. Its message may be of any length: it
    /// holds what images and runtimes say.
    pub(crate) fn put(&self, replica: ReplicaId, mut status: ReplicaStatus) {
        text::cut(&mut status.message);
        self.lock().insert(replica, status);
        self.changed.notify_one();
    }

    /// As many as a report holds.
    fn some(&self) -> BTreeMap<ReplicaId, ReplicaStatus> {
        let unsent = self.lock();
        unsent.iter().take(limits::REPORT_STATUSES_MAX).map(|(id, status)| (*id, status.clone())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ReplicaId, ReplicaStatus>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was sent, unless it has changed since.
    fn acknowledge(&self, sent: &BTreeMap<ReplicaId, ReplicaStatus>) {
        self.lock().retain(|replica, status| sent.get(replica) != Some(status));
    }
}

/// The beat loop: one sign of life each [`limits::NODE_HEARTBEAT`], at once after a leader change.
pub(crate) async fn beats(shared: Shared, boot: u64, facts: NodeFacts) {
    let mut statuses = shared.watch_status();
    loop {
        let leader = statuses.borrow().leader;
        match leader {
            Some(leader) if leader == shared.id => {
                shared.beat(shared.id, boot, facts.clone());
                compare_own(&shared);
            }
            Some(leader) => {
                let twice = shared.copies.for_leader(shared.platform.clock.now());
                let (facts, statuses) = (facts.clone(), BTreeMap::new());
                let volumes = BTreeMap::new();
                let digests = shared.raft().map(|raft| raft.state_digests()).unwrap_or_default();
                let beat = Heartbeat { boot, facts, statuses, generation: 0, volumes, twice, digests };
                let request = Bytes::from(wire::encode(&beat));
                let call = shared.platform.transport.call(
                    leader,
                    Channel::Heartbeat,
                    request,
                    limits::NODE_HEARTBEAT,
                );
                tokio::select! {
                    biased;
                    answer = call => match answer {
                        Ok(ack) => heard_back(&shared, &ack),
                        Err(error) => {
                            tracing::debug!(node.id = %shared.id, peer.id = %leader, err = %error, "heartbeat failed");
                        }
                    },
                    () = shared.wait_deposed(leader) => {}
                }
            }
            None => {}
        }
        let mut twice = shared.copies.by_leader(shared.platform.clock.now());
        // Whoever leads is not the one to be refused, whatever another member sees of it.
        twice.retain(|node, _| Some(*node) != leader);
        shared.platform.transport.heed_twice(twice);
        lift_hold(&shared).await;
        let changed =
            async { while statuses.borrow().leader == leader && statuses.changed().await.is_ok() {} };
        shared.within(limits::NODE_HEARTBEAT, changed).await;
    }
}

/// Takes in what the leader says with its acknowledgement of a sign of life.
fn heard_back(shared: &Shared, ack: &[u8]) {
    if let Ok(ack) = wire::decode::<HeartbeatAck>(ack) {
        let now = shared.platform.clock.now();
        shared.copies.leader_told(ack.twice, now);
        shared.digests.learn(ack.differing, now);
        judge(shared, ack.agreed.as_ref());
    }
}

/// Compares the leader's own state with the members'.
fn compare_own(shared: &Shared) {
    let Some(raft) = shared.raft() else { return };
    let now = shared.platform.clock.now();
    shared.digests.member_told(shared.id, raft.state_digests(), now);
    let comparison = shared.digests.compare(&shared.status(), now);
    judge(shared, comparison.agreed.as_ref());
}

/// Compares this node's state with what a majority agrees on.
fn judge(shared: &Shared, agreed: Option<&Agreed>) {
    if let (Some(raft), Some(agreed)) = (shared.raft(), agreed) {
        shared.digests.judge(&raft, agreed);
    }
}

/// Says that this node is back from a planned stop, where its return was too quick for the leader
/// to notice: what it announced would go on covering for it.
async fn lift_hold(shared: &Shared) {
    let state = shared.state();
    let held = state.nodes.get(&shared.id).and_then(|node| node.hold_until);
    if held.is_some_and(|until| until > state.time) && !shared.is_stopping() {
        let lifting = NodeHandle::new(shared.clone());
        // What fails is tried again with the next beat.
        shared.within(limits::NODE_HEARTBEAT, lifting.hold(UtcMs(0))).await;
    }
}

/// The report loop.
pub(crate) async fn reports(shared: Shared, boot: u64, outbox: std::sync::Arc<Outbox>) {
    let mut number = ReportNumber { boot, generation: 0 };
    loop {
        let unsent = outbox.lock().clone();
        if unsent.is_empty() {
            outbox.changed.notified().await;
            continue;
        }
        if !unsent.values().any(is_urgent) {
            let urgent = async {
                while !outbox.lock().values().any(is_urgent) {
                    outbox.changed.notified().await;
                }
            };
            shared.within(REPORT_GAP, urgent).await;
        }
        let unsent = outbox.some();
        number.generation += 1;
        if send(&shared, number, &unsent).await {
            outbox.acknowledge(&unsent);
        } else {
            shared.wait(REPORT_RETRY).await;
        }
    }
}

/// Whether somebody may wait for it: what merely shows progress may wait for more.
fn is_urgent(status: &ReplicaStatus) -> bool {
    matches!(status.phase, Phase::Running | Phase::Completed | Phase::Failed | Phase::Gone)
}

/// Sends one report; true once it is in the log.
async fn send(shared: &Shared, number: ReportNumber, statuses: &BTreeMap<ReplicaId, ReplicaStatus>) -> bool {
    match shared.status().leader {
        Some(leader) if leader == shared.id => {
            let (reply, answer) = oneshot::channel();
            shared.input(Input::Report { node: shared.id, number, statuses: statuses.clone(), reply }).await;
            matches!(shared.within(REPORT_DEADLINE, answer).await, Some(Ok(Ok(_))))
        }
        Some(leader) => {
            let Some(node) = shared.state().nodes.get(&shared.id).cloned() else { return false };
            let ReportNumber { boot, generation } = number;
            let (facts, statuses) = (node.facts, statuses.clone());
            let (volumes, twice, digests) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
            let beat = Heartbeat { boot, facts, statuses, generation, volumes, twice, digests };
            let request = Bytes::from(wire::encode(&beat));
            let answer = shared.platform.transport.call(leader, Channel::Heartbeat, request, REPORT_DEADLINE);
            let bytes = tokio::select! {
                biased;
                answer = answer => answer,
                () = shared.wait_deposed(leader) => return false,
            };
            let Ok(bytes) = bytes else { return false };
            wire::decode::<HeartbeatAck>(&bytes).is_ok_and(|ack| ack.generation == generation)
        }
        None => false,
    }
}

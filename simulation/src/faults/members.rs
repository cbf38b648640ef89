//! Members that come and go: drains, leaves, forced removals, and the machines that join in the
//! place of those that went.

use std::time::Duration;

use axum::body::Body;
use blixard_core::id::NodeId;
use blixard_node::identity::IDENTITY_FILE;
use blixard_node::platform::RandomSource as _;
use blixard_node::raft::inspect::{LOG_FILE, STATE_FILE};
use http::{Method, Request};

use super::Acting;
use crate::checks::members_agree_who_votes;
use crate::clients::call;
use crate::disk::Loss;

/// What a node has on its disk that must be as it was.
const STORES: [&str; 4] = [LOG_FILE, LOG_FILE, STATE_FILE, IDENTITY_FILE];

/// How long a node that was asked to leave, or removed, has until it is no member of Raft's
/// configuration while other things go wrong.
const PART_WITHIN: Duration = Duration::from_secs(40);
/// How long it has once nothing goes wrong.
const PART_WELL_WITHIN: Duration = Duration::from_secs(300);
/// How often it is looked whether it is gone.
const LOOK: Duration = Duration::from_millis(250);

impl Acting {
    /// Asks some node's API for a change.
    async fn ask(&self, method: Method, path: &str) -> Option<()> {
        let nodes = self.world().running();
        let place = usize::try_from(self.random.below(nodes.len().max(1) as u64)).expect("small");
        let request = Request::builder().method(method).uri(path).body(Body::empty());
        let answer = call(nodes.get(place)?, request.expect("it is well formed")).await?;
        answer.status.is_success().then_some(())
    }

    pub(super) async fn drain(&self, number: u64) -> bool {
        let node = self.world().machine(number).member();
        if self.ask(Method::POST, &format!("/v1/nodes/{node}/drain")).await.is_none() {
            return false;
        }
        self.shared.lock().drained.insert(number);
        self.last().await;
        self.activate(number, 1).await;
        true
    }

    /// Asks that a drained node take replicas again.
    pub(super) async fn activate(&self, number: u64, tries_max: u32) {
        for _ in 0..tries_max {
            let node = self.world().machine(number).member();
            let activated = self.ask(Method::POST, &format!("/v1/nodes/{node}/activate")).await;
            if activated.is_some() || !self.shared.lock().drained.contains(&number) {
                self.shared.lock().drained.remove(&number);
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(super) async fn leave(&self, number: u64) -> bool {
        self.part(number, Method::POST, "/leave").await
    }

    /// Removes a node by force, perhaps while its machine is cut off or its daemon dead.
    pub(super) async fn remove(&self, number: u64) -> bool {
        self.part(number, Method::DELETE, "?force").await
    }

    /// Has a machine's node go: one at a time, and only when every other node runs and knows every
    /// other. One that is away while all whom it knows are replaced has nobody left to ask who
    /// they are.
    async fn part(&self, number: u64, method: Method, how: &str) -> bool {
        {
            let mut inner = self.shared.lock();
            if !inner.parting.is_empty() || self.machines() < 3 || !self.all_know_all() {
                return false;
            }
            inner.parting.insert(number);
        }
        let node = self.world().machine(number).member();
        if self.ask(method, &format!("/v1/nodes/{node}{how}")).await.is_none() {
            // It may be removed all the same: what was asked without an answer is looked at again
            // at the end.
            if !self.is_parting(node) {
                self.shared.lock().parting.remove(&number);
                self.shared.world.trace.say(0, "nobody took the removal");
                return false;
            }
        }
        if self.gone(node, PART_WITHIN).await {
            self.replace(number);
            return true;
        }
        false
    }

    /// Has the disk of a machine give back other bytes of one of the node's stores than it took, once in a
    /// history, while the cluster survives the loss of one voter. Its node opens as what it was, or says
    /// what to do, which is then done: it is removed by force, and another joins in its place.
    pub(super) async fn lie(&self, number: u64) -> bool {
        let machine = self.world().machine(number);
        {
            let mut inner = self.shared.lock();
            let is_well = machine.disk.is_well() && machine.has_joined();
            if inner.lied || !inner.parting.is_empty() || !is_well || !self.survives_a_loss() {
                return false;
            }
            inner.lied = true;
            // No other goes from now on: two of three would be no quorum.
            inner.parting.insert(number);
        }
        if self.random.chance(300) {
            machine.stop().await;
        } else {
            // Not a loss of power: after one, a database whose last commit is damaged may be taken for
            // one that never made it (docs/adr/0012-disks-lie.md).
            machine.crash(Loss::Process);
        }
        let name = STORES[usize::try_from(self.random.below(STORES.len() as u64)).expect("small")];
        let how = machine.disk.lie(name, &mut damage::Random::new(self.random.next_u64()));
        let Some(how) = how else { return false };
        self.world().trace.say(number, &format!("its disk lies: of {name}, {how}"));
        self.off(&[number], self.last()).await;
        let end = tokio::time::Instant::now() + PART_WITHIN;
        // Nobody starts it again once things stop going wrong, until all is healed.
        while !self.is_decided(number) && !self.shared.is_stopping() && tokio::time::Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        if machine.is_given_up() {
            // What is not done in time is done at the end.
            self.replace_given_up(number, PART_WITHIN).await;
        }
        true
    }

    /// Whether a node has come up, or ended for good.
    fn is_decided(&self, number: u64) -> bool {
        let machine = self.world().machine(number);
        self.world().reap();
        machine.is_given_up() || machine.running().is_some()
    }

    /// Removes a node by force that has ended for good, and has another machine join in its place.
    async fn replace_given_up(&self, number: u64, within: Duration) -> bool {
        let node = self.world().machine(number).member();
        let end = tokio::time::Instant::now() + within;
        while !self.is_parting(node) {
            if tokio::time::Instant::now() >= end {
                return false;
            }
            if self.ask(Method::DELETE, &format!("/v1/nodes/{node}?force")).await.is_none() {
                tokio::time::sleep(LOOK).await;
            }
        }
        let gone = self.gone(node, within).await;
        if gone {
            self.replace(number);
        }
        gone
    }

    /// Whether every node runs and knows every other, and enough vote that one can be lost.
    fn survives_a_loss(&self) -> bool {
        let voters = self.world().running().iter().map(|running| running.handle.raft().voters().len()).min();
        // In the middle of a change the voters before it are needed too: then they do not agree.
        self.all_know_all() && members_agree_who_votes(self.world()).is_ok() && voters >= Some(3)
    }

    fn all_know_all(&self) -> bool {
        let running = self.world().running();
        let knows = |running: &crate::machine::Running| {
            let state = running.handle.state();
            self.world().machines.iter().all(|machine| state.nodes.contains_key(&machine.member()))
        };
        running.len() == self.world().machines.len() && running.iter().all(knows)
    }

    /// Whether any running node knows that `node` is to go or is gone.
    fn is_parting(&self, node: NodeId) -> bool {
        self.world().running().iter().any(|running| {
            let state = running.handle.state();
            let leaving = state
                .nodes
                .get(&node)
                .is_some_and(|row| row.availability == blixard_core::cluster::Availability::Leaving);
            leaving || state.removed_nodes.contains_key(&node)
        })
    }

    /// Waits until a leader that runs leads a cluster without `node`, in the state and in Raft.
    async fn gone(&self, node: NodeId, within: Duration) -> bool {
        let end = tokio::time::Instant::now() + within;
        while tokio::time::Instant::now() < end {
            let leaders = self.world().running();
            let gone = leaders.iter().any(|running| {
                let raft = running.handle.raft();
                raft.is_leader(running.handle.id)
                    && raft.quorum_ack_ms_ago.is_some_and(|ago| ago < 500)
                    && running.handle.state().removed_nodes.contains_key(&node)
                    && !raft.members().any(|member| member == node)
            });
            if gone {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// Another machine comes in the place of one whose node is gone.
    fn replace(&self, number: u64) {
        self.world().machine(number).replace();
        let mut inner = self.shared.lock();
        inner.parting.remove(&number);
        inner.drained.remove(&number);
    }

    /// Ends what was begun: once nothing goes wrong, every node that was to go goes.
    pub(super) async fn part_all(&self) {
        // What was asked and not answered may yet be applied, as long as a write is tried.
        tokio::time::sleep(blixard_core::limits::WRITE_DEADLINE).await;
        for machine in &self.world().machines {
            let node = machine.member();
            let end = tokio::time::Instant::now() + PART_WITHIN;
            while machine.disk.lies() && !self.is_decided(machine.number) && tokio::time::Instant::now() < end
            {
                tokio::time::sleep(LOOK).await;
            }
            if machine.is_given_up() {
                if !self.replace_given_up(machine.number, PART_WELL_WITHIN).await {
                    let detail = format!("node {node} has ended for good and is still a member");
                    return self.world().checks.violated("members_part", detail);
                }
                self.shared.start_all();
                continue;
            }
            let begun = self.shared.lock().parting.contains(&machine.number) || self.is_parting(node);
            if !begun {
                continue;
            }
            if !self.is_parting(node) {
                self.shared.lock().parting.remove(&machine.number);
                continue;
            }
            if !self.gone(node, PART_WELL_WITHIN).await {
                let detail = format!("node {node} was to go and is still a member");
                return self.world().checks.violated("members_part", detail);
            }
            self.replace(machine.number);
            self.shared.start_all();
        }
    }
}

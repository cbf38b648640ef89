//! The composition root: makes a node of a platform, and takes it apart again.
//!
//! A node is a set of tasks over one [`Platform`]. Raft and its store may fail and be reopened
//! while the rest goes on: containers are the agent's, and the agent needs only the last state.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::node::{NodeFacts, Token, TokenScope};
use blixard_core::cluster::{Command, SubnetRange};
use blixard_core::id::{ClusterId, NodeId, TokenId};
use blixard_core::limits;
use blixard_core::time::Mono;
use blixard_core::wire::Peer;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::context::NodeContext;
use crate::drivers::agent::{AgentDriver, AgentInput, feed};
use crate::drivers::heartbeat::{self, Outbox};
use crate::drivers::{leader, membership, peers, rebuild, standing, volumes};
use crate::handle::NodeHandle;
use crate::images::Members;
use crate::inbound::Dispatch;
use crate::platform::Platform;
use crate::raft::{OpenError, ProposeError, RaftConfig, RaftNode, Replacement, check_log};
use crate::route;
use crate::shared::Shared;
use crate::watch;

/// The first delay before Raft is reopened after its store failed; doubled up to the last.
const REOPEN_MIN: Duration = Duration::from_millis(200);
/// The longest delay before Raft is reopened.
const REOPEN_MAX: Duration = Duration::from_secs(10);
/// How much the agent may be told at a time.
const AGENT_INPUTS: usize = 16;
/// How long a founder waits before it tries again.
const FOUND_RETRY: Duration = Duration::from_secs(1);
/// A network that no machine uses (RFC 1112, class E): for a node without one, that only removes
/// what it has.
pub(crate) const NO_SUBNET: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);
/// How long a stopping node waits for the cluster to note its hold and take over leadership.
const FAREWELL: Duration = Duration::from_secs(3);

/// Who the node is in its cluster: what its data directory says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Present on the member that made the cluster: what its first entry holds.
    pub founding: Option<Founding>,
    /// Members to link to until their rows arrive.
    pub peers: BTreeMap<NodeId, Peer>,
}

/// What the first entry of a cluster holds. Kept until that entry is applied, so that a founder
/// that dies in between founds the same cluster when it returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    /// Where container networks are cut from.
    pub subnets: SubnetRange,
    /// The first join token's public half.
    pub token: TokenId,
    /// Its secret half.
    pub secret: [u8; 32],
}

/// A node's settings.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// What it tells of itself.
    pub facts: NodeFacts,
    /// Drawn anew, or counted up, at each start.
    pub boot: u64,
    /// Raft's timings and when it compacts its log.
    pub raft: RaftConfig,
}

/// A running node.
pub struct Node {
    handle: NodeHandle,
}

impl Node {
    /// Starts a node that is a member, or founds its cluster. Returns once Raft's store is open;
    /// the node then looks for its cluster for as long as it runs.
    ///
    /// # Errors
    /// When the store cannot be opened at all.
    pub async fn start(
        platform: Platform,
        membership: Membership,
        settings: NodeSettings,
    ) -> Result<Self, OpenError> {
        let context = NodeContext::new(&platform);
        let inner = context.clone();
        inner.run(start(context, platform, membership, settings)).await
    }

    /// The node as its API sees it.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Stops the node and leaves its containers running. The cluster is asked to hold still for
    /// [`limits::NODE_HOLD`] and another voter to lead, if either can be had at once.
    pub async fn shutdown(self) {
        let shared = self.handle.shared.clone();
        let context = NodeContext::new(&shared.platform);
        context.run(stop(shared)).await;
    }
}

async fn start(
    context: NodeContext,
    platform: Platform,
    membership: Membership,
    settings: NodeSettings,
) -> Result<Node, OpenError> {
    let Membership { cluster, node: id, founding, peers: hints } = membership;
    let (shared, queue) = Shared::new(id, cluster, platform.clone());
    let raft = Arc::new(RaftNode::open(platform.clone(), cluster, id, settings.raft.clone()).await?);
    shared.set_state(raft.state());
    platform.transport.set_peers(peers::peers_of(&raft.state(), id, &hints));
    platform.transport.serve(Dispatch::new(shared.clone()));

    let outbox = Arc::new(Outbox::default());
    let (telling, told) = watch::channel(BTreeMap::new());
    context.spawn("peers", peers::run(shared.clone(), hints.clone(), told));
    context.spawn("standing", standing::run(shared.clone(), hints, telling, settings.facts.clone()));
    context.spawn("raft", keep_raft(context.clone(), shared.clone(), settings.raft, raft));
    context.spawn("leader", leader::run(shared.clone(), queue));
    context.spawn("membership", membership::run(shared.clone()));
    context.spawn("beats", heartbeat::beats(shared.clone(), settings.boot, settings.facts.clone()));
    context.spawn("reports", heartbeat::reports(shared.clone(), settings.boot, outbox.clone()));
    context.spawn("volumes", volumes::run(context.clone(), shared.clone()));
    context.spawn("agent", run_agent(context.clone(), shared.clone(), outbox));
    context.spawn_apart("routes", route::run(shared.clone()));
    if let Some(founding) = founding {
        context.spawn("found", found(shared.clone(), founding, settings.facts));
    }
    Ok(Node { handle: NodeHandle::new(shared) })
}

/// Why an open Raft is closed.
enum Ended {
    /// It stopped; why, for people.
    Failed(String),
    /// Its state differs from the majority's, which this is.
    Differs(Replacement),
}

/// Runs Raft, and reopens it with back-off when its store fails: a disk that is full today has
/// room tomorrow, and containers go on meanwhile. Where its state differs from the majority's it is
/// reopened on theirs.
async fn keep_raft(context: NodeContext, shared: Shared, config: RaftConfig, first: Arc<RaftNode>) {
    let mut raft = first;
    let mut delay = REOPEN_MIN;
    let mut replaced = None;
    loop {
        let opened = context.clock.now();
        // What is opened as it was is as wrong as it was.
        raft.set_differs(shared.digests.is_wrong() && !shared.digests.is_replaced());
        shared.set_raft(Some(raft.clone()));
        let ended = follow(&shared, &raft, replaced).await;
        if shared.is_stopping() {
            // Whoever still asks is told that this node leads no more.
            shared.set_raft(None);
            return;
        }
        if let Ended::Failed(why) = &ended {
            tracing::error!(node.id = %shared.id, err = why, "the store failed; reopening it, containers go on");
        }
        shared.set_raft(None);
        raft.shutdown().await;
        drop(raft);
        if let Ended::Differs(replacement) = ended {
            replaced = Some(context.clock.now());
            if let Some(reopened) = rebuild(&shared, &config, replacement).await {
                raft = reopened;
                continue;
            }
        }
        if context.clock.now().since(opened) > REOPEN_MAX {
            delay = REOPEN_MIN;
        }
        raft = loop {
            shared.wait(delay).await;
            if shared.is_stopping() {
                return;
            }
            delay = (delay * 2).min(REOPEN_MAX);
            let opening = async {
                check_log(&*shared.platform.disk, shared.id)?;
                RaftNode::open(shared.platform.clone(), shared.cluster, shared.id, config.clone()).await
            };
            match opening.await {
                Ok(raft) => break Arc::new(raft),
                Err(error) if error.is_final() => {
                    tracing::error!(node.id = %shared.id, err = %error, "this member cannot go on; its containers do");
                    shared.set_unusable(error);
                    return;
                }
                Err(error) => {
                    tracing::error!(node.id = %shared.id, err = %error, "the store cannot be opened yet");
                }
            }
        };
    }
}

/// Opens Raft on the majority's state. `None` when that cannot be: then it is opened as it was.
async fn rebuild(shared: &Shared, config: &RaftConfig, replacement: Replacement) -> Option<Arc<RaftNode>> {
    let index = replacement.index();
    tracing::warn!(node.id = %shared.id, raft.index = index, "taking the majority's state in the place of this node's");
    let (platform, config) = (shared.platform.clone(), config.clone());
    match RaftNode::rebuild(platform, shared.cluster, shared.id, config, replacement).await {
        Ok(raft) => {
            shared.digests.set_replaced();
            Some(Arc::new(raft))
        }
        Err(error) => {
            tracing::error!(node.id = %shared.id, err = %error, "the majority's state could not be taken");
            None
        }
    }
}

/// Passes Raft's state and status on until it is to be closed; returns why. Its state was `replaced` for
/// the last time then.
async fn follow(shared: &Shared, raft: &RaftNode, replaced: Option<Mono>) -> Ended {
    let mut replacement = pin!(rebuild::replacement(shared, raft, replaced));
    let mut states = raft.watch_state();
    let mut statuses = raft.watch_status();
    let ended = || Ended::Failed("Raft ended".to_owned());
    loop {
        shared.set_state(Arc::clone(&states.borrow_and_update()));
        shared.set_status(statuses.current());
        // Cancel safety: `changed` and `failed` lose nothing when dropped.
        tokio::select! {
            biased;
            why = raft.failed() => return Ended::Failed(why),
            changed = states.changed() => if changed.is_err() { return ended() },
            changed = statuses.changed() => if changed.is_err() { return ended() },
            replacement = &mut replacement => return Ended::Differs(replacement),
        }
    }
}

/// Makes the cluster: initializes Raft and proposes the first entry, until that entry is applied.
async fn found(shared: Shared, founding: Founding, facts: NodeFacts) {
    while shared.state().cluster.is_none() {
        if let Err(error) = try_to_found(&shared, &founding, &facts).await {
            tracing::warn!(node.id = %shared.id, err = error, "could not found the cluster yet");
            shared.wait(FOUND_RETRY).await;
        }
        shared.wait(limits::RAFT_HEARTBEAT).await;
    }
}

async fn try_to_found(shared: &Shared, founding: &Founding, facts: &NodeFacts) -> Result<(), String> {
    let Some(raft) = shared.raft() else { return Ok(()) };
    if !raft.is_initialized().await {
        raft.initialize().await.map_err(|error| error.to_string())?;
    }
    if shared.within(FAREWELL, shared.wait_leading()).await.is_none() {
        return Err("no election was won".to_owned());
    }
    let token = Token {
        secret_sha256: Sha256::digest(founding.secret).into(),
        scope: TokenScope::Join,
        expires_at: None,
        uses_left: None,
        services: None,
    };
    let command = Command::Bootstrap {
        cluster: shared.cluster,
        subnets: founding.subnets,
        node: shared.id,
        key: shared.platform.transport.key(),
        facts: facts.clone(),
        token: (founding.token, token),
    };
    match shared.propose_here(command).await {
        Ok(_) | Err(ProposeError::NotLeader { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the agent once the state says which containers are this node's.
async fn run_agent(context: NodeContext, shared: Shared, outbox: Arc<Outbox>) {
    // Cancel safety: both only watch.
    let subnet = tokio::select! {
        biased;
        subnet = own_subnet(&shared) => subnet,
        () = shared.wait_removed() => NO_SUBNET,
    };
    let (inputs, queue) = mpsc::channel(AGENT_INPUTS);
    let driver = AgentDriver {
        platform: shared.platform.clone(),
        cluster: shared.cluster,
        node: shared.id,
        subnet,
        inputs: queue,
        on_report: Arc::new(move |replica, status| outbox.put(replica, status)),
        images: Arc::new(Members(shared.clone())),
        pulls: shared.pulls.clone(),
    };
    context.spawn("agent driver", driver.run());
    context.spawn("agent feed", feed(NodeHandle::new(shared.clone()), inputs.clone()));
    ask_for_reports(&shared, &inputs).await;
}

/// Where this node's containers get their addresses from, once the state says so.
async fn own_subnet(shared: &Shared) -> Ipv4Addr {
    let mut states = shared.watch_state();
    loop {
        if let Some(node) = states.borrow_and_update().nodes.get(&shared.id) {
            return node.subnet;
        }
        // The sender lives as long as `shared`.
        states.changed().await.ok();
    }
}

/// Has the agent report everything to each new leader: what the last one had acknowledged and
/// not committed is lost with it.
async fn ask_for_reports(shared: &Shared, agent: &mpsc::Sender<AgentInput>) {
    let mut statuses = shared.watch_status();
    let mut term = 0;
    loop {
        let status = statuses.borrow_and_update().clone();
        if status.leader.is_some() && status.term != term {
            term = status.term;
            if agent.send(AgentInput::ReportAll).await.is_err() {
                return;
            }
        }
        if statuses.changed().await.is_err() {
            return;
        }
    }
}

async fn stop(shared: Shared) {
    shared.set_stopping();
    let handle = NodeHandle::new(shared.clone());
    let until = shared.state().time.max(shared.platform.clock.utc()).after(limits::NODE_HOLD);
    if shared.within(FAREWELL, handle.hold(until)).await.is_none_or(|held| held.is_err()) {
        tracing::warn!(node.id = %shared.id, "the cluster could not be told of the stop");
    }
    if let Some(raft) = shared.raft() {
        let heir = shared.status().voters().into_iter().find(|voter| *voter != shared.id);
        if let Some(heir) = heir.filter(|_| shared.status().is_leader(shared.id)) {
            match raft.transfer_leader(heir, FAREWELL).await {
                Ok(()) => tracing::info!(node.id = %shared.id, peer.id = %heir, "leadership handed over"),
                Err(_) => tracing::warn!(node.id = %shared.id, "leadership could not be handed over"),
            }
        }
        raft.shutdown().await;
    }
    shared.platform.transport.shutdown().await;
}

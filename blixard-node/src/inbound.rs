//! Answers what other members and strangers send: decodes, hands over, encodes. Decides nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::cluster::digests::Comparison;
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::{Actor, ClusterState, Command, Outcome, Refusal};
use blixard_core::discovery::copies::{Sighting, Start, Twice};
use blixard_core::discovery::proof::{Joining, is_proof};
use blixard_core::id::{NodeId, NodeKey, TokenId};
use blixard_core::limits;
use blixard_core::text;
use blixard_core::wire::{
    self, Channel, ForwardRequest, Heartbeat, HeartbeatAck, HoldRequest, ImageRequest, JoinRequest,
    JoinResponse, Peer,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use crate::api::{self, Access};
use crate::attempts::Attempts;
use crate::context::NodeContext;
use crate::drivers::batch::{Input, ReportNumber};
use crate::drivers::peers::peers_of;
use crate::drivers::volumes;
use crate::handle::NodeHandle;
use crate::platform::{ContainerRuntime, Duplex, Inbound};
use crate::raft::ProposeError;
use crate::route::{self, Relays};
use crate::shared::{Shared, hold_command};

/// How long the newest state is waited for when a joiner's token is not in this member's.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Dispatches what arrives at one node.
pub(crate) struct Dispatch {
    shared: Shared,
    attempts: Attempts,
    relays: Relays,
}

impl Dispatch {
    pub(crate) fn new(shared: Shared) -> Arc<Self> {
        Arc::new(Self { shared, attempts: Attempts::default(), relays: Relays::default() })
    }

    async fn heartbeat(&self, from: NodeId, mut beat: Heartbeat) -> Result<HeartbeatAck, String> {
        if beat.statuses.len() > limits::REPORT_STATUSES_MAX {
            let max = limits::REPORT_STATUSES_MAX;
            return Err(format!("a report has at most {max} statuses, not {}", beat.statuses.len()));
        }
        beat.statuses.values_mut().for_each(|status| text::cut(&mut status.message));
        beat.facts.check_size()?;
        let status = self.shared.status();
        if !status.is_leader(self.shared.id) {
            return Err("not the leader".to_owned());
        }
        if !beat.volumes.is_empty() {
            if beat.volumes.len() > limits::REPORT_VOLUMES_MAX {
                let max = limits::REPORT_VOLUMES_MAX;
                return Err(format!("a report has at most {max} volumes, not {}", beat.volumes.len()));
            }
            if !self.shared.state().knows(SECOND_LEVEL) {
                return Err("the cluster knows no volumes yet".to_owned());
            }
            for text in beat.volumes.values_mut().filter_map(|status| status.copy.trouble.as_mut()) {
                text::cut(text);
            }
            let told = Command::Volumes { node: from, statuses: beat.volumes };
            self.shared.propose_here(told).await.map_err(|error| error.to_string())?;
        } else if !beat.statuses.is_empty() {
            let (reply, answer) = oneshot::channel();
            let number = ReportNumber { boot: beat.boot, generation: beat.generation };
            let report = Input::Report { node: from, number, statuses: beat.statuses, reply };
            let answered = async {
                self.shared.input(report).await;
                answer.await
            };
            let in_time = self.shared.within(limits::WRITE_DEADLINE, answered).await;
            let answered = in_time.ok_or("no quorum has agreed on what was proposed before")?;
            let overtaken = |_| "the report was overtaken, or the node is stopping".to_owned();
            let committed = answered.map_err(overtaken)?;
            committed.map_err(|error| error.to_string())?;
        } else {
            self.shared.beat(from, beat.boot, beat.facts);
            self.shared.copies.member_told(from, beat.twice, self.shared.platform.clock.now());
            self.shared.digests.member_told(from, beat.digests, self.shared.platform.clock.now());
        }
        let now = self.shared.platform.clock.now();
        let twice = self.shared.copies.for_members(now);
        let Comparison { agreed, differing } = self.shared.digests.compare(&status, now);
        Ok(HeartbeatAck { term: status.term, generation: beat.generation, twice, agreed, differing })
    }

    async fn join(&self, key: NodeKey, request: JoinRequest) -> JoinResponse {
        let shared = &self.shared;
        if let Some(message) = shared.digests.refusal() {
            return JoinResponse::Unavailable { message };
        }
        if let Some(cluster) = request.cluster.filter(|cluster| *cluster != shared.cluster) {
            return JoinResponse::Refused {
                message: format!(
                    "this is cluster {}, not {cluster}: use a ticket of this one",
                    shared.cluster
                ),
            };
        }
        if let Some(answer) = self.known(&shared.state(), key, request.node) {
            return self.proven(answer, key, &request);
        }
        // Before anything is proposed, and before where the leader is is told.
        let secret_sha256 = match self.admitting(key, &request).await {
            Ok(secret_sha256) => secret_sha256,
            Err(answer) => return answer,
        };
        let Some(leader) = shared.status().leader else {
            return JoinResponse::Unavailable { message: "the cluster has no leader now".to_owned() };
        };
        if leader != shared.id {
            return match shared.state().nodes.get(&leader) {
                Some(node) => JoinResponse::Redirect {
                    leader: Peer { key: node.key, addresses: node.facts.addresses.clone(), relay_url: None },
                },
                None => JoinResponse::Unavailable { message: "the leader is not known here yet".to_owned() },
            };
        }
        let command = Command::Join {
            node: request.node,
            key,
            facts: request.facts.clone(),
            token: request.token,
            secret_sha256,
        };
        match shared.propose_here(command).await {
            Ok((_, Outcome::Joined { node, .. })) => {
                self.proven(self.admitted(&shared.state(), node), key, &request)
            }
            Ok((_, Outcome::Refused(refusal))) => JoinResponse::Refused { message: refusal.to_string() },
            Ok((_, other)) => JoinResponse::Unavailable { message: format!("unexpected answer {other:?}") },
            Err(ProposeError::NotLeader { .. }) => {
                JoinResponse::Unavailable { message: "the leader has just changed".to_owned() }
            }
            Err(error) => JoinResponse::Unavailable { message: error.to_string() },
        }
    }

    /// The hash of the secret that a joiner knows, if its token admits it.
    ///
    /// This member's state may lack a token that the cluster has. That of a leader may as well, until
    /// it has applied what was agreed on before its term. So nobody is refused by a state that is not
    /// known to be the newest.
    async fn admitting(&self, joiner: NodeKey, request: &JoinRequest) -> Result<[u8; 32], JoinResponse> {
        let check = |state: &ClusterState| {
            let secret_sha256 = self.secret_sha256(state, joiner, request)?;
            state.check_join_token(request.token, &secret_sha256).map(|()| secret_sha256)
        };
        if let Ok(secret_sha256) = check(&self.shared.state()) {
            return Ok(secret_sha256);
        }
        let unavailable = |message: String| JoinResponse::Unavailable { message };
        let raft = self.shared.raft().ok_or_else(|| unavailable(self.shared.why_no_raft().to_owned()))?;
        raft.read_barrier(CATCH_UP).await.map_err(|error| unavailable(error.to_string()))?;
        check(&raft.state()).map_err(|refusal| JoinResponse::Refused { message: refusal.to_string() })
    }

    /// What the token that a joiner knows hashes to. A proof of one that is another's, or none that
    /// `state` knows, gives a hash that no token has.
    fn secret_sha256(
        &self,
        state: &ClusterState,
        joiner: NodeKey,
        request: &JoinRequest,
    ) -> Result<[u8; 32], Refusal> {
        let Some(proof) = &request.proof else {
            let secret = hex::decode(&request.secret);
            let denied = "the token's secret is not hexadecimal".to_owned();
            let secret = secret.map_err(|_| Refusal::Denied { message: denied })?;
            return Ok(Sha256::digest(secret).into());
        };
        let joining = self.joining(state, joiner, request.token);
        let joining = joining.filter(|joining| is_proof(proof, &joining.request()));
        // Nobody knows what hashes to the hash of a proof.
        Ok(joining.map_or_else(|| Sha256::digest(proof).into(), |joining| joining.secret_sha256))
    }

    /// The two sides of a joiner's link, when the token is known here.
    fn joining(&self, state: &ClusterState, joiner: NodeKey, token: TokenId) -> Option<Joining> {
        let secret_sha256 = state.tokens.get(&token)?.secret_sha256;
        Some(Joining { token, secret_sha256, joiner, member: self.shared.platform.transport.key() })
    }

    /// The answer, with the proof that is owed to who showed one.
    fn proven(&self, mut answer: JoinResponse, joiner: NodeKey, request: &JoinRequest) -> JoinResponse {
        if let JoinResponse::Admitted { node, cluster, proof, .. } = &mut answer
            && request.proof.is_some()
        {
            let joining = self.joining(&self.shared.state(), joiner, request.token);
            *proof = joining.map(|joining| hex::encode(joining.answer(*cluster, *node)));
        }
        answer
    }

    /// The answer to someone whose key is known: a member that asks again, as one does that crashed
    /// between asking and starting, or one that was removed. It takes no entry, so any member has it.
    fn known(&self, state: &ClusterState, key: NodeKey, asked: Option<NodeId>) -> Option<JoinResponse> {
        if let Some((id, _)) = state.nodes.iter().find(|(_, node)| node.key == key) {
            let agrees = asked.is_none_or(|asked| asked == *id);
            return agrees.then(|| self.admitted(state, *id));
        }
        let (id, _) = state.removed_nodes.iter().find(|(_, removed)| **removed == key)?;
        let message = format!(
            "this machine was node {id} and was removed: `blixard node purge --yes` on it, then it can join anew"
        );
        Some(JoinResponse::Removed { message })
    }

    fn admitted(&self, state: &ClusterState, node: NodeId) -> JoinResponse {
        let shared = &self.shared;
        let mut peers = peers_of(state, node, &BTreeMap::new());
        // Where this node listens now may be newer than its row.
        let own = Peer {
            key: shared.platform.transport.key(),
            addresses: shared.platform.transport.addresses(),
            relay_url: None,
        };
        peers.insert(shared.id, own);
        JoinResponse::Admitted { node, cluster: shared.cluster, peers, proof: None }
    }

    fn context(&self) -> NodeContext {
        NodeContext::new(&self.shared.platform)
    }
}

/// Sends an image of this node's store down `stream`: one byte 1 and the archive, or 0.
async fn send_image(
    containers: &dyn ContainerRuntime,
    header: &[u8],
    mut stream: Box<dyn Duplex>,
) -> std::io::Result<()> {
    let Ok(wanted) = wire::decode::<ImageRequest>(header) else {
        return stream.write_all(&[0]).await;
    };
    match containers.export(&wanted.reference, wanted.digest.as_deref()).await {
        Ok(mut archive) => {
            stream.write_all(&[1]).await?;
            tokio::io::copy(&mut archive, &mut stream).await?;
        }
        Err(_) => stream.write_all(&[0]).await?,
    }
    stream.shutdown().await
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    wire::decode(bytes).map_err(|error| error.to_string())
}

#[async_trait]
impl Inbound for Dispatch {
    async fn call(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String> {
        let shared = &self.shared;
        match channel {
            Channel::Raft => {
                let raft = shared.raft().ok_or(shared.why_no_raft())?;
                raft.handle_rpc(from, request).await
            }
            Channel::Heartbeat => {
                let ack = self.heartbeat(from, decode(&request)?).await?;
                Ok(wire::encode(&ack).into())
            }
            Channel::Forward => {
                let mut forwarded: ForwardRequest = decode(&request)?;
                let by = forwarded.by.take().unwrap_or(Actor::Node { node: from });
                forwarded.by = Some(by.told_by(from));
                Ok(wire::encode(&shared.serve_forward(forwarded).await).into())
            }
            Channel::Hold => {
                let HoldRequest { until } = decode(&request)?;
                let held = shared.propose_here(hold_command(from, until)).await;
                held.map(|_| Bytes::new()).map_err(|error| error.to_string())
            }
            // A call on it asks for nothing but an answer: the transport exchanges addresses itself.
            Channel::Addresses => Ok(Bytes::new()),
            Channel::Snapshot
            | Channel::Api
            | Channel::Image
            | Channel::Volume
            | Channel::Join
            | Channel::Route
            | Channel::State => Err("not a message channel".to_owned()),
        }
    }

    async fn stranger(
        &self,
        from: NodeKey,
        address: Option<SocketAddr>,
        request: Bytes,
    ) -> Result<Bytes, String> {
        let (clock, address) = (&self.shared.platform.clock, address.map(|address| address.ip()));
        if let Some(wait) = self.attempts.wait(from, address, clock.now()) {
            let message = format!("too many attempts failed: try again in {} s", wait.as_secs().max(1));
            return Ok(wire::encode(&JoinResponse::Unavailable { message }).into());
        }
        let request: JoinRequest =
            decode(&request).inspect_err(|_| self.attempts.failed(from, address, clock.now()))?;
        let answer = self.shared.within(limits::WRITE_DEADLINE, self.join(from, request)).await;
        let answer =
            answer.unwrap_or_else(|| JoinResponse::Unavailable { message: "no quorum in time".to_owned() });
        if matches!(answer, JoinResponse::Refused { .. }) {
            self.attempts.failed(from, address, clock.now());
        }
        Ok(wire::encode(&answer).into())
    }

    async fn stream(&self, from: NodeId, channel: Channel, header: Bytes, stream: Box<dyn Duplex>) {
        match channel {
            Channel::Snapshot => {
                if let Some(raft) = self.shared.raft() {
                    raft.handle_snapshot_stream(from, header, stream).await;
                }
            }
            Channel::State => {
                if let Some(raft) = self.shared.raft() {
                    raft.handle_state_stream(from, header, stream).await;
                }
            }
            Channel::Api => {
                let router = api::router(NodeHandle::new(self.shared.clone()), Access::Peer);
                self.context().apart("api-peer", api::serve_stream(router, stream)).await;
            }
            Channel::Image => {
                let containers = Arc::clone(&self.shared.platform.containers);
                let sending = async move {
                    if let Err(error) = send_image(&*containers, &header, stream).await {
                        tracing::debug!(peer.id = %from, err = %error, "sending an image broke off");
                    }
                };
                self.context().apart("image-peer", sending).await;
            }
            Channel::Volume => {
                let sending = volumes::serve(self.shared.clone(), from, header, stream);
                self.context().apart("volume-peer", sending).await;
            }
            Channel::Route => {
                let serving = route::serve(self.shared.clone(), from, header, stream, self.relays.clone());
                self.context().apart("route-peer", serving).await;
            }
            Channel::Raft
            | Channel::Heartbeat
            | Channel::Forward
            | Channel::Join
            | Channel::Addresses
            | Channel::Hold => {
                tracing::debug!(peer.id = %from, channel = ?channel, "not a stream channel");
            }
        }
    }

    fn linked(&self, from: NodeId, address: SocketAddr) {
        tracing::debug!(node.id = %self.shared.id, peer.id = %from, address = %address, "linked");
    }

    fn runs_twice(&self, node: NodeId, twice: Twice) {
        self.shared.copies.refused(node, twice, self.shared.platform.clock.now());
    }

    fn is_refused(&self, start: Start) {
        let twice = Twice { linked: None, refused: Sighting { start, address: None } };
        self.shared.copies.refused(self.shared.id, twice, self.shared.platform.clock.now());
    }
}

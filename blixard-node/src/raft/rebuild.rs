//! The majority's state for a member whose own differs: sent on [`Channel::State`], checked against the
//! digest that the majority agrees on, and put in the place of the member's snapshot.
//!
//! What the asker trusts is that digest alone: of which entry the state is, and who was a member then,
//! it knows by its own log, which it keeps, as it does its vote. Opened on the new snapshot, it applies
//! the log after it again.

use std::io;
use std::time::Duration;

use blixard_core::cluster::digests::{Agreed, StateDigest};
use blixard_core::cluster::snapshot::{decode_state, encode_state};
use blixard_core::id::NodeId;
use blixard_core::limits::SNAPSHOT_BYTES_MAX;
use blixard_core::wire::{self, Channel, StateRequest};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::RaftNode;
use super::digests::{Compared, Points};
use super::transfer::{CHUNK_BYTES, CHUNK_DEADLINE, read_all};
use super::types::SnapshotMeta;
use crate::context::NodeContext;
use crate::platform::Duplex;

/// How long a member may take to encode its state before it sends the first byte.
const ENCODE_DEADLINE: Duration = Duration::from_secs(30);

/// A state to open on in the place of this member's own.
#[derive(Debug, Clone)]
pub(crate) struct Replacement {
    pub(super) meta: SnapshotMeta,
    pub(super) data: Bytes,
}

impl Replacement {
    /// Which entry it is the state after.
    pub(crate) fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |last| last.index)
    }
}

impl RaftNode {
    /// The newest digests of this member's state.
    pub(crate) fn state_digests(&self) -> Vec<StateDigest> {
        self.inner.digests.newest()
    }

    /// Compares what a majority agrees on with this member's state at that index.
    pub(crate) fn compare_digest(&self, agreed: &Agreed) -> Compared {
        self.inner.digests.compare(agreed)
    }

    /// Says whether this member's state is known to be wrong: then no snapshot is made of it.
    pub(crate) fn set_differs(&self, differs: bool) {
        self.inner.digests.set_differs(differs);
    }

    /// Sends the state that a member asks for, if this one has it.
    pub(crate) async fn handle_state_stream(&self, from: NodeId, header: Bytes, stream: Box<dyn Duplex>) {
        match self.context().clone().run(send(&self.inner.digests, &header, stream)).await {
            Ok(bytes) => tracing::info!(peer.id = %from, bytes, "state sent to a member whose own differs"),
            Err(error) => tracing::debug!(peer.id = %from, err = %error, "no state sent"),
        }
    }

    /// Asks the member `from` for the state that the majority agrees on.
    ///
    /// # Errors
    /// Why there is none to be had from it, for people.
    pub(crate) async fn fetch_state(&self, from: NodeId, agreed: &Agreed) -> Result<Replacement, String> {
        let fetching = async {
            let digest = agreed.digest;
            let meta = self.inner.digests.covers(digest.index);
            let meta = meta.ok_or("this node does not remember that index any more")?;
            let purged = self.raft().metrics().borrow().purged.map_or(0, |purged| purged.index);
            if purged > digest.index {
                return Err(format!("the log begins at {} only", purged + 1));
            }
            let header = Bytes::from(wire::encode(&StateRequest { digest }));
            let opening =
                self.inner.platform.transport.open_stream(from, Channel::State, header, CHUNK_DEADLINE);
            let stream = opening.await.map_err(|error| error.to_string())?;
            let data = receive(stream).await.map_err(|error| error.to_string())?;
            let checked = data.clone();
            NodeContext::current().blocking(move || check(&digest, &checked)).await?;
            Ok(Replacement { meta, data })
        };
        self.context().clone().run(fetching).await
    }
}

async fn send(points: &Points, header: &[u8], mut stream: Box<dyn Duplex>) -> io::Result<u64> {
    let none = |why: &str| Err(io::Error::other(why.to_owned()));
    let request: StateRequest = match wire::decode(header) {
        Ok(request) => request,
        Err(error) => return none(&error.to_string()),
    };
    let Ok(_turn) = points.sending.try_lock() else {
        stream.write_all(&[0]).await?;
        stream.shutdown().await?;
        return none("another member is sent one");
    };
    let Some(state) = points.state(&request.digest) else {
        stream.write_all(&[0]).await?;
        stream.shutdown().await?;
        return none("it is not kept here");
    };
    let data = NodeContext::current().blocking(move || encode_state(&state)).await;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let length = data.len() as u64;
    let head = [&[1][..], &length.to_be_bytes()].concat();
    for chunk in std::iter::once(&head[..]).chain(data.chunks(CHUNK_BYTES)) {
        timeout(CHUNK_DEADLINE, stream.write_all(chunk)).await.map_err(late)??;
    }
    timeout(CHUNK_DEADLINE, stream.shutdown()).await.map_err(late)??;
    Ok(length)
}

async fn receive(mut stream: Box<dyn Duplex>) -> io::Result<Bytes> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    if timeout(ENCODE_DEADLINE, stream.read_u8()).await.map_err(late)?? != 1 {
        return Err(io::Error::other("it does not have that state any more, or is asked by another member"));
    }
    let length = timeout(CHUNK_DEADLINE, stream.read_u64()).await.map_err(late)??;
    if length > SNAPSHOT_BYTES_MAX {
        return Err(io::Error::other(format!("{length} bytes are more than {SNAPSHOT_BYTES_MAX}")));
    }
    read_all(&mut stream, length).await
}

/// Checks that bytes are the state that the majority agrees on.
fn check(digest: &StateDigest, data: &[u8]) -> Result<(), String> {
    if Sha256::digest(data).as_slice() != digest.sha256 {
        return Err("what was sent has another digest".to_owned());
    }
    let state = decode_state(data).map_err(|error| error.to_string())?;
    if state.applied == digest.index {
        return Ok(());
    }
    Err(format!("what was sent is the state at {}", state.applied))
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::digests::DIGEST_VERSION;
    use blixard_core::cluster::{ClusterState, Command};
    use blixard_core::id::ClusterId;
    use blixard_core::time::UtcMs;

    use super::super::testing::{Links, platform};
    use super::super::{OpenError, RaftConfig};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn only_what_the_majority_agrees_on_is_taken() {
        let state = ClusterState { applied: 7, ..ClusterState::new() };
        let data = encode_state(&state);
        let digest =
            |index| StateDigest { index, version: DIGEST_VERSION, sha256: Sha256::digest(&data).into() };
        assert_eq!(check(&digest(7), &data), Ok(()));
        assert!(check(&digest(8), &data).is_err_and(|why| why.contains("the state at 7")));
        let other = encode_state(&ClusterState { applied: 8, ..state });
        assert!(check(&digest(7), &other).is_err_and(|why| why.contains("another digest")));
        let none = StateDigest { sha256: Sha256::digest(b"none").into(), ..digest(7) };
        assert!(check(&none, b"none").is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_state_is_taken_though_the_own_snapshot_covers_more_and_not_where_the_log_begins_later() {
        let (links, directory) = (Links::default(), tempfile::tempdir().expect("a directory"));
        let cluster = ClusterId([7; 16]);
        let open = |replacement: Option<Replacement>| {
            let (platform, _) = platform(NodeId(1), directory.path(), &links);
            let config = RaftConfig { log_keep: 4, ..RaftConfig::default() };
            async move {
                match replacement {
                    Some(state) => RaftNode::rebuild(platform, cluster, NodeId(1), config, state).await,
                    None => RaftNode::open(platform, cluster, NodeId(1), config).await,
                }
            }
        };
        let write = async |node: &RaftNode, count: u64| {
            for _ in 0..count {
                let hold = Command::Hold { node: NodeId(1), until: Some(UtcMs(1)) };
                node.propose(vec![hold], PATIENCE).await.expect("it leads");
            }
        };
        let leads = async |node: &RaftNode| {
            while !node.leads() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let snapshot = async |node: &RaftNode| {
            let applied = node.state().applied;
            node.trigger_snapshot().await.expect("Raft runs");
            let saved = async {
                while node.status().snapshot < applied {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, saved).await.expect("a snapshot is taken");
            let kept = node.raft().get_snapshot().await.expect("Raft runs");
            kept.expect("there is one")
        };
        let node = open(None).await.expect("the stores open");
        node.initialize().await.expect("Raft runs");
        timeout(PATIENCE, leads(&node)).await.expect("it leads");
        write(&node, 3).await;
        let early = snapshot(&node).await;
        write(&node, 2).await;
        let last = snapshot(&node).await.meta.last_log_id.expect("it covers entries").index;
        node.shutdown().await;

        // What tells the state that is taken from the own one.
        let mut state = decode_state(&early.snapshot).expect("it is whole");
        state.requests_from = UtcMs(4);
        let replacement = Replacement { meta: early.meta, data: encode_state(&state).into() };
        assert!(replacement.index() < last);
        let node = open(Some(replacement.clone())).await.expect("the log goes on from it");
        assert_eq!(node.state().requests_from, UtcMs(4), "the own snapshot stayed");
        assert!(node.state().applied >= last, "the log was not applied again");
        timeout(PATIENCE, leads(&node)).await.expect("it leads");
        // More than openraft purges at once at least.
        write(&node, 100).await;
        snapshot(&node).await;
        let purged = async {
            while node.raft().metrics().borrow().purged.is_none_or(|to| to.index <= replacement.index()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, purged).await.expect("the log is purged");
        node.shutdown().await;
        drop(node);
        let refused = open(Some(replacement)).await.err();
        assert!(matches!(refused, Some(OpenError::Store(_))), "{refused:?}");
        assert!(open(None).await.expect("what is here is left").state().applied > last);
    }
}

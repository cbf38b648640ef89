//! A snapshot on its way from a leader to another member, over one stream.
//!
//! The stream's header says what comes: the leader's vote, what the snapshot covers, its length and
//! digest. Then the state's bytes; then, the other way, four bytes of length and the answer. A
//! receiver that finds less, or another digest, installs nothing.

use std::io;
use std::time::Duration;

use blixard_core::id::NodeId;
use blixard_core::limits::SNAPSHOT_BYTES_MAX;
use blixard_core::wire::Channel;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::codec::{SnapshotMetaRecord, VoteRecord, decode, encode};
use super::message::{SnapshotAnswer, SnapshotHeader};
use super::types::{LogId, Raft, Snapshot, SnapshotMeta, Vote};
use crate::platform::{Duplex, LinkError, Transport};

/// How much is written or read at once, in bytes.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// How long a chunk may take. A member that is slower than this is not there.
pub(super) const CHUNK_DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer.
const ANSWER_BYTES_MAX: u32 = 64 << 10;

/// Sends a snapshot and waits until it is installed; returns the receiver's vote.
pub(super) async fn send(
    transport: &dyn Transport,
    to: NodeId,
    vote: Vote,
    snapshot: &Snapshot,
    deadline: Duration,
) -> Result<Vote, LinkError> {
    let data = &snapshot.snapshot;
    let header = SnapshotHeader {
        vote: VoteRecord::from(&vote),
        meta: SnapshotMetaRecord::from(&snapshot.meta),
        length: data.len() as u64,
        sha256: Sha256::digest(data).into(),
    };
    let mut stream =
        transport.open_stream(to, Channel::Snapshot, encode(&header).into(), CHUNK_DEADLINE).await?;
    let late = |within| LinkError::Timeout { to: to.to_string(), within };
    let broken = |error: io::Error| LinkError::Unreachable { to: to.to_string(), reason: error.to_string() };
    for chunk in data.chunks(CHUNK_BYTES) {
        let written = timeout(CHUNK_DEADLINE, stream.write_all(chunk)).await;
        written.map_err(|_| late(CHUNK_DEADLINE))?.map_err(broken)?;
    }
    let answer = timeout(deadline, async {
        stream.flush().await?;
        read_answer(&mut stream).await
    });
    let answer = answer.await.map_err(|_| late(deadline))?.map_err(broken)?;
    match answer {
        SnapshotAnswer::Done(vote) => Ok(vote.into()),
        SnapshotAnswer::Failed(reason) => Err(LinkError::Refused { to: to.to_string(), reason }),
    }
}

async fn read_answer(stream: &mut Box<dyn Duplex>) -> io::Result<SnapshotAnswer> {
    let length = stream.read_u32().await?;
    if length > ANSWER_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
    }
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    Ok(decode(&answer)?)
}

/// Takes a snapshot that `from` sends and installs it, then says how that went.
pub(super) async fn receive(raft: &Raft, from: NodeId, header: &[u8], mut stream: Box<dyn Duplex>) {
    let answer = match install(raft, header, &mut stream).await {
        Ok(vote) => SnapshotAnswer::Done((&vote).into()),
        Err(reason) => {
            tracing::warn!(peer.id = from.0, err = reason, "snapshot not installed");
            SnapshotAnswer::Failed(reason)
        }
    };
    let answer = encode(&answer);
    let sent = timeout(CHUNK_DEADLINE, async {
        stream.write_u32(u32::try_from(answer.len()).unwrap_or(u32::MAX)).await?;
        stream.write_all(&answer).await?;
        stream.flush().await?;
        stream.shutdown().await
    });
    match sent.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer.id = from.0, err = %error, "snapshot not acknowledged"),
        Err(_) => tracing::debug!(peer.id = from.0, "snapshot not acknowledged in time"),
    }
}

async fn install(raft: &Raft, header: &[u8], stream: &mut Box<dyn Duplex>) -> Result<Vote, String> {
    let header: SnapshotHeader = decode(header).map_err(|error| format!("the header is {error}"))?;
    let meta: SnapshotMeta = header.meta.try_into().map_err(|error| format!("the header is {error}"))?;
    if header.length > SNAPSHOT_BYTES_MAX {
        return Err(format!("{} bytes are more than {SNAPSHOT_BYTES_MAX}", header.length));
    }
    let snapshot = read_all(stream, header.length).await.map_err(|error| error.to_string())?;
    if Sha256::digest(&snapshot).as_slice() != header.sha256 {
        return Err("the digest differs".to_owned());
    }
    let last = meta.last_log_id;
    let installed = raft.install_full_snapshot(header.vote.into(), Snapshot { meta, snapshot }).await;
    let vote = installed.map_err(|error| error.to_string())?.vote;
    match timeout(CHUNK_DEADLINE, durable(raft, last)).await {
        Ok(true) => Ok(vote),
        Ok(false) | Err(_) => Err("what it covers is here and not durable".to_owned()),
    }
}

/// Waits until the disk has what was committed up to `last`; false when Raft ends before.
///
/// openraft has no need of a snapshot whose entries it has, and says so although they may be on
/// their way to the disk still: a leader that takes them for durable never sends them again.
async fn durable(raft: &Raft, last: Option<LogId>) -> bool {
    let (mut log, mut snapshot) = (raft.watch_log_progress(), raft.watch_snapshot_progress());
    // Cancel safe: both only wait.
    tokio::select! {
        biased;
        seen = snapshot.wait_until(|saved| *saved >= last) => seen.is_ok(),
        seen = log.wait_until(|point| point.as_ref().is_some_and(|point| point.last_log_id >= last)) => {
            seen.is_ok()
        }
    }
}

/// Reads exactly `length` bytes, allocating as they come.
pub(super) async fn read_all(stream: &mut Box<dyn Duplex>, length: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let wanted = (length - bytes.len() as u64).min(CHUNK_BYTES as u64);
        let mut chunk = (&mut *stream).take(wanted);
        let read = timeout(CHUNK_DEADLINE, chunk.read_to_end(&mut bytes)).await;
        if read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? < wanted as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes.into())
}

//! Versions between members: the one that follows asks, the primary answers with steps.
//!
//! What is asked for is the newest version there is, from what the asker holds: usually the version
//! before, which the primary knows by its root. Otherwise the asker sends the index of what it holds, and
//! the primary compares. Files are read and written off the async threads; in between is a short queue.

use std::io;
use std::sync::Arc;

use blixard_core::cluster::volume::VolumeVersion;
use blixard_core::id::{NodeId, VolumeId};
use blixard_core::limits::{VOLUME_INDEX_BYTES_MAX, VOLUME_STALL, WRITE_DEADLINE};
use blixard_core::volume::{Index, Step, WRITE_BYTES_MAX};
use blixard_core::wire::{self, Channel, VolumeAnswer, VolumeRequest};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::context::NodeContext;
use crate::platform::{Duplex, VolumeError};
use crate::shared::Shared;

/// Steps that wait between a disk and a link.
const QUEUE: usize = 8;
/// The largest encoded step, in bytes.
const STEP_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 16_384;
/// The largest encoded answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16_384;

type Stream = Box<dyn Duplex>;

fn broken(what: &str, error: impl std::fmt::Display) -> VolumeError {
    VolumeError(format!("{what}: {error}"))
}

/// What `io` gives, unless the other side keeps it waiting for too long.
async fn in_time<T>(shared: &Shared, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    // Dropped when late, and the stream with it.
    shared.within(VOLUME_STALL, io).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

async fn write<T: Serialize>(shared: &Shared, stream: &mut Stream, message: &T) -> io::Result<()> {
    let bytes = wire::encode(message);
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    in_time(shared, async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&bytes).await
    })
    .await
}

/// A message of at most `max` bytes; none where the sender says that there are no more.
async fn read<T: DeserializeOwned>(
    shared: &Shared,
    stream: &mut Stream,
    max: usize,
) -> io::Result<Option<T>> {
    let length = usize::try_from(in_time(shared, stream.read_u32()).await?).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(None);
    }
    if length > max {
        return Err(io::Error::other(format!("a message of {length} bytes, at most {max} are taken")));
    }
    // Grows with what arrives: a length costs nothing to claim.
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let more = (length - bytes.len()).min(1 << 20);
        let mut part = stream.take(more as u64);
        in_time(shared, part.read_to_end(&mut bytes)).await?;
        if part.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    wire::decode(&bytes).map(Some).map_err(io::Error::other)
}

/// Fetches the newest version of a volume from its primary.
pub(super) async fn fetch(
    shared: &Shared,
    context: &NodeContext,
    id: VolumeId,
    primary: NodeId,
    epoch: u64,
) -> Result<(), VolumeError> {
    let store = Arc::clone(&shared.platform.volumes);
    let (base, root) = context
        .blocking(move || {
            let base = store.index(id)?;
            let root = base.root();
            Ok::<_, VolumeError>((base, root))
        })
        .await?;
    let from = format!("from node {primary}");
    let header = Bytes::from(wire::encode(&VolumeRequest { volume: id, epoch, base: root }));
    let opening = shared.platform.transport.open_stream(primary, Channel::Volume, header, WRITE_DEADLINE);
    let mut stream = opening.await.map_err(|error| broken(&from, error))?;
    let mut answer =
        read(shared, &mut stream, ANSWER_BYTES_MAX).await.map_err(|error| broken(&from, error))?;
    if answer == Some(VolumeAnswer::NeedsIndex) {
        write(shared, &mut stream, &*base).await.map_err(|error| broken(&from, error))?;
        answer = read(shared, &mut stream, ANSWER_BYTES_MAX).await.map_err(|error| broken(&from, error))?;
    }
    let version = match answer {
        Some(VolumeAnswer::Version(version)) => version,
        Some(VolumeAnswer::Refused(why)) => return Err(broken(&from, why)),
        Some(VolumeAnswer::NeedsIndex) | None => return Err(broken(&from, "no answer that makes sense")),
    };
    take_in(shared, context, id, version, stream).await.map_err(|error| broken(&from, error))
}

/// Has the steps that arrive made into a version.
async fn take_in(
    shared: &Shared,
    context: &NodeContext,
    id: VolumeId,
    version: VolumeVersion,
    mut stream: Stream,
) -> Result<(), VolumeError> {
    let (steps, mut queue) = mpsc::channel::<Result<Option<Step>, VolumeError>>(QUEUE);
    let store = Arc::clone(&shared.platform.volumes);
    let receiving = context.blocking(move || {
        let mut next = || match queue.blocking_recv() {
            Some(step) => step,
            None => Err(VolumeError("the transfer was broken off".to_owned())),
        };
        store.receive(id, version, &mut next)
    });
    let feeding = async {
        loop {
            let step = read(shared, &mut stream, STEP_BYTES_MAX).await;
            let last = !matches!(step, Ok(Some(_)));
            // An error: whoever receives has given up, and says why.
            if steps.send(step.map_err(|error| VolumeError(error.to_string()))).await.is_err() || last {
                break;
            }
        }
        // Not before the last was taken: without it the transfer counts as broken off.
        drop(steps);
    };
    let (received, ()) = tokio::join!(receiving, feeding);
    received
}

/// Answers a member that follows a volume.
pub(crate) async fn serve(shared: Shared, from: NodeId, header: Bytes, mut stream: Stream) {
    let context = NodeContext::current();
    let served = answer(&shared, &context, from, &header, &mut stream).await;
    if let Err(error) = served {
        tracing::debug!(peer.id = %from, err = %error, "sending a volume broke off");
    }
    in_time(&shared, stream.shutdown()).await.ok();
}

async fn answer(
    shared: &Shared,
    context: &NodeContext,
    from: NodeId,
    header: &[u8],
    stream: &mut Stream,
) -> io::Result<()> {
    let request: VolumeRequest = wire::decode(header).map_err(io::Error::other)?;
    if let Err(why) = check(shared, from, &request) {
        return write(shared, stream, &VolumeAnswer::Refused(why)).await;
    }
    let base = match shared.platform.volumes.knows(request.volume, request.base) {
        Some(index) => index,
        None => {
            write(shared, stream, &VolumeAnswer::NeedsIndex).await?;
            let index: Option<Index> = read(shared, stream, VOLUME_INDEX_BYTES_MAX).await?;
            Arc::new(index.ok_or(io::ErrorKind::UnexpectedEof)?)
        }
    };
    let (messages, mut queue) = mpsc::channel::<Outgoing>(QUEUE);
    let store = Arc::clone(&shared.platform.volumes);
    let id = request.volume;
    let sending = context.blocking(move || {
        let gone = |_| VolumeError("nobody takes it any more".to_owned());
        let mut begun = false;
        let mut begin = |version| {
            begun = true;
            messages.blocking_send(Outgoing::Answer(VolumeAnswer::Version(version))).map_err(gone)
        };
        let mut sink = |step| messages.blocking_send(Outgoing::Step(step)).map_err(gone);
        let sent = store.send(id, &base, &mut begin, &mut sink);
        let last = match &sent {
            Ok(()) => Outgoing::End,
            Err(error) if !begun => Outgoing::Answer(VolumeAnswer::Refused(error.to_string())),
            // What ends without an end is not taken.
            Err(_) => return sent,
        };
        messages.blocking_send(last).map_err(gone)
    });
    // It ends with its queue: whoever reads from the disk does not wait for one that nobody empties.
    let writing = async move {
        while let Some(message) = queue.recv().await {
            match message {
                Outgoing::Answer(answer) => write(shared, stream, &answer).await?,
                Outgoing::Step(step) => write(shared, stream, &step).await?,
                Outgoing::End => in_time(shared, stream.write_all(&0_u32.to_be_bytes())).await?,
            }
        }
        Ok::<_, io::Error>(())
    };
    let (sent, written) = tokio::join!(sending, writing);
    written?;
    sent.map_err(io::Error::other)
}

enum Outgoing {
    Answer(VolumeAnswer),
    Step(Step),
    End,
}

/// Why a member is not sent a volume.
fn check(shared: &Shared, from: NodeId, request: &VolumeRequest) -> Result<(), String> {
    if let Some(why) = shared.digests.refusal() {
        return Err(why);
    }
    let state = shared.state();
    let Some((name, volume)) = state.volume_by_id(request.volume) else {
        return Err("there is no such volume here".to_owned());
    };
    if volume.primary != Some(shared.id) || volume.epoch != request.epoch {
        return Err(format!("node {} does not hold the primary copy of `{name}` of that epoch", shared.id));
    }
    if !volume.copies.contains_key(&from) {
        return Err(format!("node {from} is not to hold a copy of `{name}`"));
    }
    Ok(())
}

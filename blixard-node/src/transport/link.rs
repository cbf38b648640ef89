//! One connection to a member, once both sides know each other: calls and streams, both ways.
//!
//! Small calls share long-lived streams, the lanes: a call costs one write and no stream of its
//! own. Raft has a lane to itself, so that nothing else delays it. A large request, or a large
//! answer, gets a stream of its own and so delays nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use blixard_core::discovery::copies::Start;
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::limits::MESSAGE_BYTES_MAX;
use blixard_core::wire::Channel;
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, ConnectionError, SendStream, VarInt};
use tokio::sync::{mpsc, oneshot};

use super::frame::{Frame, Status, StreamKind};
use super::hello::Hello;
use super::serve::{self, Serving};
use super::stream::{FrameReader, LinkStream, ReadFault, push_frame, read_frame, write_frame};
use super::tasks::Tasks;

/// The largest payload that travels in a lane; a larger one would delay those behind it.
pub(super) const LANE_BYTES_MAX: usize = 64 << 10;
/// Frames that wait for a lane; callers beyond wait in turn, within their deadlines.
pub(super) const LANE_QUEUE: usize = 1024;
/// Frames written at once at most.
const LANE_BATCH: usize = 64;
/// What a lane has to say goes before what other streams have: those have 0.
const LANE_PRIORITY: i32 = 1;
/// How long a superseded link lives on for what is under way on it.
const RETIRE_AFTER: Duration = Duration::from_secs(10);

/// Why a connection is closed, as the other side is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum CloseCode {
    NotMember = 1,
    Malformed = 2,
    Superseded = 3,
    Shutdown = 4,
    Busy = 5,
    Done = 6,
    RunsTwice = 7,
}

/// Closes a connection, saying why.
pub(super) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}

/// Why a connection ended, in words; the other side's own when it gave any.
pub(super) fn close_reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        ConnectionError::TimedOut => "it fell silent".to_owned(),
        other => super::endpoint::chain(other),
    }
}

/// Why a call over a link got no answer.
#[derive(Debug)]
pub(super) enum CallFault {
    /// The link ended; the message may have been handled.
    Ended(String),
    /// The other side's words.
    Refused(String),
}

/// Counts as something under way on a link for as long as it lives.
#[derive(Debug)]
pub(super) struct Busy;

/// A connection to a member.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) key: NodeKey,
    /// Whether this side dialled.
    pub(super) dialled: bool,
    /// Drawn anew by the other side for each of its endpoints.
    pub(super) boot: u64,
    /// Which start of its daemon the other side said it is.
    pub(super) start: Option<Start>,
    connection: Connection,
    lanes: [mpsc::Sender<Frame>; 2],
    calls: Mutex<Calls>,
    busy: Arc<Busy>,
}

/// Calls that wait for answers.
#[derive(Default)]
struct Calls {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Frame>>,
    ended: bool,
}

impl Link {
    /// Starts serving and using a connection on which hellos were exchanged.
    pub(super) async fn start(
        connection: Connection,
        serving: Serving,
        node: NodeId,
        dialled: bool,
        hello: &Hello,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, ConnectionError> {
        let mut lanes = Vec::with_capacity(2);
        let mut receivers = Vec::with_capacity(2);
        for _ in 0..2 {
            let (send, recv) = connection.open_bi().await?;
            let (sender, queue) = mpsc::channel(LANE_QUEUE);
            tasks.spawn(write_lane(send, Some(StreamKind::Lane), queue));
            receivers.push(recv);
            lanes.push(sender);
        }
        let lanes = <[_; 2]>::try_from(lanes).expect("two lanes were opened");
        let link = Arc::new(Self {
            node,
            key: super::endpoint::remote_key(&connection),
            dialled,
            boot: hello.boot,
            start: hello.start,
            connection,
            lanes,
            calls: Mutex::default(),
            busy: Arc::new(Busy),
        });
        for recv in receivers {
            tasks.spawn(link.clone().read_answers(FrameReader::new(recv, LANE_BYTES_MAX)));
        }
        tasks.spawn(link.clone().read_large_answers());
        tasks.spawn(serve::streams(link.clone(), serving, tasks.clone()));
        Ok(link)
    }

    /// Sends a request and waits for its answer. Cancel safe: an answer nobody waits for is
    /// dropped.
    pub(super) async fn call(&self, channel: Channel, request: Bytes) -> Result<Bytes, CallFault> {
        let answer = if request.len() <= LANE_BYTES_MAX {
            self.call_in_lane(channel, request).await?
        } else {
            self.call_in_stream(channel, request).await?
        };
        match Status::from_byte(answer.tag) {
            Some(Status::Answered) => Ok(answer.payload),
            Some(Status::Refused) => Err(CallFault::Refused(String::from_utf8_lossy(&answer.payload).into())),
            None => Err(self.malformed(&format!("status {} of an answer", answer.tag))),
        }
    }

    async fn call_in_lane(&self, channel: Channel, payload: Bytes) -> Result<Frame, CallFault> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut calls = self.calls();
            if calls.ended {
                drop(calls);
                return Err(self.ended());
            }
            let id = calls.next;
            calls.next += 1;
            calls.waiting.insert(id, sender);
            id
        };
        let _forget = Forget { link: self, id };
        let lane = usize::from(channel != Channel::Raft);
        let frame = Frame { id, tag: channel as u8, payload };
        self.lanes[lane].send(frame).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())
    }

    async fn call_in_stream(&self, channel: Channel, payload: Bytes) -> Result<Frame, CallFault> {
        let _busy = self.busy();
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|_| self.ended())?;
        let frame = Frame { id: 0, tag: channel as u8, payload };
        write_frame(&mut send, &[StreamKind::Call as u8], frame).await.map_err(|_| self.ended())?;
        let _already_closed = send.finish();
        read_frame(&mut recv, MESSAGE_BYTES_MAX).await.map_err(|fault| match fault {
            ReadFault::Ended(_) => self.ended(),
            ReadFault::Malformed(what) => self.malformed(&what),
        })
    }

    /// Opens a stream of raw bytes.
    pub(super) async fn open_stream(
        &self,
        channel: Channel,
        payload: Bytes,
    ) -> Result<LinkStream, CallFault> {
        let (mut send, recv) = self.connection.open_bi().await.map_err(|_| self.ended())?;
        let frame = Frame { id: 0, tag: channel as u8, payload };
        write_frame(&mut send, &[StreamKind::Stream as u8], frame).await.map_err(|_| self.ended())?;
        Ok(LinkStream { send, recv, _busy: self.busy() })
    }

    /// The connection, for those who serve it.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Counts as something under way until dropped.
    pub(super) fn busy(&self) -> Arc<Busy> {
        self.busy.clone()
    }

    /// Waits for the link's end, fails what waits for answers, and says why it ended.
    pub(super) async fn ended_for(&self) -> String {
        let error = self.connection.closed().await;
        let mut calls = self.calls();
        calls.ended = true;
        calls.waiting.clear();
        close_reason(&error)
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        close(&self.connection, code, reason);
    }

    /// Closes a superseded link when what was under way on it is done, unless it has ended before.
    pub(super) async fn retire(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RETIRE_AFTER).await;
            if self.connection.close_reason().is_some() {
                return;
            }
            if Arc::strong_count(&self.busy) == 1 && self.calls().waiting.is_empty() {
                return self.close(CloseCode::Superseded, "another link took over");
            }
        }
    }

    /// Closes the connection because the other side does not speak the protocol.
    pub(super) fn malformed(&self, what: &str) -> CallFault {
        tracing::warn!(peer.id = %self.node, what, "closing a link that carried a malformed message");
        self.close(CloseCode::Malformed, what);
        CallFault::Ended(format!("malformed: {what}"))
    }

    fn ended(&self) -> CallFault {
        let reason = self.connection.close_reason();
        CallFault::Ended(
            reason.map_or_else(|| "the stream was reset".to_owned(), |error| close_reason(&error)),
        )
    }

    async fn read_answers(self: Arc<Self>, mut reader: FrameReader) {
        loop {
            match reader.next().await {
                Ok(Some(frame)) => self.answered(frame),
                Ok(None) | Err(ReadFault::Ended(_)) => return,
                Err(ReadFault::Malformed(what)) => {
                    self.malformed(&what);
                    return;
                }
            }
        }
    }

    async fn read_large_answers(self: Arc<Self>) {
        while let Ok(mut recv) = self.connection.accept_uni().await {
            match read_frame(&mut recv, MESSAGE_BYTES_MAX).await {
                Ok(frame) => self.answered(frame),
                Err(ReadFault::Ended(_)) => {}
                Err(ReadFault::Malformed(what)) => {
                    self.malformed(&what);
                    return;
                }
            }
        }
    }

    fn answered(&self, frame: Frame) {
        let waiting = self.calls().waiting.remove(&frame.id);
        if let Some(waiting) = waiting {
            // The caller may have given up since.
            let _given_up = waiting.send(frame);
        }
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a call out of those that wait, however its caller leaves.
struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.calls().waiting.remove(&self.id);
    }
}

/// Writes a lane's frames, as many at once as wait. A task of its own, so that a caller that gives
/// up never leaves half a frame behind.
pub(super) async fn write_lane(
    mut send: SendStream,
    kind: Option<StreamKind>,
    mut queue: mpsc::Receiver<Frame>,
) {
    // Of a stream that has ended already: so will the first write.
    let _ended = send.set_priority(LANE_PRIORITY);
    let mut scratch = BytesMut::new();
    let mut frames = Vec::with_capacity(LANE_BATCH);
    let mut chunks = Vec::with_capacity(4);
    scratch.extend(kind.map(|kind| kind as u8));
    loop {
        chunks.extend((!scratch.is_empty()).then(|| scratch.split().freeze()));
        if send.write_all_chunks(&mut chunks).await.is_err() {
            return;
        }
        chunks.clear();
        if queue.recv_many(&mut frames, LANE_BATCH).await == 0 {
            return;
        }
        for frame in frames.drain(..) {
            push_frame(&mut chunks, &mut scratch, frame);
        }
    }
}

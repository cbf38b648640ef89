//! The join protocol: one question and one answer with someone who is no member, on a connection
//! of its own, small and seldom.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blixard_core::time::Mono;
use blixard_core::wire::{Channel, Peer};
use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;

use super::endpoint::{ALPN_JOIN, remote_address, remote_key};
use super::frame::{Frame, Status};
use super::hello::dial_target;
use super::link::{CloseCode, close, close_reason};
use super::shared::Shared;
use super::stream::{ReadFault, read_frame, write_frame};
use crate::platform::LinkError;

/// The largest question.
const QUESTION_BYTES_MAX: usize = 64 << 10;
/// The largest answer: a list of every member.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Strangers served at once.
const STRANGERS_MAX: usize = 16;
/// Strangers that may come at once, and how long until another may: guessing secrets is pointless
/// at this rate, and a rack of machines still joins within seconds.
const BURST: u32 = 32;
const REFILL: Duration = Duration::from_millis(100);
/// How long a stranger has to ask.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// How long answering may take; it includes a commit.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a stranger has to take its answer and close.
const LEAVE_DEADLINE: Duration = Duration::from_secs(3);

/// Serves strangers, within limits.
pub(super) struct Strangers {
    room: Semaphore,
    rate: Mutex<Rate>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { room: Semaphore::new(STRANGERS_MAX), rate: Mutex::default() }
    }
}

impl Strangers {
    /// Answers one question, then closes the connection.
    pub(super) async fn serve(&self, shared: &Shared, connection: &Connection) -> Result<(), String> {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(1));
        connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
        let admitted = self.rate.lock().unwrap_or_else(PoisonError::into_inner).admit(shared.now());
        let room = self.room.try_acquire();
        if !admitted || room.is_err() {
            let reason = "too many are asking to join at once: try again later";
            close(connection, CloseCode::Busy, reason);
            return Err(reason.to_owned());
        }
        // Dropped last: a stream that ends before the connection is all that the stranger hears.
        let mut streams = None;
        let served = answer(shared, connection, &mut streams).await;
        if let Err(reason) = &served {
            close(connection, CloseCode::Malformed, reason);
        } else {
            // The answer is on its way; whoever got it closes.
            let _late = tokio::time::timeout(LEAVE_DEADLINE, connection.closed()).await;
            close(connection, CloseCode::Done, "answered");
        }
        served
    }
}

async fn answer(
    shared: &Shared,
    connection: &Connection,
    streams: &mut Option<(SendStream, RecvStream)>,
) -> Result<(), String> {
    let question = async {
        let accepted = connection.accept_bi().await.map_err(|error| close_reason(&error))?;
        let (send, recv) = streams.insert(accepted);
        let frame = read_frame(recv, QUESTION_BYTES_MAX).await.map_err(|fault| fault.to_string())?;
        Ok::<_, String>((send, frame))
    };
    let (send, frame) = tokio::time::timeout(ASK_DEADLINE, question)
        .await
        .map_err(|_| format!("no question within {ASK_DEADLINE:?}"))??;
    if Channel::from_byte(frame.tag) != Some(Channel::Join) {
        return Err("only a member may ask that: this protocol is for joining".to_owned());
    }
    let handler = shared.handler.wait().await;
    let asked = handler.stranger(remote_key(connection), remote_address(connection), frame.payload);
    let (status, payload) = match tokio::time::timeout(ANSWER_DEADLINE, asked).await {
        Ok(Ok(answer)) => (Status::Answered, answer),
        Ok(Err(reason)) => (Status::Refused, reason.into()),
        Err(_) => (Status::Refused, Bytes::from_static(b"the cluster took too long to answer")),
    };
    let answer = Frame { id: 0, tag: status as u8, payload };
    write_frame(send, &[], answer).await.map_err(|error| error.to_string())?;
    let _already_closed = send.finish();
    Ok(())
}

/// Asks a member that need not know this node.
pub(super) async fn ask(shared: &Shared, to: &Peer, request: Bytes) -> Result<Bytes, LinkError> {
    let name = format!("{:?} (key {})", to.addresses, to.key);
    let unreachable = |reason: String| LinkError::Unreachable { to: name.clone(), reason };
    let target = dial_target(to.key, &to.addresses, to.relay_url.as_deref()).map_err(unreachable)?;
    let connection = shared.listener.connect(target, ALPN_JOIN).await.map_err(unreachable)?;
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(std::io::Error::from)?;
        let question = Frame { id: 0, tag: Channel::Join as u8, payload: request };
        write_frame(&mut send, &[], question).await.map_err(std::io::Error::from)?;
        let _already_closed = send.finish();
        read_frame(&mut recv, ANSWER_BYTES_MAX).await
    };
    let answer = exchange.await.map_err(|fault| {
        let closed = connection.close_reason().map(|error| close_reason(&error));
        unreachable(match (fault, closed) {
            (ReadFault::Ended(_), Some(reason)) => reason,
            (fault, _) => fault.to_string(),
        })
    })?;
    close(&connection, CloseCode::Done, "answered");
    match Status::from_byte(answer.tag) {
        Some(Status::Answered) => Ok(answer.payload),
        Some(Status::Refused) => Err(LinkError::Refused {
            to: name,
            reason: String::from_utf8_lossy(&answer.payload).into_owned(),
        }),
        None => Err(unreachable(format!("malformed answer: status {}", answer.tag))),
    }
}

/// A token bucket.
#[derive(Debug, Default)]
struct Rate {
    used: u32,
    /// When `used` was last lowered.
    at: Mono,
}

impl Rate {
    /// Whether one more may come now.
    fn admit(&mut self, now: Mono) -> bool {
        let refilled = u32::try_from(now.since(self.at).as_nanos() / REFILL.as_nanos()).unwrap_or(u32::MAX);
        if refilled > 0 {
            self.used = self.used.saturating_sub(refilled);
            self.at = now;
        }
        let admitted = self.used < BURST;
        self.used += u32::from(admitted);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, REFILL, Rate};
    use blixard_core::time::Mono;

    #[test]
    fn strangers_beyond_a_burst_come_at_the_refill_rate() {
        let mut rate = Rate::default();
        let mut now = Mono::default();
        let admitted = |rate: &mut Rate, now| (0..2 * BURST).filter(|_| rate.admit(now)).count();
        assert_eq!(admitted(&mut rate, now), BURST as usize);
        now = now + REFILL * 3;
        assert_eq!(admitted(&mut rate, now), 3);
        now = now + REFILL * 10 * BURST;
        assert_eq!(admitted(&mut rate, now), BURST as usize);
    }
}

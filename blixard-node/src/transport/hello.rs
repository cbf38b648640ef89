//! The first words on a connection between members. A dialler whose key is not accepted sees its
//! connection made and then closed, so a link counts only once the other side's hello is here.

use std::net::SocketAddr;

use blixard_core::discovery::copies::Start;
use blixard_core::id::NodeKey;
use blixard_core::wire;
use iroh::endpoint::{Connection, SendStream};
use serde::{Deserialize, Serialize};

use super::endpoint::{endpoint_addr, remote_key};
use super::frame::{Frame, StreamKind};
use super::link::{CloseCode, close, close_reason};
use super::stream::{ReadFault, read_frame, write_frame};

/// The longest hello.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// What one side tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Drawn for each endpoint: tells a restarted member's link from an old one.
    pub(super) boot: u64,
    /// Where it listens.
    pub(super) addresses: Vec<SocketAddr>,
    /// Which start of its daemon it is; software of before says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start: Option<Start>,
}

/// Says hello on a connection this side dialled and waits for the answer.
pub(super) async fn say(connection: &Connection, own: &Hello) -> Result<Hello, String> {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(std::io::Error::from)?;
        write_frame(&mut send, &[StreamKind::Hello as u8], encode(own))
            .await
            .map_err(std::io::Error::from)?;
        decode(&read_frame(&mut recv, HELLO_BYTES_MAX).await?)
    };
    finish(connection, exchange.await)
}

/// Hears the hello on a connection the other side dialled; [`answer`] answers it on the stream
/// given.
pub(super) async fn hear(connection: &Connection) -> Result<(Hello, SendStream), String> {
    let exchange = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(std::io::Error::from)?;
        let mut kind = [0];
        recv.read_exact(&mut kind).await.map_err(std::io::Error::other)?;
        if StreamKind::from_byte(kind[0]) != Some(StreamKind::Hello) {
            return Err(ReadFault::Malformed(format!("a stream of kind {} before the hello", kind[0])));
        }
        Ok((decode(&read_frame(&mut recv, HELLO_BYTES_MAX).await?)?, send))
    };
    finish(connection, exchange.await)
}

/// Answers a hello that was heard: from then on the other side counts the link as up.
pub(super) async fn answer(connection: &Connection, mut send: SendStream, own: &Hello) -> Result<(), String> {
    let written = write_frame(&mut send, &[], encode(own)).await;
    finish(connection, written.map_err(|error| ReadFault::Ended(error.into())))
}

/// Why dialling `key` makes no sense, or what to dial.
pub(super) fn dial_target(
    key: NodeKey,
    addresses: &[SocketAddr],
    relay: Option<&str>,
) -> Result<iroh::EndpointAddr, String> {
    if addresses.is_empty() && relay.is_none() {
        return Err("no address of it is known".to_owned());
    }
    endpoint_addr(key, addresses, relay).ok_or_else(|| format!("{key} is not an Ed25519 public key"))
}

fn finish<T>(connection: &Connection, exchanged: Result<T, ReadFault>) -> Result<T, String> {
    exchanged.map_err(|fault| match fault {
        ReadFault::Malformed(what) => {
            close(connection, CloseCode::Malformed, &what);
            format!("{} sent a malformed hello: {what}", remote_key(connection))
        }
        ReadFault::Ended(error) => connection.close_reason().map_or_else(
            || error.to_string(),
            |reason| format!("it closed the link: {}", close_reason(&reason)),
        ),
    })
}

fn encode(hello: &Hello) -> Frame {
    Frame { id: 0, tag: 0, payload: wire::encode(hello).into() }
}

fn decode(frame: &Frame) -> Result<Hello, ReadFault> {
    wire::decode(&frame.payload).map_err(|error| ReadFault::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use blixard_core::discovery::copies::Start;

    use super::{Hello, decode, encode};
    use crate::transport::frame::Frame;

    #[test]
    fn hellos_survive_every_damage() {
        let addresses = ["10.77.0.1:7001", "[fd00::1]:7001"].map(|text| text.parse().expect("an address"));
        let hello = Hello { boot: 5, addresses: addresses.to_vec(), start: Some(Start { boot: 2, id: 7 }) };
        let seeds =
            [hello.clone(), Hello { start: None, ..hello }].map(|hello| encode(&hello).payload.to_vec());
        damage::survives("hello", &seeds, |input| {
            let frame = Frame { id: 0, tag: 0, payload: input.to_vec().into() };
            let hello = decode(&frame).map_err(|fault| fault.to_string())?;
            assert_eq!(decode(&encode(&hello)).expect("what was encoded is decoded"), hello);
            Ok(())
        });
    }
}

//! Refuses the second start of a member that runs twice (`blixard_core::discovery::copies`): the
//! one that is linked stays for as long as it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::discovery::book::AddressesMessage;
use blixard_core::discovery::copies::{Sighting, Start, Twice, is_another};
use blixard_core::id::NodeId;
use blixard_core::wire::{self, Channel};
use iroh::endpoint::{Connection, ConnectionError, VarInt};

use super::endpoint::{remote_address, remote_key};
use super::hello::Hello;
use super::link::{CallFault, CloseCode, Link, close};
use super::peer::Slot;
use super::shared::Shared;

/// How long the start that is linked has to answer before another takes over. A daemon that was
/// killed and comes back waits for as long, unless its link has fallen silent meanwhile.
const ALIVE_WITHIN: Duration = Duration::from_millis(1500);

impl Shared {
    /// Whether the member at the other end may link: not while another start of it lives, and not
    /// while the leader refuses this one.
    ///
    /// # Errors
    /// In words when it may not; the connection is closed then.
    pub(super) async fn admit(&self, connection: &Connection, hello: &Hello) -> Result<(), String> {
        let Some(slot) = self.slot_by_key(remote_key(connection)) else { return Ok(()) };
        let Some(start) = hello.start else { return Ok(()) };
        let refused = Sighting { start, address: remote_address(connection) };
        let twice = match self.linked_instead(&slot, start).await {
            Some(linked) => Twice { linked: Some(linked), refused },
            None => match self.refused_by_leader(slot.node).filter(|twice| twice.refused.start == start) {
                Some(twice) => twice,
                None => return Ok(()),
            },
        };
        self.handler.wait().await.runs_twice(slot.node, twice);
        let words = twice.words(slot.node);
        close(connection, CloseCode::RunsTwice, &words);
        Err(words)
    }

    /// Another start of the member than `start` that is linked and lives.
    async fn linked_instead(&self, slot: &Slot, start: Start) -> Option<Sighting> {
        let link = slot.link().filter(|link| is_another(link.start, Some(start)))?;
        lives(&link).await.then_some(())?;
        Some(Sighting { start: link.start?, address: remote_address(link.connection()) })
    }

    /// Takes in which starts the leader refuses, and ends their links here: of two starts that are
    /// each linked to some members the same one stays everywhere.
    pub(super) fn heed(&self, twice: BTreeMap<NodeId, Twice>) {
        self.set_refused_by_leader(twice.clone());
        for (node, twice) in twice {
            let links = self.slot(node).into_iter().flat_map(|slot| slot.links());
            for link in links.filter(|link| link.start == Some(twice.refused.start)) {
                link.close(CloseCode::RunsTwice, &twice.words(node));
            }
        }
    }
}

/// Whether the other end of a link answers, whatever it answers.
async fn lives(link: &Link) -> bool {
    let request = wire::encode(&AddressesMessage { members: BTreeMap::new() });
    let asked = tokio::time::timeout(ALIVE_WITHIN, link.call(Channel::Addresses, request.into())).await;
    matches!(asked, Ok(Ok(_) | Err(CallFault::Refused(_))))
}

/// Whether the other side closed a connection because this node runs twice.
pub(super) fn refused_for_running_twice(connection: &Connection) -> bool {
    let code = VarInt::from_u32(CloseCode::RunsTwice as u32);
    matches!(
        connection.close_reason(),
        Some(ConnectionError::ApplicationClosed(closed)) if closed.error_code == code
    )
}

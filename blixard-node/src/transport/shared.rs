//! What the transport's tasks share: the members, where they may be, and the link to each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::discovery::book::{AddressBook, AddressesMessage, Source};
use blixard_core::discovery::copies::{Start, Twice};
use blixard_core::id::{NodeId, NodeKey};
use blixard_core::time::Mono;
use blixard_core::wire::{self, Channel, Peer};
use iroh::endpoint::Connection;
use tokio::sync::SetOnce;
use tokio::time::Instant;

use super::endpoint::{Listener, remote_address, remote_key};
use super::hello::Hello;
use super::link::{CloseCode, Link, close};
use super::peer::{self, Slot};
use super::serve::Serving;
use super::tasks::Tasks;
use crate::platform::{Inbound, RandomSource};

/// How long another member has to take in addresses; without an answer the next link tells again.
const ADDRESSES_DEADLINE: Duration = Duration::from_secs(5);
/// What a member is told that was removed while it had a link, or while one came up.
pub(super) const REMOVED: &str = "this node is no longer a member of the cluster";

/// The transport, as its tasks see it.
pub(super) struct Shared {
    pub(super) listener: Listener,
    pub(super) key: NodeKey,
    hello: Mutex<Hello>,
    pub(super) handler: SetOnce<Arc<dyn Inbound>>,
    pub(super) rng: Arc<dyn RandomSource>,
    pub(super) tasks: Tasks,
    started: Instant,
    members: Mutex<Members>,
    /// Nodes that run twice, as the leader says.
    refused: Mutex<BTreeMap<NodeId, Twice>>,
}

#[derive(Default)]
struct Members {
    slots: BTreeMap<NodeId, Arc<Slot>>,
    by_key: BTreeMap<NodeKey, NodeId>,
    book: AddressBook,
}

impl Shared {
    pub(super) fn new(
        listener: Listener,
        key: NodeKey,
        addresses: Vec<SocketAddr>,
        boot: u64,
        rng: Arc<dyn RandomSource>,
    ) -> Self {
        let start = Some(Start { boot, id: rng.next_u64() });
        let hello = Hello { boot: rng.next_u64(), addresses, start };
        Self {
            listener,
            key,
            hello: Mutex::new(hello),
            handler: SetOnce::new(),
            rng,
            tasks: Tasks::default(),
            started: Instant::now(),
            members: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// What this side tells of itself on a new connection.
    pub(super) fn hello(&self) -> Hello {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new endpoint in the place of one that ended. The links of that one died without a
    /// word, so those made from now on are told from them as a restarted member's are.
    pub(super) async fn renew_endpoint(&self) {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).boot = self.rng.next_u64();
        self.listener.renew().await;
    }

    /// The monotonic time, for back-off.
    pub(super) fn now(&self) -> Mono {
        Mono(self.started.elapsed())
    }

    /// The member's place, if it is one.
    pub(super) fn slot(&self, node: NodeId) -> Option<Arc<Slot>> {
        self.members().slots.get(&node).cloned()
    }

    /// The member that holds a key.
    pub(super) fn slot_by_key(&self, key: NodeKey) -> Option<Arc<Slot>> {
        let members = self.members();
        members.by_key.get(&key).and_then(|node| members.slots.get(node)).cloned()
    }

    /// The start of a member that the leader refuses.
    pub(super) fn refused_by_leader(&self, node: NodeId) -> Option<Twice> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    pub(super) fn set_refused_by_leader(&self, refused: BTreeMap<NodeId, Twice>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// Where to dial a key.
    pub(super) fn addresses_of(&self, key: NodeKey) -> Vec<SocketAddr> {
        self.members().book.addresses(key).to_vec()
    }

    /// Replaces the members; supervises new ones and closes the links of those that left.
    pub(super) fn set_peers(self: &Arc<Self>, mut peers: BTreeMap<NodeId, Peer>) {
        peers.retain(|_, peer| peer.key != self.key);
        let mut gone = Vec::new();
        let mut new = Vec::new();
        {
            let mut members = self.members();
            let Members { slots, by_key, book } = &mut *members;
            slots.retain(|node, slot| {
                let stays = peers.get(node).is_some_and(|peer| peer.key == slot.key);
                if !stays {
                    book.forget(slot.key);
                    gone.push(slot.clone());
                }
                stays
            });
            for (node, peer) in &peers {
                let slot = slots.entry(*node).or_insert_with(|| {
                    let slot = Arc::new(Slot::new(*node, peer.key));
                    new.push(slot.clone());
                    slot
                });
                slot.set_relay(peer.relay_url.clone());
                if book.learn(peer.key, Source::Replicated, &peer.addresses) {
                    slot.hinted();
                }
            }
            *by_key = slots.iter().map(|(node, slot)| (slot.key, *node)).collect();
        }
        for slot in gone {
            slot.remove(CloseCode::NotMember, REMOVED);
        }
        for slot in new {
            self.tasks.spawn(peer::supervise(self.clone(), slot));
        }
    }

    /// Ends every link, and every task.
    pub(super) async fn shutdown(&self) {
        let slots = std::mem::take(&mut *self.members()).slots;
        for slot in slots.into_values() {
            slot.remove(CloseCode::Shutdown, "the node is shutting down");
        }
        self.tasks.shutdown().await;
        self.listener.close().await;
    }

    /// How the link to each member is.
    pub(super) fn link_states(&self) -> BTreeMap<NodeId, crate::platform::Link> {
        let now = self.now();
        let members = self.members();
        let state = |slot: &Slot| crate::platform::Link {
            addresses: members.book.addresses(slot.key).to_vec(),
            ..slot.describe(now)
        };
        members.slots.iter().map(|(node, slot)| (*node, state(slot))).collect()
    }

    /// Takes in where someone may be, from outside the cluster's own state.
    pub(super) fn hint(&self, key: NodeKey, addresses: &[SocketAddr]) {
        let mut members = self.members();
        if key != self.key && members.book.learn(key, Source::Hint, addresses) {
            let slot = members.by_key.get(&key).and_then(|node| members.slots.get(node));
            if let Some(slot) = slot {
                slot.hinted();
            }
        }
    }

    /// Takes in what another member says of where members are.
    pub(super) fn told_addresses(&self, message: &[u8]) -> Result<(), String> {
        let message: AddressesMessage = wire::decode(message).map_err(|error| error.to_string())?;
        for (key, addresses) in message.members {
            if self.slot_by_key(key).is_some() {
                self.hint(key, &addresses);
            }
        }
        Ok(())
    }

    /// Makes a connection on which hellos were exchanged the link to its member, and tells the
    /// handler and the other members where that member is.
    pub(super) async fn linked(
        self: &Arc<Self>,
        connection: Connection,
        dialled: bool,
        hello: Hello,
    ) -> Result<(), String> {
        let key = remote_key(&connection);
        let observed = remote_address(&connection);
        let handler = self.handler.wait().await.clone();
        let Some(slot) = self.slot_by_key(key) else {
            let reason = not_a_member(key);
            close(&connection, CloseCode::NotMember, &reason);
            return Err(reason);
        };
        let serving = Serving { handler: handler.clone(), shared: self.clone() };
        let link = Link::start(connection, serving, slot.node, dialled, &hello, &self.tasks)
            .await
            .map_err(|error| super::link::close_reason(&error))?;
        let (moved, news) = {
            let mut members = self.members();
            let advertised = members.book.learn(key, Source::Advertised, &hello.addresses);
            let came_from = members.book.learn(key, Source::Observed, observed.as_slice());
            let addresses = members.book.addresses(key).to_vec();
            (advertised || came_from, AddressesMessage { members: [(key, addresses)].into() })
        };
        tracing::info!(peer.id = %slot.node, address = ?observed, dialled, "link up");
        // Whoever finds the link up finds the handler told.
        if let Some(address) = observed.or_else(|| hello.addresses.first().copied()) {
            handler.linked(slot.node, address);
        }
        slot.adopt(self, link.clone());
        let all = self.members().book.message_for(key);
        self.tell(link, &all);
        if moved {
            for other in self.links().into_iter().filter(|other| other.key != key) {
                self.tell(other, &news);
            }
        }
        Ok(())
    }

    fn tell(&self, link: Arc<Link>, message: &AddressesMessage) {
        let bytes = wire::encode(message);
        self.tasks.spawn(async move {
            let told =
                tokio::time::timeout(ADDRESSES_DEADLINE, link.call(Channel::Addresses, bytes.into())).await;
            tracing::debug!(peer.id = %link.node, ?told, "told addresses");
        });
    }

    fn links(&self) -> Vec<Arc<Link>> {
        let slots: Vec<Arc<Slot>> = self.members().slots.values().cloned().collect();
        slots.iter().filter_map(|slot| slot.link()).collect()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What someone is told whose key no member holds.
pub(super) fn not_a_member(key: NodeKey) -> String {
    format!("no member of this cluster has the key {key}: it must join first, or it was removed")
}

//! Where each member may be reached, from everything that ever said so.
//!
//! An address is only a hint: whoever answers there must prove to hold the member's key. So
//! whatever any source says is remembered, the newest first, up to a bound. The transport is the
//! caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::NodeKey;

/// How many addresses are kept of one member: a dial tries all of them at once. A machine rarely
/// has more; the oldest give way.
pub const ADDRESSES_MAX: usize = 8;

/// Of how many keys that a source names, or somebody was found with, addresses are kept at most: anybody
/// can make up keys. Members' are kept whatever there is.
pub const HINTED_KEYS_MAX: usize = 1_024;

/// Who said where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A link to it: where its packets came from.
    Observed,
    /// The member itself, when a link was made.
    Advertised,
    /// Another member, or a file or ticket the user named.
    Hint,
    /// The replicated state.
    Replicated,
}

/// Addresses of members, as they tell each other over [`crate::wire::Channel::Addresses`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesMessage {
    /// Where each may be reached, most likely first.
    pub members: BTreeMap<NodeKey, Vec<SocketAddr>>,
}

/// Every address heard of, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressBook {
    entries: BTreeMap<NodeKey, Entry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    /// Newest first, without repeats.
    addresses: Vec<SocketAddr>,
    /// What each source said last: repeating it makes nothing newer.
    said: BTreeMap<Source, Vec<SocketAddr>>,
}

impl AddressBook {
    /// Takes in what `source` says of where `key` is, the most likely first. Returns whether an
    /// address came up that was not known.
    pub fn learn(&mut self, key: NodeKey, source: Source, addresses: &[SocketAddr]) -> bool {
        let usable: Vec<SocketAddr> =
            addresses.iter().copied().filter(is_dialable).take(ADDRESSES_MAX).collect();
        if usable.is_empty() {
            return false;
        }
        let is_new = !self.entries.contains_key(&key);
        if is_new && source == Source::Hint && self.entries.len() >= HINTED_KEYS_MAX {
            return false;
        }
        let entry = self.entries.entry(key).or_default();
        if entry.said.get(&source) == Some(&usable) {
            return false;
        }
        let new = usable.iter().any(|address| !entry.addresses.contains(address));
        let mut merged = Vec::with_capacity(ADDRESSES_MAX);
        for address in usable.iter().chain(&entry.addresses) {
            if !merged.contains(address) && merged.len() < ADDRESSES_MAX {
                merged.push(*address);
            }
        }
        entry.addresses = merged;
        entry.said.insert(source, usable);
        new
    }

    /// Where `key` may be, the newest address first.
    pub fn addresses(&self, key: NodeKey) -> &[SocketAddr] {
        self.entries.get(&key).map_or(&[], |entry| &entry.addresses)
    }

    /// Forgets `key`, which was removed from the cluster.
    pub fn forget(&mut self, key: NodeKey) {
        self.entries.remove(&key);
    }

    /// What to tell another member of everyone but itself.
    pub fn message_for(&self, receiver: NodeKey) -> AddressesMessage {
        let others = self.entries.iter().filter(|(key, _)| **key != receiver);
        AddressesMessage { members: others.map(|(key, entry)| (*key, entry.addresses.clone())).collect() }
    }
}

/// Whether a packet can be sent there at all.
fn is_dialable(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

#[cfg(test)]
mod tests {
    use super::{ADDRESSES_MAX, AddressBook, HINTED_KEYS_MAX, Source};
    use crate::id::NodeKey;
    use std::net::SocketAddr;

    const KEY: NodeKey = NodeKey([1; 32]);

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn the_newest_address_comes_first() {
        let mut book = AddressBook::default();
        assert!(book.learn(KEY, Source::Replicated, &[at(1), at(2)]));
        assert!(book.learn(KEY, Source::Observed, &[at(3)]));
        assert_eq!(book.addresses(KEY), [at(3), at(1), at(2)]);
    }

    #[test]
    fn a_repeated_saying_makes_nothing_newer() {
        let mut book = AddressBook::default();
        book.learn(KEY, Source::Replicated, &[at(1)]);
        book.learn(KEY, Source::Observed, &[at(2)]);
        assert!(!book.learn(KEY, Source::Replicated, &[at(1)]));
        assert_eq!(book.addresses(KEY), [at(2), at(1)]);
        assert!(!book.learn(KEY, Source::Hint, &[at(1)]), "known already");
        assert_eq!(book.addresses(KEY), [at(1), at(2)], "but said anew");
    }

    #[test]
    fn the_oldest_addresses_give_way() {
        let mut book = AddressBook::default();
        for port in 1..=20 {
            book.learn(KEY, Source::Observed, &[at(port)]);
        }
        assert_eq!(book.addresses(KEY).len(), ADDRESSES_MAX);
        assert_eq!(book.addresses(KEY)[0], at(20));
    }

    #[test]
    fn keys_that_somebody_makes_up_are_bounded_and_members_are_not() {
        let mut book = AddressBook::default();
        let key = |n: usize| NodeKey(std::array::from_fn(|byte| n.to_be_bytes()[byte % 8]));
        for n in 0..HINTED_KEYS_MAX + 10 {
            assert_eq!(book.learn(key(n), Source::Hint, &[at(1)]), n < HINTED_KEYS_MAX);
        }
        assert!(book.learn(key(HINTED_KEYS_MAX + 20), Source::Replicated, &[at(1)]));
        assert!(book.learn(key(3), Source::Hint, &[at(2)]), "who is known may be elsewhere");
    }

    #[test]
    fn addresses_nobody_can_dial_are_ignored() {
        let mut book = AddressBook::default();
        for address in ["0.0.0.0:7001", "10.0.0.1:0", "224.0.0.1:7001", "[::]:7001"] {
            assert!(!book.learn(KEY, Source::Hint, &[address.parse().unwrap()]));
        }
        assert!(book.addresses(KEY).is_empty());
    }

    #[test]
    fn a_member_is_not_told_of_itself() {
        let mut book = AddressBook::default();
        book.learn(KEY, Source::Observed, &[at(1)]);
        book.learn(NodeKey([2; 32]), Source::Observed, &[at(2)]);
        let told = book.message_for(KEY);
        assert_eq!(told.members.keys().collect::<Vec<_>>(), [&NodeKey([2; 32])]);
        book.forget(NodeKey([2; 32]));
        assert!(book.addresses(NodeKey([2; 32])).is_empty());
    }
}

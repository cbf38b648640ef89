//! How often strangers may try to join without success.
//!
//! Each failure takes one of a few tries of the stranger's key and of its address; they come back
//! with time. Who succeeds is not counted. The memory is bounded: when it is full, those that failed
//! longest ago are forgotten, and strangers who are that many are told apart by address only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::id::NodeKey;
use blixard_core::time::Mono;

/// How many failures in a row a key or an address has.
const TRIES: u32 = 10;
/// How long one failure takes to be forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(2);
/// How many keys, and how many addresses, are remembered.
const REMEMBERED_MAX: usize = 1_024;

/// Whose failures are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Key(NodeKey),
    Address(IpAddr),
}

/// What is counted of an address: of IPv6 the network, since one machine has all of its addresses.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

/// The failures of strangers.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Until when each one's failures are remembered: one failure, one [`FORGIVEN_AFTER`].
    until: Mutex<BTreeMap<Who, Mono>>,
}

impl Attempts {
    /// How long this stranger waits before it may try again; absent when it may now.
    pub(crate) fn wait(&self, key: NodeKey, address: Option<IpAddr>, now: Mono) -> Option<Duration> {
        let until = self.lock();
        let full = FORGIVEN_AFTER * TRIES;
        let left =
            whose(key, address).filter_map(|who| until.get(&who)).map(|until| until.since(now)).max()?;
        (left + FORGIVEN_AFTER > full).then(|| left + FORGIVEN_AFTER - full)
    }

    /// Notes that this stranger failed.
    pub(crate) fn failed(&self, key: NodeKey, address: Option<IpAddr>, now: Mono) {
        let mut until = self.lock();
        for who in whose(key, address) {
            let known = until.get(&who).copied().unwrap_or(now).max(now);
            // Of many at once no more is held against them than of as many as there are tries.
            until.insert(who, (known + FORGIVEN_AFTER).min(now + FORGIVEN_AFTER * TRIES));
        }
        if until.len() > 2 * REMEMBERED_MAX {
            until.retain(|_, until| *until > now);
        }
        while until.len() > 2 * REMEMBERED_MAX {
            let Some(first) = until.iter().min_by_key(|(_, until)| **until).map(|(who, _)| *who) else {
                return;
            };
            until.remove(&first);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Who, Mono>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn whose(key: NodeKey, address: Option<IpAddr>) -> impl Iterator<Item = Who> {
    std::iter::once(Who::Key(key)).chain(address.map(|address| Who::Address(counted(address))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn a_stranger_that_failed_often_waits_whatever_key_it_takes() {
        let attempts = Attempts::default();
        let here = Some(IpAddr::from([10, 0, 0, 1]));
        for key in 0..TRIES as u8 {
            assert_eq!(attempts.wait(NodeKey([key; 32]), here, at(5)), None);
            attempts.failed(NodeKey([key; 32]), here, at(5));
        }
        assert_eq!(attempts.wait(NodeKey([99; 32]), here, at(5)), Some(FORGIVEN_AFTER));
        assert_eq!(
            attempts.wait(NodeKey([99; 32]), None, at(5)),
            None,
            "another address has tries of its own"
        );
        assert_eq!(attempts.wait(NodeKey([99; 32]), here, at(7)), None, "one failure is forgiven");
        let there = Some(IpAddr::from([10, 0, 0, 2]));
        for _ in 0..TRIES {
            attempts.failed(NodeKey([7; 32]), None, at(9));
        }
        assert!(
            attempts.wait(NodeKey([7; 32]), there, at(9)).is_some(),
            "nor does another address help a key"
        );
        assert_eq!(attempts.wait(NodeKey([7; 32]), there, at(60)), None);
    }

    #[test]
    fn addresses_of_one_machine_count_as_one() {
        let check = |address: &str, expect: &str| {
            let found = counted(address.parse().expect("address"));
            assert_eq!(found.to_string(), expect);
        };
        check("10.0.0.1", "10.0.0.1");
        check("::ffff:10.0.0.1", "10.0.0.1");
        check("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::");
        let attempts = Attempts::default();
        let there = Some(IpAddr::from([10, 0, 0, 9]));
        for key in 0..200 {
            attempts.failed(NodeKey([key; 32]), there, at(1));
        }
        assert_eq!(attempts.wait(NodeKey([250; 32]), there, at(1)), Some(FORGIVEN_AFTER));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let attempts = Attempts::default();
        for number in 0..5_000_u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            attempts.failed(NodeKey(key), Some(IpAddr::from(number.to_be_bytes())), at(1));
        }
        assert!(attempts.lock().len() <= 2 * REMEMBERED_MAX);
    }
}

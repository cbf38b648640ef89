//! The address range that container networks are cut from.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The range that nodes' container networks are cut from: one /24 a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRange {
    /// The first address of the range.
    pub base: Ipv4Addr,
    /// The range's prefix length, 8 to 24.
    pub prefix: u8,
}

impl Default for SubnetRange {
    fn default() -> Self {
        Self { base: Ipv4Addr::new(10, 210, 0, 0), prefix: 16 }
    }
}

impl SubnetRange {
    /// Whether the prefix is one that /24 networks can be cut from.
    pub fn is_valid(&self) -> bool {
        (8..=24).contains(&self.prefix)
    }

    /// The first addresses of the range's /24 networks, in order; none when it is not valid.
    pub fn networks(&self) -> impl Iterator<Item = Ipv4Addr> {
        let count = if self.is_valid() { 1_u32 << (24 - self.prefix) } else { 0 };
        let base = u32::from(self.base) & self.mask();
        (0..count).map(move |n| Ipv4Addr::from(base + (n << 8)))
    }

    /// Whether `address` is in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.base)) & self.mask() == 0
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix).clamp(1, 32)).unwrap_or(0)
    }

    /// The lowest network that is not in `used`.
    pub(super) fn lowest_unused(&self, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        self.networks().find(|network| !used.contains(network))
    }
}

impl std::fmt::Display for SubnetRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_the_addresses_that_share_its_prefix() {
        let range = SubnetRange { base: Ipv4Addr::new(10, 208, 0, 0), prefix: 12 };
        let check = |address: [u8; 4], expect: bool| {
            assert_eq!(range.contains(address.into()), expect, "{address:?}");
        };
        check([10, 208, 0, 0], true);
        check([10, 223, 255, 255], true);
        check([10, 207, 255, 255], false);
        check([10, 224, 0, 0], false);
        check([11, 208, 0, 0], false);
    }

    #[test]
    fn networks_are_cut_in_order_from_the_masked_base() {
        let check =
            |base: [u8; 4], prefix: u8, count: usize, first: Option<[u8; 4]>, last: Option<[u8; 4]>| {
                let range = SubnetRange { base: base.into(), prefix };
                assert_eq!(range.networks().count(), count, "{range}");
                assert_eq!(range.networks().next(), first.map(Ipv4Addr::from), "{range}");
                assert_eq!(range.networks().last(), last.map(Ipv4Addr::from), "{range}");
            };
        check([10, 210, 0, 0], 16, 256, Some([10, 210, 0, 0]), Some([10, 210, 255, 0]));
        check([10, 210, 7, 9], 22, 4, Some([10, 210, 4, 0]), Some([10, 210, 7, 0]));
        check([192, 168, 5, 1], 24, 1, Some([192, 168, 5, 0]), Some([192, 168, 5, 0]));
        check([255, 1, 2, 3], 8, 65_536, Some([255, 0, 0, 0]), Some([255, 255, 255, 0]));
        check([10, 0, 0, 0], 25, 0, None, None);
        check([10, 0, 0, 0], 0, 0, None, None);
        check([10, 0, 0, 0], 255, 0, None, None);
    }
}

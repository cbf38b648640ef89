//! Someone who may be a member, as a source names it, and the merging of what several sources say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::api::token::Secret;
use crate::id::{ClusterId, NodeId, NodeKey};
use crate::time::UtcMs;
use crate::wire::Peer;

/// A possible member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Its key: what is trusted; nobody else is spoken to in its place.
    pub key: NodeKey,
    /// Its id, if the source says.
    pub node: Option<NodeId>,
    /// Where it may be, most likely first.
    pub addresses: Vec<SocketAddr>,
    /// Its relay.
    pub relay_url: Option<String>,
    /// The cluster it belongs to, if the source says.
    pub cluster: Option<ClusterId>,
    /// What admits to that cluster, if the source says.
    pub token: Option<Secret>,
    /// When the source learnt of it, if it says.
    pub seen_at: Option<UtcMs>,
    /// Whether a person named this key, in a file or ticket of the node's own. Others were only found:
    /// anybody can announce anything, so they see no secret and have to prove that they know it.
    pub named: bool,
}

impl Contact {
    /// What to link to.
    pub fn peer(&self) -> Peer {
        Peer { key: self.key, addresses: self.addresses.clone(), relay_url: self.relay_url.clone() }
    }

    fn absorb(&mut self, other: &Self) {
        for address in &other.addresses {
            if !self.addresses.contains(address) {
                self.addresses.push(*address);
            }
        }
        self.node = self.node.or(other.node);
        self.cluster = self.cluster.or(other.cluster);
        self.relay_url = self.relay_url.take().or_else(|| other.relay_url.clone());
        self.token = self.token.take().or_else(|| other.token.clone());
        self.seen_at = self.seen_at.max(other.seen_at);
        self.named |= other.named;
    }
}

/// Why contacts cannot be joined together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The sources name members of different clusters.
    #[error(
        "the sources name two clusters: {first_cluster} (node key {first}) and {second_cluster} (node key {second}); name only one"
    )]
    TwoClusters {
        /// One cluster.
        first_cluster: ClusterId,
        /// A member of it.
        first: NodeKey,
        /// The other cluster.
        second_cluster: ClusterId,
        /// A member of it.
        second: NodeKey,
    },
}

/// Merges contacts by key, without `own`: those that were named first, each in the order of first
/// mention. A cluster and a token that only some of those name hold for all of them. What was only
/// found adds addresses to whom was named and nothing else; found members of another cluster than
/// the named one are left out, and among themselves may belong to several.
///
/// # Errors
/// When those that were named belong to different clusters.
pub fn merge(own: NodeKey, contacts: impl IntoIterator<Item = Contact>) -> Result<Vec<Contact>, MergeError> {
    let mut merged: Vec<Contact> = Vec::new();
    let mut places: BTreeMap<NodeKey, usize> = BTreeMap::new();
    let mut cluster: Option<(ClusterId, NodeKey)> = None;
    let (named, found): (Vec<Contact>, Vec<Contact>) =
        contacts.into_iter().partition(|contact| contact.named);
    for contact in named {
        if let Some(second_cluster) = contact.cluster {
            let (first_cluster, first) = *cluster.get_or_insert((second_cluster, contact.key));
            if first_cluster != second_cluster {
                return Err(MergeError::TwoClusters {
                    first_cluster,
                    first,
                    second_cluster,
                    second: contact.key,
                });
            }
        }
        take_in(&mut merged, &mut places, own, contact);
    }
    let token = merged.iter().find_map(|contact| contact.token.clone());
    for contact in &mut merged {
        contact.cluster = contact.cluster.or(cluster.map(|(cluster, _)| cluster));
        contact.token = contact.token.take().or_else(|| token.clone());
    }
    let is_other =
        |contact: &Contact| cluster.is_some_and(|(own, _)| contact.cluster.is_some_and(|it| it != own));
    for mut contact in found.into_iter().filter(|contact| !is_other(contact)) {
        if places.get(&contact.key).is_some_and(|place| merged[*place].named) {
            let Contact { key, addresses, seen_at, named, .. } = contact;
            contact = Contact {
                key,
                addresses,
                seen_at,
                named,
                node: None,
                relay_url: None,
                cluster: None,
                token: None,
            };
        }
        take_in(&mut merged, &mut places, own, contact);
    }
    Ok(merged)
}

fn take_in(merged: &mut Vec<Contact>, places: &mut BTreeMap<NodeKey, usize>, own: NodeKey, contact: Contact) {
    match places.get(&contact.key) {
        _ if contact.key == own => {}
        Some(place) => merged[*place].absorb(&contact),
        None => {
            places.insert(contact.key, merged.len());
            merged.push(contact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Contact, MergeError, merge};
    use crate::api::token::Secret;
    use crate::id::{ClusterId, NodeId, NodeKey, TokenId};

    fn contact(key: u8, addresses: &[&str]) -> Contact {
        Contact {
            key: NodeKey([key; 32]),
            node: None,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            relay_url: None,
            cluster: None,
            token: None,
            seen_at: None,
            named: true,
        }
    }

    #[test]
    fn contacts_are_merged_by_key_and_share_cluster_and_token() {
        let token = Secret { id: TokenId([1; 8]), secret: [2; 32] };
        let cluster = ClusterId([9; 16]);
        let full = Contact {
            token: Some(token.clone()),
            cluster: Some(cluster),
            node: Some(NodeId(2)),
            ..contact(2, &["10.0.0.2:2", "10.0.0.3:2"])
        };
        let merged = merge(
            NodeKey([1; 32]),
            [contact(2, &["10.0.0.2:2"]), contact(1, &["10.0.0.1:1"]), contact(3, &["10.0.0.9:1"]), full],
        )
        .unwrap();
        let keys: Vec<_> = merged.iter().map(|contact| contact.key.0[0]).collect();
        assert_eq!(keys, [2, 3], "in the order of mention, without ourselves");
        assert_eq!(merged[0].addresses.len(), 2);
        assert_eq!(merged[0].node, Some(NodeId(2)));
        assert_eq!((merged[1].cluster, merged[1].token.clone()), (Some(cluster), Some(token)));
    }

    #[test]
    fn who_was_only_found_changes_nothing_of_who_was_named() {
        let of = |key: u8, cluster: u8, named: bool| Contact {
            cluster: Some(ClusterId([cluster; 16])),
            named,
            ..contact(key, &[&format!("10.0.{}.{key}:1", u8::from(named))])
        };
        let forged = Contact {
            node: Some(NodeId(7)),
            token: Some(Secret { id: TokenId([1; 8]), secret: [2; 32] }),
            ..of(2, 4, false)
        };
        let merged = merge(
            NodeKey([1; 32]),
            [of(3, 5, false), forged.clone(), of(4, 4, false), of(2, 4, true), of(5, 4, false)],
        )
        .unwrap();
        let keys: Vec<_> = merged.iter().map(|contact| (contact.key.0[0], contact.named)).collect();
        assert_eq!(keys, [(2, true), (4, false), (5, false)], "the named first, no other cluster's");
        assert_eq!(merged[0].addresses.len(), 2, "{:?}", merged[0]);
        assert_eq!((merged[0].node, merged[0].token.clone()), (None, None));

        // Found ones alone may be of several clusters, and share nothing.
        let merged = merge(NodeKey([1; 32]), [forged, of(3, 5, false)]).unwrap();
        assert_eq!(merged.len(), 2);
        assert_eq!((merged[1].cluster, merged[1].token.clone()), (Some(ClusterId([5; 16])), None));
    }

    #[test]
    fn members_of_two_clusters_are_refused() {
        let of =
            |key: u8, cluster: u8| Contact { cluster: Some(ClusterId([cluster; 16])), ..contact(key, &[]) };
        let error = merge(NodeKey([1; 32]), [of(2, 7), of(3, 8)]).unwrap_err();
        let MergeError::TwoClusters { first_cluster, second, .. } = error;
        assert_eq!((first_cluster, second), (ClusterId([7; 16]), NodeKey([3; 32])));
    }
}

//! Which cluster a node belongs to: the one in its data directory, the one its sources name, or a
//! new one of its own.
//!
//! A node that was told of others never makes a cluster by itself, however long they cannot be
//! reached; and one that belongs to a cluster never joins another. What is decided is kept before
//! it is acted on: a founder that dies half-way founds the same cluster when it returns.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use blixard_core::api::token::Secret;
use blixard_core::cluster::SubnetRange;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::id::{ClusterId, NodeId, TokenId};

use crate::discovery::finder::Finder;
use crate::discovery::join::{Admitted, JoinError, JoinStatus, JoinWish, join};
use crate::identity::{Identity, IdentityError};
use crate::node::{Founding, Membership};
use crate::platform::Platform;

/// What a node was told about its cluster.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The id it should have; absent: any.
    pub id: Option<NodeId>,
    /// A token to join by, besides those that the sources have.
    pub token: Option<Secret>,
    /// Whether to make a cluster although sources name others.
    pub bootstrap: bool,
    /// What it tells of itself.
    pub facts: NodeFacts,
    /// Where container networks are cut from, when it makes the cluster.
    pub subnets: SubnetRange,
    /// The addresses that this machine is known to have; none of them may be in `subnets`.
    pub own: Vec<IpAddr>,
}

/// Why a node has no cluster.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The data directory is another node's.
    #[error(
        "this data directory belongs to node {held}, not {asked}: use --id {held}, or another --data-dir"
    )]
    OtherId {
        /// Whose it is.
        held: NodeId,
        /// Who was asked for.
        asked: NodeId,
    },
    /// A source names another cluster than the data directory.
    #[error(
        "this data directory belongs to cluster {held}, but --join names cluster {asked}: leave --join out, or use another --data-dir"
    )]
    OtherCluster {
        /// The data directory's.
        held: ClusterId,
        /// The source's.
        asked: ClusterId,
    },
    /// The cluster that would be made would give containers addresses of the network it stands in.
    #[error(
        "container networks would be cut from {subnets}, which holds this machine's own address {address}: give --subnets a private range A.B.C.D/PREFIX that holds no address in use here"
    )]
    OwnNetwork {
        /// Where container networks are cut from.
        subnets: SubnetRange,
        /// This machine's address.
        address: Ipv4Addr,
    },
    /// The cluster refuses this node, or there is nothing to show it.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Finds or makes the node's membership and keeps it. Joining goes on until the cluster answers;
/// `status` hears of every try. Cancel safe.
///
/// # Errors
/// See [`FormError`]. None of them goes away by trying again.
pub async fn form(
    platform: &Platform,
    identity: &mut Identity,
    sources: &Finder,
    wish: &Wish,
    status: &(dyn Fn(JoinStatus) + Send + Sync),
) -> Result<Membership, FormError> {
    if let Some(held) = identity.membership() {
        if let Some(asked) = wish.id.filter(|asked| *asked != held.node) {
            return Err(FormError::OtherId { held: held.node, asked });
        }
        // What the sources say is only a hint now, but one of another cluster is a mistake; what was only
        // found may be of any.
        let reading = sources.read(platform).await;
        let named = reading.contacts.iter().filter(|contact| contact.named);
        let named = named.filter_map(|contact| contact.cluster);
        if let Some(asked) = named.into_iter().find(|asked| *asked != held.cluster) {
            return Err(FormError::OtherCluster { held: held.cluster, asked });
        }
        return Ok(held);
    }
    if sources.is_configured() && !wish.bootstrap {
        let asked = JoinWish { node: wish.id, facts: wish.facts.clone(), token: wish.token.clone() };
        let Admitted { node, cluster, peers, token } = join(platform, sources, &asked, status).await?;
        let membership = Membership { cluster, node, founding: None, peers };
        identity.set_membership(&membership, &token)?;
        return Ok(membership);
    }
    let mut own = wish.own.iter().filter_map(|address| match address.to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    // A range is for the cluster's whole life, so it is looked at while it can still be another.
    if let Some(address) = own.find(|own| wish.subnets.contains(*own)) {
        return Err(FormError::OwnNetwork { subnets: wish.subnets, address });
    }
    let membership = found(platform, wish);
    let founding = membership.founding.as_ref().expect("a founder has what it founds");
    let token = Secret { id: founding.token, secret: founding.secret };
    identity.set_membership(&membership, &token)?;
    identity.set_own_token(&token)?;
    Ok(membership)
}

/// A cluster drawn anew, and its first member.
fn found(platform: &Platform, wish: &Wish) -> Membership {
    let mut cluster = ClusterId([0; 16]);
    let mut founding = Founding { subnets: wish.subnets, token: TokenId([0; 8]), secret: [0; 32] };
    platform.rng.fill(&mut cluster.0);
    platform.rng.fill(&mut founding.token.0);
    platform.rng.fill(&mut founding.secret);
    let node = wish.id.unwrap_or(NodeId(1));
    Membership { cluster, node, founding: Some(founding), peers: BTreeMap::new() }
}

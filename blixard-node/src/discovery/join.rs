//! Joining: asks one candidate after another until the cluster admits this node or refuses it.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::api::token::Secret;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::join::{JoinPlan, JoinStep};
use blixard_core::id::{ClusterId, NodeId};
use blixard_core::wire::{self, JoinRequest, JoinResponse, Peer};

use super::Seams;
use super::refresh::Refresher;
use crate::platform::LinkError;

/// How long one candidate has to answer. The leader commits before it does.
const ASK_DEADLINE: Duration = Duration::from_secs(12);
/// How long someone who may not be there has to answer the first time round: others may be.
const FIRST_ASK_DEADLINE: Duration = Duration::from_secs(4);

/// What this node asks for.
#[derive(Debug, Clone)]
pub struct JoinWish {
    /// The id it wants; absent: any.
    pub node: Option<NodeId>,
    /// What it tells of itself.
    pub facts: NodeFacts,
    /// The token the user gave; absent: the sources'.
    pub token: Option<Secret>,
}

/// What the cluster answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// This node's id.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The members to link to.
    pub peers: BTreeMap<NodeId, Peer>,
    /// The token that admitted it.
    pub token: Secret,
}

/// Why joining ended without being admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The cluster refuses this node: another try changes nothing.
    #[error("the cluster refuses this node: {reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// No source and no option has a join token.
    #[error(
        "nothing to join with: none of the sources has a join token; `blixard cluster token create` on a member prints a ticket to join by"
    )]
    NoToken,
}

/// Tells what becomes of each try, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinStatus {
    /// This candidate did not admit; others and later tries follow.
    Tried {
        /// Who.
        candidate: Peer,
        /// Why not.
        reason: String,
    },
    /// No candidate is known yet; these sources could not be used.
    NoCandidates {
        /// What is wrong with each.
        problems: Vec<String>,
    },
}

/// Joins the cluster that the sources name. Asks until it is admitted or refused, re-reading the
/// sources before each round; `status` hears of every try that came to nothing. Cancel safe: what
/// was asked may have been granted, and asking again gives the same answer.
///
/// # Errors
/// When the cluster refuses for good, or there is no token to show.
pub async fn join<'a>(
    seams: impl Into<Seams<'a>>,
    sources: &Refresher,
    wish: &JoinWish,
    status: &(dyn Fn(JoinStatus) + Send + Sync),
) -> Result<Admitted, JoinError> {
    let seams = seams.into();
    let mut reading = sources.read(seams).await;
    let mut plan = JoinPlan::new(&reading.contacts);
    let mut deadline = FIRST_ASK_DEADLINE;
    loop {
        if reading.contacts.is_empty() {
            let problems = reading.problems.iter().map(ToString::to_string).collect();
            status(JoinStatus::NoCandidates { problems });
        } else if wish.token.is_none() && reading.contacts.iter().all(|contact| contact.token.is_none()) {
            return Err(JoinError::NoToken);
        }
        loop {
            let candidate = match plan.step(seams.rng.next_u64()) {
                JoinStep::Ask(candidate) => candidate,
                JoinStep::Wait(wait) => {
                    seams.clock.sleep_until(seams.clock.now() + wait).await;
                    break;
                }
            };
            let Some((request, token)) = request(wish, &reading.contacts, &candidate) else { continue };
            let reason = match ask(seams, &candidate, &request, deadline).await {
                Ok(JoinResponse::Admitted { node, cluster, peers }) => {
                    return Ok(Admitted { node, cluster, peers, token });
                }
                Ok(JoinResponse::Refused { message } | JoinResponse::Removed { message }) => {
                    return Err(JoinError::Refused { reason: message });
                }
                Ok(JoinResponse::Redirect { leader }) => {
                    if plan.redirected(leader) {
                        continue;
                    }
                    "the members do not agree on who leads".to_owned()
                }
                Ok(JoinResponse::Unavailable { message }) => message,
                Err(error) => error.to_string(),
            };
            status(JoinStatus::Tried { candidate, reason });
        }
        deadline = ASK_DEADLINE;
        reading = sources.read(seams).await;
        plan.refresh(&reading.contacts);
    }
}

/// What to ask a candidate; a leader that was named and is in no source is asked as the others.
fn request(wish: &JoinWish, contacts: &[Contact], candidate: &Peer) -> Option<(JoinRequest, Secret)> {
    let contact = contacts.iter().find(|contact| contact.key == candidate.key).or(contacts.first())?;
    let token = wish.token.clone().or(contact.token.clone())?;
    let request = JoinRequest {
        cluster: contact.cluster,
        node: wish.node,
        token: token.id,
        secret: hex::encode(token.secret),
        facts: wish.facts.clone(),
    };
    Some((request, token))
}

async fn ask(
    seams: Seams<'_>,
    candidate: &Peer,
    request: &JoinRequest,
    deadline: Duration,
) -> Result<JoinResponse, LinkError> {
    let answer = seams.transport.call_stranger(candidate, wire::encode(request).into(), deadline).await?;
    wire::decode(&answer).map_err(|error| LinkError::Unreachable {
        to: format!("{:?}", candidate.addresses),
        reason: format!("it answered with something else: {error}"),
    })
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;

//! Joining: asks one candidate after another until the cluster admits this node or refuses it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use blixard_core::api::token::Secret;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::join::{JoinPlan, JoinStep};
use blixard_core::discovery::proof::{Joining, is_proof};
use blixard_core::id::{ClusterId, NodeId, NodeKey};
use blixard_core::wire::{self, JoinRequest, JoinResponse, Peer};

use super::Seams;
use super::finder::{Finder, Reading};
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
    /// Nothing that was named is something to join by, and none of it will be by itself.
    #[error(
        "nothing to join by: {}; give a member's node-registry.json, HOST:PORT, or a ticket from `blixard cluster token create` on a member",
        problems.join("; ")
    )]
    NoSource {
        /// What is wrong with each source.
        problems: Vec<String>,
    },
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
    /// No candidate is known yet. What is wrong with which source is told where they are looked at.
    NoCandidates,
    /// Candidates were found, and there is no token to show them.
    NoToken,
}

/// Logs what becomes of the tries: the same once, however often it is met.
#[derive(Debug, Default)]
pub struct JoinLog(Mutex<BTreeMap<Option<NodeKey>, String>>);

impl JoinLog {
    /// How many candidates it remembers what it said of.
    const REMEMBERED_MAX: usize = 256;

    /// Takes in what became of a try.
    pub fn tell(&self, status: JoinStatus) {
        let (key, said) = match &status {
            JoinStatus::Tried { candidate, reason } => (Some(candidate.key), reason.clone()),
            JoinStatus::NoCandidates => (None, "nobody".to_owned()),
            JoinStatus::NoToken => (None, "no token".to_owned()),
        };
        {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if told.get(&key) == Some(&said) {
                return;
            }
            if told.len() >= Self::REMEMBERED_MAX {
                told.clear();
            }
            told.insert(key, said);
        }
        match status {
            JoinStatus::Tried { candidate, reason } => {
                tracing::warn!(peer.key = %candidate.key, addresses = ?candidate.addresses, err = reason, "not admitted yet; trying again");
            }
            JoinStatus::NoCandidates => {
                tracing::warn!("nobody to join yet; looking at the sources again and again");
            }
            JoinStatus::NoToken => {
                tracing::warn!(
                    "members were found, and there is no token to join by: give one by --token-file, from `blixard cluster token create` on a member"
                );
            }
        }
    }
}

/// Joins the cluster that the sources name. Asks until it is admitted or refused, looking at the
/// sources before each round; `status` hears of every try that came to nothing. Who was only found
/// sees no token, has to prove that it knows it before it is believed, and is not believed that it
/// refuses for the cluster. Cancel safe: what was asked may have been granted, and asking again gives
/// the same answer.
///
/// # Errors
/// When the cluster refuses for good, there is no token to show, or no source can ever be used.
pub async fn join<'a>(
    seams: impl Into<Seams<'a>>,
    sources: &Finder,
    wish: &JoinWish,
    status: &(dyn Fn(JoinStatus) + Send + Sync),
) -> Result<Admitted, JoinError> {
    let seams = seams.into();
    let mut reading = sources.read(seams).await;
    let mut plan = JoinPlan::new(&reading.contacts);
    let mut deadline = FIRST_ASK_DEADLINE;
    // Who named the leader that is asked next is trusted in that as in everything.
    let mut named_by_named = false;
    loop {
        if reading.is_hopeless {
            return Err(JoinError::NoSource { problems: reading.problems });
        }
        if reading.contacts.is_empty() {
            status(JoinStatus::NoCandidates);
        } else if lacks_token(wish, &reading) {
            return Err(JoinError::NoToken);
        } else if wish.token.is_none() && reading.contacts.iter().all(|contact| contact.token.is_none()) {
            status(JoinStatus::NoToken);
        }
        loop {
            let candidate = match plan.step(seams.rng.next_u64()) {
                JoinStep::Ask(candidate) => candidate,
                JoinStep::Wait(wait) => {
                    if let Some(reason) = plan.given_up() {
                        return Err(JoinError::Refused { reason: reason.to_owned() });
                    }
                    seams.clock.sleep_until(seams.clock.now() + wait).await;
                    break;
                }
            };
            let Some(asking) = Asking::new(wish, &reading, &candidate, named_by_named) else { continue };
            let reason = match asking.ask(seams, &candidate, deadline).await {
                Ok(JoinResponse::Admitted { node, cluster, peers, .. }) => {
                    return Ok(Admitted { node, cluster, peers, token: asking.token });
                }
                Ok(JoinResponse::Refused { message } | JoinResponse::Removed { message }) => {
                    if asking.named {
                        return Err(JoinError::Refused { reason: message });
                    }
                    plan.refused(message.clone());
                    message
                }
                Ok(JoinResponse::Redirect { leader }) => {
                    named_by_named = asking.named;
                    if plan.redirected(leader) {
                        continue;
                    }
                    "the members do not agree on who leads".to_owned()
                }
                Ok(JoinResponse::Unavailable { message }) => {
                    plan.put_off();
                    message
                }
                Err(error) => error.to_string(),
            };
            status(JoinStatus::Tried { candidate, reason });
        }
        deadline = ASK_DEADLINE;
        reading = sources.read(seams).await;
        plan.refresh(&reading.contacts);
    }
}

/// Whether nobody who was named comes with a token: those would be asked in vain. Who was found may come
/// before the file with the token does.
fn lacks_token(wish: &JoinWish, reading: &Reading) -> bool {
    wish.token.is_none()
        && reading.contacts.iter().any(|contact| contact.named)
        && reading.contacts.iter().all(|contact| contact.token.is_none())
}

/// One question to one candidate.
struct Asking {
    /// Whether a person named the candidate, or somebody so named did.
    named: bool,
    token: Secret,
    request: JoinRequest,
}

impl Asking {
    /// What to ask a candidate; a leader that was named and is in no source is asked as who named it.
    /// None when there is no token to show it.
    fn new(wish: &JoinWish, reading: &Reading, candidate: &Peer, named_by_named: bool) -> Option<Self> {
        let contacts = &reading.contacts;
        let contact = contacts.iter().find(|contact| contact.key == candidate.key);
        let named = contact.map_or(named_by_named, |contact| contact.named);
        let contact = contact.or(contacts.first())?;
        let any = || contacts.iter().find_map(|contact| contact.token.clone());
        let token = wish.token.clone().or(contact.token.clone()).or_else(any)?;
        let request = JoinRequest {
            cluster: contact.cluster,
            node: wish.node,
            token: token.id,
            secret: if named { hex::encode(token.secret) } else { String::new() },
            proof: None,
            facts: wish.facts.clone(),
        };
        Some(Self { named, token, request })
    }

    /// Asks it. What somebody who was only found says is passed on when it cannot be a lie that matters:
    /// that it admits, it has to prove.
    async fn ask(
        &self,
        seams: Seams<'_>,
        candidate: &Peer,
        deadline: Duration,
    ) -> Result<JoinResponse, LinkError> {
        let joining = Joining {
            token: self.token.id,
            secret_sha256: self.token.sha256(),
            joiner: seams.transport.key(),
            member: candidate.key,
        };
        let proof = (!self.named).then(|| hex::encode(joining.request()));
        let request = JoinRequest { proof, ..self.request.clone() };
        let answer = ask(seams, candidate, &request, deadline).await?;
        match &answer {
            JoinResponse::Admitted { node, cluster, proof, .. } if !self.named => {
                let expected = joining.answer(*cluster, *node);
                if proof.as_ref().is_some_and(|proof| is_proof(proof, &expected)) {
                    return Ok(answer);
                }
                Err(LinkError::Refused {
                    to: format!("{:?} (key {})", candidate.addresses, candidate.key),
                    reason: "it would admit this node and cannot prove that it knows the token: it is of another cluster, or not what it says".to_owned(),
                })
            }
            _ => Ok(answer),
        }
    }
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

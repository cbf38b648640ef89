//! The join token of this node's own, for its registry file alone: it has no end, is printed nowhere, and
//! is made anew when the cluster does not know it any more, as after `cluster token rotate`. Linux glue.

use std::path::PathBuf;
use std::time::Duration;

use blixard_core::api::token::Secret;
use blixard_core::cluster::node::TokenScope;
use blixard_core::cluster::{ClusterState, Outcome, Token, Write};
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{RequestId, TokenId};
use blixard_core::limits::{TICKET_LIFE, WRITE_DEADLINE};
use blixard_core::time::UtcMs;

use crate::discovery::registry::{own_peer, write_own};
use crate::handle::NodeHandle;
use crate::identity::Identity;
use crate::node::Membership;
use crate::platform::RandomSource;

/// How long until it is tried again to make or keep a token.
const RETRY: Duration = Duration::from_secs(5);
/// How long at most until the state is looked at again, although nothing changed.
const LOOK: Duration = Duration::from_secs(60);

/// What keeping the token takes.
pub(crate) struct OwnToken {
    pub(crate) handle: NodeHandle,
    pub(crate) identity: Identity,
    pub(crate) membership: Membership,
    pub(crate) data_dir: PathBuf,
}

impl OwnToken {
    /// Keeps the registry file at a token that admits, for as long as the node runs.
    pub(crate) async fn keep(mut self) {
        let mut warned = false;
        loop {
            let mut state = self.handle.state();
            if !knows(&state, self.identity.own_token()) {
                if let Err(error) = self.renew().await {
                    tracing::warn!(err = error, "the registry file has no token of its own yet");
                    self.wait(RETRY).await;
                }
                state = self.handle.state();
            }
            if !warned && older_ticket(&state, &self.identity) {
                warned = true;
                tracing::warn!(
                    "the cluster still admits whoever has the ticket that an earlier release printed when it was made: `blixard cluster token rotate` revokes it"
                );
            }
            self.handle.state_after(state.applied, LOOK).await;
        }
    }

    /// Makes a token unless a majority knows the one there is.
    async fn renew(&mut self) -> Result<(), String> {
        let state = self.handle.state_latest(WRITE_DEADLINE).await.map_err(|error| error.to_string())?;
        if !state.nodes.contains_key(&self.handle.id) || knows(&state, self.identity.own_token()) {
            return Ok(());
        }
        let token = add(&self.handle, None).await?;
        self.identity.set_own_token(&token).map_err(|error| error.to_string())?;
        write_own(&self.data_dir, Some(token), &self.membership, &self.handle.platform)
            .map_err(|error| error.to_string())
    }

    async fn wait(&self, duration: Duration) {
        let clock = &self.handle.platform.clock;
        clock.sleep_until(clock.now() + duration).await;
    }
}

/// Whether the cluster admits by `token`.
fn knows(state: &ClusterState, token: Option<&Secret>) -> bool {
    let known = token.and_then(|token| state.tokens.get(&token.id));
    known.is_some_and(|known| known.admits(state.time))
}

/// Whether the token that the cluster was founded with was printed, as earlier releases did, and still
/// admits.
fn older_ticket(state: &ClusterState, identity: &Identity) -> bool {
    let founding = identity.founding_token().filter(|token| Some(token) != identity.own_token());
    identity.own_token().is_some() && knows(state, founding.as_ref())
}

/// A ticket to show to somebody, for a day; none when the cluster cannot make one.
pub(crate) async fn ticket(handle: &NodeHandle) -> Option<Ticket> {
    let end = handle.stamp().after(TICKET_LIFE);
    let token = add(handle, Some(end)).await;
    let token = token.inspect_err(|error| tracing::warn!(err = error, "no ticket could be made")).ok()?;
    Some(Ticket { cluster: handle.cluster, peer: own_peer(&*handle.platform.transport), token })
}

/// Has the cluster take a new token for joining.
async fn add(handle: &NodeHandle, expires_at: Option<UtcMs>) -> Result<Secret, String> {
    let rng: &dyn RandomSource = &*handle.platform.rng;
    let mut request = RequestId([0; 16]);
    let mut secret = Secret { id: TokenId([0; 8]), secret: [0; 32] };
    rng.fill(&mut request.0);
    rng.fill(&mut secret.id.0);
    rng.fill(&mut secret.secret);
    let token = Token {
        secret_sha256: secret.sha256(),
        scope: TokenScope::Join,
        expires_at,
        uses_left: None,
        services: None,
    };
    match handle.write(request, Write::AddToken { id: secret.id, token }).await {
        Ok((_, Outcome::Refused(refusal))) => Err(refusal.to_string()),
        Ok(_) => Ok(secret),
        Err(error) => Err(error.to_string()),
    }
}

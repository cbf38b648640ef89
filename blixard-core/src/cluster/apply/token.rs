//! Tokens: adding, revoking, and checking the one a joiner presents.

use super::Answer;
use crate::cluster::node::TokenScope;
use crate::cluster::{ClusterState, Outcome, Refusal, Token};
use crate::id::TokenId;
use crate::limits::TOKENS_MAX;
use crate::time::UtcMs;

impl Token {
    fn is_spent(&self, now: UtcMs) -> bool {
        self.uses_left == Some(0) || self.has_expired(now)
    }

    fn has_expired(&self, now: UtcMs) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }
}

/// Whether two hashes are equal, in a time that does not tell where they differ.
fn same_hash(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

impl ClusterState {
    pub(super) fn add_token(&mut self, id: TokenId, token: &Token) -> Answer {
        if let Some(present) = self.tokens.get(&id) {
            return if present == token {
                Ok(Outcome::Done)
            } else {
                Err(Refusal::conflict(format!("there is a token `{id}` already: draw another id")))
            };
        }
        if self.tokens.len() >= TOKENS_MAX {
            let now = self.time;
            self.tokens = std::mem::take(&mut self.tokens)
                .into_iter()
                .filter(|(_, kept)| !kept.is_spent(now))
                .collect();
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::out_of_bounds(format!(
                "the cluster keeps at most {TOKENS_MAX} tokens: revoke one first"
            )));
        }
        self.tokens.insert(id, token.clone());
        Ok(Outcome::Done)
    }

    pub(super) fn remove_token(&mut self, id: TokenId) -> Answer {
        match self.tokens.remove(&id) {
            Some(_) => Ok(Outcome::Done),
            None => Err(Refusal::not_found("token", id)),
        }
    }

    /// Checks that a presented secret admits a joiner. A wrong id and a wrong secret are told
    /// apart neither by the answer nor by the work done.
    pub(super) fn check_join_token(&self, id: TokenId, secret_sha256: &[u8; 32]) -> Result<(), Refusal> {
        let known = self.tokens.get(&id);
        let expected = known.map_or([0; 32], |token| token.secret_sha256);
        let matches = same_hash(&expected, secret_sha256);
        let Some(token) = known.filter(|_| matches) else {
            return Err(Refusal::denied(format!(
                "the join token `{id}` is not valid here: take the ticket from a member of this cluster"
            )));
        };
        if token.scope != TokenScope::Join {
            return Err(Refusal::denied(format!(
                "the token `{id}` does not admit members: use a join token"
            )));
        }
        if token.has_expired(self.time) {
            return Err(Refusal::denied(format!("the join token `{id}` has expired: make a new one")));
        }
        if token.uses_left == Some(0) {
            return Err(Refusal::denied(format!("the join token `{id}` is used up: make a new one")));
        }
        Ok(())
    }

    /// Counts one use of a token.
    pub(super) fn use_token(&mut self, id: TokenId) {
        if let Some(uses_left) = self.tokens.get_mut(&id).and_then(|token| token.uses_left.as_mut()) {
            *uses_left = uses_left.saturating_sub(1);
        }
    }
}

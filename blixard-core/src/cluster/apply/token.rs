//! Tokens: adding, revoking, and checking the one a joiner presents.

use super::Answer;
use crate::cluster::node::TokenScope;
use crate::cluster::{ClusterState, Outcome, Refusal, Token};
use crate::id::TokenId;
use crate::limits::TOKENS_MAX;
use crate::time::UtcMs;

impl Token {
    /// Whether it admits a joiner at `now`.
    pub fn admits(&self, now: UtcMs) -> bool {
        self.scope == TokenScope::Join && !self.is_spent(now)
    }

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

    /// Checks that a token admits a joiner, by the hash of the secret that came with it. A wrong id and
    /// a wrong secret are told apart neither by the answer nor by the work done.
    ///
    /// # Errors
    /// Why it does not, and what to try.
    pub fn check_join_token(&self, id: TokenId, secret_sha256: &[u8; 32]) -> Result<(), Refusal> {
        let known = self.tokens.get(&id);
        let expected = known.map_or([0; 32], |token| token.secret_sha256);
        let matches = same_hash(&expected, secret_sha256);
        let Some(token) = known.filter(|_| matches) else {
            return Err(Refusal::denied(format!(
                "the join token `{id}` is not valid here: `blixard cluster token create` on a member makes a new one"
            )));
        };
        if token.scope != TokenScope::Join {
            return Err(Refusal::denied(format!(
                "the token `{id}` does not admit members: use a join token"
            )));
        }
        if token.has_expired(self.time) {
            return Err(Refusal::denied(format!(
                "the join token `{id}` has expired: `blixard cluster token create` on a member makes a new one"
            )));
        }
        if token.uses_left == Some(0) {
            return Err(Refusal::denied(format!(
                "the join token `{id}` is used up: `blixard cluster token create` on a member makes a new one"
            )));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{Cluster, START, assert_refused, join, join_token};
    use crate::cluster::{Command, Write};
    use crate::id::NodeId;

    const OTHER: TokenId = TokenId([2; 8]);

    fn with_token(token: TokenId, secret: [u8; 32]) -> Command {
        match join(None, 2) {
            Command::Join { node, key, facts, .. } => {
                Command::Join { node, key, facts, token, secret_sha256: secret }
            }
            other => other,
        }
    }

    #[test]
    fn only_a_valid_join_token_admits() {
        let check = |token: Token, secret: [u8; 32], expect: Option<&str>| {
            let mut cluster = Cluster::of(1);
            assert_eq!(cluster.write(Write::AddToken { id: OTHER, token }), Outcome::Done);
            let outcome = cluster.command(with_token(OTHER, secret));
            match expect {
                Some(part) => assert_refused(outcome, part),
                None => assert!(matches!(outcome, Outcome::Joined { node: NodeId(2), .. }), "{outcome:?}"),
            }
        };
        let good = join_token();
        let secret = good.secret_sha256;
        check(good.clone(), secret, None);
        check(Token { expires_at: Some(UtcMs(START.0 + 1)), ..good.clone() }, secret, None);
        check(good.clone(), [0; 32], Some("not valid"));
        check(Token { scope: TokenScope::Api, ..good.clone() }, secret, Some("does not admit members"));
        check(Token { expires_at: Some(START), ..good.clone() }, secret, Some("expired"));
        check(Token { uses_left: Some(0), ..good }, secret, Some("used up"));
    }

    #[test]
    fn an_unknown_token_does_not_admit() {
        let mut cluster = Cluster::of(1);
        assert_refused(cluster.command(with_token(OTHER, [0; 32])), "not valid");
    }

    #[test]
    fn a_token_is_used_up_by_new_members_only() {
        let mut cluster = Cluster::of(1);
        let token = Token { uses_left: Some(1), ..join_token() };
        cluster.write(Write::AddToken { id: OTHER, token });
        let first = cluster.command(with_token(OTHER, join_token().secret_sha256));
        assert_eq!(cluster.command(with_token(OTHER, join_token().secret_sha256)), first);
        assert_eq!(cluster.state.tokens[&OTHER].uses_left, Some(0));
    }

    #[test]
    fn tokens_are_bounded_and_spent_ones_make_room() {
        let mut cluster = Cluster::of(1);
        let id = |n: usize| TokenId((n as u64).to_be_bytes());
        for n in 1..TOKENS_MAX {
            let uses_left = (n == 1).then_some(0);
            cluster.state.tokens.insert(id(n), Token { uses_left, ..join_token() });
        }
        let add =
            |cluster: &mut Cluster, n| cluster.write(Write::AddToken { id: id(n), token: join_token() });
        assert_eq!(add(&mut cluster, 5_000), Outcome::Done);
        assert_refused(add(&mut cluster, 5_001), "at most 1024");
        assert_eq!(cluster.write(Write::RemoveToken { id: id(5_000) }), Outcome::Done);
        assert_refused(cluster.write(Write::RemoveToken { id: id(5_000) }), "no token");
        assert_eq!(add(&mut cluster, 5_001), Outcome::Done);
    }
}

//! Tokens: `ID.SECRET`, both in hexadecimal. Only the secret's hash is ever stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::cluster::node::TokenScope;
use crate::id::TokenId;
use crate::time::UtcMs;

/// What a token admits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Joining the cluster as a member.
    Join,
    /// The same as `admin`, by its older name.
    Api,
    /// Seeing everything but tokens over the API's TCP listener.
    Read,
    /// That, and changing services, their containers and images.
    Write,
    /// That, and changing nodes and tokens.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Join => "join",
            Self::Api => "api",
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

impl From<Scope> for TokenScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Join => Self::Join,
            Scope::Api => Self::Api,
            Scope::Read => Self::Read,
            Scope::Write => Self::Write,
            Scope::Admin => Self::Admin,
        }
    }
}

impl From<TokenScope> for Scope {
    fn from(scope: TokenScope) -> Self {
        match scope {
            TokenScope::Join => Self::Join,
            TokenScope::Api => Self::Api,
            TokenScope::Read => Self::Read,
            TokenScope::Write => Self::Write,
            TokenScope::Admin => Self::Admin,
        }
    }
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenRequest {
    /// What it admits to.
    pub scope: Scope,
    /// Seconds until it expires; absent means never.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
    /// How often it can be used; absent means without end.
    #[serde(default)]
    pub uses: Option<u32>,
    /// With what the names of the services begin that it is for; absent means all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

/// The answer to revoking every token for joining.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RotateAnswer {
    /// How many were revoked.
    pub revoked: u64,
}

/// A token just made: the only time its secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenAnswer {
    /// Its public half.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// The whole token, `ID.SECRET`.
    pub token: String,
    /// With scope `join`: all that a machine needs to join, for `blixard node --join -`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenRow {
    /// Its public half.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// What it admits to.
    pub scope: Scope,
    /// When it expires; absent means never.
    pub expires_at: Option<UtcMs>,
    /// How many more times it can be used; absent means without end.
    pub uses_left: Option<u32>,
    /// With what the names of the services begin that it is for; absent means all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<String>,
}

/// A token with its secret. Its `Debug` form leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The public half.
    pub id: TokenId,
    /// The secret half.
    pub secret: [u8; 32],
}

impl Secret {
    /// What the state keeps of the secret half: SHA-256 of its bytes.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, hex::encode(self.secret))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.(secret)", self.id)
    }
}

/// The text is not `ID.SECRET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is 16 hexadecimal digits, a full stop and 64 more")]
pub struct NotAToken;

impl FromStr for Secret {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (id, secret_hex) = text.split_once('.').ok_or(NotAToken)?;
        let id = id.parse().map_err(|_| NotAToken)?;
        let mut secret = [0; 32];
        hex::decode_to_slice(secret_hex, &mut secret).map_err(|_| NotAToken)?;
        Ok(Self { id, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;
    use crate::id::TokenId;

    #[test]
    fn a_token_reads_back_and_never_shows_its_secret_in_debug() {
        let token = Secret { id: TokenId([1; 8]), secret: [0xab; 32] };
        assert_eq!(token.to_string().parse::<Secret>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("abab"));
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let check = |text: &str| assert!(text.parse::<Secret>().is_err(), "{text}");
        check("");
        check("0101010101010101");
        check("0101010101010101.ab");
        check(&format!("01.{}", "ab".repeat(32)));
        check(&format!("0101010101010101.{}", "xy".repeat(32)));
    }
}

//! The token that admits a joiner, as people pass it on: `id.secret`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::TokenId;

/// The fewest and most bytes of a secret.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// A join token with its secret. Shown in full by [`JoinToken::reveal`] only, so that no log has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JoinToken {
    /// Its public half.
    pub id: TokenId,
    secret: Vec<u8>,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: write ID.SECRET, 16 hexadecimal digits, a dot, 32 to 128 hexadecimal digits")]
pub struct TokenError;

impl JoinToken {
    /// A token with a secret of random bytes.
    ///
    /// # Errors
    /// When the secret's length is out of [`SECRET_BYTES`].
    pub fn new(id: TokenId, secret: Vec<u8>) -> Result<Self, TokenError> {
        if SECRET_BYTES.contains(&secret.len()) { Ok(Self { id, secret }) } else { Err(TokenError) }
    }

    /// The secret half, in hexadecimal.
    pub fn secret(&self) -> String {
        hex::encode(&self.secret)
    }

    /// The secret half's bytes.
    pub fn secret_bytes(&self) -> &[u8] {
        &self.secret
    }

    /// What the replicated state keeps of the secret: SHA-256 of its bytes.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.secret).into()
    }

    /// The token as text, `id.secret`.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (id, secret) = text.trim().split_once('.').ok_or(TokenError)?;
        let id = id.parse().map_err(|_| TokenError)?;
        Self::new(id, hex::decode(secret).map_err(|_| TokenError)?)
    }
}

impl TryFrom<String> for JoinToken {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        text.parse()
    }
}

impl From<JoinToken> for String {
    fn from(token: JoinToken) -> Self {
        token.reveal()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.***", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::JoinToken;

    #[test]
    fn tokens_are_read_as_written_and_never_logged() {
        let text = "0102030405060708.000102030405060708090a0b0c0d0e0f";
        let token: JoinToken = text.parse().unwrap();
        assert_eq!(token.reveal(), text);
        assert_eq!(format!("{token:?}"), "0102030405060708.***");
        for wrong in ["", "0102030405060708", "0102030405060708.00", "01.000102030405060708090a0b0c0d0e0f"] {
            assert!(wrong.parse::<JoinToken>().is_err(), "{wrong}");
        }
    }
}

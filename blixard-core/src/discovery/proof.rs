//! Showing that one knows a join token without showing the token.
//!
//! Whoever was only found, by an announcement or at an address, may be anybody: a joiner that sent it
//! the token's secret would give the cluster away, and one that believed its answer would join a
//! cluster of the liar's. So both sides send a keyed hash (HMAC-SHA-256, RFC 2104) instead, whose key
//! is the hash of the secret that members keep, over the keys that the link has just proven. A proof is
//! good for these two keys alone: who hears it can show it to nobody else.

use sha2::{Digest, Sha256};

use crate::id::{ClusterId, NodeId, NodeKey, TokenId};

/// SHA-256's block, in bytes.
const BLOCK_BYTES: usize = 64;

/// Two sides of a link, and the token that one joins the other's cluster by.
#[derive(Debug, Clone, Copy)]
pub struct Joining {
    /// The token's public half.
    pub token: TokenId,
    /// What members keep of its secret half.
    pub secret_sha256: [u8; 32],
    /// Who wants to become a member.
    pub joiner: NodeKey,
    /// The member that is asked.
    pub member: NodeKey,
}

impl Joining {
    /// What the joiner shows.
    pub fn request(&self) -> [u8; 32] {
        self.proof(b"blixard join 1", &[])
    }

    /// What the member shows that admits the joiner as `node` of `cluster`.
    pub fn answer(&self, cluster: ClusterId, node: NodeId) -> [u8; 32] {
        self.proof(b"blixard admit 1", &[&cluster.0, &node.0.to_be_bytes()])
    }

    /// Every part has a fixed length, so no two messages have the same bytes.
    fn proof(&self, purpose: &[u8], more: &[&[u8]]) -> [u8; 32] {
        let parts = [purpose, &self.token.0, &self.joiner.0, &self.member.0];
        let message: Vec<u8> = parts.into_iter().chain(more.iter().copied()).flatten().copied().collect();
        hmac_sha256(&self.secret_sha256, &message)
    }
}

/// Whether the proof that was sent, in hexadecimal, is the one expected. It takes the same time
/// whatever is wrong.
pub fn is_proof(sent: &str, expected: &[u8; 32]) -> bool {
    let Ok(sent) = hex::decode(sent) else { return false };
    sent.len() == expected.len()
        && sent.iter().zip(expected).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

/// HMAC with a key no longer than a block.
fn hmac_sha256(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new_with_prefix(pad(0x36)).chain_update(message).finalize();
    Sha256::new_with_prefix(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::{Joining, hmac_sha256, is_proof};
    use crate::id::{ClusterId, NodeId, NodeKey, TokenId};

    #[test]
    fn the_hash_is_rfc_4231s() {
        // Test case 1, whose key of 20 bytes is as good as one with zeros behind it.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        assert_eq!(
            hex::encode(hmac_sha256(&key, b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }

    #[test]
    fn a_proof_is_good_for_its_token_its_keys_and_its_side_alone() {
        let joining = Joining {
            token: TokenId([1; 8]),
            secret_sha256: [2; 32],
            joiner: NodeKey([3; 32]),
            member: NodeKey([4; 32]),
        };
        let (cluster, node) = (ClusterId([5; 16]), NodeId(6));
        let (request, answer) = (joining.request(), joining.answer(cluster, node));
        assert!(is_proof(&hex::encode(request), &joining.request()));
        assert_ne!(request, answer);
        for other in [
            Joining { token: TokenId([9; 8]), ..joining },
            Joining { secret_sha256: [9; 32], ..joining },
            Joining { joiner: NodeKey([9; 32]), ..joining },
            Joining { member: NodeKey([9; 32]), ..joining },
            Joining { joiner: joining.member, member: joining.joiner, ..joining },
        ] {
            assert!(!is_proof(&hex::encode(request), &other.request()), "{other:?}");
            assert!(!is_proof(&hex::encode(answer), &other.answer(cluster, node)), "{other:?}");
        }
        assert!(!is_proof(&hex::encode(answer), &joining.answer(ClusterId([9; 16]), node)));
        assert!(!is_proof(&hex::encode(answer), &joining.answer(cluster, NodeId(9))));
        for damaged in ["", "zz", &hex::encode(&request[..31]), &format!("{}00", hex::encode(request))] {
            assert!(!is_proof(damaged, &request), "{damaged}");
        }
    }
}

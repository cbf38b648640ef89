//! Tickets: all that joining takes, as one line to paste.
//!
//! `bxt1`, then base32 without padding, lower case: a length, a body and a checksum. The number in
//! the prefix is the format's version.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use super::contact::Contact;
use crate::api::token::Secret;
use crate::id::{ClusterId, NodeKey, TokenId};
use crate::text::printable;
use crate::wire::Peer;

/// What every ticket begins with.
pub const PREFIX: &str = "bxt1";
/// How many addresses a ticket carries at most, so that it stays one line.
pub const TICKET_ADDRESSES_MAX: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// An invitation to a cluster. Whoever has it can join: its text is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The cluster.
    pub cluster: ClusterId,
    /// A member, and where it is; at most [`TICKET_ADDRESSES_MAX`] addresses.
    pub peer: Peer,
    /// What admits.
    pub token: Secret,
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not begin like one.
    #[error("a ticket begins with {PREFIX}")]
    Prefix,
    /// A character is none of base32's.
    #[error(
        "the ticket is damaged: character {position} (`{}`) is not one of a-z and 2-7",
        printable(&character.to_string())
    )]
    Character {
        /// Which, from 1.
        position: usize,
        /// The character.
        character: char,
    },
    /// Its end is missing.
    #[error(
        "the ticket is cut short: it has {characters} of {characters_expected} characters; copy all of it"
    )]
    Truncated {
        /// How many it has.
        characters: usize,
        /// How many it should have.
        characters_expected: usize,
    },
    /// A character was changed, or something follows its end.
    #[error("the ticket is damaged: its checksum does not fit; copy it again")]
    Damaged,
}

impl Ticket {
    /// The ticket as a contact.
    pub fn contact(&self) -> Contact {
        Contact {
            key: self.peer.key,
            node: None,
            addresses: self.peer.addresses.clone(),
            relay_url: self.peer.relay_url.clone(),
            cluster: Some(self.cluster),
            token: Some(self.token.clone()),
            seen_at: None,
            named: true,
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(160);
        body.extend(self.cluster.0);
        body.extend(self.peer.key.0);
        body.extend(self.token.id.0);
        body.extend(self.token.secret);
        let addresses = self.peer.addresses.iter().take(TICKET_ADDRESSES_MAX);
        body.push(u8::try_from(addresses.len()).expect("at most eight"));
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    body.push(4);
                    body.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    body.push(6);
                    body.extend(ip.octets());
                }
            }
            body.extend(address.port().to_be_bytes());
        }
        // A relay whose name is too long for a ticket is left out: the addresses remain.
        let relay = self.peer.relay_url.as_deref().filter(|url| url.len() <= usize::from(u8::MAX));
        push_short(&mut body, relay.unwrap_or_default().as_bytes());
        body
    }

    fn from_body(mut body: &[u8]) -> Option<Self> {
        let cluster = ClusterId(take(&mut body)?);
        let key = NodeKey(take(&mut body)?);
        let token = Secret { id: TokenId(take(&mut body)?), secret: take(&mut body)? };
        let [count] = take(&mut body)?;
        let mut addresses = Vec::new();
        for _ in 0..count.min(u8::try_from(TICKET_ADDRESSES_MAX).ok()?) {
            let ip: IpAddr = match take(&mut body)? {
                [4] => take::<4>(&mut body)?.into(),
                [6] => take::<16>(&mut body)?.into(),
                _ => return None,
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(take(&mut body)?)));
        }
        let relay = std::str::from_utf8(take_short(&mut body)?).ok()?;
        let relay_url = (!relay.is_empty()).then(|| relay.to_owned());
        body.is_empty().then_some(Self { cluster, peer: Peer { key, addresses, relay_url }, token })
    }
}

/// The ticket's text.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let length = u16::try_from(body.len()).expect("a ticket's parts are bounded");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(&body);
        bytes.extend(checksum(&body));
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads a ticket; white space inside, as from a wrapped line, does not matter.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text: String =
            text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(TicketError::Prefix)?;
        if let Some((position, character)) =
            text.chars().enumerate().skip(PREFIX.len()).find(|(_, c)| !matches!(c, 'a'..='z' | '2'..='7'))
        {
            return Err(TicketError::Character { position: position + 1, character });
        }
        // Whole bytes of what is here: a text cut in the middle of a byte still tells its length.
        let whole = digits.len() / 8 * 8;
        let tail = digits.len() - whole;
        let usable = whole + [0, 0, 2, 2, 4, 5, 5, 7][tail];
        let upper = digits[..usable].to_ascii_uppercase();
        let bytes = decode_lenient(upper.as_bytes());
        let truncated =
            |characters_expected| TicketError::Truncated { characters: text.len(), characters_expected };
        let mut rest = &bytes[..];
        let Some(length) = take(&mut rest).map(|bytes| usize::from(u16::from_be_bytes(bytes))) else {
            return Err(truncated(PREFIX.len() + 4));
        };
        let expected = PREFIX.len() + BASE32_NOPAD.encode_len(2 + length + CHECKSUM_BYTES);
        if text.len() < expected {
            return Err(truncated(expected));
        }
        let sound = text.len() == expected && rest.len() == length + CHECKSUM_BYTES;
        let (body, sum) = rest.split_at_checked(length).filter(|_| sound).ok_or(TicketError::Damaged)?;
        if sum != checksum(body) {
            return Err(TicketError::Damaged);
        }
        Self::from_body(body).ok_or(TicketError::Damaged)
    }
}

/// Decodes base32 whose last digit may carry bits of a byte that is not here.
fn decode_lenient(digits: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(digits.len() * 5 / 8);
    let (mut buffer, mut bits) = (0_u32, 0);
    for digit in digits {
        let value = if digit.is_ascii_uppercase() { digit - b'A' } else { digit - b'2' + 26 };
        buffer = buffer << 5 | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits & 0xff).expect("masked to a byte"));
        }
    }
    bytes
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(body);
    std::array::from_fn(|n| digest[n])
}

fn push_short(body: &mut Vec<u8>, bytes: &[u8]) {
    body.push(u8::try_from(bytes.len()).expect("bounded by the caller"));
    body.extend(bytes);
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn take_short<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [length] = take(bytes)?;
    let (head, rest) = bytes.split_at_checked(usize::from(length))?;
    *bytes = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::{PREFIX, Ticket, TicketError};
    use crate::api::token::Secret;
    use crate::id::{ClusterId, NodeKey, TokenId};
    use crate::wire::Peer;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn any_ticket() -> impl Strategy<Value = Ticket> {
        let addresses = prop::collection::vec(any::<SocketAddr>(), 0..=8).prop_map(|addresses| {
            addresses.iter().map(|address| SocketAddr::new(address.ip(), address.port())).collect()
        });
        let relay = prop::option::of("https://[a-z.]{1,60}");
        (any::<[u8; 16]>(), any::<[u8; 32]>(), any::<[u8; 8]>(), any::<[u8; 32]>(), addresses, relay)
            .prop_map(|(cluster, key, id, secret, addresses, relay_url)| Ticket {
                cluster: ClusterId(cluster),
                peer: Peer { key: NodeKey(key), addresses, relay_url },
                token: Secret { id: TokenId(id), secret },
            })
    }

    proptest! {
        #[test]
        fn tickets_are_read_as_written(ticket in any_ticket(), wrap in 10_usize..80) {
            let text = ticket.to_string();
            prop_assert!(text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
            prop_assert_eq!(text.parse(), Ok(ticket.clone()));
            let wrapped: Vec<&str> = text.as_bytes().chunks(wrap).map(|line| std::str::from_utf8(line).unwrap()).collect();
            prop_assert_eq!(format!(" {}\n", wrapped.join("\r\n")).to_uppercase().replace("BXT1", "bxt1").parse(), Ok(ticket));
        }

        #[test]
        fn a_ticket_cut_anywhere_says_so(ticket in any_ticket(), cut in 0.0_f64..1.0) {
            let text = ticket.to_string();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in a short text")]
            let at = PREFIX.len() + ((text.len() - PREFIX.len()) as f64 * cut) as usize;
            let error = text[..at].parse::<Ticket>().unwrap_err();
            prop_assert!(matches!(error, TicketError::Truncated { characters, .. } if characters == at), "{error}");
        }

        #[test]
        fn a_changed_character_is_noticed(ticket in any_ticket(), at in any::<prop::sample::Index>(), to in "[a-z2-7]") {
            let text = ticket.to_string();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            let same = changed.parse::<Ticket>() == Ok(ticket);
            // The last digit has bits that stand for nothing.
            prop_assert!(!same || changed == text || at == text.len() - 1);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(bxt1)?.{0,80}") {
            let _parsed = text.parse::<Ticket>();
        }
    }

    #[test]
    fn faults_are_told_apart() {
        let check = |text: &str, expect: &str| {
            assert_eq!(text.parse::<Ticket>().unwrap_err().to_string(), expect);
        };
        check("hello", "a ticket begins with bxt1");
        check("bxt1", "the ticket is cut short: it has 4 of 8 characters; copy all of it");
        check("bxt1ab0", "the ticket is damaged: character 7 (`0`) is not one of a-z and 2-7");
        check(
            "bxt1aaaaaaaaaaaaaaaaaaaaaaaaa",
            "the ticket is damaged: its checksum does not fit; copy it again",
        );
    }
}

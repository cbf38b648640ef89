//! Values as registry and static files write them, each with an error that says what is allowed.

use std::fmt;
use std::net::SocketAddr;

use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::api::token::Secret;
use crate::id::{NodeId, NodeKey};
use crate::time::UtcMs;

/// A node's key: hexadecimal, base32 or base64, told apart by their lengths; written in
/// hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyText(pub(super) NodeKey);

impl KeyText {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let upper = || text.to_ascii_uppercase().into_bytes();
        let bytes = match text.len() {
            64 => hex::decode(text).ok(),
            52 => BASE32_NOPAD.decode(&upper()).ok(),
            56 => BASE32.decode(&upper()).ok(),
            43 => {
                BASE64_NOPAD.decode(text.as_bytes()).or_else(|_| BASE64URL_NOPAD.decode(text.as_bytes())).ok()
            }
            44 => BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes())).ok(),
            _ => None,
        }?;
        bytes.try_into().ok().map(|bytes| Self(NodeKey(bytes)))
    }
}

impl Serialize for KeyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText {
            allowed: "a node's key: 64 hexadecimal digits, 52 of base32 or 43 of base64",
            parse: Self::parse,
        })
    }
}

/// An address, `IP:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressText(pub(super) SocketAddr);

impl Serialize for AddressText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AddressText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText {
            allowed: "an address: IP:PORT, like 10.0.0.1:7001 or [fd00::1]:7001",
            parse: |text| text.parse().ok().map(Self),
        })
    }
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenText(pub(super) Secret);

impl Serialize for TokenText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is not repeated in the error: most of it may be a secret.
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A node's number, as a number or as text; or, in old static files, its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeText {
    Id(NodeId),
    Key(NodeKey),
}

impl<'de> Deserialize<'de> for NodeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = NodeText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node's id (a number from 1 on) or its key")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<NodeText, E> {
                if id == 0 {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(id), &self));
                }
                Ok(NodeText::Id(NodeId(id)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NodeText, E> {
                let id = || text.parse().ok().filter(|id| *id > 0).map(|id| NodeText::Id(NodeId(id)));
                let key = || KeyText::parse(text).map(|key| NodeText::Key(key.0));
                id().or_else(key).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A point in time: RFC 3339, or what Rust's `SystemTime` serialises as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeText(pub(super) UtcMs);

impl<'de> Deserialize<'de> for TimeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = TimeText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a time: RFC 3339 like 2026-01-31T12:00:00Z, or secs_since_epoch and nanos_since_epoch",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeText, E> {
                let time = parse_rfc_3339(text).map(TimeText);
                time.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TimeText, A::Error> {
                #[derive(Deserialize)]
                struct SystemTime {
                    secs_since_epoch: u64,
                    #[serde(default)]
                    nanos_since_epoch: u32,
                }
                let time = SystemTime::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let millis = u64::from(time.nanos_since_epoch) / 1_000_000;
                Ok(TimeText(UtcMs(time.secs_since_epoch.saturating_mul(1000).saturating_add(millis))))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction](Z|±HH:MM)` (days-from-civil by Howard Hinnant).
fn parse_rfc_3339(text: &str) -> Option<UtcMs> {
    let number = |from: usize, to: usize| {
        text.get(from..to)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse::<i64>().ok())
    };
    let is = |at: usize, allowed: &str| text.get(at..=at).is_some_and(|c| allowed.contains(c));
    let shaped = is(4, "-") && is(7, "-") && is(10, "Tt ") && is(13, ":") && is(16, ":");
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day);
    if !shaped || !in_range || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let zone_at = 19 + text.get(19..)?.find(['Z', 'z', '+', '-'])?;
    let millis = match text.get(19..zone_at)? {
        "" => 0,
        fraction => {
            let digits = fraction.strip_prefix('.').filter(|digits| !digits.is_empty())?;
            let padded = format!("{:0<3.3}", digits);
            padded.bytes().all(|byte| byte.is_ascii_digit()).then(|| padded.parse::<i64>().ok())??
        }
    };
    let offset_minutes = match text.get(zone_at..)? {
        "Z" | "z" => 0,
        offset if offset.len() == 6 && is(zone_at + 3, ":") => {
            let sign = if offset.starts_with('-') { -1 } else { 1 };
            sign * (number(zone_at + 1, zone_at + 3)? * 60 + number(zone_at + 4, zone_at + 6)?)
        }
        _ => return None,
    };
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + hour * 3600 + (minute - offset_minutes) * 60 + second;
    u64::try_from(seconds * 1000 + millis).ok().map(UtcMs)
}

/// Reads a text that `parse` understands.
struct FromText<T> {
    allowed: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.allowed)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyText, parse_rfc_3339};
    use crate::id::NodeKey;
    use crate::time::UtcMs;
    use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64_NOPAD, BASE64URL_NOPAD};

    #[test]
    fn a_key_is_read_in_every_encoding() {
        for bytes in [[0; 32], [0xff; 32], std::array::from_fn(|n| u8::try_from(n * 8).unwrap())] {
            for text in [
                hex::encode(bytes),
                hex::encode_upper(bytes),
                BASE32_NOPAD.encode(&bytes),
                BASE32_NOPAD.encode(&bytes).to_lowercase(),
                BASE32.encode(&bytes),
                BASE64.encode(&bytes),
                BASE64_NOPAD.encode(&bytes),
                BASE64URL_NOPAD.encode(&bytes),
            ] {
                assert_eq!(KeyText::parse(&text), Some(KeyText(NodeKey(bytes))), "{text}");
            }
        }
        for wrong in ["", "abc", &"g".repeat(64), &"1".repeat(52), &"é".repeat(22)] {
            assert_eq!(KeyText::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_they_are_shown() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(parse_rfc_3339(text), expect.map(UtcMs), "{text}");
        };
        for millis in [0, 951_782_400_000, 1_795_219_199_999, 4_107_542_400_000] {
            check(&UtcMs(millis).to_string(), Some(millis));
        }
        check("2026-11-20T23:59:59Z", Some(1_795_219_199_000));
        check("2026-11-21T00:59:59.5+01:00", Some(1_795_219_199_500));
        check("2026-11-20T19:59:59.123456789-04:00", Some(1_795_219_199_123));
        for wrong in
            ["", "2026-11-21", "2026-13-21T03:59:59Z", "2026-11-21T03:59:59", "2026-11-21T03:59:59.Z"]
        {
            check(wrong, None);
        }
        check("2026-11-21T03:59:59é", None);
    }
}

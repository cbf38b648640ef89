//! Times. Two kinds that never mix: [`UtcMs`] is for people and for expiry and comes from the
//! log; [`Mono`] is a node's own monotonic clock and is what liveness and back-off are measured by.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z, as the leader stamped them; `apply` keeps them from
/// going back.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct UtcMs(pub u64);

impl UtcMs {
    /// The time `duration` later, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339, in UTC, to the millisecond (civil-from-days by Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms").
impl fmt::Display for UtcMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0 / 1000, self.0 % 1000);
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// A text is no time of RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a time such as 2026-11-21T08:30:00Z")]
pub struct NotATime;

/// Reads RFC 3339, with `Z` or an offset, the seconds' fraction cut to milliseconds; from 1970 on
/// (days-from-civil by Howard Hinnant, as above).
impl FromStr for UtcMs {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        parse_utc(text).ok_or(NotATime)
    }
}

fn parse_utc(text: &str) -> Option<UtcMs> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, set: &[u8]| text.as_bytes().get(at).is_some_and(|byte| set.contains(byte));
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last_day = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let valid = separated && (1..=12).contains(&month) && (1..=last_day).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("0", rest),
    };
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok().filter(|_| !fraction.is_empty())?;
    let offset_minutes = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at, at + 2)?, number(at + 3, at + 5)?);
            let minutes = (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let minutes = (days * 24 + hour) * 60 + minute - offset_minutes;
    u64::try_from((minutes * 60 + second) * 1000 + millis).ok().map(UtcMs)
}

/// The clock a leader stamps entries with: its wall clock, but never behind log time.
///
/// Log time that is ahead of the wall clock, because some leader's clock was, goes on at half the
/// pace until the wall clock has caught up. Were it to stand still instead, nothing that waits for
/// log time would happen meanwhile: holds would not end, failed slots not be tried again.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogClock {
    /// A reading, and when it was taken. Later ones count from it while log time is ahead.
    anchor: Option<(UtcMs, Mono)>,
}

impl LogClock {
    /// What to stamp an entry with at `now`, when the wall clock says `wall` and the last entry
    /// applied was stamped `log`. Never less than `log`, or than an earlier reading.
    pub fn read(&mut self, now: Mono, wall: UtcMs, log: UtcMs) -> UtcMs {
        let slewed = self.anchor.map_or(UtcMs(0), |(at, since)| at.after(now.since(since) / 2));
        let known = wall.max(log);
        if known > slewed {
            self.anchor = Some((known, now));
        }
        known.max(slewed)
    }
}

/// A reading of one node's monotonic clock, counted from an arbitrary start (`CLOCK_BOOTTIME` in
/// production, so that a suspended machine notices). Meaningless on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub Duration);

impl Mono {
    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LogClock, Mono, UtcMs};

    #[test]
    fn log_time_ahead_of_the_wall_clock_goes_on_at_half_the_pace_until_that_has_caught_up() {
        let mut clock = LogClock::default();
        let mut log = UtcMs(0);
        let mut check = |after_ms: u64, wall: u64, expect: u64| {
            let time = clock.read(Mono(Duration::from_millis(1_000_000 + after_ms)), UtcMs(wall), log);
            assert_eq!(time, UtcMs(expect), "after {after_ms} ms");
            log = time;
        };
        check(0, 5_000, 5_000);
        check(100, 9_000, 9_000);
        check(200, 5_200, 9_050);
        for step in 0..1_000 {
            check(201 + step, 5_201 + step, 9_050 + step.div_ceil(2));
        }
        check(8_000, 13_000, 13_000);
        check(8_010, 13_010, 13_010);
    }

    #[test]
    fn times_are_read_as_they_are_shown_and_with_offsets() {
        for millis in [0, 1, 951_782_399_999, 951_782_400_000, 1_795_219_199_999, 4_107_542_400_123] {
            assert_eq!(UtcMs(millis).to_string().parse(), Ok(UtcMs(millis)), "{}", UtcMs(millis));
        }
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(text.parse::<UtcMs>().ok(), expect.map(UtcMs), "{text}");
        };
        check("1970-01-01T00:00:01Z", Some(1_000));
        check("1970-01-01 00:00:00.5z", Some(500));
        check("1970-01-01T00:00:00.123456789Z", Some(123));
        check("1970-01-01T02:00:00+02:00", Some(0));
        check("1969-12-31T23:30:00-00:30", Some(0));
        check("1969-12-31T23:59:59Z", None);
        check("1970-01-01T00:00:00.Z", None);
        check("1970-01-01T00:00:00", None);
        check("1970-13-01T00:00:00Z", None);
        check("1970-02-29T00:00:00Z", None);
        check("1970-01-01T24:00:00Z", None);
        check("1970-01-01T00:00:00+2:00", None);
        check("+970-01-01T00:00:00Z", None);
        check("١970-01-01T00:00:00Z", None);
        check("", None);
    }

    #[test]
    fn utc_is_shown_as_rfc_3339() {
        let check = |millis: u64, expect: &str| assert_eq!(UtcMs(millis).to_string(), expect);
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_795_219_199_999, "2026-11-20T23:59:59.999Z");
        check(4_107_542_400_000, "2100-03-01T00:00:00.000Z");
    }
}

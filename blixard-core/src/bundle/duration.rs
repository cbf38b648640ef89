//! Times as Go writes them: `1m30s`, `500ms`, `1.5h`.

use std::time::Duration;

use super::diagnostic::{Fault, shorten};

/// The units, with what one is in nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The longest text read as a time, in bytes: sums of what is in it are far from overflowing.
const TEXT_BYTES_MAX: usize = 64;

/// Reads a time of `min` to `max` milliseconds.
pub(super) fn duration(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, Fault> {
    move |text| {
        let bounds = format!("from {} to {}", show(min), show(max));
        let fault = |why: &str| {
            Fault::new(format!("takes a time {bounds}, not `{}`{why}", shorten(text)))
                .hint("for example 10s, 500ms or 1m30s")
        };
        let nanoseconds = nanoseconds(text).map_err(|why| fault(&format!(": {why}")))?;
        let milliseconds = u64::try_from(nanoseconds / 1_000_000).map_err(|_| fault(""))?;
        if !nanoseconds.is_multiple_of(1_000_000) {
            return Err(fault(": it is no whole number of milliseconds"));
        }
        if (min..=max).contains(&milliseconds) { Ok(milliseconds) } else { Err(fault("")) }
    }
}

/// Reads a time of any length.
///
/// # Errors
/// Why it is none.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let nanoseconds = nanoseconds(text)?;
    u64::try_from(nanoseconds).map(Duration::from_nanos).map_err(|_| "it is longer than 500 years")
}

fn nanoseconds(text: &str) -> Result<u128, &'static str> {
    let mut rest = text;
    let mut total: u128 = 0;
    if text.len() > TEXT_BYTES_MAX {
        return Err("it has too many digits");
    }
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
        let (amount, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err("it does not begin with a number");
        }
        if unit.is_empty() {
            return Err("it has no unit");
        }
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err("units are h, m, s, ms, us and ns");
        };
        if whole.len() > 12 || fraction.len() > 9 {
            return Err("it has too many digits");
        }
        let number: u128 = format!("0{whole}{fraction}").parse().map_err(|_| "it has too many digits")?;
        // A power of ten for each of at most 9 digits.
        let divisor = fraction.bytes().fold(1u128, |divisor, _| divisor * 10);
        total += number * factor / divisor;
        rest = tail;
    }
    Ok(total)
}

/// Writes a time in milliseconds so that it reads back as the same.
pub(super) fn show(milliseconds: u64) -> String {
    let parts = [
        (milliseconds / 3_600_000, "h"),
        (milliseconds / 60_000 % 60, "m"),
        (milliseconds / 1_000 % 60, "s"),
        (milliseconds % 1_000, "ms"),
    ];
    let text: String = parts
        .iter()
        .filter(|(amount, _)| *amount > 0)
        .map(|(amount, unit)| format!("{amount}{unit}"))
        .collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{duration, show};

    #[test]
    fn times_read_as_go_reads_them() {
        let check = |text: &str, expect: u64| assert_eq!(duration(0, u64::MAX)(text), Ok(expect), "{text}");
        check("1m30s", 90_000);
        check("500ms", 500);
        check("1.5s", 1_500);
        check(".5s", 500);
        check("2h45m", 9_900_000);
        check("1h0m1s", 3_601_000);
        check("2000us", 2);
        check("3000µs", 3);
        check("1000000ns", 1);
        check("0s", 0);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let check = |text: &str, why: &str| {
            let fault = duration(100, 60_000)(text).expect_err(text);
            assert!(fault.message.contains(why), "{text}: {}", fault.message);
        };
        check("10", "no unit");
        check("10 s", "units are");
        check("", "does not begin");
        check("s", "does not begin");
        check("-5s", "does not begin");
        check("5s3", "no unit");
        check("5d", "units are");
        check("1..5s", "does not begin");
        check("150.5ms", "whole number of milliseconds");
        check("99ms", "from 100ms to 1m");
        check("61s", "from 100ms to 1m");
        check("99999999999999999999s", "too many digits");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9.smhµunx-]{0,24}") {
            drop(duration(0, u64::MAX)(&text));
        }

        #[test]
        fn what_is_shown_reads_back(milliseconds in 0..u64::MAX / 1_000_000) {
            prop_assert_eq!(duration(0, u64::MAX)(&show(milliseconds)), Ok(milliseconds));
        }
    }
}

//! Whole numbers, amounts of memory and of CPU as bundles write them.

use std::ops::RangeInclusive;

use super::diagnostic::{Fault, shorten};

/// The units of memory, with what one is in bytes. A lower-case `m` or `g` is none of them: it is
/// a power of 1024 to some tools, of 1000 or a thousandth to others.
const MEMORY_UNITS: [(&[&str], u64); 9] = [
    (&["", "B"], 1),
    (&["k", "K", "kB", "KB"], 1_000),
    (&["M", "MB"], 1_000_000),
    (&["G", "GB"], 1_000_000_000),
    (&["T", "TB"], 1_000_000_000_000),
    (&["Ki", "KiB"], 1 << 10),
    (&["Mi", "MiB"], 1 << 20),
    (&["Gi", "GiB"], 1 << 30),
    (&["Ti", "TiB"], 1 << 40),
];

/// A whole number in `range`, in decimal digits.
pub(super) fn whole(text: &str, range: RangeInclusive<i64>) -> Result<i64, Fault> {
    let fault = || {
        let (min, max) = (range.start(), range.end());
        let bounds = if *max == i64::MAX { format!("from {min} up") } else { format!("from {min} to {max}") };
        Fault::new(format!("takes a whole number {bounds}, not `{}`", shorten(text)))
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number: Option<i64> = text.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    if number.is_some() && digits.len() > 1 && digits.starts_with('0') {
        return Err(fault().hint("leave out the leading zeros: some readers take such a number as octal"));
    }
    number.filter(|number| range.contains(number)).ok_or_else(fault)
}

/// A whole number in `range`, for types that hold all of it.
pub(super) fn number<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&str) -> Result<T, Fault> {
    move |text| {
        let number = whole(text, range.clone())?;
        T::try_from(number).map_err(|_| Fault::new(format!("does not take a number as large as `{number}`")))
    }
}

/// A port.
pub(super) fn port(text: &str) -> Result<u16, Fault> {
    number(1..=65_535)(text)
}

/// An amount of memory, in bytes: digits, perhaps with a fraction, and a unit.
pub(super) fn memory(text: &str) -> Result<u64, Fault> {
    let fault = |message: &str| {
        Fault::new(format!("takes an amount of memory, not `{}`: {message}", shorten(text)))
            .hint("for example 512MiB, 1.5Gi, 500M, or a number of bytes")
    };
    let (amount, unit) =
        text.split_at(text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = unit.trim();
    let Some((_, factor)) = MEMORY_UNITS.iter().find(|(names, _)| names.contains(&unit)) else {
        let fault = fault("its unit is unknown");
        let upper = unit.to_ascii_uppercase();
        let letter = upper.chars().next().filter(|c| !amount.is_empty() && "KMGT".contains(*c));
        return Err(match letter {
            Some(c) => {
                fault.hint(format!("write {amount}{c}i for powers of 1024, {amount}{c} for powers of 1000"))
            }
            None => fault,
        });
    };
    scaled(amount, *factor).map_err(fault)
}

/// An amount of CPU, in thousandths: `0.5`, `2` or `500m`.
pub(super) fn cpu(text: &str) -> Result<u64, Fault> {
    let (amount, factor) = text.strip_suffix('m').map_or((text, 1_000), |millis| (millis, 1));
    scaled(amount, factor).map_err(|message| {
        Fault::new(format!("takes a number of CPUs, not `{}`: {message}", shorten(text)))
            .hint("for example 0.5, 2 or 500m, at least a thousandth")
    })
}

/// `amount`, which may have a fraction, times `factor`, when that is whole and fits in an `i64`.
fn scaled(amount: &str, factor: u64) -> Result<u64, &'static str> {
    let (digits, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    if digits.is_empty() && fraction.is_empty() || amount.matches('.').count() > 1 || amount.ends_with('.') {
        return Err("it does not begin with a number");
    }
    if !(digits.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return Err("it does not begin with a number");
    }
    let fraction = fraction.trim_end_matches('0');
    if digits.len() + fraction.len() > 24 || fraction.len() > 12 {
        return Err("it has too many digits");
    }
    let all: u128 = format!("0{digits}{fraction}").parse().map_err(|_| "it has too many digits")?;
    let divisor = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| "it has too many digits")?);
    let product = all * u128::from(factor);
    if !product.is_multiple_of(divisor) {
        return Err("it is not whole in the smallest unit");
    }
    i64::try_from(product / divisor).ok().and_then(|value| u64::try_from(value).ok()).ok_or("it is too large")
}

#[cfg(test)]
mod tests {
    use super::{cpu, memory, port, whole};

    #[test]
    fn whole_numbers_are_decimal_and_bounded() {
        let check =
            |text: &str, expect: Option<i64>| assert_eq!(whole(text, -1..=100).ok(), expect, "{text}");
        check("0", Some(0));
        check("100", Some(100));
        check("-1", Some(-1));
        check("101", None);
        check("-2", None);
        check("007", None);
        check("+5", None);
        check("5.0", None);
        check("0x10", None);
        check("", None);
        check("-", None);
        check("99999999999999999999", None);
        assert!(port("0").is_err() && port("65536").is_err() && port("65535") == Ok(65_535));
    }

    #[test]
    fn memory_has_units_of_1000_and_of_1024() {
        let check = |text: &str, expect: u64| assert_eq!(memory(text), Ok(expect), "{text}");
        check("0", 0);
        check("536870912", 536_870_912);
        check("512MiB", 512 << 20);
        check("512 Mi", 512 << 20);
        check("1.5Gi", 3 << 29);
        check(".5Ki", 512);
        check("500M", 500_000_000);
        check("500MB", 500_000_000);
        check("2k", 2_000);
        check("1TiB", 1 << 40);
        check("1.50G", 1_500_000_000);
        let refuse = |text: &str, why: &str| {
            let fault = memory(text).expect_err(text);
            let all = format!("{} {}", fault.message, fault.hint.unwrap_or_default());
            assert!(all.contains(why), "{text}: {all}");
        };
        refuse("512m", "512Mi for powers of 1024");
        refuse("512mb", "512M for powers of 1000");
        refuse("5X", "unit is unknown");
        refuse("MiB", "does not begin with a number");
        refuse("1.2.3G", "does not begin with a number");
        refuse("1.", "does not begin with a number");
        refuse("-5M", "unit is unknown");
        refuse("0.3", "not whole");
        refuse("9000000TiB", "too large");
        refuse("99999999999999999999999999", "too many digits");
        refuse("", "does not begin with a number");
    }

    #[test]
    fn cpus_are_counted_in_thousandths() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(cpu(text).ok(), expect, "{text}");
        check("0.5", Some(500));
        check("2", Some(2_000));
        check("500m", Some(500));
        check("1.250", Some(1_250));
        check("0.0005", None);
        check("0.5m", None);
        check("-1", None);
        check("half", None);
        check("", None);
        check("m", None);
    }
}

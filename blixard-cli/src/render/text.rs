//! Numbers as people say them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blixard_core::image_reference::ImageReference;
use blixard_core::time::UtcMs;

/// The time by this machine's clock.
pub(crate) fn now() -> UtcMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UtcMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A length of time, roughly: `3 minutes`.
pub(crate) fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..7200 => "About an hour".to_owned(),
        7200..172_800 => format!("{hours} hours"),
        172_800..1_209_600 => format!("{days} days"),
        1_209_600..5_184_000 => format!("{} weeks", days / 7),
        5_184_000..63_072_000 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// A length of time in few characters: `4 s`, `2 min`.
pub(crate) fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The text with each time in it told from `now`: `again at 2026-11-21T08:30:00.000Z` becomes
/// `again in 4 s`.
pub(crate) fn told_from(text: &str, now: UtcMs) -> String {
    const TIME_BYTES: usize = "2026-11-21T08:30:00.000Z".len();
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let time = rest.get(..TIME_BYTES).filter(|time| time.ends_with('Z'));
        let Some(time) = time.and_then(|time| time.parse::<UtcMs>().ok()) else {
            told.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        if told.ends_with("at ") {
            told.truncate(told.len() - "at ".len());
        }
        let (ahead, behind) = (time.since(now), now.since(time));
        told.push_str(&match (ahead.as_millis(), behind.as_secs()) {
            (1.., _) => format!("in {}", brief(ahead + Duration::from_millis(999))),
            (0, 0..10) => "now".to_owned(),
            // What is due is under way.
            _ if told.ends_with("again ") || told.ends_with("next try ") => "now".to_owned(),
            (0, _) => format!("{} ago", brief(behind)),
        });
        rest = &rest[TIME_BYTES..];
    }
    told
}

/// How long ago `then` was, roughly: `3 minutes ago`.
pub(crate) fn ago(now: UtcMs, then: UtcMs) -> String {
    format!("{} ago", about(now.since(then)))
}

/// How far away `then` is, roughly: `4 seconds`.
pub(crate) fn until(now: UtcMs, then: UtcMs) -> String {
    about(then.since(now)).to_lowercase()
}

/// A number of bytes: `7.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = count as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// `1 container`, `2 containers`.
pub(crate) fn plural(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// The first 12 characters after `sha256:`.
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// An image's name as it is shown everywhere: `nginx:latest`, however a bundle or a node writes it.
pub(crate) fn image(reference: &str) -> String {
    let familiar = reference.parse().map(|reference: ImageReference| reference.familiar());
    printable(&familiar.unwrap_or_else(|_| reference.to_owned()))
}

/// Text of others as one line that is safe on a terminal.
pub(crate) fn printable(text: &str) -> String {
    blixard_core::text::printable(text).into_owned()
}

/// What a container wrote as it is safe on a terminal: colours and tabs stay, other control characters,
/// what changes the direction of text, and what is no text show as `\x1b`.
pub(crate) fn for_terminal(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(c) = rest.chars().next() {
            let length = color_length(rest).unwrap_or(c.len_utf8());
            let (taken, after) = rest.split_at(length);
            if length > c.len_utf8() || c == '\t' || !(c.is_control() || turns_text(c)) {
                safe.push_str(taken);
            } else if c.is_ascii() {
                safe.push_str(&format!("\\x{:02x}", u32::from(c)));
            } else {
                safe.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            rest = after;
        }
        chunk.invalid().iter().for_each(|byte| safe.push_str(&format!("\\x{byte:02x}")));
    }
    safe
}

/// Whether a character changes the direction of the text around it.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How long the sequence that sets a colour is with which `text` begins (ECMA-48, SGR), in bytes.
fn color_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let length = parameters.bytes().take_while(|byte| byte.is_ascii_digit() || b";:".contains(byte)).count();
    (parameters.as_bytes().get(length) == Some(&b'm')).then_some("\x1b[".len() + length + 1)
}

/// At most `chars_max` characters of a text; what is left out shows as `...`.
pub(crate) fn shorten(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(3)).collect();
    format!("{}...", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blixard_core::time::UtcMs;

    use super::{about, bytes, for_terminal, plural, printable, short_digest, shorten, told_from};

    #[test]
    fn lengths_of_time_are_rough() {
        let check = |seconds, expect: &str| assert_eq!(about(Duration::from_secs(seconds)), expect);
        check(0, "Less than a second");
        check(1, "1 second");
        check(59, "59 seconds");
        check(60, "About a minute");
        check(119, "About a minute");
        check(120, "2 minutes");
        check(3_599, "59 minutes");
        check(3_600, "About an hour");
        check(7_200, "2 hours");
        check(172_799, "47 hours");
        check(172_800, "2 days");
        check(1_209_600, "2 weeks");
        check(5_184_000, "2 months");
        check(63_072_000, "2 years");
    }

    #[test]
    fn times_in_messages_are_told_from_now() {
        let now: UtcMs = "2026-11-21T08:30:00Z".parse().unwrap();
        let check = |text: &str, expect: &str| assert_eq!(told_from(text, now), expect);
        check("", "");
        check("é: no time", "é: no time");
        check(
            "exited with code 1; starting again at 2026-11-21T08:30:03.001Z",
            "exited with code 1; starting again in 4 s",
        );
        check("trying again at 2026-11-21T08:32:00.000Z: x", "trying again in 2 min: x");
        check("starting again at 2026-11-21T08:29:58.000Z", "starting again now");
        check("pull failed: x; trying again at 2026-11-21T08:29:40.000Z", "pull failed: x; trying again now");
        check("seen 2026-11-21T06:30:00.000Z", "seen 2 h ago");
        check("2026-11-21T08:99:00.000Z", "2026-11-21T08:99:00.000Z");
    }

    #[test]
    fn sizes_have_one_decimal() {
        let check = |count, expect: &str| assert_eq!(bytes(count), expect);
        check(0, "0 B");
        check(1_023, "1023 B");
        check(1_024, "1.0 KiB");
        check(1_048_575, "1.0 MiB");
        check(7_864_320, "7.5 MiB");
        check(u64::MAX, "16384.0 PiB");
    }

    #[test]
    fn small_texts() {
        assert_eq!(plural(1, "replica"), "1 replica");
        assert_eq!(plural(0, "replica"), "0 replicas");
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("short"), "short");
        assert_eq!(shorten("as long as may be", 17), "as long as may be");
        assert_eq!(shorten("longer than may be", 12), "longer th...");
        assert_eq!(shorten("füünfzehn", 8), "füünf...");
        assert_eq!(printable("a\x1b[31mb\nc"), "a\\x1b[31mb\\nc");
    }

    #[test]
    fn a_terminal_is_shown_colours_and_no_other_control() {
        let check = |bytes: &[u8], expect: &str| assert_eq!(for_terminal(bytes), expect);
        check("añ\t𝄞".as_bytes(), "añ\t𝄞");
        check(b"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m");
        check(b"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07");
        check(b"\x1b[31", "\\x1b[31");
        check(b"50%\rdone\r", "50%\\x0ddone");
        check(b"\xff\xc3", "\\xff\\xc3");
        check("\u{9b}2J\u{202e}abc".as_bytes(), "\\u{9b}2J\\u{202e}abc");
        check(b"", "");
    }
}

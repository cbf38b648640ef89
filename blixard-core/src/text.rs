//! Texts that others make: cut where they arise and again where they are stored, and shown so that
//! they cannot pass for anything but themselves.

use std::borrow::Cow;
use std::fmt::Write;

use crate::limits::TEXT_BYTES_MAX;

/// What a text that was cut ends with.
const CUT: &str = " [cut]";

/// Cuts a text to [`TEXT_BYTES_MAX`] bytes, between two characters; one that was cut says so at its
/// end.
pub fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - CUT.len()));
        text.push_str(CUT);
    }
}

/// Whether a character does something else than be seen: a control character (C0, DEL, C1), one that
/// changes the direction of the text around it, one that is not seen, or one that ends a line to some
/// programs only.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A text from outside as one line that is safe to show and to log: what is unseen ([`is_unseen`])
/// shows as `\n`, `\t`, `\x1b` or `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// What a decoder says of what came from outside, which it may quote: one line as of [`printable`], cut
/// as of [`cut`].
pub fn one_line(said: &impl std::fmt::Display) -> String {
    let mut line = printable(&said.to_string()).into_owned();
    cut(&mut line);
    line
}

/// The same of a text of several lines: line ends and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// The same of lines that are painted: what sets a colour (ECMA-48, SGR) stays too.
pub fn painted_lines(text: &str) -> Cow<'_, str> {
    let mut parts = text.split("\x1b[");
    let mut shown = printable_lines(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let code = part.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
        let length = if part.as_bytes().get(code) == Some(&b'm') { code + 1 } else { 0 };
        let (color, rest) = part.split_at(length);
        shown.push_str(if length > 0 { "\x1b[" } else { "\\x1b[" });
        shown.push_str(color);
        shown.push_str(&printable_lines(rest));
    }
    Cow::Owned(shown)
}

/// JSON with what is unseen in its strings escaped as JSON does, so that it means the same.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let hides = |c: char| is_unseen(c) && c != '\n';
    if !json.contains(hides) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if hides(c) {
            // A string takes whatever is written to it.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hides = |c: char| is_unseen(c) && !stays(c);
    if !text.contains(hides) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !hides(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\r' => shown.push_str("\\r"),
            // A string takes whatever is written to it.
            c if c.is_ascii() => {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::{CUT, cut, is_unseen, painted_lines, printable, printable_json, printable_lines};
    use crate::limits::TEXT_BYTES_MAX;

    #[test]
    fn a_text_is_cut_once_between_two_characters() {
        let check = |text: String, expect: String| {
            let mut found = text;
            cut(&mut found);
            assert_eq!(found, expect);
            cut(&mut found);
            assert_eq!(found, expect, "it is cut a second time");
        };
        check("short".to_owned(), "short".to_owned());
        check("x".repeat(TEXT_BYTES_MAX), "x".repeat(TEXT_BYTES_MAX));
        let kept = TEXT_BYTES_MAX - CUT.len();
        check("x".repeat(TEXT_BYTES_MAX + 1), "x".repeat(kept) + CUT);
        check("€".repeat(TEXT_BYTES_MAX), "€".repeat(kept / 3) + CUT);
    }

    #[test]
    fn what_is_unseen_is_shown() {
        let check = |text: &str, expect: &str| assert_eq!(printable(text), expect);
        check("plain é 漢 \\ \"", "plain é 漢 \\ \"");
        check("a\x1b[31mb\u{7}\u{7f}", "a\\x1b[31mb\\x07\\x7f");
        check("error: x\r\nforged\tline", "error: x\\r\\nforged\\tline");
        check("\u{9b}31m\u{202e}gpj.exe\u{2066}\u{feff}", "\\u{9b}31m\\u{202e}gpj.exe\\u{2066}\\u{feff}");
        check("\u{2028}\u{e0041}\0", "\\u{2028}\\u{e0041}\\x00");
        assert_eq!(printable_lines("two\nlines\x1b\n"), "two\nlines\\x1b\n");
        assert_eq!(
            painted_lines("\x1b[31mred\x1b[0m\x1b[2J\x1b]0;x\x07\n"),
            "\x1b[31mred\x1b[0m\\x1b[2J\\x1b]0;x\\x07\n"
        );
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "a\u{202e}": "\u{7f}\u{e0041}\n\u{feff}é" });
        let text = serde_json::to_string_pretty(&value).expect("JSON");
        let shown = printable_json(&text);
        assert!(!shown.contains(|c| is_unseen(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
    }

    proptest::proptest! {
        #[test]
        fn nothing_unseen_is_left(text in "\\PC{0,8}[\\x00-\\x1f\u{7f}-\u{9f}\u{200b}-\u{2069}]{0,4}.{0,8}") {
            assert!(!printable(&text).contains(is_unseen));
            assert_eq!(printable(&printable(&text)), printable(&text));
        }
    }
}

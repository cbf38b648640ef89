//! Texts that others make: cut where they arise, and again where they are stored.

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

#[cfg(test)]
mod tests {
    use super::{CUT, cut};
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
}

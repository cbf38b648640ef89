//! A command written as one line, split into the arguments it stands for.
//!
//! The rule is the shell's for words without expansions: blanks part arguments, `'…'` keeps
//! everything, in `"…"` a backslash escapes `"`, `\`, `$` and `` ` ``, outside quotes it escapes
//! any character. Nothing is expanded and no shell runs.

use super::diagnostic::Fault;

/// What only a shell would act on.
const OPERATORS: [&str; 11] = ["&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1", "<<"];

/// An argument, and whether any of it was quoted or escaped.
struct Word {
    text: String,
    quoted: bool,
}

/// Splits a line.
///
/// # Errors
/// When a quote is not closed, the line ends in a backslash, or no argument is there.
pub(super) fn split(line: &str) -> Result<(Vec<String>, Option<Fault>), Fault> {
    let words = words(line)?;
    if words.is_empty() {
        return Err(Fault::new("is empty").hint("leave it out to run the image's own command"));
    }
    let operator = words.iter().find(|word| !word.quoted && OPERATORS.contains(&word.text.as_str()));
    let warning = operator.map(|word| {
        Fault::new(format!("passes `{}` to the program as it is: no shell runs", word.text))
            .hint("for a shell write [sh, -c, \"…\"]; quote the word to keep it without this warning")
    });
    Ok((words.into_iter().map(|word| word.text).collect(), warning))
}

fn words(line: &str) -> Result<Vec<Word>, Fault> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert(Word { text: String::new(), quoted: false });
        word.quoted |= matches!(c, '\'' | '"' | '\\');
        match c {
            '\'' | '"' => quoted(c, &mut chars, &mut word.text)?,
            '\\' => word.text.push(chars.next().ok_or_else(|| Fault::new("ends in a backslash"))?),
            c => word.text.push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(quote: char, chars: &mut std::str::Chars<'_>, text: &mut String) -> Result<(), Fault> {
    let unclosed = || Fault::new(format!("has a {quote} that is not closed"));
    loop {
        match chars.next().ok_or_else(unclosed)? {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next().ok_or_else(unclosed)? {
                c @ ('"' | '\\' | '$' | '`') => text.push(c),
                c => text.extend(['\\', c]),
            },
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::split;

    #[test]
    fn a_line_is_split_as_a_shell_would() {
        let check = |line: &str, expect: &[&str]| assert_eq!(split(line).expect(line).0, expect, "{line}");
        check("nginx -g 'daemon off;'", &["nginx", "-g", "daemon off;"]);
        check("  a \t b\n", &["a", "b"]);
        check(r#"echo "a \"b\" \n" c\ d"#, &["echo", r#"a "b" \n"#, "c d"]);
        check(r#"a"b"'c'd"#, &["abcd"]);
        check("a ''", &["a", ""]);
        check("echo $HOME *", &["echo", "$HOME", "*"]);
    }

    #[test]
    fn a_line_that_cannot_be_split_is_refused() {
        let check = |line: &str, why: &str| {
            let fault = split(line).expect_err(line);
            assert!(fault.message.contains(why), "{line}: {}", fault.message);
        };
        check("", "empty");
        check("  ", "empty");
        check("a 'b", "' that is not closed");
        check("a \"b\\\"", "\" that is not closed");
        check("a \\", "backslash");
    }

    #[test]
    fn a_line_meant_for_a_shell_is_warned_of() {
        let check =
            |line: &str, warned: bool| assert_eq!(split(line).expect(line).1.is_some(), warned, "{line}");
        check("a && b", true);
        check("a > /log", true);
        check("a '&&' b", false);
        check("a b&&c", false);
    }

    proptest! {
        #[test]
        fn any_line_is_split_or_refused(line in ".{0,80}") {
            drop(split(&line));
        }
    }
}

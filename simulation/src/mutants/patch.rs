//! Patches: unified diffs, applied by their text alone.
//!
//! Line numbers are passed over: what a hunk replaces must be in its file exactly once, so that a
//! patch goes on applying where unrelated lines move, and never applies in another place.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

/// A change of some files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patch {
    /// The hunks of each file, by its path within the workspace.
    pub(super) files: BTreeMap<String, Vec<Hunk>>,
}

/// Lines, whole, and what takes their place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hunk {
    old: String,
    new: String,
}

impl Patch {
    /// Reads a unified diff.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut files: BTreeMap<String, Vec<Hunk>> = BTreeMap::new();
        let mut path = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(name) = line.strip_prefix("+++ b/") {
                path = Some(name.to_owned());
            } else if let Some(ranges) = line.strip_prefix("@@ ") {
                let path = path.clone().context("a hunk of no file")?;
                let hunk = Hunk::parse(ranges, &mut lines).with_context(|| format!("{path}: {line}"))?;
                files.entry(path).or_default().push(hunk);
            } else if !(line.starts_with("--- a/") || line.starts_with("diff ") || line.starts_with("index "))
            {
                bail!("`{line}` is not part of a diff");
            }
        }
        ensure!(!files.is_empty(), "it changes nothing");
        Ok(Self { files })
    }
}

impl Hunk {
    fn parse<'a>(ranges: &str, lines: &mut impl Iterator<Item = &'a str>) -> anyhow::Result<Self> {
        let mut counts = ranges.split(' ').take(2).map(|range| match range.split_once(',') {
            Some((_, count)) => count.parse::<usize>(),
            None => Ok(1),
        });
        let (Some(Ok(mut old_left)), Some(Ok(mut new_left))) = (counts.next(), counts.next()) else {
            bail!("its ranges cannot be read");
        };
        let mut hunk = Self::default();
        while old_left > 0 || new_left > 0 {
            let line = lines.next().context("it ends early")?;
            let (mark, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
            if matches!(mark, " " | "-") {
                hunk.old.extend([rest, "\n"]);
                old_left = old_left.checked_sub(1).context("it is longer than its ranges")?;
            }
            if matches!(mark, " " | "+") {
                hunk.new.extend([rest, "\n"]);
                new_left = new_left.checked_sub(1).context("it is longer than its ranges")?;
            }
            ensure!(matches!(mark, " " | "-" | "+"), "`{line}` is no line of a hunk");
        }
        Ok(hunk)
    }

    /// The text with this hunk's lines replaced.
    ///
    /// # Errors
    /// When they are not there, or more than once.
    pub(super) fn apply(&self, text: &str) -> anyhow::Result<String> {
        let begins = |at: usize| at == 0 || text[..at].ends_with('\n');
        let places: Vec<usize> =
            text.match_indices(&self.old).map(|(at, _)| at).filter(|at| begins(*at)).collect();
        let [at] = places[..] else {
            bail!("these lines are there {} times, not once:\n{}", places.len(), self.old);
        };
        Ok([&text[..at], &self.new, &text[at + self.old.len()..]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::Patch;

    const PATCH: &str = "--- a/x.rs\n+++ b/x.rs\n@@ -7,2 +7,3 @@ fn f\n one\n-two\n+2\n+more\n";

    fn applied(text: &str) -> Option<String> {
        Patch::parse(PATCH).expect("it is a patch").files["x.rs"][0].apply(text).ok()
    }

    #[test]
    fn lines_are_replaced_where_they_are() {
        assert_eq!(applied("zero\none\ntwo\nthree\n").as_deref(), Some("zero\none\n2\nmore\nthree\n"));
        assert_eq!(applied("one\ntwo\n").as_deref(), Some("one\n2\nmore\n"));
    }

    #[test]
    fn lines_that_are_missing_or_twice_there_are_refused() {
        for text in ["one\nthree\n", "one\ntwo\none\ntwo\n", "not one\ntwo\n"] {
            assert_eq!(applied(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_diff_is_refused() {
        for text in ["", "words\n", "@@ -1 +1 @@\n-a\n+b\n", "+++ b/x\n@@ -1,2 +1 @@\n-a\n+b\n"] {
            assert!(Patch::parse(text).is_err(), "{text}");
        }
    }
}

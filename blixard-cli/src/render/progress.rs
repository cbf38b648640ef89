//! Progress on stderr: bars that move on a terminal, plain lines, each once, elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::text::printable;

/// One thing that is waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Item {
    /// Names it; items keep their line by it.
    pub(crate) key: String,
    /// How it is doing.
    pub(crate) text: String,
    /// Bytes done and in all, when there are bytes.
    pub(crate) bytes: Option<(u64, u64)>,
}

/// Shows how several things are doing.
pub(crate) struct Progress {
    view: View,
}

enum View {
    Bars { multi: MultiProgress, bars: BTreeMap<String, ProgressBar> },
    Lines { shown: BTreeMap<String, String> },
}

impl Progress {
    /// Shows progress on stderr.
    pub(crate) fn new() -> Self {
        let view = if std::io::stderr().is_terminal() {
            View::Bars { multi: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            View::Lines { shown: BTreeMap::new() }
        };
        Self { view }
    }

    /// Shows these items; those that are no longer among them disappear.
    pub(crate) fn show(&mut self, items: &[Item]) {
        match &mut self.view {
            View::Lines { shown } => {
                for line in changed(shown, items) {
                    super::note(&line);
                }
            }
            View::Bars { multi, bars } => {
                bars.retain(|key, bar| {
                    let kept = items.iter().any(|item| item.key == *key);
                    if !kept {
                        bar.finish_and_clear();
                    }
                    kept
                });
                for item in items {
                    let bar = bars.entry(item.key.clone()).or_insert_with(|| {
                        let bar = multi.add(ProgressBar::no_length());
                        bar.enable_steady_tick(Duration::from_millis(120));
                        bar
                    });
                    draw(bar, item);
                }
            }
        }
    }

    /// Removes the bars; lines stay.
    pub(crate) fn clear(&mut self) {
        if let View::Bars { multi, bars } = &mut self.view {
            for bar in bars.values() {
                bar.finish_and_clear();
            }
            bars.clear();
            // A terminal that is gone has nothing to clear.
            drop(multi.clear());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn draw(bar: &ProgressBar, item: &Item) {
    let template = match item.bytes {
        Some((_, total)) if total > 0 => "{spinner} {prefix}  {msg} [{bar:24}] {bytes}/{total_bytes}",
        Some(_) => "{spinner} {prefix}  {msg} {bytes}",
        None => "{spinner} {prefix}  {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(printable(&item.key));
    bar.set_message(printable(&item.text));
    if let Some((done, total)) = item.bytes {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// A line for each item whose text is new. Bytes, or a time that comes nearer, alone make no new line.
fn changed(shown: &mut BTreeMap<String, String>, items: &[Item]) -> Vec<String> {
    let mut lines = Vec::new();
    for item in items {
        let text = without_countdown(&item.text);
        if shown.get(&item.key) != Some(&text) {
            shown.insert(item.key.clone(), text);
            lines.push(format!("{}: {}", printable(&item.key), printable(&item.text)));
        }
    }
    lines
}

/// A text without how long something still takes: `in 12 s`, and `now` in the end.
fn without_countdown(text: &str) -> String {
    let mut words = text.split(' ').peekable();
    let mut kept: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        let counts = |next: &&str| next.starts_with(|first: char| first.is_ascii_digit());
        match word {
            "in" if words.next_if(counts).is_some() => drop(words.next()),
            "now" => {}
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Item, changed};

    #[test]
    fn without_a_terminal_each_change_is_one_line() {
        let item = |key: &str, text: &str, bytes| Item { key: key.into(), text: text.into(), bytes };
        let mut shown = BTreeMap::new();
        let mut check = |items: &[Item], expect: &[&str]| {
            assert_eq!(changed(&mut shown, items), expect);
        };
        check(
            &[item("web-0", "pulling", None), item("web-1", "pending", None)],
            &["web-0: pulling", "web-1: pending"],
        );
        check(&[item("web-0", "pulling", Some((5, 10)))], &[]);
        check(&[item("web-0", "running", None)], &["web-0: running"]);
        check(&[item("web-0", "exit 1; again in 12 s", None)], &["web-0: exit 1; again in 12 s"]);
        check(&[item("web-0", "exit 1; again in 2 s", None)], &[]);
        check(&[item("web-0", "exit 1; again now", None)], &[]);
        check(&[item("web-0", "exit 2; again in 20 s", None)], &["web-0: exit 2; again in 20 s"]);
    }
}

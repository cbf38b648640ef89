//! What was measured, as a table on the terminal and as docs/benchmarks.md.

use std::fmt::Write as _;
use std::time::Duration;

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    /// The measured value over the one beside it; absent where there is nothing to divide by.
    pub(crate) ratio: Option<f64>,
    /// What was measured of blixard.
    pub(crate) value: String,
    /// What the ratio is of: the floor or the peer, from the same run.
    pub(crate) beside: String,
    /// What is aimed at, and whether it was reached.
    pub(crate) aim: Option<(String, bool)>,
}

impl Figure {
    /// A duration beside another.
    pub(crate) fn duration(what: impl Into<String>, value: Duration, peer: &str, other: Duration) -> Self {
        Self {
            what: what.into(),
            ratio: ratio(value.as_secs_f64(), other.as_secs_f64()),
            value: duration(value),
            beside: format!("{peer} {}", duration(other)),
            aim: None,
        }
    }

    /// A rate beside another, both in operations per second.
    pub(crate) fn rate(what: impl Into<String>, value: f64, peer: &str, other: f64) -> Self {
        Self {
            what: what.into(),
            ratio: ratio(value, other),
            value: rate(value),
            beside: format!("{peer} {}", rate(other)),
            aim: None,
        }
    }

    /// A value with no floor or peer, or with one that is no ratio.
    pub(crate) fn plain(what: impl Into<String>, value: String, beside: impl Into<String>) -> Self {
        Self { what: what.into(), ratio: None, value, beside: beside.into(), aim: None }
    }

    /// The ratio should be at most this.
    #[must_use]
    pub(crate) fn at_most(mut self, limit: f64) -> Self {
        self.aim = self.ratio.map(|ratio| (format!("at most {limit}x"), ratio <= limit));
        self
    }

    /// The ratio should be at least this.
    #[must_use]
    pub(crate) fn at_least(mut self, limit: f64) -> Self {
        self.aim = self.ratio.map(|ratio| (format!("at least {limit}x"), ratio >= limit));
        self
    }

    /// An aim that is not about the ratio.
    #[must_use]
    pub(crate) fn aim(mut self, words: impl Into<String>, reached: bool) -> Self {
        self.aim = Some((words.into(), reached));
        self
    }

    fn cells(&self) -> [String; 5] {
        let aim = self.aim.as_ref().map(|(words, reached)| {
            let verdict = if *reached { "reached" } else { "missed" };
            format!("{words}: {verdict}")
        });
        [
            self.ratio.map(|ratio| format!("{ratio:.2}x")).unwrap_or_default(),
            self.what.clone(),
            self.value.clone(),
            self.beside.clone(),
            aim.unwrap_or_default(),
        ]
    }
}

/// Figures that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// Its heading.
    pub(crate) title: &'static str,
    /// How it was measured, in sentences.
    pub(crate) how: String,
    /// Its figures.
    pub(crate) figures: Vec<Figure>,
}

const HEAD: [&str; 5] = ["ratio", "figure", "blixard", "floor or peer", "aim"];

/// The section as aligned columns.
pub(crate) fn table(section: &Section) -> String {
    let rows: Vec<[String; 5]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(section.figures.iter().map(Figure::cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("{}\n", section.title);
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = " ".repeat(width(column) - cell.chars().count());
            if column == 0 { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(text, "  {}", line.trim_end()).expect("a string takes all that is written");
    }
    text
}

/// The whole document.
pub(crate) fn document(machine: &str, quick: bool, sections: &[Section]) -> String {
    let mut text = format!("{INTRODUCTION}\n{machine}\n");
    if quick {
        text.push_str(
            "\nThis was a quick run (`--quick`): too few repetitions for the worst cases to mean much.\n",
        );
    }
    for section in sections {
        write!(text, "\n## {}\n\n{}\n\n", section.title, section.how).expect("a string takes it");
        let line =
            |cells: [String; 5]| format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        text.push_str(&line(HEAD.map(str::to_owned)));
        text.push_str("|---:|---|---|---|---|\n");
        section.figures.iter().for_each(|figure| text.push_str(&line(figure.cells())));
    }
    text.push_str(OMISSIONS);
    text
}

const INTRODUCTION: &str = "# Benchmarks

`make bench` measures these figures and writes this file; `target/release/bench --help` says how to
measure one group of them.

How to read it: every figure stands beside a floor (what the machine or the kernel takes for the
part that cannot be avoided) or a peer (other software doing the same), measured in the same run,
in turns. The ratio is the figure over what stands beside it. Absolute numbers are those of one
virtual machine, which other work may have shared; they say little about another machine, and two
runs differ. Ratios carry over better. p50 is the median, p99 what 99 of 100 do not exceed; worst
is the longest of all.
";

const OMISSIONS: &str = "
## What was not measured

- A real network: hosts are network namespaces on one machine, joined by a bridge, so a round trip
  takes some tens of microseconds and all members share one disk and one set of CPUs.
- More than three nodes, and followers that lag or restart under load.
- Pulls of images: every image was present before the clock started.
- Container software that is slow to start: the containers run `sleep` or a small web server.
- Hours of load, fragmentation of the stores, or full disks.
- etcd with TLS between members. blixard's links are always encrypted; etcd's were not.
";

fn ratio(value: f64, other: f64) -> Option<f64> {
    (other > 0.0).then(|| value / other)
}

/// A duration with three significant digits.
pub(crate) fn duration(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    match seconds {
        ..0.001 => format!("{} us", digits(seconds * 1e6)),
        ..1.0 => format!("{} ms", digits(seconds * 1e3)),
        _ => format!("{} s", digits(seconds)),
    }
}

fn rate(value: f64) -> String {
    format!("{}/s", digits(value))
}

/// A size in MiB.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", digits(bytes as f64 / f64::from(1 << 20)))
}

/// A number with three significant digits, or whole.
pub(crate) fn digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => {
            let whole = format!("{value:.0}");
            let mut grouped = String::new();
            for (place, digit) in whole.chars().enumerate() {
                if place > 0 && (whole.len() - place) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_units() {
        let check = |value: Duration, expect: &str| assert_eq!(duration(value), expect);
        check(Duration::from_nanos(123_456), "123 us");
        check(Duration::from_micros(1_234), "1.23 ms");
        check(Duration::from_millis(45), "45.0 ms");
        check(Duration::from_millis(2_340), "2.34 s");
        assert_eq!(rate(12_345.6), "12,346/s");
        assert_eq!(rate(123.4), "123/s");
        assert_eq!(mebibytes(3 << 20), "3.00 MiB");
    }

    #[test]
    fn ratios_come_first_and_aims_are_judged() {
        let ms = Duration::from_millis;
        let good = Figure::duration("a", ms(1), "etcd", ms(4)).at_most(0.5);
        assert_eq!(good.cells(), ["0.25x", "a", "1.00 ms", "etcd 4.00 ms", "at most 0.5x: reached"]);
        let bad = Figure::rate("b", 1.0, "etcd", 2.0).at_least(1.0);
        assert_eq!(bad.cells()[4], "at least 1x: missed");
        let none = Figure::duration("c", ms(1), "floor", Duration::ZERO).at_most(1.0);
        assert_eq!(none.cells()[0], "");
    }
}

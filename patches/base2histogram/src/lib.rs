//! Histograms for openraft's own statistics, in place of the crate of this name.
//!
//! The original makes tables for all of its sixteen resolutions when the first histogram is made,
//! 25 MB that stay resident in every node, also where nobody looks at a statistic: more than all
//! else that an idle node allocates. This one counts by powers of two. It has what openraft calls
//! and nothing else; see docs/adr/0011-openraft-histograms.md.

use std::fmt;
use std::marker::PhantomData;

/// How many values had each number of significant bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// At position `n`, values of `n` significant bits.
    counts: [u64; 65],
    /// The original takes data along, which openraft has none of.
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: [0; 65], data: PhantomData }
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `value`.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` as often as `count` says.
    pub fn record_n(&mut self, value: u64, count: u64) {
        self.counts[significant_bits(value)] += count;
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The least value of the power of two in which the value lies that `share`, 0 to 1, of all
    /// are not above; 0 when nothing was counted.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((self.total() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bits, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return if bits == 0 { 0 } else { 1 << (bits - 1) };
            }
        }
        0
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.10),
            p50: self.percentile(0.50),
            p90: self.percentile(0.90),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

fn significant_bits(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// How many values there were, and below which of them parts of all lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many there were.
    pub samples: u64,
    /// One in a thousand is not above this.
    pub p0_1: u64,
    /// One in a hundred.
    pub p1: u64,
    /// One in twenty.
    pub p5: u64,
    /// One in ten.
    pub p10: u64,
    /// Half of all.
    pub p50: u64,
    /// Nine in ten.
    pub p90: u64,
    /// All but one in a hundred.
    pub p99: u64,
    /// All but one in a thousand.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p99, .. } = self;
        write!(f, "{samples} samples, p50 {p50}, p99 {p99}")
    }
}

/// Named histograms, shown one a line.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{AsciiChart, Histogram};

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::<()>::new();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn percentiles_are_right_to_a_power_of_two() {
        let check = |histogram: &Histogram, share: f64, expect: u64| {
            assert_eq!(histogram.percentile(share), expect, "{share}");
        };
        check(&of([]), 0.5, 0);
        check(&of([0]), 1.0, 0);
        check(&of([u64::MAX]), 0.001, 1 << 63);
        let thousand = of(1..=1000);
        check(&thousand, 0.001, 1);
        check(&thousand, 0.5, 256);
        check(&thousand, 0.99, 512);
        assert_eq!(thousand.percentile_stats().samples, 1000);
    }

    #[test]
    fn a_chart_names_its_series() {
        let chart = AsciiChart::new().add("written", of([1, 1, 8])).to_string();
        assert_eq!(chart, "written: 3 samples, p50 1, p99 8\n");
    }
}

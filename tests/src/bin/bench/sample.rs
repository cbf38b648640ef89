//! Measured durations and what is told of them.

use std::time::Duration;

/// Durations of one kind, in any order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Adds those of another round.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest duration that at least `share` (0 to 1) of all do not exceed; zero of none.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
    }

    /// The median.
    pub(crate) fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// What 99 in 100 do not exceed.
    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The longest.
    pub(crate) fn worst(&self) -> Duration {
        self.quantile(1.0)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_samples() {
        let samples: Samples = (1..=100).rev().map(Duration::from_millis).collect();
        let check = |share, expect| assert_eq!(samples.quantile(share), Duration::from_millis(expect));
        check(0.0, 1);
        check(0.5, 50);
        check(0.99, 99);
        check(0.995, 100);
        check(1.0, 100);
        assert_eq!(Samples::default().worst(), Duration::ZERO);
    }
}

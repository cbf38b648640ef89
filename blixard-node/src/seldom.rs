//! Warnings that repeat: one in a while, with how many were left out.

use std::time::Duration;

use blixard_core::time::Mono;

/// How long the same warning is not repeated.
const PAUSE: Duration = Duration::from_secs(10);

/// A warning that may come often.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    said: Option<Mono>,
    left_out: u64,
}

impl Seldom {
    /// Whether it is to be said now, and then how many times it was left out before.
    pub(crate) fn due(&mut self, now: Mono) -> Option<u64> {
        if self.said.is_some_and(|said| now.since(said) < PAUSE) {
            self.left_out += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blixard_core::time::Mono;

    use super::Seldom;

    #[test]
    fn a_warning_that_repeats_is_counted_and_said_again_later() {
        let mut warning = Seldom::default();
        let at = |seconds| Mono(Duration::from_secs(seconds));
        let said: Vec<_> = [1, 2, 10, 11, 12, 40].map(|seconds| warning.due(at(seconds))).into();
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}

//! Applies entries.

use super::{ClusterState, Entry, Outcome};

impl ClusterState {
    /// Applies the entry at log index `index` and answers each of its commands, in order.
    ///
    /// # Panics
    /// When `index` is not above [`ClusterState::applied`]: the log never applies an entry twice.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Outcome> {
        assert!(index > self.applied, "entry {index} applied after {}", self.applied);
        unimplemented!("{entry:?}")
    }
}

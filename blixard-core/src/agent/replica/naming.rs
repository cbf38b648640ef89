//! What a replica does when an image gets a name on its node.

use super::{Phase, Prerequisite, Replica};
use crate::time::Mono;

impl Replica {
    /// An image got a name here, which may be the one that could not be had: the next try is made soon.
    pub(in crate::agent) fn image_named(&mut self, now: Mono) {
        match &self.preparation.waiting {
            Some(Prerequisite::Image { .. }) => self.preparation.named = true,
            None if self.status.phase == Phase::Pulling && !self.pulls.is_over(now) => {
                self.pulls.hurry(now);
                // The time that it names is not when it is tried any more.
                if let Some((why, _)) = self.status.message.rsplit_once("; trying again at ") {
                    self.status.message = format!("{why}; trying again now");
                }
            }
            _ => {}
        }
    }
}

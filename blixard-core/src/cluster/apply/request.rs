//! Writes, applied once for each request id.
//!
//! An answer is remembered under the later of log time and of when the request was made. Ids are
//! forgotten in that order, so whatever was forgotten was made before
//! [`ClusterState::requests_from`], and a write made before that is refused: it may have been
//! applied already.

use crate::cluster::{ClusterState, Outcome, Refusal, Write};
use crate::id::RequestId;
use crate::limits::{REQUEST_MEMORY, REQUESTS_MAX};
use crate::time::UtcMs;

/// The most requests that one entry forgets for their age, so that a quiet time after a busy one
/// makes no long pause.
const EXPIRED_PER_ENTRY_MAX: usize = 2_048;

impl ClusterState {
    pub(super) fn write_once(&mut self, request: RequestId, made_at: UtcMs, write: &Write) -> Outcome {
        if let Some((_, outcome)) = self.requests.get(&request) {
            return outcome.clone();
        }
        if made_at < self.requests_from || self.time.since(made_at) > REQUEST_MEMORY {
            return Outcome::Refused(Refusal::TooOld);
        }
        let ahead = made_at.since(self.time);
        if ahead > REQUEST_MEMORY {
            return Outcome::Refused(Refusal::out_of_bounds(format!(
                "the clock of the node that took the request is {} s ahead of the cluster's, at most {} s are allowed: set its clock",
                ahead.as_secs(),
                REQUEST_MEMORY.as_secs(),
            )));
        }
        let outcome = self.write(write).unwrap_or_else(Outcome::Refused);
        self.remember(request, self.time.max(made_at), outcome.clone());
        outcome
    }

    fn remember(&mut self, request: RequestId, at: UtcMs, outcome: Outcome) {
        self.requests.insert(request, (at, outcome));
        self.requests_by_time.insert((at, request), ());
        while self.requests.len() > REQUESTS_MAX {
            self.forget_oldest_request();
        }
    }

    /// Forgets requests older than [`REQUEST_MEMORY`].
    pub(super) fn expire_requests(&mut self) {
        for _ in 0..EXPIRED_PER_ENTRY_MAX {
            match self.requests_by_time.get_min() {
                Some(((at, _), ())) if self.time.since(*at) > REQUEST_MEMORY => self.forget_oldest_request(),
                _ => return,
            }
        }
    }

    fn forget_oldest_request(&mut self) {
        let Some(&((at, request), ())) = self.requests_by_time.get_min() else { return };
        self.requests_by_time.remove(&(at, request));
        self.requests.remove(&request);
        self.requests_from = self.requests_from.max(UtcMs(at.0.saturating_add(1)));
    }
}

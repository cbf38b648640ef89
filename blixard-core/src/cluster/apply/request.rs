//! Writes, applied once for each request id.
//!
//! An answer is remembered under the later of log time and of when the request was made. Ids are
//! forgotten in that order, so whatever was forgotten was made before
//! [`ClusterState::requests_from`], and a write made before that is refused: it may have been
//! applied already.

use crate::cluster::{Actor, ClusterState, Outcome, Refusal, Write};
use crate::id::RequestId;
use crate::limits::{REQUEST_MEMORY, REQUESTS_MAX};
use crate::time::UtcMs;

/// The most requests that one entry forgets for their age, so that a quiet time after a busy one
/// makes no long pause.
const EXPIRED_PER_ENTRY_MAX: usize = 2_048;

impl ClusterState {
    pub(super) fn write_once(
        &mut self,
        request: RequestId,
        made_at: UtcMs,
        write: &Write,
        by: Option<&Actor>,
    ) -> Outcome {
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
        let mut outcome = self.write_by(by, write).unwrap_or_else(Outcome::Refused);
        if let Outcome::Refused(refusal) = &mut outcome {
            refusal.texts_mut().for_each(|text| self.bound(text));
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::testing::{Cluster, START, assert_refused, name, spec, too_old};
    use crate::cluster::{Command, Entry};
    use crate::id::NodeId;

    fn request(n: u64) -> RequestId {
        RequestId(u128::from(n).to_be_bytes())
    }

    fn scale(n: u64, made_at: UtcMs, replicas: u32) -> Command {
        Command::Write {
            request: request(n),
            made_at,
            write: Write::Scale { service: name("web"), replicas },
            by: None,
        }
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(1);
        cluster.submit(spec("web", 1, 9));
        cluster
    }

    #[test]
    fn a_repeated_request_answers_again_and_changes_nothing() {
        let mut cluster = cluster();
        let submit = Write::Submit { spec: spec("web", 1, 8).into(), origin: NodeId(1) };
        let write = Command::Write { request: request(99), made_at: START, write: submit, by: None };
        let first = cluster.command(write.clone());
        assert_eq!(first, Outcome::Service { version: 1, changed: true });
        cluster.command(scale(100, START, 5));
        assert_eq!(cluster.command(write), first);
        assert_eq!(cluster.events(), Vec::<&str>::new());
        assert_eq!(cluster.state.services[&name("web")].desired, 5);
    }

    #[test]
    fn a_refusal_is_remembered_too() {
        let mut cluster = cluster();
        assert_refused(cluster.command(scale(99, START, 10)), "1 to 9");
        cluster.submit(spec("web", 1, 20));
        assert_refused(cluster.command(scale(99, START, 10)), "1 to 9");
        assert_eq!(cluster.command(scale(100, START, 10)), Outcome::Done);
    }

    #[test]
    fn a_forgotten_request_is_refused_and_not_applied_again() {
        let mut cluster = cluster();
        assert_eq!(cluster.command(scale(99, START, 5)), Outcome::Done);
        assert_eq!(cluster.command(scale(100, START, 3)), Outcome::Done);
        cluster.now = START.after(REQUEST_MEMORY + Duration::from_millis(1));
        assert_eq!(cluster.command(scale(99, START, 5)), too_old());
        assert!(cluster.state.requests.is_empty());
        assert_eq!(cluster.state.services[&name("web")].desired, 3);
    }

    #[test]
    fn a_retry_across_a_jump_of_log_time_is_refused_when_it_says_when_it_was_made() {
        let mut cluster = cluster();
        assert_eq!(cluster.command(scale(99, START, 5)), Outcome::Done);
        assert_eq!(cluster.command(scale(100, START, 3)), Outcome::Done);
        // A leader whose clock is far ahead: all that was remembered is forgotten at once.
        cluster.now = START.after(REQUEST_MEMORY * 2);
        assert_eq!(cluster.command(scale(101, cluster.now, 4)), Outcome::Done);
        assert_eq!(cluster.command(scale(99, START, 5)), too_old());
        assert_eq!(cluster.state.services[&name("web")].desired, 4);
    }

    #[test]
    fn a_request_made_by_a_fast_clock_is_remembered_longer() {
        let mut cluster = cluster();
        let ahead = START.after(Duration::from_secs(300));
        assert_eq!(cluster.command(scale(99, ahead, 5)), Outcome::Done);
        cluster.now = START.after(REQUEST_MEMORY + Duration::from_secs(1));
        assert_eq!(cluster.command(scale(99, ahead, 6)), Outcome::Done);
        assert_eq!(cluster.state.services[&name("web")].desired, 5);
        let far = cluster.now.after(REQUEST_MEMORY + Duration::from_secs(1));
        assert_refused(cluster.command(scale(100, far, 6)), "set its clock");
    }

    #[test]
    fn above_the_bound_the_oldest_are_forgotten_and_then_refused() {
        let mut cluster = cluster();
        let scales = |from: u64, to: u64, at: UtcMs| (from..to).map(|n| scale(n, at, 5)).collect();
        let half = REQUESTS_MAX as u64 / 2;
        let later = START.after(Duration::from_millis(1));
        cluster.apply(scales(1_000, 1_000 + half, START));
        cluster.now = later;
        cluster.apply(scales(200_000, 200_000 + half + 1, later));
        assert_eq!(cluster.state.requests.len(), REQUESTS_MAX);
        assert_eq!(cluster.command(scale(1_000, START, 2)), too_old());
        assert_eq!(cluster.command(scale(200_000, later, 2)), Outcome::Done);
        assert_eq!(cluster.state.services[&name("web")].desired, 5);
    }

    #[test]
    fn log_time_never_goes_back() {
        let mut cluster = cluster();
        cluster.state.apply(100, &Entry::new(UtcMs(5), Vec::new()));
        assert_eq!(cluster.state.time, START);
        assert_eq!(cluster.state.stamp(UtcMs(5)), START);
    }
}

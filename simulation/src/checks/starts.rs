//! `replicas_start_once`: a replica runs on one machine and once at a time, and its attempts rise.
//!
//! A replica's node never changes; a new attempt begins when the container of the last one has
//! ended. Seen in what the runtimes do, not in what the cluster believes. Two running replicas of
//! one slot and version are right only while the state names all but one of them as superseded,
//! stopping or lost, which the state's own invariants check. Shows an agent that starts what is
//! another's, starts again without looking what runs, or runs an old attempt after a new one.
//!
//! A daemon that starts knows the attempts whose containers are left. One that was removed after its
//! end, and whose end no quorum recorded, is forgotten with the daemon: it may be made again.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::id::ReplicaId;

/// Where each replica was started, and its last attempt there.
#[derive(Default)]
pub(super) struct Starts {
    places: BTreeMap<ReplicaId, (u64, u32)>,
}

impl Starts {
    /// The daemon of a machine starts, which has containers of these attempts.
    pub(super) fn daemon_starts(&mut self, machine: u64, left: &BTreeSet<(ReplicaId, u32)>) {
        for (replica, (_, last)) in self.places.iter_mut().filter(|(_, (place, _))| *place == machine) {
            let newest = left.range((*replica, 0)..=(*replica, u32::MAX)).next_back();
            *last = newest.map_or(0, |(_, attempt)| *attempt);
        }
    }

    /// A machine starts a container while `running`, attempts of the same replica, run there.
    pub(super) fn started(
        &mut self,
        machine: u64,
        replica: ReplicaId,
        attempt: u32,
        running: &[u32],
    ) -> Result<(), String> {
        let (place, last) = *self.places.entry(replica).or_insert((machine, attempt));
        if place != machine {
            return Err(format!("replica {replica} was started on machine {place} and on machine {machine}"));
        }
        if let Some(other) = running.first() {
            return Err(format!(
                "attempt {attempt} of replica {replica} was started while attempt {other} runs"
            ));
        }
        if attempt < last {
            return Err(format!("attempt {attempt} of replica {replica} was started after attempt {last}"));
        }
        self.places.insert(replica, (machine, attempt));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::id::ReplicaId;

    use super::Starts;

    #[test]
    fn attempts_rise_as_far_as_a_daemon_can_know() {
        const REPLICA: ReplicaId = ReplicaId(7);
        let started = |starts: &mut Starts, attempt| starts.started(1, REPLICA, attempt, &[]).is_ok();
        let mut starts = Starts::default();
        assert!(started(&mut starts, 0) && started(&mut starts, 1));
        assert!(!started(&mut starts, 0), "the daemon made the last one itself");
        starts.daemon_starts(1, &BTreeSet::from([(REPLICA, 0), (REPLICA, 1)]));
        assert!(!started(&mut starts, 0), "the last one is still there");
        starts.daemon_starts(2, &BTreeSet::new());
        assert!(!started(&mut starts, 0), "another machine's daemon started");
        starts.daemon_starts(1, &BTreeSet::new());
        assert!(started(&mut starts, 0), "nothing tells of the last one");
        assert!(starts.started(2, REPLICA, 2, &[]).is_err());
    }
}

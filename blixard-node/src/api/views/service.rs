//! Services as `service ls` and `inspect` show them.

use std::collections::BTreeSet;

use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::{
    PendingSlot, ServiceDetail, ServiceRow, ServiceState, VersionState, VersionView,
};
use blixard_core::cluster::{ClusterState, Desired, Phase, Service, ServiceVersion};
use blixard_core::id::{ClusterId, ServiceName};
use blixard_core::readiness::has_arrived;

use super::replica::{is_lost, is_ready, row};

/// Every service, by name.
pub fn services(state: &ClusterState) -> Vec<ServiceRow> {
    state.services.iter().map(|(name, service)| service_row(state, name, service)).collect()
}

/// A service in full; `None` when there is no such.
pub fn service(state: &ClusterState, cluster: ClusterId, name: &ServiceName) -> Option<ServiceDetail> {
    let service = state.services.get(name)?;
    let replicas: Vec<ReplicaRow> =
        state.replicas_of(name).map(|(id, replica)| row(state, cluster, id, replica)).collect();
    Some(ServiceDetail {
        row: service_row(state, name, service),
        versions: service
            .versions
            .iter()
            .map(|kept| VersionView {
                version: kept.version,
                submitted_at: kept.submitted_at,
                spec: kept.spec.as_ref().clone(),
                state: version_state(service, kept),
                rollback_of: kept.rollback_of,
                by: kept.by.clone(),
                failure: kept.failure.clone(),
            })
            .collect(),
        origin: service.origin,
        pending: pending_slots(state, name, service),
        replicas,
        stale: false,
    })
}

/// What has become of a version.
fn version_state(service: &Service, version: &ServiceVersion) -> VersionState {
    // What the current one asks for may have been proven under another number, and runs on.
    let is_current = version.version == service.current().version;
    let alike = |kept: &ServiceVersion| is_current && service.runs_current(kept.version);
    let proven = version.proven_at.is_some()
        || service.versions.iter().any(|kept| kept.proven_at.is_some() && alike(kept));
    match (is_current, version.failure.is_some()) {
        (true, true) => VersionState::Failing,
        (true, false) if proven => VersionState::Current,
        (true, false) => VersionState::Starting,
        (false, true) if !proven => VersionState::Failed,
        (false, _) => VersionState::Superseded,
    }
}

/// A service in short.
pub fn service_row(state: &ClusterState, name: &ServiceName, service: &Service) -> ServiceRow {
    let current = service.current();
    let slots: Vec<Slot> = (0..service.desired).map(|slot| Slot::of(state, name, service, slot)).collect();
    let count = |has: fn(&Slot) -> bool| {
        u32::try_from(slots.iter().filter(|slot| has(slot)).count()).unwrap_or(u32::MAX)
    };
    let (ready, updated) = (count(|slot| slot.ready), count(|slot| slot.updated));
    let is = |phase| move |slot: &Slot| slot.over == Some(phase);
    let state = match () {
        () if service.removing => ServiceState::Removing,
        () if service.suspended => ServiceState::Stopped,
        () if slots.iter().any(|slot| slot.outdated) => ServiceState::Updating,
        () if slots.iter().any(is(Phase::Failed)) => ServiceState::Failed,
        () if slots.iter().all(is(Phase::Completed)) => ServiceState::Completed,
        () if updated >= service.desired => ServiceState::Running,
        () => ServiceState::Pending,
    };
    ServiceRow {
        name: name.clone(),
        state,
        ready,
        updated,
        proven: count(|slot| slot.proven),
        lost: count(|slot| slot.lost),
        desired: service.desired,
        min: current.spec.replicas.min,
        max: current.spec.replicas.max,
        image: current.spec.image.reference.clone(),
        ports: current.spec.ports.clone(),
        version: current.version,
        created_at: service.created_at,
    }
}

/// What is in a wanted slot.
#[derive(Default)]
struct Slot {
    /// A replica of some version does its work.
    ready: bool,
    /// One of the current version does.
    updated: bool,
    /// One of the current version does, and is proven.
    proven: bool,
    /// Nothing does, and what did is away with its node.
    lost: bool,
    /// What holds it, or serves beside what does, is of an older version.
    outdated: bool,
    /// How the replica that holds it ended, when it did for good.
    over: Option<Phase>,
}

impl Slot {
    fn of(state: &ClusterState, name: &ServiceName, service: &Service, number: u32) -> Self {
        let mut slot = Self::default();
        for (_, replica) in state.replicas_in(name, number) {
            let (ready, current) = (is_ready(state, replica), service.runs_current(replica.version));
            slot.ready |= ready;
            slot.lost |= is_lost(state.nodes.get(&replica.node), replica);
            if replica.counts() {
                slot.updated = current && ready;
                slot.proven = slot.updated && has_arrived(state, replica);
                slot.over = (current && replica.is_over()).then_some(replica.status.phase);
            }
            let in_use = replica.desired != Desired::Stop && replica.lost_since.is_none();
            slot.outdated |= !current && in_use;
        }
        slot.lost &= !slot.ready;
        slot
    }
}

/// The slots that should hold a replica and hold none that counts, and why.
pub(super) fn pending_slots(state: &ClusterState, name: &ServiceName, service: &Service) -> Vec<PendingSlot> {
    let filled: BTreeSet<u32> = state
        .replicas_of(name)
        .filter(|(_, replica)| replica.counts())
        .map(|(_, replica)| replica.slot)
        .collect();
    let missing = (service.wanted() as usize).saturating_sub(filled.len());
    let recorded = service.pending.keys().copied().filter(|slot| !filled.contains(slot));
    let unrecorded = (0..).filter(|slot| !filled.contains(slot) && !service.pending.contains_key(slot));
    let mut slots: Vec<u32> = recorded.chain(unrecorded).take(missing).collect();
    slots.sort_unstable();
    slots
        .into_iter()
        .map(|slot| {
            let backoff = service.backoff.get(&slot);
            PendingSlot {
                slot,
                reason: service
                    .pending
                    .get(&slot)
                    .cloned()
                    .unwrap_or_else(|| "waiting to be placed".to_owned()),
                failures: backoff.map_or(0, |backoff| backoff.failures),
                not_before: backoff.map(|backoff| backoff.not_before),
            }
        })
        .collect()
}

/// Replaces the values of environment variables, which may be secrets, by `***`.
pub fn hide_environment(detail: &mut ServiceDetail) {
    for version in &mut detail.versions {
        for value in version.spec.environment.values_mut() {
            "***".clone_into(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::api::service::ServiceState;
    use blixard_core::cluster::level::SECOND_LEVEL;
    use blixard_core::cluster::{ClusterState, Desired, Phase, Service, ServiceVersion};
    use blixard_core::time::UtcMs;

    use super::super::fixture;
    use super::{hide_environment, service, services};

    #[test]
    fn a_service_is_running_when_every_desired_replica_is_ready() {
        let check = |desired: u32, phases: &[Phase], edit: fn(&mut Service), expect: ServiceState| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "web", desired);
            for (slot, phase) in phases.iter().enumerate() {
                let slot = slot as u32;
                fixture::add_replica(&mut state, u64::from(slot) + 1, "web", slot, *phase, Desired::Run);
            }
            fixture::edit_service(&mut state, "web", edit);
            assert_eq!(services(&state)[0].state, expect, "{desired} {phases:?}");
        };
        let as_is: fn(&mut Service) = |_| {};
        check(1, &[Phase::Running], as_is, ServiceState::Running);
        check(2, &[Phase::Running], as_is, ServiceState::Pending);
        check(1, &[Phase::Pulling], as_is, ServiceState::Pending);
        check(1, &[Phase::Completed], as_is, ServiceState::Completed);
        check(2, &[Phase::Completed, Phase::Running], as_is, ServiceState::Running);
        check(1, &[Phase::Failed], as_is, ServiceState::Pending);
        check(1, &[Phase::Running], |service| service.suspended = true, ServiceState::Stopped);
        check(1, &[Phase::Running], |service| service.removing = true, ServiceState::Removing);
    }

    #[test]
    fn an_update_is_shown_as_one() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 2);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Retire);
        fixture::add_replica(&mut state, 2, "web", 1, Phase::Running, Desired::Run);
        fixture::edit_service(&mut state, "web", |service| {
            let mut spec = service.spec().clone();
            spec.stop_timeout_s += 1;
            service.versions.push_back(ServiceVersion::new(2, spec.into(), UtcMs(6)));
        });
        fixture::add_replica(&mut state, 3, "web", 0, Phase::Starting, Desired::Run);
        fixture::edit_replica(&mut state, 3, |replica| replica.version = 2);
        let counts = |state: &ClusterState| {
            let row = &services(state)[0];
            (row.state, row.ready, row.updated, row.proven)
        };
        assert_eq!(counts(&state), (ServiceState::Updating, 2, 0, 0));
        fixture::edit_replica(&mut state, 3, |replica| replica.status.phase = Phase::Running);
        state.level = SECOND_LEVEL;
        assert_eq!(counts(&state), (ServiceState::Updating, 2, 1, 0));
        fixture::edit_replica(&mut state, 3, |replica| replica.status.proven = true);
        assert_eq!(counts(&state), (ServiceState::Updating, 2, 1, 1));
    }

    #[test]
    fn what_its_policy_leaves_is_said() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Failed, Desired::Run);
        fixture::edit_replica(&mut state, 1, |replica| replica.status.left = true);
        assert_eq!(services(&state)[0].state, ServiceState::Failed);
    }

    #[test]
    fn a_slot_is_lost_when_nothing_of_it_does_its_work() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
        fixture::edit_replica(&mut state, 1, |replica| replica.lost_since = Some(UtcMs(9)));
        assert_eq!((services(&state)[0].ready, services(&state)[0].lost), (0, 1));
        fixture::add_replica(&mut state, 2, "web", 0, Phase::Running, Desired::Run);
        assert_eq!((services(&state)[0].ready, services(&state)[0].lost), (1, 0));
    }

    #[test]
    fn pending_slots_are_those_without_a_counting_replica() {
        let check = |edit: fn(&mut Service), lost: bool, expect: &[(u32, &str)]| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "web", 2);
            fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
            if lost {
                fixture::edit_replica(&mut state, 1, |replica| {
                    replica.lost_since = Some(blixard_core::time::UtcMs(9));
                });
            }
            fixture::edit_service(&mut state, "web", edit);
            let detail = service(&state, fixture::CLUSTER, &"web".parse().unwrap()).unwrap();
            let slots: Vec<_> = detail.pending.iter().map(|slot| (slot.slot, slot.reason.as_str())).collect();
            assert_eq!(slots, expect);
        };
        let waiting = "waiting to be placed";
        check(|_| {}, false, &[(1, waiting)]);
        check(|_| {}, true, &[(0, waiting), (1, waiting)]);
        check(|service| drop(service.pending.insert(1, "no".into())), false, &[(1, "no")]);
        check(|service| drop(service.pending.insert(0, "old".into())), false, &[(1, waiting)]);
        check(|service| service.suspended = true, false, &[]);
    }

    #[test]
    fn a_reader_does_not_see_environment_values() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        let mut detail = service(&state, fixture::CLUSTER, &"web".parse().unwrap()).unwrap();
        assert!(serde_json::to_string(&detail).unwrap().contains("hunter2"));
        hide_environment(&mut detail);
        let text = serde_json::to_string(&detail).unwrap();
        assert!(!text.contains("hunter2") && text.contains("PASSWORD"), "{text}");
    }
}

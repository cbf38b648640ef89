//! Which replica or node a user means: by container id, name or number. Pure.

use blixard_core::cluster::{ClusterState, Phase, Replica};
use blixard_core::id::{ClusterId, ContainerId, NodeId, ReplicaId, ServiceName};

use super::error::ApiError;

/// The shortest prefix of a container id that is looked up.
const PREFIX_MIN: usize = 4;
/// How many earlier attempts of a replica its container ids still name it by.
const ATTEMPTS_KEPT: u32 = 5;

/// The replica `text` names: a service that has one replica, a replica's name such as `web-0`, or
/// a container id or unique prefix of one, of the current or a recent attempt.
///
/// # Errors
/// When it names none (404) or several (409, which are listed).
pub(super) fn replica_id(
    state: &ClusterState,
    cluster: ClusterId,
    text: &str,
) -> Result<ReplicaId, ApiError> {
    let of_service = |name: &str| -> Vec<(ReplicaId, &Replica)> {
        let name: Option<ServiceName> = name.parse().ok();
        name.map(|name| state.replicas_of(&name).collect()).unwrap_or_default()
    };
    let is_service = text.parse().is_ok_and(|name: ServiceName| state.services.contains_key(&name));
    if is_service {
        let all = of_service(text);
        let live: Vec<_> = all.iter().filter(|(_, replica)| replica.counts()).copied().collect();
        return one(state, text, cluster, if live.is_empty() { all } else { live });
    }
    if let Some((service, slot)) = text.rsplit_once('-')
        && let Ok(slot) = slot.parse::<u32>()
    {
        let in_slot = of_service(service).into_iter().filter(|(_, replica)| replica.slot == slot);
        let best = in_slot.max_by_key(|(id, replica)| (replica.counts(), *id));
        if let Some((id, _)) = best {
            return Ok(id);
        }
    }
    let prefix = id_prefix(text);
    let has_id = |id: ReplicaId, replica: &Replica| {
        prefix.as_ref().is_some_and(|prefix| attempt_of(cluster, id, replica, prefix).is_some())
    };
    let found = state.replicas.iter().filter(|(id, replica)| has_id(**id, replica));
    one(state, text, cluster, found.map(|(&id, replica)| (id, replica)).collect())
}

/// Why `text` names no replica: of a service that there is it is said how that is.
fn missing(state: &ClusterState, text: &str) -> ApiError {
    let service =
        |name: &str| name.parse::<ServiceName>().ok().and_then(|name| state.services.get_key_value(&name));
    let of_slot = || text.rsplit_once('-').filter(|(_, slot)| slot.parse::<u32>().is_ok());
    let Some((name, found)) = service(text).or_else(|| service(of_slot()?.0)) else { return unknown(text) };
    let error = format!("`{text}` has no container");
    if found.suspended {
        return ApiError::not_found(
            format!("{error}: service `{name}` is stopped"),
            format!("`blixard start {name}` starts it; `blixard logs {name}` shows what it wrote"),
        );
    }
    let hint =
        format!("`blixard ps -a {name}` lists those of `{name}`, `blixard service inspect {name}` says why");
    ApiError::not_found(error, hint)
}

/// The container that `text` names of the replica it names: an attempt, when `text` is the id of an
/// earlier one's container.
///
/// # Errors
/// As of [`replica_id`].
pub(super) fn container(
    state: &ClusterState,
    cluster: ClusterId,
    text: &str,
) -> Result<(ReplicaId, Option<u32>), ApiError> {
    let id = replica_id(state, cluster, text)?;
    let replica = state.replicas.get(&id).ok_or_else(|| unknown(text))?;
    let by_name = text == replica.service.as_str() || text == label(replica);
    let attempt = id_prefix(text).filter(|_| !by_name);
    let attempt = attempt.and_then(|prefix| attempt_of(cluster, id, replica, &prefix));
    Ok((id, attempt.filter(|attempt| *attempt < replica.status.attempt)))
}

/// The newest attempt of a replica whose container's id begins with `prefix`.
fn attempt_of(cluster: ClusterId, id: ReplicaId, replica: &Replica, prefix: &str) -> Option<u32> {
    let newest = replica.status.attempt;
    let mut attempts = (newest.saturating_sub(ATTEMPTS_KEPT)..=newest).rev();
    attempts.find(|attempt| ContainerId::new(cluster, id, *attempt).0.starts_with(prefix))
}

/// What container ids are compared with, when `text` can be the beginning of one.
pub(super) fn id_prefix(text: &str) -> Option<String> {
    let hex = text.len() >= PREFIX_MIN && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| text.to_ascii_lowercase())
}

/// A replica's name: `web-0`.
pub(super) fn label(replica: &Replica) -> String {
    format!("{}-{}", replica.service, replica.slot)
}

fn one(
    state: &ClusterState,
    text: &str,
    cluster: ClusterId,
    found: Vec<(ReplicaId, &Replica)>,
) -> Result<ReplicaId, ApiError> {
    match found.as_slice() {
        [] => Err(missing(state, text)),
        [(id, _)] => Ok(*id),
        several => {
            let details = several.iter().map(|(id, replica)| {
                let container = ContainerId::new(cluster, *id, replica.status.attempt);
                let name = format!("{}-{}", replica.service, replica.slot);
                format!("{} {name} on node {}", container.short(), replica.node)
            });
            Err(ApiError::conflict(
                format!("`{text}` names {} containers", several.len()),
                "name one of them by its id",
            )
            .with_details(details.collect()))
        }
    }
}

pub(super) fn unknown(text: &str) -> ApiError {
    ApiError::not_found(
        format!("there is no container or service `{text}`"),
        "`blixard ps -a` lists the containers; an id takes at least 4 of its digits",
    )
}

/// The replica's row, when its container can be asked for something: its process was started.
///
/// # Errors
/// When the replica is gone (404), or has no container yet (409).
pub(super) fn with_container(state: &ClusterState, id: ReplicaId) -> Result<&Replica, ApiError> {
    let replica = state.replicas.get(&id).ok_or_else(|| unknown(&id.to_string()))?;
    let unstarted = matches!(replica.status.phase, Phase::Assigned | Phase::Pulling | Phase::Starting);
    if replica.status.attempt == 0 && unstarted {
        let (name, status) = (format!("{}-{}", replica.service, replica.slot), &replica.status);
        let phase = format!("{:?}", status.phase).to_lowercase();
        let why = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
        return Err(ApiError::conflict(
            format!("{name} has no container yet: {phase}{why}"),
            "wait for it: `blixard ps`",
        ));
    }
    Ok(replica)
}

/// The replica's row, when its process runs as far as the cluster knows.
///
/// # Errors
/// As of [`with_container`], and when it has ended (409).
pub(super) fn running(state: &ClusterState, id: ReplicaId) -> Result<&Replica, ApiError> {
    let replica = with_container(state, id)?;
    let Replica { service, slot, status, .. } = replica;
    if !replica.is_over() && status.phase < Phase::Waiting {
        return Ok(replica);
    }
    let code = status.exit_code.map(|code| format!(" with code {code}")).unwrap_or_default();
    let (next, hint) = match replica.is_over() {
        true => ("", "`blixard start` starts its service anew"),
        false => (" and is started again soon", "try again once it runs: `blixard ps`"),
    };
    let left = "its file system is gone, its log is kept (`blixard logs`)";
    Err(ApiError::conflict(format!("{service}-{slot} has ended{code}{next}: {left}"), hint))
}

/// The member `text` names: its number, or its name when only one has it.
///
/// # Errors
/// When it names none (404) or several (409).
pub(super) fn node_id(state: &ClusterState, text: &str) -> Result<NodeId, ApiError> {
    if let Ok(id) = text.parse::<NodeId>()
        && state.nodes.contains_key(&id)
    {
        return Ok(id);
    }
    let named: Vec<NodeId> =
        state.nodes.iter().filter(|(_, node)| node.facts.name == text).map(|(&id, _)| id).collect();
    match named.as_slice() {
        [id] => Ok(*id),
        [] => Err(ApiError::not_found(
            format!("there is no node `{text}`"),
            "`blixard node ls` lists the nodes",
        )),
        several => {
            let ids: Vec<String> = several.iter().map(|id| format!("node {id}")).collect();
            Err(ApiError::conflict(format!("{} nodes are named `{text}`", several.len()), "use the number")
                .with_details(ids))
        }
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::{ClusterState, Desired, Phase};
    use blixard_core::id::{ContainerId, NodeId, ReplicaId};

    use super::super::views::fixture;
    use super::{container, node_id, replica_id, running};

    #[test]
    fn only_what_runs_is_asked_for_more_than_its_log() {
        let check = |phase, code: Option<u32>, attempt: u32, expect: &str| {
            let mut state = fixture::state();
            fixture::add_service(&mut state, "job", 1);
            fixture::add_replica(&mut state, 1, "job", 0, phase, Desired::Run);
            fixture::edit_replica(&mut state, 1, |replica| {
                (replica.status.exit_code, replica.status.attempt) = (code, attempt);
            });
            let told = running(&state, ReplicaId(1)).map(|_| String::new());
            let told = told.unwrap_or_else(|error| error.message().to_owned());
            assert!(told.starts_with(expect) && told.is_empty() == expect.is_empty(), "{phase:?}: {told}");
        };
        check(Phase::Running, None, 0, "");
        check(Phase::Starting, Some(1), 1, "");
        check(Phase::Starting, None, 0, "job-0 has no container yet");
        check(Phase::Waiting, Some(3), 1, "job-0 has ended with code 3 and is started again soon: ");
        check(Phase::Completed, Some(0), 0, "job-0 has ended with code 0: its file system is gone");
    }

    #[test]
    fn a_replica_is_found_by_service_name_slot_or_id_prefix() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 2);
        fixture::add_service(&mut state, "db", 1);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
        fixture::add_replica(&mut state, 2, "web", 1, Phase::Running, Desired::Retire);
        fixture::add_replica(&mut state, 3, "web", 1, Phase::Starting, Desired::Run);
        fixture::add_replica(&mut state, 4, "db", 0, Phase::Running, Desired::Run);
        fixture::edit_replica(&mut state, 4, |replica| replica.status.attempt = 2);
        let id = |replica, attempt| ContainerId::new(fixture::CLUSTER, ReplicaId(replica), attempt).0;
        let check = |text: &str, expect: Option<u64>| {
            let found = replica_id(&state, fixture::CLUSTER, text).ok().map(|id| id.0);
            assert_eq!(found, expect, "{text}");
        };
        check("db", Some(4));
        check("db-0", Some(4));
        check("web", None);
        check("web-0", Some(1));
        check("web-1", Some(3));
        check("web-2", None);
        check(&id(2, 0), Some(2));
        check(&id(2, 0)[..12], Some(2));
        check(&id(2, 0)[..12].to_uppercase(), Some(2));
        check(&id(2, 0)[..3], None);
        check(&id(4, 2), Some(4));
        check(&id(4, 0), Some(4));
        check(&id(4, 3), None);
        check("", None);

        let attempt = |text: &str| container(&state, fixture::CLUSTER, text).map(|(_, attempt)| attempt).ok();
        assert_eq!(attempt("db"), Some(None));
        assert_eq!(attempt(&id(4, 2)), Some(None));
        assert_eq!(attempt(&id(4, 1)[..12]), Some(Some(1)));
        assert_eq!(attempt(&id(4, 3)), None);
    }

    #[test]
    fn of_a_service_without_a_container_it_is_said_how_it_is() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        let told = |state: &ClusterState, text: &str| {
            let error = replica_id(state, fixture::CLUSTER, text).unwrap_err();
            assert!(error.is_not_found());
            error.message().to_owned()
        };
        assert_eq!(told(&state, "web"), "`web` has no container");
        assert_eq!(told(&state, "web-0"), "`web-0` has no container");
        assert_eq!(told(&state, "web-x"), "there is no container or service `web-x`");
        fixture::edit_service(&mut state, "web", |service| service.suspended = true);
        for text in ["web", "web-0"] {
            assert_eq!(told(&state, text), format!("`{text}` has no container: service `web` is stopped"));
        }
    }

    #[test]
    fn an_ambiguous_name_lists_its_containers() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 2);
        fixture::add_replica(&mut state, 1, "web", 0, Phase::Running, Desired::Run);
        fixture::add_replica(&mut state, 2, "web", 1, Phase::Running, Desired::Run);
        let error = replica_id(&state, fixture::CLUSTER, "web").unwrap_err();
        assert_eq!(error.message(), "`web` names 2 containers");
    }

    #[test]
    fn a_node_is_found_by_number_or_unique_name() {
        let mut state = fixture::state();
        fixture::add_node(&mut state, 2, blixard_core::cluster::NodeStatus::Up);
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(node_id(&state, text).ok(), expect.map(NodeId), "{text}");
        };
        check("2", Some(2));
        check("box2", Some(2));
        check("3", None);
        check("box", None);
    }
}

//! `/v1/ended`: the containers that ended lately and of which only the logs are left, of all members.

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::List;
use blixard_core::api::replica::ReplicaRow;
use blixard_core::cluster::replica::{is_oom_killed, out_of_memory};
use blixard_core::cluster::{ClusterState, NodeStatus, Phase};
use blixard_core::id::{ClusterId, ContainerId, NodeId};
use futures_util::future::join_all;
use serde::Deserialize;

use super::access::Access;
use super::context::{Api, Params};
use super::error::ApiError;
use super::rights::Caller;
use super::{proxy, resolve};
use crate::platform::EndedContainer;

#[derive(Debug, Default, Deserialize)]
pub(super) struct EndedQuery {
    service: Option<String>,
}

/// The containers that ended and were removed, and whose logs are kept still: earlier attempts, replaced
/// and stopped replicas. The last ended first; their phase is `gone`.
#[utoipa::path(
    get, path = "/v1/ended",
    params(("service" = Option<String>, Query, description = "Only those of this service")),
    responses((status = 200, description = "The containers", body = List<ReplicaRow>))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<EndedQuery>,
) -> Result<Response, ApiError> {
    let mut items = all(&api).await?;
    items.retain(|row| caller.covers(&row.service));
    if let Some(service) = query.service {
        items.retain(|row| row.service.as_str() == service);
    }
    Ok(Json(List { items, stale: false }).into_response())
}

/// The container `text` names of those that are gone: by its id or a prefix, or as the last of `web-0`,
/// or of a service that had one replica.
///
/// # Errors
/// When the runtime does not answer, or several are meant (409).
pub(super) async fn find(api: &Api, text: &str) -> Result<Option<ReplicaRow>, ApiError> {
    pick(&all(api).await?, text)
}

fn pick(rows: &[ReplicaRow], text: &str) -> Result<Option<ReplicaRow>, ApiError> {
    let prefix = resolve::id_prefix(text);
    let by_id = |row: &&ReplicaRow| {
        let id = row.container_id.as_ref();
        prefix.as_ref().is_some_and(|prefix| id.is_some_and(|id| id.0.starts_with(prefix)))
    };
    let identified: Vec<&ReplicaRow> = rows.iter().filter(by_id).collect();
    let named: Vec<&ReplicaRow> =
        rows.iter().filter(|row| row.name == text || row.service.as_str() == text).collect();
    let distinct = |rows: &[&ReplicaRow], key: fn(&ReplicaRow) -> String| {
        let mut keys: Vec<String> = rows.iter().map(|row| key(row)).collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let id = |row: &ReplicaRow| row.container_id.as_ref().map(|id| id.short().to_owned()).unwrap_or_default();
    let (found, several) = match identified.is_empty() {
        false => (identified.first(), distinct(&identified, id)),
        true => (named.first(), distinct(&named, |row| row.name.clone())),
    };
    if several.len() > 1 {
        let error = ApiError::conflict(
            format!("`{text}` names {} containers that are gone", several.len()),
            "name one of them; `blixard ps -a` lists them",
        );
        return Err(error.with_details(several));
    }
    Ok(found.map(|row| ReplicaRow::clone(row)))
}

/// Those of every member; of this one alone when another asks. A member that does not answer is missing.
async fn all(api: &Api) -> Result<Vec<ReplicaRow>, ApiError> {
    let state = api.handle.state();
    let own = api.handle.platform.containers.ended().await?;
    let own = own.into_iter().filter(|ended| !goes_on(&state, ended));
    let mut rows: Vec<ReplicaRow> =
        own.map(|ended| row(&state, api.handle.cluster, api.handle.id, ended)).collect();
    if api.access != Access::Peer {
        let up = |status| status != NodeStatus::Down;
        let others = state.nodes.iter().filter(|(id, node)| **id != api.handle.id && up(node.status));
        let asked = others.map(|(&id, _)| proxy::ask::<List<ReplicaRow>>(api, id, "/v1/ended"));
        for answer in join_all(asked).await {
            rows.extend(answer.map(|list| list.items).unwrap_or_default());
        }
        rows.sort_by_key(|row| std::cmp::Reverse((row.since, row.replica, row.attempt)));
    }
    Ok(rows)
}

/// Whether the same attempt was started anew, as after its start was cut off.
fn goes_on(state: &ClusterState, ended: &EndedContainer) -> bool {
    state.replicas.get(&ended.replica).is_some_and(|replica| {
        replica.status.attempt == ended.attempt && replica.status.phase <= Phase::Running
    })
}

fn row(state: &ClusterState, cluster: ClusterId, node: NodeId, ended: EndedContainer) -> ReplicaRow {
    let service = state.services.get(&ended.service);
    let spec = service.and_then(|service| service.spec_of(ended.version));
    let limit = spec.and_then(|spec| spec.limits.memory_bytes);
    ReplicaRow {
        container_id: Some(ContainerId::new(cluster, ended.replica, ended.attempt)),
        name: format!("{}-{}", ended.service, ended.slot),
        replica: Some(ended.replica),
        service: ended.service,
        slot: ended.slot,
        version: ended.version,
        node: Some(node),
        node_name: state.nodes.get(&node).map(|node| node.facts.name.clone()),
        image: spec.map_or(ended.image, |spec| spec.image.reference.clone()),
        phase: Some(Phase::Gone),
        desired: None,
        ready: false,
        proven: false,
        current: service.is_some_and(|service| service.runs_current(ended.version)),
        over: true,
        healthy: None,
        lost: false,
        attempt: ended.attempt,
        exit_code: Some(ended.exit_code),
        oom_killed: is_oom_killed(Some(ended.exit_code), ended.oom_killed),
        message: if ended.oom_killed { out_of_memory(ended.exit_code, limit) } else { String::new() },
        blocked: None,
        since: Some(ended.ended_at),
        created_at: ended.created_at,
        address: None,
        node_address: None,
        ports: Vec::new(),
        progress: None,
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::id::{NodeId, ReplicaId};
    use blixard_core::time::UtcMs;

    use super::super::views::fixture;
    use super::{pick, row};
    use crate::platform::EndedContainer;

    #[test]
    fn a_kill_for_want_of_memory_is_the_containers_own_only_with_the_code_of_one() {
        let state = fixture::state();
        let check = |exit_code, killed, expect: (bool, &str)| {
            let ended = EndedContainer {
                replica: ReplicaId(9),
                attempt: 0,
                service: "web".parse().expect("a name"),
                slot: 0,
                version: 1,
                image: "web:1".into(),
                exit_code,
                oom_killed: killed,
                created_at: None,
                ended_at: UtcMs(9),
            };
            let row = row(&state, fixture::CLUSTER, NodeId(1), ended);
            assert_eq!((row.oom_killed, row.message.as_str()), expect, "{exit_code} {killed}");
        };
        check(137, true, (true, "out of memory: killed by the kernel, without a memory limit of its own"));
        check(137, false, (false, ""));
        let child = "exited with code 1 after a process in it was killed for memory (no limit of its own)";
        check(1, true, (false, child));
        check(1, false, (false, ""));
    }

    #[test]
    fn a_container_that_is_gone_is_found_by_id_or_as_the_last_of_its_name() {
        let state = fixture::state();
        let ended = |service: &str, slot, replica, attempt| {
            let ended = EndedContainer {
                replica: ReplicaId(replica),
                attempt,
                service: service.parse().expect("a name"),
                slot,
                version: 1,
                image: "web:1".into(),
                exit_code: 1,
                oom_killed: false,
                created_at: None,
                ended_at: UtcMs(replica),
            };
            row(&state, fixture::CLUSTER, NodeId(1), ended)
        };
        let rows = [ended("web", 0, 9, 2), ended("web", 0, 9, 1), ended("db", 1, 7, 0), ended("db", 0, 6, 0)];
        let id = |at: usize| rows[at].container_id.clone().expect("an id").0;
        let check = |text: &str, expect: Result<Option<(u64, u32)>, ()>| {
            let found =
                pick(&rows, text).map(|gone| gone.map(|gone| (gone.replica.unwrap().0, gone.attempt)));
            assert_eq!(found.map_err(drop), expect, "{text}");
        };
        check("web", Ok(Some((9, 2))));
        check("web-0", Ok(Some((9, 2))));
        check(&id(1), Ok(Some((9, 1))));
        check(&id(1)[..12], Ok(Some((9, 1))));
        check("db-1", Ok(Some((7, 0))));
        check("db", Err(()));
        check("nobody", Ok(None));
        check("", Ok(None));
    }
}

//! `/v1/replicas`: `ps`, `inspect` and stopping one; `/v1/pulls`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::replica::{ContainerView, Progress, PullRow, ReplicaDetail, ReplicaRow};
use blixard_core::api::{ErrorBody, List, WriteAnswer};
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::{ClusterState, Replica, Write};
use blixard_core::id::ReplicaId;
use blixard_core::orchestrator;
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::context::{Api, Params, RequestIdent, Segment, Snapshot, flag};
use super::error::ApiError;
use super::rights::Caller;
use super::services::StopQuery;
use super::{ended, proxy, resolve, views};
use crate::platform::ContainerInfo;

/// The media type of newline-delimited JSON.
pub(super) const NDJSON: &str = "application/x-ndjson";

#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    all: Option<String>,
}

/// Every container of the cluster, and every slot that waits for one.
#[utoipa::path(
    get, path = "/v1/replicas",
    params(("all" = Option<bool>, Query, description = "Also those that ended")),
    responses((status = 200, description = "The containers", body = List<ReplicaRow>))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<ListQuery>,
) -> Response {
    let snapshot = api.read().await;
    let mut items = views::replicas(&snapshot.state, api.handle.cluster, flag(query.all.as_deref()));
    items.retain(|row| caller.covers(&row.service));
    snapshot.answer(List { items, stale: snapshot.is_stale() })
}

/// One container: what the cluster and its node's runtime know of it.
#[utoipa::path(
    get, path = "/v1/replicas/{id}",
    params(("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica")),
    responses((status = 200, description = "The container", body = ReplicaDetail), (status = 404, description = "No such container", body = ErrorBody))
)]
pub(super) async fn inspect(
    State(api): State<Api>,
    Segment(id): Segment,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let cluster = api.handle.cluster;
    let replica_id = match resolve::replica_id(&snapshot.state, cluster, &id) {
        Ok(replica) => replica,
        Err(error) => return gone(&api, &snapshot, &id, error).await,
    };
    let row = views::replica(&snapshot.state, cluster, replica_id)
        .ok_or_else(|| ApiError::not_found(format!("`{id}` is gone"), "`blixard ps -a`"))?;
    let mut detail =
        ReplicaDetail { row, container: None, container_error: None, stale: snapshot.is_stale() };
    match resolve::with_container(&snapshot.state, replica_id) {
        Err(error) => detail.container_error = Some(error.message().to_owned()),
        Ok(replica) if replica.node == api.handle.id => {
            match api.handle.platform.containers.inspect(replica_id, replica.status.attempt).await {
                Ok(info) => detail.container = Some(container_view(&info)),
                Err(error) => {
                    let ended = resolve::running(&snapshot.state, replica_id).err();
                    let told = ended.map_or(error.to_string(), |ended| ended.message().to_owned());
                    detail.container_error = Some(told);
                }
            }
        }
        Ok(replica) => match proxy::forward(&api, replica.node, request).await {
            Ok(response) if response.status().is_success() => return Ok(response),
            Ok(response) => {
                detail.container_error =
                    Some(format!("node {} answered {}", replica.node, response.status()));
            }
            Err(error) => detail.container_error = Some(error.message().to_owned()),
        },
    }
    Ok(snapshot.answer(detail))
}

/// What is known of a container that is gone; `error` when there was none.
async fn gone(api: &Api, snapshot: &Snapshot, id: &str, error: ApiError) -> Result<Response, ApiError> {
    let found = if error.is_not_found() { ended::find(api, id).await? } else { None };
    let Some(row) = found else { return Err(snapshot.missing(error)) };
    let node = row.node.map(|node| node.to_string()).unwrap_or_default();
    let container_error =
        Some(format!("it is gone; its log is kept for an hour on node {node}: `blixard logs`"));
    Ok(snapshot.answer(ReplicaDetail { row, container: None, container_error, stale: snapshot.is_stale() }))
}

fn container_view(info: &ContainerInfo) -> ContainerView {
    ContainerView {
        pid: info.pid,
        exit_code: info.exit_code,
        address: info.address.map(|address| address.to_string()),
        image: info.image.clone(),
        image_digest: info.image_digest.clone(),
        log_path: info.log_path.clone(),
    }
}

/// Stops one container; its service puts another into its slot.
#[utoipa::path(
    post, path = "/v1/replicas/{id}/stop",
    params(
        ("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica"),
        StopQuery
    ),
    responses(
        (status = 200, description = "Stopping", body = WriteAnswer),
        (status = 404, description = "No such container", body = ErrorBody),
        (status = 422, description = "A time that is too long", body = ErrorBody)
    )
)]
pub(super) async fn stop(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<StopQuery>,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    let timeout_s = query.timeout_s;
    change(&api, &id, request, |state, replica| {
        // To stop what has ended would have its service start another.
        let is_over = state.replicas.get(&replica).is_some_and(Replica::is_over);
        (!is_over).then_some(Write::StopReplica { replica, timeout_s })
    })
    .await
}

/// Replaces one container: its service starts another, and stops this one once that runs. Where the
/// two cannot be together, this one stops first.
#[utoipa::path(
    post, path = "/v1/replicas/{id}/replace",
    params(("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica")),
    responses((status = 200, description = "Being replaced", body = WriteAnswer), (status = 404, description = "No such container", body = ErrorBody))
)]
pub(super) async fn replace(
    State(api): State<Api>,
    Segment(id): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    change(&api, &id, request, |state, replica| {
        if state.knows(SECOND_LEVEL) && orchestrator::starts_first(state, replica) {
            Some(Write::Replace { replica })
        } else {
            Some(Write::StopReplica { replica, timeout_s: None })
        }
    })
    .await
}

/// Has what is wished of a container written; nothing, where it has ended and stays so.
async fn change(
    api: &Api,
    id: &str,
    request: RequestIdent,
    write: impl FnOnce(&ClusterState, ReplicaId) -> Option<Write>,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let replica = resolve::replica_id(&snapshot.state, api.handle.cluster, id)
        .map_err(|error| snapshot.missing(error))?;
    let Some(write) = write(&snapshot.state, replica) else {
        let ended = format!("`{id}` has ended: there is nothing to stop");
        if snapshot.is_stale() {
            // Another may be in its place by now.
            return Err(snapshot.unconfirmed(ApiError::conflict(ended, "")));
        }
        let warnings = vec![ended];
        return Ok(Json(WriteAnswer { index: snapshot.state.applied, warnings }).into_response());
    };
    let (index, _) = api.write_within(request, write, snapshot.left(api)).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct KillQuery {
    signal: Option<String>,
}

/// Sends a signal to the process of a container. When that ends, its service does with it what its restart
/// policy says.
#[utoipa::path(
    post, path = "/v1/replicas/{id}/kill",
    params(
        ("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica"),
        ("signal" = Option<String>, Query, description = "`SIGHUP`, `HUP` or a number; SIGKILL when absent")
    ),
    responses(
        (status = 204, description = "Sent"),
        (status = 400, description = "There is no such signal, or it does not run", body = ErrorBody),
        (status = 404, description = "No such container", body = ErrorBody),
        (status = 409, description = "It has not started yet", body = ErrorBody)
    )
)]
pub(super) async fn kill(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<KillQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let replica_id = resolve::replica_id(&snapshot.state, api.handle.cluster, &id)
        .map_err(|error| snapshot.missing(error))?;
    let replica = resolve::running(&snapshot.state, replica_id)?;
    if replica.node != api.handle.id {
        return proxy::forward(&api, replica.node, request).await;
    }
    let signal = query.signal.as_deref().unwrap_or("SIGKILL");
    api.handle.platform.containers.kill(replica_id, replica.status.attempt, signal).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The pulls going on at this node.
#[utoipa::path(get, path = "/v1/pulls", responses((status = 200, description = "The pulls", body = Vec<PullRow>)))]
pub(super) async fn pulls(State(api): State<Api>) -> Json<Vec<PullRow>> {
    Json(local_pulls(&api))
}

pub(super) fn local_pulls(api: &Api) -> Vec<PullRow> {
    let rows = api.handle.pulls().into_iter().map(|(replica, progress)| PullRow {
        replica,
        progress: Progress { bytes: progress.bytes, bytes_total: progress.bytes_total },
    });
    rows.collect()
}

/// One line of newline-delimited JSON.
pub(super) fn ndjson(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("API types have string keys and no failing serializer");
    line.push(b'\n');
    line.into()
}

/// Answers newline-delimited JSON.
pub(super) fn stream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
}

//! `/v1/volumes`: showing, publishing and removing volumes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::volume::{VolumeCopyRow, VolumeRow};
use blixard_core::api::{ErrorBody, List, WriteAnswer};
use blixard_core::cluster::volume::{VolumeCopy, VolumeStatus};
use blixard_core::cluster::{ClusterState, Volume, Write};
use blixard_core::id::VolumeName;
use blixard_core::limits::WRITE_DEADLINE;
use serde::Deserialize;
use utoipa::IntoParams;

use super::context::{Api, Params, RequestIdent, Segment};
use super::error::ApiError;
use super::proxy;
use crate::context::NodeContext;
use crate::drivers::volumes;

const HINT: &str = "`blixard volume ls` lists the volumes";

fn row(state: &ClusterState, name: &VolumeName, volume: &Volume) -> VolumeRow {
    let copies = volume.copies.iter().map(|(node, copy)| VolumeCopyRow {
        node: *node,
        version: copy.version,
        trouble: copy.trouble.clone(),
    });
    VolumeRow {
        name: name.clone(),
        id: volume.id,
        primary: volume.primary,
        epoch: volume.epoch,
        wanted: volume.wanted,
        version: volume.version,
        copies: copies.collect(),
        services: state.services_mounting(name).cloned().collect(),
        created_at: volume.created_at,
    }
}

fn find<'a>(state: &'a ClusterState, text: &str) -> Result<(VolumeName, &'a Volume), ApiError> {
    let name: VolumeName = text
        .parse()
        .map_err(|error: blixard_core::id::IdError| ApiError::not_found(error.to_string(), HINT))?;
    match state.volumes.get(&name) {
        Some(volume) => Ok((name, volume)),
        None => Err(ApiError::not_found(format!("there is no volume `{name}`"), HINT)),
    }
}

/// Every volume.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, description = "The volumes", body = List<VolumeRow>)))]
pub(super) async fn list(State(api): State<Api>) -> Response {
    let snapshot = api.read().await;
    let items = snapshot.state.volumes.iter().map(|(name, volume)| row(&snapshot.state, name, volume));
    snapshot.answer(List { items: items.collect(), stale: snapshot.is_stale() })
}

/// One volume: where it is, and which version each node holds.
#[utoipa::path(
    get, path = "/v1/volumes/{name}", params(("name" = String, Path, description = "The volume")),
    responses((status = 200, description = "The volume", body = VolumeRow), (status = 404, description = "No such volume", body = ErrorBody))
)]
pub(super) async fn inspect(State(api): State<Api>, Segment(name): Segment) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let (name, volume) = find(&snapshot.state, &name).map_err(|error| snapshot.missing(error))?;
    Ok(snapshot.answer(row(&snapshot.state, &name, volume)))
}

/// Removes a volume and every copy of it.
#[utoipa::path(
    delete, path = "/v1/volumes/{name}", params(("name" = String, Path, description = "The volume")),
    responses(
        (status = 200, description = "Removed", body = WriteAnswer),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 409, description = "A service mounts it", body = ErrorBody)
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Segment(name): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    let volume: VolumeName = name
        .parse()
        .map_err(|error: blixard_core::id::IdError| ApiError::not_found(error.to_string(), HINT))?;
    let (index, _) = api.write(request, Write::RemoveVolume { volume }).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

#[derive(Debug, Default, Deserialize, IntoParams)]
pub(super) struct SyncQuery {
    /// Publishes also when most of the files are gone.
    #[serde(default)]
    accept_deletes: bool,
}

/// Publishes what the primary copy of a volume holds now, as a version that the other copies then follow.
/// Answers the volume: its `version` is the one that holds what was there when this was asked for.
#[utoipa::path(
    post, path = "/v1/volumes/{name}/sync",
    params(("name" = String, Path, description = "The volume"), SyncQuery),
    responses(
        (status = 200, description = "Published, or unchanged", body = VolumeRow),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 409, description = "Nobody has mounted it yet, or most of its files are gone", body = ErrorBody),
        (status = 503, description = "The primary's node does not answer", body = ErrorBody)
    )
)]
pub(super) async fn sync(
    State(api): State<Api>,
    Segment(name): Segment,
    Params(query): Params<SyncQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    if let Some(why) = &snapshot.stale {
        return Err(ApiError::unavailable(why.clone(), "try again when the cluster answers"));
    }
    let (name, volume) = find(&snapshot.state, &name)?;
    let Some(primary) = volume.primary else {
        return Err(ApiError::conflict(
            format!("nothing of volume `{name}` is on any node yet"),
            "run a service that mounts it",
        ));
    };
    if primary != api.handle.id {
        return proxy::forward(&api, primary, request).await;
    }
    let context = NodeContext::new(&api.handle.platform);
    let shared = &api.handle.shared;
    let failed = |error: crate::platform::VolumeError| {
        ApiError::conflict(format!("volume `{name}` is not published: {error}"), "")
    };
    volumes::publish(shared, &context, volume, query.accept_deletes).await.map_err(failed)?;
    let (store, id) = (Arc::clone(&api.handle.platform.volumes), volume.id);
    let version = context.blocking(move || store.held(id)).await.map_err(failed)?;
    let epoch = volume.epoch;
    let status = VolumeStatus { epoch, copy: VolumeCopy { version, trouble: None } };
    if !volumes::report(shared, id, status).await {
        return Err(ApiError::unavailable("the cluster could not be told of it", "try again in a moment"));
    }
    let state = api.handle.state_latest(WRITE_DEADLINE).await?;
    let (name, volume) = find(&state, name.as_str())?;
    // A version that follows holds what was asked for as well.
    if volume.epoch != epoch || volume.version.map(|newest| newest.id) < version.map(|version| version.id) {
        return Err(ApiError::unavailable(
            format!("volume `{name}` has just got another primary"),
            "try again in a moment",
        ));
    }
    Ok(Json(row(&state, &name, volume)).into_response())
}

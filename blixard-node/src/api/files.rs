//! `/v1/replicas/{id}/files`: files out of and into running containers, from whichever node they are on, as
//! the stream of [`crate::tree`].

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::ErrorBody;
use blixard_core::cluster::Replica;
use blixard_core::id::ReplicaId;
use futures_util::TryStreamExt;
use http::{StatusCode, header};
use serde::Deserialize;

use super::context::{Api, Params, Segment};
use super::error::ApiError;
use super::{proxy, resolve};
use crate::platform::RuntimeError;
use crate::tree::MEDIA_TYPE;

#[derive(Debug, Default, Deserialize)]
pub(super) struct FilesQuery {
    path: String,
    name: Option<String>,
}

/// The file or directory at a path of a running container, as a stream of files.
#[utoipa::path(
    get, path = "/v1/replicas/{id}/files",
    params(
        ("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica"),
        ("path" = String, Query, description = "An absolute path in the container")
    ),
    responses(
        (status = 200, description = "The stream", content_type = "application/x-blixard-tree-1"),
        (status = 400, description = "It does not run, or the path cannot be copied", body = ErrorBody),
        (status = 404, description = "No such container, or no such path in it", body = ErrorBody)
    )
)]
pub(super) async fn read(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<FilesQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    check(&query)?;
    let (replica_id, replica) = named(&api, &id).await?;
    if replica.node != api.handle.id {
        return proxy::forward(&api, replica.node, request).await;
    }
    let containers = &api.handle.platform.containers;
    let chunks = containers.read_tree(replica_id, replica.status.attempt, &query.path).await;
    let chunks = chunks.map_err(|error| no_path(error, &id))?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(chunks)).into_response())
}

/// Makes files of a stream of files at a path of a running container. Symbolic links below the path are not
/// followed, and no path of the stream leads out of it.
#[utoipa::path(
    put, path = "/v1/replicas/{id}/files", request_body(content_type = "application/x-blixard-tree-1"),
    params(
        ("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica"),
        ("path" = String, Query, description = "An absolute path in the container"),
        ("name" = Option<String>, Query, description = "What it is called there, if the path is a directory; without a name, a copied directory's content goes there")
    ),
    responses(
        (status = 204, description = "All of it is there"),
        (status = 400, description = "It does not run, or the stream or the path cannot be taken", body = ErrorBody),
        (status = 404, description = "No such container, or no such path in it", body = ErrorBody)
    )
)]
pub(super) async fn write(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<FilesQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    check(&query)?;
    let (replica_id, replica) = named(&api, &id).await?;
    if replica.node != api.handle.id {
        return proxy::forward(&api, replica.node, request).await;
    }
    let chunks = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let (attempt, containers) = (replica.status.attempt, &api.handle.platform.containers);
    let name = query.name.as_deref();
    let written = containers.write_tree(replica_id, attempt, &query.path, name, Box::pin(chunks)).await;
    written.map_err(|error| no_path(error, &id))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn check(query: &FilesQuery) -> Result<(), ApiError> {
    if !query.path.starts_with('/') || query.path.contains('\0') {
        return Err(ApiError::bad_request(
            format!("`{}` is not an absolute path", query.path.escape_debug()),
            "begin it with /",
        ));
    }
    let bad = |name: &str| matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
    match query.name.as_deref().filter(|name| bad(name)) {
        Some(name) => Err(ApiError::bad_request(format!("`{}` is no file name", name.escape_debug()), "")),
        None => Ok(()),
    }
}

/// The container is there, as `id`: what is missing is the path in it.
fn no_path(error: RuntimeError, id: &str) -> ApiError {
    match error {
        RuntimeError::NotFound(reason) => ApiError::not_found(
            reason,
            format!("`blixard exec {} ls DIRECTORY` shows what there is", id.escape_debug()),
        ),
        error => error.into(),
    }
}

async fn named(api: &Api, id: &str) -> Result<(ReplicaId, Replica), ApiError> {
    let snapshot = api.read().await;
    let replica_id = resolve::replica_id(&snapshot.state, api.handle.cluster, id)
        .map_err(|error| snapshot.missing(error))?;
    let replica = resolve::running(&snapshot.state, replica_id)?;
    Ok((replica_id, replica.clone()))
}

#[cfg(test)]
mod tests {
    use super::{FilesQuery, check};

    #[test]
    fn paths_are_absolute_and_names_are_names() {
        let check = |path: &str, name: Option<&str>, expect: bool| {
            let query = FilesQuery { path: path.into(), name: name.map(Into::into) };
            assert_eq!(check(&query).is_ok(), expect, "{query:?}");
        };
        check("/", None, true);
        check("/etc/../x", Some("a b"), true);
        check("etc", None, false);
        check("", None, false);
        check("/a\0", None, false);
        check("/", Some(".."), false);
        check("/", Some("a/b"), false);
        check("/", Some(""), false);
    }
}

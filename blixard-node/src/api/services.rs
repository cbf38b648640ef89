//! `/v1/services`: submitting, showing and changing services.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::replica::Progress;
use blixard_core::api::service::{
    RollbackRequest, ScaleRequest, ServiceDetail, ServiceRow, SubmitAnswer, SubmitRequest,
};
use blixard_core::api::{ErrorBody, List, WriteAnswer};
use blixard_core::bundle;
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::{ClusterState, Outcome, Phase, Right, Write};
use blixard_core::id::{NodeId, ReplicaId, ServiceName};
use blixard_core::limits::WRITE_DEADLINE;
use blixard_core::spec::ServiceSpec;
use futures_util::future::join_all;
use serde::Deserialize;
use utoipa::IntoParams;

use super::access::Principal;
use super::context::{Api, JsonBody, Params, RequestIdent, Segment, Snapshot, created};
use super::error::ApiError;
use super::resolution::Resolved;
use super::rights::Caller;
use super::{proxy, replicas, resolution, views};
use crate::platform::RuntimeError;

/// How long a submission waits for the disk to say whether the sources of volumes are there.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// Creates a service or gives it a new version. The same specification again changes nothing.
#[utoipa::path(
    post, path = "/v1/services", request_body = SubmitRequest,
    params(("blixard-request-id" = Option<String>, Header, description = "Names the write: a retry applies once")),
    responses(
        (status = 201, description = "Submitted", body = SubmitAnswer),
        (status = 409, description = "It conflicts: a published port is another service's", body = ErrorBody),
        (status = 422, description = "Out of bounds, or a volume whose source is not there", body = ErrorBody),
        (status = 503, description = "No quorum: repeat with the same request id", body = ErrorBody)
    )
)]
pub(super) async fn submit(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    request: RequestIdent,
    JsonBody(body): JsonBody<SubmitRequest>,
) -> Result<Response, ApiError> {
    let mut request = request;
    if let Some(text) = body.request_id.filter(|_| !request.given) {
        request.id = text.parse().map_err(|error| {
            ApiError::bad_request(format!("request_id: {error}"), "send 32 random hexadecimal digits")
        })?;
    }
    let mut spec = body.spec;
    caller.check(Right::Write, Some(&spec.name))?;
    check(&spec)?;
    let mut warnings = Vec::new();
    let clock = &api.handle.platform.clock;
    let give_up = clock.now() + WRITE_DEADLINE;
    if spec.image.digest.is_none() {
        warnings.extend(resolve(&api, &mut spec).await);
    }
    let name = spec.name.clone();
    check_volumes(&api, &spec).await?;
    let digest = spec.image.digest.clone();
    // Here once, so that no member has to do it again.
    let spec = api.handle.state().completed(&Arc::new(spec));
    let write = Write::Submit { spec, origin: api.handle.id };
    let left = give_up.since(clock.now());
    let (index, outcome) = api.write_within(request, write, left).await?;
    let Outcome::Service { version, changed } = outcome else { return Err(unexpected(&outcome)) };
    Ok(created(SubmitAnswer { name, version, changed, digest, index, warnings }))
}

/// Refuses what the bundle reader would.
fn check(spec: &ServiceSpec) -> Result<(), ApiError> {
    let mut faults = bundle::check(spec).into_iter();
    let Some(first) = faults.next() else { return Ok(()) };
    let error = format!("the specification of `{}` is not valid: {first}", spec.name);
    let others = faults.map(|fault| fault.message).collect();
    Err(ApiError::unprocessable(error, first.hint.unwrap_or_default()).with_details(others))
}

/// Refuses volumes whose sources are not on this node, where the service's replicas are to run, or
/// which it gives to no container.
async fn check_volumes(api: &Api, spec: &ServiceSpec) -> Result<(), ApiError> {
    if !spec.is_pinned() {
        return Ok(());
    }
    let containers = &api.handle.platform.containers;
    let looking = async {
        let missing = containers.missing_sources(&spec.volumes).await?;
        let refused = match api.handle.state().knows(SECOND_LEVEL) {
            true if missing.is_empty() => containers.refused_sources(&spec.volumes).await?,
            _ => Vec::new(),
        };
        Ok::<_, RuntimeError>((missing, refused))
    };
    let (missing, refused) = match api.within(LOOK_DEADLINE, looking).await {
        Some(Ok(found)) => found,
        // A disk that does not answer in time will not have the container started either.
        Some(Err(_)) | None => return Ok(()),
    };
    if let [source, rest @ ..] = missing.as_slice() {
        let details = rest.iter().map(|source| format!("nor is {source}")).collect();
        return Err(ApiError::unprocessable(
            format!("the volume's source {source} is not on node {}, where it is looked for", api.handle.id),
            "make the file or directory there first, or submit the bundle on the node that has it",
        )
        .with_details(details));
    }
    if let [why, rest @ ..] = refused.as_slice() {
        return Err(ApiError::unprocessable(
            format!("node {} gives this to no container: {why}", api.handle.id),
            "name another path, or start the node with `--allow-path PATH` where containers may have it",
        )
        .with_details(rest.to_vec()));
    }
    Ok(())
}

/// Fixes the digest that the image's reference stands for now; the warning when it could not be.
async fn resolve(api: &Api, spec: &mut ServiceSpec) -> Option<String> {
    let reference = &spec.image.reference;
    let known = known_digest(&api.handle.state(), spec);
    let (digest, reason) = match resolution::resolve(api, reference, known).await {
        Resolved::Now(digest) => {
            spec.image.digest = Some(digest);
            return None;
        }
        Resolved::Before { digest, reason } => (digest, reason),
    };
    spec.image.digest = digest;
    Some(match &spec.image.digest {
        Some(digest) => format!("image `{reference}` stays at {digest}: it could not be looked up: {reason}"),
        None => format!(
            "image `{reference}` could not be looked up now: {reason}; each node runs what it stands for when that node pulls it"
        ),
    })
}

/// The digest that the service's current version has for the same reference.
fn known_digest(state: &ClusterState, spec: &ServiceSpec) -> Option<String> {
    let current = &state.services.get(&spec.name)?.spec().image;
    (current.reference == spec.image.reference).then(|| current.digest.clone())?
}

/// Every service.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, description = "The services", body = List<ServiceRow>)))]
pub(super) async fn list(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Response {
    let snapshot = api.read().await;
    let mut items = views::services(&snapshot.state);
    items.retain(|row| caller.covers(&row.name));
    snapshot.answer(List { items, stale: snapshot.is_stale() })
}

/// One service: its versions, its replicas and why slots wait.
#[utoipa::path(
    get, path = "/v1/services/{name}", params(("name" = String, Path, description = "The service")),
    responses((status = 200, description = "The service", body = ServiceDetail), (status = 404, description = "No such service", body = ErrorBody))
)]
pub(super) async fn inspect(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Segment(name): Segment,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let mut detail = find(&snapshot.state, &api, &name).map_err(|error| snapshot.missing(error))?;
    detail.stale = snapshot.is_stale();
    if principal == Principal::Reader {
        views::hide_environment(&mut detail);
    }
    add_progress(&api, &mut detail).await;
    Ok(snapshot.answer(detail))
}

fn find(state: &ClusterState, api: &Api, name: &str) -> Result<ServiceDetail, ApiError> {
    name.parse().ok().and_then(|name| views::service(state, api.handle.cluster, &name)).ok_or_else(|| {
        ApiError::not_found(
            format!("there is no service `{name}`"),
            "`blixard service ls` lists the services",
        )
    })
}

/// Adds how far pulls are, asking the nodes that pull; one that does not answer is left out.
async fn add_progress(api: &Api, detail: &mut ServiceDetail) {
    let pulling = |row: &&blixard_core::api::replica::ReplicaRow| row.phase == Some(Phase::Pulling);
    let mut nodes: Vec<NodeId> = detail.replicas.iter().filter(pulling).filter_map(|row| row.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let mut progress: BTreeMap<ReplicaId, Progress> = BTreeMap::new();
    let answers = join_all(nodes.into_iter().map(|node| async move {
        if node == api.handle.id {
            return replicas::local_pulls(api);
        }
        proxy::ask(api, node, "/v1/pulls").await.unwrap_or_default()
    }));
    for row in answers.await.into_iter().flatten() {
        progress.insert(row.replica, row.progress);
    }
    for row in &mut detail.replicas {
        row.progress = row.replica.and_then(|replica| progress.get(&replica).copied());
    }
}

/// Sets how many replicas a service keeps, within its bounds.
#[utoipa::path(
    post, path = "/v1/services/{name}/scale", request_body = ScaleRequest,
    params(("name" = String, Path, description = "The service")),
    responses((status = 200, description = "Scaled", body = WriteAnswer), (status = 422, description = "Outside min..max", body = ErrorBody))
)]
pub(super) async fn scale(
    State(api): State<Api>,
    Segment(name): Segment,
    request: RequestIdent,
    JsonBody(body): JsonBody<ScaleRequest>,
) -> Result<Response, ApiError> {
    if body.replicas == 0
        && let Ok(detail) = find(&api.read().await.state, &api, &name)
    {
        return Err(ApiError::unprocessable(
            format!("`{name}` takes {} to {} replicas, not 0", detail.row.min, detail.row.max),
            format!("`blixard stop {name}` stops them all and keeps the service"),
        ));
    }
    change(&api, &name, request, |service| Write::Scale { service, replicas: body.replicas }).await
}

#[derive(Debug, Default, Deserialize, IntoParams)]
pub(super) struct StopQuery {
    /// How long each process may take to end, in seconds, 0 to 3600; its `stop_timeout` when absent.
    pub(super) timeout_s: Option<u32>,
}

/// Stops every replica of a service and keeps the service.
#[utoipa::path(
    post, path = "/v1/services/{name}/stop",
    params(("name" = String, Path, description = "The service"), StopQuery),
    responses(
        (status = 200, description = "Stopping", body = WriteAnswer),
        (status = 404, description = "No such service", body = ErrorBody),
        (status = 422, description = "A time that is too long", body = ErrorBody)
    )
)]
pub(super) async fn stop(
    State(api): State<Api>,
    Segment(name): Segment,
    Params(query): Params<StopQuery>,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    change(&api, &name, request, |service| Write::Stop { service, timeout_s: query.timeout_s }).await
}

/// Runs a stopped service again.
#[utoipa::path(
    post, path = "/v1/services/{name}/start", params(("name" = String, Path, description = "The service")),
    responses((status = 200, description = "Starting", body = WriteAnswer), (status = 404, description = "No such service", body = ErrorBody))
)]
pub(super) async fn start(
    State(api): State<Api>,
    Segment(name): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    change(&api, &name, request, |service| Write::Start { service }).await
}

/// Goes back to what an earlier version of a service asked for, as a new version.
#[utoipa::path(
    post, path = "/v1/services/{name}/rollback", request_body = RollbackRequest,
    params(("name" = String, Path, description = "The service")),
    responses(
        (status = 201, description = "A new version, or the current one when that asks for the same", body = SubmitAnswer),
        (status = 404, description = "No such service or version", body = ErrorBody),
        (status = 409, description = "There is no earlier version", body = ErrorBody)
    )
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Segment(name): Segment,
    request: RequestIdent,
    JsonBody(body): JsonBody<RollbackRequest>,
) -> Result<Response, ApiError> {
    let service = service_name(&name)?;
    let snapshot = api.read().await;
    let version = match body.version {
        Some(version) => Some(version),
        None => version_before(&snapshot, &service)?,
    };
    let write = Write::Rollback { service: service.clone(), version };
    let (index, outcome) = api.write_within(request, write, snapshot.left(&api)).await?;
    let Outcome::Service { version, changed } = outcome else { return Err(unexpected(&outcome)) };
    let digest =
        api.handle.state().services.get(&service).and_then(|service| service.spec().image.digest.clone());
    Ok(created(SubmitAnswer { name: service, version, changed, digest, index, warnings: Vec::new() }))
}

/// The version to go back to when none is named: none that is known to fail. Absent where this node does not
/// know the service.
fn version_before(snapshot: &Snapshot, name: &ServiceName) -> Result<Option<u64>, ApiError> {
    let Some(service) = snapshot.state.services.get(name).filter(|service| !service.removing) else {
        return Ok(None);
    };
    let before = service.rollback_target().map(|version| version.version);
    before.map(Some).ok_or_else(|| {
        snapshot.unconfirmed(ApiError::conflict(
            format!("`{name}` has no earlier version that runs something else and did not fail"),
            format!("`blixard service history {name}` lists what is kept: name one of them"),
        ))
    })
}

/// Removes a service and its replicas.
#[utoipa::path(
    delete, path = "/v1/services/{name}", params(("name" = String, Path, description = "The service")),
    responses((status = 200, description = "Removing", body = WriteAnswer), (status = 404, description = "No such service", body = ErrorBody))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Segment(name): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    change(&api, &name, request, |service| Write::Remove { service }).await
}

fn service_name(name: &str) -> Result<ServiceName, ApiError> {
    name.parse().map_err(|error: blixard_core::id::IdError| {
        ApiError::not_found(error.to_string(), "`blixard service ls` lists the services")
    })
}

async fn change(
    api: &Api,
    name: &str,
    request: RequestIdent,
    write: impl FnOnce(ServiceName) -> Write,
) -> Result<Response, ApiError> {
    let service = service_name(name)?;
    let (index, _) = api.write(request, write(service)).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

/// The state answered a write with what only another write is answered with.
pub(super) fn unexpected(outcome: &Outcome) -> ApiError {
    ApiError::internal(format!("the write was applied, and answered {outcome:?}"))
}

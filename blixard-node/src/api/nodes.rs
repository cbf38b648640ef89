//! `/v1/nodes`, `/v1/node`, `/v1/cluster`, `/v1/health`: members, and the cluster as a whole.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use blixard_core::api::node::{ClusterStatus, DownAnswer, MoveRow, NodeView, PeerRow};
use blixard_core::api::{ErrorBody, Health, List, WriteAnswer};
use blixard_core::cluster::level::SECOND_LEVEL;
use blixard_core::cluster::{Availability, ClusterState, Desired, Write};
use blixard_core::id::{ContainerId, NodeId, ReplicaId};
use blixard_core::orchestrator::{self, Move};
use serde::Deserialize;

use super::context::{Api, Params, RequestIdent, Segment, flag};
use super::error::ApiError;
use super::{resolve, views};

/// Whether this node serves, without asking anybody.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, description = "It serves", body = Health)))]
pub(super) async fn health(State(api): State<Api>) -> Json<Health> {
    let raft = api.handle.raft();
    Json(Health {
        node: api.handle.id,
        leader: raft.leader,
        applied: raft.applied,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: api.handle.stamp(),
    })
}

/// Every member's name and addresses, as this node last knew them; asks nobody, and takes no token.
#[utoipa::path(get, path = "/v1/peers", responses((status = 200, description = "The members", body = List<PeerRow>)))]
pub(super) async fn peers(State(api): State<Api>) -> Json<List<PeerRow>> {
    Json(List { items: views::peers(&api.handle.state()), stale: false })
}

/// Every member.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, description = "The members", body = List<NodeView>)))]
pub(super) async fn list(State(api): State<Api>) -> Response {
    let snapshot = api.read().await;
    let mut items = views::nodes(&snapshot.state, &api.handle.raft());
    items.iter_mut().for_each(|view| view.warnings.extend(warnings(&api, view.id)));
    snapshot.answer(List { items, stale: snapshot.is_stale() })
}

/// One member.
#[utoipa::path(
    get, path = "/v1/nodes/{id}", params(("id" = String, Path, description = "Its number or unique name")),
    responses((status = 200, description = "The member", body = NodeView), (status = 404, description = "No such member", body = ErrorBody))
)]
pub(super) async fn inspect(State(api): State<Api>, Segment(id): Segment) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let node = resolve::node_id(&snapshot.state, &id).map_err(|error| snapshot.missing(error))?;
    let mut view = views::node(&snapshot.state, &api.handle.raft(), node)
        .ok_or_else(|| ApiError::not_found(format!("there is no node `{id}`"), "`blixard node ls`"))?;
    view.stale = snapshot.is_stale();
    view.warnings.extend(warnings(&api, node));
    Ok(snapshot.answer(view))
}

/// What this node knows to be wrong with a member.
fn warnings(api: &Api, node: NodeId) -> impl Iterator<Item = String> {
    let twice = api.handle.runs_twice(node).map(|twice| twice.words(node));
    let difference = api.handle.difference_of(node).map(|difference| difference.words(node));
    twice.into_iter().chain(difference)
}

/// Takes no new replicas, and moves those it has elsewhere.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/drain", params(("id" = String, Path, description = "Its number or unique name")),
    responses((status = 200, description = "Draining", body = WriteAnswer), (status = 404, description = "No such member", body = ErrorBody))
)]
pub(super) async fn drain(
    State(api): State<Api>,
    Segment(id): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    set_availability(&api, &id, request, Availability::Draining).await
}

/// Takes replicas again after a drain.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/activate", params(("id" = String, Path, description = "Its number or unique name")),
    responses((status = 200, description = "Active", body = WriteAnswer), (status = 404, description = "No such member", body = ErrorBody))
)]
pub(super) async fn activate(
    State(api): State<Api>,
    Segment(id): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    set_availability(&api, &id, request, Availability::Active).await
}

/// Drains the member, then removes it.
#[utoipa::path(
    post, path = "/v1/nodes/{id}/leave", params(("id" = String, Path, description = "Its number or unique name")),
    responses((status = 200, description = "Leaving", body = WriteAnswer), (status = 404, description = "No such member", body = ErrorBody))
)]
pub(super) async fn leave(
    State(api): State<Api>,
    Segment(id): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    set_availability(&api, &id, request, Availability::Leaving).await
}

async fn set_availability(
    api: &Api,
    id: &str,
    request: RequestIdent,
    availability: Availability,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let node = resolve::node_id(&snapshot.state, id).map_err(|error| snapshot.missing(error))?;
    let write = Write::SetAvailability { node, availability };
    let (index, _) = api.write_within(request, write, snapshot.left(api)).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RemoveQuery {
    force: Option<String>,
}

/// Removes a member for good.
#[utoipa::path(
    delete, path = "/v1/nodes/{id}",
    params(
        ("id" = String, Path, description = "Its number or unique name"),
        ("force" = Option<bool>, Query, description = "Also when it is up or still holds replicas")
    ),
    responses((status = 200, description = "Removed", body = WriteAnswer), (status = 409, description = "It is up or holds replicas", body = ErrorBody))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Segment(id): Segment,
    Params(query): Params<RemoveQuery>,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let node = resolve::node_id(&snapshot.state, &id).map_err(|error| snapshot.missing(error))?;
    let write = Write::RemoveNode { node, force: flag(query.force.as_deref()) };
    let (index, _) = api.write_within(request, write, snapshot.left(&api)).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

/// Drains the node that answers and stops its containers without waiting for their replacements.
#[utoipa::path(
    post, path = "/v1/node/down",
    responses((status = 200, description = "Stopping", body = DownAnswer), (status = 503, description = "No quorum", body = ErrorBody))
)]
pub(super) async fn down(State(api): State<Api>, request: RequestIdent) -> Result<Response, ApiError> {
    let node = api.handle.id;
    let stopped = if api.handle.state().knows(SECOND_LEVEL) {
        stop_all(&api, request).await?
    } else {
        stop_each(&api, request).await?
    };
    let container = |(replica, attempt)| ContainerId::new(api.handle.cluster, replica, attempt);
    let stopping = stopped.into_iter().map(container).collect();
    Ok(Json(DownAnswer { node, stopping }).into_response())
}

/// Stops what is on this node by one write; answers which replicas that stopped, and their attempts.
async fn stop_all(api: &Api, request: RequestIdent) -> Result<BTreeMap<ReplicaId, u32>, ApiError> {
    let node = api.handle.id;
    let before = on_node(&api.handle.state(), node, |desired| desired == Desired::Stop);
    api.write(request, Write::StopNode { node }).await?;
    let mut stopped = on_node(&api.handle.state(), node, |desired| desired == Desired::Stop);
    stopped.retain(|replica, _| !before.contains_key(replica));
    Ok(stopped)
}

/// The same where a member does not know that write: a write for each replica.
async fn stop_each(api: &Api, request: RequestIdent) -> Result<BTreeMap<ReplicaId, u32>, ApiError> {
    let node = api.handle.id;
    let drain = Write::SetAvailability { node, availability: Availability::Draining };
    api.write(request.derived(0), drain).await?;
    let own = on_node(&api.handle.state(), node, |desired| desired != Desired::Stop);
    for replica in own.keys() {
        let id = request.derived(replica.0.saturating_add(1));
        api.write(id, Write::StopReplica { replica: *replica, timeout_s: None }).await?;
    }
    Ok(own)
}

/// The replicas on a node of which `is` holds, and their attempts.
fn on_node(state: &ClusterState, node: NodeId, is: impl Fn(Desired) -> bool) -> BTreeMap<ReplicaId, u32> {
    let replicas = state.replicas_on(node).filter(|(_, replica)| is(replica.desired));
    replicas.map(|(id, replica)| (id, replica.status.attempt)).collect()
}

/// Which containers would be moved to even out how replicas are spread, in the order in which they are
/// best moved, by `POST /v1/replicas/{id}/replace`; after each the next is asked for anew.
#[utoipa::path(get, path = "/v1/rebalance", responses((status = 200, description = "The moves", body = List<MoveRow>)))]
pub(super) async fn rebalance(State(api): State<Api>) -> Response {
    let snapshot = api.read().await;
    let state = &snapshot.state;
    let row = |Move { replica, from, to }: Move| {
        let row = state.replicas.get(&replica)?;
        let name = format!("{}-{}", row.service, row.slot);
        let container_id = ContainerId::new(api.handle.cluster, replica, row.status.attempt);
        Some(MoveRow { replica, name, container_id, from, to })
    };
    let items = orchestrator::rebalance(state).into_iter().filter_map(row).collect();
    snapshot.answer(List { items, stale: snapshot.is_stale() })
}

/// The cluster: who leads and votes, and what it survives.
#[utoipa::path(get, path = "/v1/cluster", responses((status = 200, description = "The cluster", body = ClusterStatus)))]
pub(super) async fn cluster(State(api): State<Api>) -> Response {
    let snapshot = api.read().await;
    let handle = &api.handle;
    let mut status = views::cluster_status(&snapshot.state, &handle.raft(), handle.cluster, handle.id);
    status.warnings.extend(snapshot.state.nodes.keys().flat_map(|node| warnings(&api, *node)));
    snapshot.answer(if snapshot.is_stale() { views::unconfirmed(status) } else { status })
}

//! The HTTP API under `/v1`: what the command line, other members and scripts talk to.
//!
//! [`router`] builds it over a [`NodeHandle`]; it touches the world only through the handle and
//! its platform, so the simulator calls the same handlers. The listeners, [`UnixApi`] and
//! [`TcpApi`], are Linux glue. A request about a container of another node is passed on to that
//! node over its member link exactly once; writes are forwarded by the handle. Handlers stay thin:
//! what they answer is made by the pure functions in [`views`].

mod accept;
mod access;
mod audit;
mod connections;
mod context;
mod differs;
mod discovery;
mod ended;
mod error;
mod events;
mod exec;
mod files;
mod images;
mod logs;
mod nodes;
mod openapi;
mod pace;
mod proxy;
mod removal;
mod replicas;
mod resolution;
mod resolve;
mod rights;
mod serve;
mod services;
mod socket_user;
mod strangers;
mod tls;
mod tokens;
pub mod views;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use blixard_core::limits;

pub use self::access::Access;
use self::context::Api;
use self::error::ApiError;
pub use self::openapi::document as openapi_document;
pub use self::serve::{ServeError, TcpApi, UnixApi, check_path, serve_stream};
pub use self::tls::{Tls, TlsError, exposed};
use crate::handle::NodeHandle;

/// The largest JSON body taken, in bytes: a specification with room for its JSON form.
const BODY_BYTES_MAX: usize = limits::SPEC_BYTES_MAX * 4;

/// Builds the API of one node for callers that come in by `access`.
pub fn router(handle: NodeHandle, access: Access) -> Router {
    let api = Api { handle, access, strangers: Arc::default() };
    Router::new()
        .route("/v1/health", get(nodes::health))
        .route("/v1/openapi.json", get(openapi::serve))
        .route("/v1/services", get(services::list).post(services::submit))
        .route("/v1/services/{name}", get(services::inspect).delete(services::remove))
        .route("/v1/services/{name}/scale", post(services::scale))
        .route("/v1/services/{name}/stop", post(services::stop))
        .route("/v1/services/{name}/start", post(services::start))
        .route("/v1/services/{name}/rollback", post(services::rollback))
        .route("/v1/replicas", get(replicas::list))
        .route("/v1/replicas/{id}", get(replicas::inspect))
        .route("/v1/replicas/{id}/stop", post(replicas::stop))
        .route("/v1/replicas/{id}/files", get(files::read).put(files::write))
        .route("/v1/replicas/{id}/kill", post(replicas::kill))
        .route("/v1/replicas/{id}/logs", get(logs::logs))
        .route("/v1/replicas/{id}/replace", post(replicas::replace))
        .route("/v1/replicas/{id}/exec", post(exec::exec))
        .route("/v1/ended", get(ended::list))
        .route("/v1/pulls", get(replicas::pulls))
        .route("/v1/peers", get(nodes::peers))
        .route("/v1/discovery", get(discovery::sources))
        .route("/v1/links", get(discovery::links))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/v1/nodes/{id}/drain", post(nodes::drain))
        .route("/v1/nodes/{id}/activate", post(nodes::activate))
        .route("/v1/nodes/{id}/leave", post(nodes::leave))
        .route("/v1/node/down", post(nodes::down))
        .route("/v1/cluster", get(nodes::cluster))
        .route("/v1/rebalance", get(nodes::rebalance))
        .route("/v1/events", get(events::events))
        .route("/v1/images", get(images::list).delete(removal::remove))
        .route("/v1/images/prune", post(removal::prune))
        .route("/v1/system/df", get(removal::disk_usage))
        .route("/v1/images/pull", post(images::pull))
        .route("/v1/images/import", post(images::import))
        .route("/v1/tokens", get(tokens::list).post(tokens::add))
        .route("/v1/tokens/rotate", post(tokens::rotate))
        .route("/v1/tokens/{id}", delete(tokens::remove))
        .route("/v1/volumes", get(volumes::list))
        .route("/v1/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .route("/v1/volumes/{name}/sync", post(volumes::sync))
        .route("/v1/audit", get(audit::list))
        .route_layer(from_fn_with_state(api.clone(), rights::check))
        .fallback(async || ApiError::not_found("there is no such path", "see GET /v1/openapi.json"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(api.clone(), differs::check))
        .layer(from_fn_with_state(api.clone(), access::check))
        .with_state(api)
}

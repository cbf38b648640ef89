//! `/v1/tokens`: making, listing and revoking tokens.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::token::{RotateAnswer, Scope, Secret, TokenAnswer, TokenRequest, TokenRow};
use blixard_core::api::{ErrorBody, List, WriteAnswer};
use blixard_core::cluster::node::TokenScope;
use blixard_core::cluster::{Token, Write};
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{ServiceName, TokenId};
use blixard_core::wire::Peer;

use super::access::Principal;
use super::context::{Api, JsonBody, RequestIdent, Segment, created};
use super::error::ApiError;
use super::rights::Caller;

/// Makes a token. Its secret is shown only in this answer, so a retry makes another token.
#[utoipa::path(
    post, path = "/v1/tokens", request_body = TokenRequest,
    responses((status = 201, description = "Made", body = TokenAnswer), (status = 400, description = "`uses` with a scope other than `join`, or none, or no time", body = ErrorBody), (status = 503, description = "No quorum", body = ErrorBody))
)]
pub(super) async fn add(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<TokenRequest>,
) -> Result<Response, ApiError> {
    if body.scope != Scope::Join && body.uses.is_some() {
        return Err(ApiError::bad_request(
            "an API token's uses are not counted",
            "leave out `uses`, and let the token expire",
        ));
    }
    if let Some(prefix) = &body.services {
        check_prefix(body.scope, prefix)?;
    }
    if body.uses == Some(0) {
        return Err(ApiError::bad_request(
            "a token without a use admits nobody",
            "give at least 1, or leave it out: uses are then not counted",
        ));
    }
    if body.expires_in_s == Some(0) {
        return Err(ApiError::bad_request(
            "a token that has expired already admits nobody",
            "give at least 1 s; with `--expires never`, or no `expires_in_s`, it lasts until it is removed",
        ));
    }
    let rng = &api.handle.platform.rng;
    let mut token = Secret { id: TokenId([0; 8]), secret: [0; 32] };
    rng.fill(&mut token.id.0);
    rng.fill(&mut token.secret);
    let now = api.handle.platform.clock.utc();
    let row = Token {
        secret_sha256: token.sha256(),
        scope: body.scope.into(),
        expires_at: body.expires_in_s.map(|seconds| now.after(Duration::from_secs(seconds))),
        uses_left: body.uses,
        services: body.services,
    };
    api.write(RequestIdent::drawn(&api, &caller), Write::AddToken { id: token.id, token: row }).await?;
    let ticket = (body.scope == Scope::Join).then(|| ticket(&api, token.clone()).to_string());
    Ok(created(TokenAnswer { id: token.id, token: token.to_string(), ticket }))
}

/// Refuses a prefix with which no service's name begins, and one that would limit nothing.
fn check_prefix(scope: Scope, prefix: &str) -> Result<(), ApiError> {
    if matches!(scope, Scope::Join | Scope::Api | Scope::Admin) {
        return Err(ApiError::bad_request(
            "members and tokens belong to no service",
            "use `services` with scope `read` or `write`",
        ));
    }
    // What a name may begin with, a letter completes to one.
    if prefix.is_empty() || format!("{prefix}a").parse::<ServiceName>().is_err() {
        return Err(ApiError::bad_request(
            format!("no service's name begins with `{prefix}`"),
            "names have lower-case letters, digits and hyphens; leave `services` out for all services",
        ));
    }
    Ok(())
}

/// An invitation to join through this node.
fn ticket(api: &Api, token: Secret) -> Ticket {
    let transport = &api.handle.platform.transport;
    let peer = Peer { key: transport.key(), addresses: transport.addresses(), relay_url: None };
    Ticket { cluster: api.handle.cluster, peer, token }
}

/// Every token, without its secret.
#[utoipa::path(
    get, path = "/v1/tokens",
    responses((status = 200, description = "The tokens", body = List<TokenRow>), (status = 403, description = "Over TCP without a token", body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    if principal == Principal::Reader {
        return Err(ApiError::forbidden("listing tokens takes an API token", "use the Unix socket"));
    }
    let snapshot = api.read().await;
    let items = snapshot.state.tokens.iter().map(|(&id, token)| TokenRow {
        id,
        scope: token.scope.into(),
        expires_at: token.expires_at,
        uses_left: token.uses_left,
        services: token.services.clone(),
    });
    Ok(snapshot.answer(List { items: items.collect(), stale: snapshot.is_stale() }))
}

/// Revokes every token for joining: tickets and registry files of before admit nobody any more. Each
/// member then makes its registry file a new token of its own.
#[utoipa::path(
    post, path = "/v1/tokens/rotate",
    responses((status = 200, description = "Revoked", body = RotateAnswer), (status = 503, description = "No quorum", body = ErrorBody))
)]
pub(super) async fn rotate(State(api): State<Api>, request: RequestIdent) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    if let Some(why) = &snapshot.stale {
        return Err(ApiError::unavailable(why.clone(), "try again when the cluster answers"));
    }
    let joining = snapshot.state.tokens.iter().filter(|(_, token)| token.scope == TokenScope::Join);
    let mut revoked = 0;
    for (&id, _) in joining {
        // By the token, so that a retry names the same writes.
        let request = request.derived(u64::from_be_bytes(id.0));
        match api.write(request, Write::RemoveToken { id }).await {
            Ok(_) => revoked += 1,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(RotateAnswer { revoked }).into_response())
}

/// Revokes a token. Members that joined with it stay.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", params(("id" = String, Path, description = "Its public half")),
    responses((status = 200, description = "Revoked", body = WriteAnswer), (status = 404, description = "No such token", body = ErrorBody))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Segment(id): Segment,
    request: RequestIdent,
) -> Result<Response, ApiError> {
    let id = id.parse::<TokenId>().map_err(|error| {
        ApiError::bad_request(error.to_string(), "`blixard cluster token ls` lists the tokens")
    })?;
    let (index, _) = api.write(request, Write::RemoveToken { id }).await?;
    Ok(Json(WriteAnswer { index, warnings: Vec::new() }).into_response())
}

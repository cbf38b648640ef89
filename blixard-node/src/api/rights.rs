//! What whoever asks may do: what each path takes, and which services a caller has to do with. Runs once
//! [`super::access`] has admitted the request and its path is known.

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use blixard_core::api::token::Secret;
use blixard_core::cluster::{Actor, ClusterState, Right, Token};
use blixard_core::id::{ServiceName, TokenId};
use http::{Method, header};

use super::access::Access;
use super::context::Api;
use super::error::ApiError;
use super::resolve;
use super::socket_user::SocketUser;

/// Who asks, and what they may do.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Who their writes are by.
    pub(super) by: Actor,
    token: Option<(TokenId, Token)>,
}

impl Caller {
    /// Another member, or this one.
    pub(super) fn member(api: &Api) -> Self {
        Self { by: Actor::Node { node: api.handle.id }, token: None }
    }

    /// Whether they may see a service.
    pub(super) fn covers(&self, service: &ServiceName) -> bool {
        self.token.as_ref().is_none_or(|(_, token)| token.covers(service))
    }

    /// Whether they may see what is about no service too.
    pub(super) fn covers_all(&self) -> bool {
        self.token.as_ref().is_none_or(|(_, token)| token.services.is_none())
    }

    /// Checks that they may do to `service` what takes `right`.
    ///
    /// # Errors
    /// 403, with the scope it takes.
    pub(super) fn check(&self, right: Right, service: Option<&ServiceName>) -> Result<(), ApiError> {
        match &self.token {
            Some((id, token)) => token.check(*id, right, service).map_err(Into::into),
            None => Ok(()),
        }
    }
}

/// What a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    right: Right,
    about: About,
}

/// What a path is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The service that its parameter names.
    Service,
    /// The service of the container that its parameter names.
    Container,
    /// Several, and its handler shows those that the caller has to do with; or refuses what it is sent.
    Handler,
    /// The node or cluster: no service in particular.
    Cluster,
    /// What the services of all say, such as images.
    All,
}

/// What `method` on the path of this pattern takes. What is not listed takes the most.
fn need(method: &Method, pattern: &str) -> Need {
    use About::{All, Cluster, Container, Handler, Service};
    let reads = method == Method::GET || method == Method::HEAD;
    let changing = if reads { Right::Read } else { Right::Write };
    let (right, about) = match pattern {
        "/v1/health" | "/v1/openapi.json" | "/v1/peers" | "/v1/nodes" | "/v1/cluster" | "/v1/discovery"
        | "/v1/links"
            if reads =>
        {
            (Right::Read, Cluster)
        }
        "/v1/nodes/{id}" if reads => (Right::Read, Cluster),
        "/v1/services" => (changing, Handler),
        "/v1/replicas" | "/v1/events" | "/v1/ended" if reads => (Right::Read, Handler),
        "/v1/replicas/{id}/files" => (Right::Write, Container),
        pattern if pattern.starts_with("/v1/services/{name}") => (changing, Service),
        pattern if pattern.starts_with("/v1/replicas/{id}") => (changing, Container),
        "/v1/pulls" | "/v1/rebalance" | "/v1/audit" if reads => (Right::Read, All),
        "/v1/images" | "/v1/images/prune" | "/v1/images/pull" | "/v1/images/import" | "/v1/system/df" => {
            (changing, All)
        }
        pattern if pattern.starts_with("/v1/volumes") => (changing, All),
        _ => (Right::Admin, All),
    };
    Need { right, about }
}

/// The right that `method` on the path of this pattern takes; the least on a path that there is not.
pub(super) fn right(method: &Method, pattern: Option<&str>) -> Right {
    pattern.map_or(Right::Read, |pattern| need(method, pattern).right)
}

/// Lets a request through that its caller may make, or answers what it takes.
pub(super) async fn check(
    State(api): State<Api>,
    path: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let name = params.iter().next().map(|(_, value)| value.to_owned());
    let need = need(request.method(), path.as_str());
    let caller = caller(&api, &request, need.right);
    match caller.and_then(|caller| admit(&api, &caller, need, name.as_deref()).map(|()| caller)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Who asks for what takes `right`.
fn caller(api: &Api, request: &Request, right: Right) -> Result<Caller, ApiError> {
    let node = api.handle.id;
    if api.access == Access::Peer {
        return Ok(Caller::member(api));
    }
    if api.access == Access::Socket {
        let user = request.extensions().get::<SocketUser>().cloned();
        let by =
            user.map_or(Actor::Node { node }, |SocketUser { uid, name }| Actor::User { uid, name, node });
        return Ok(Caller { by, token: None });
    }
    let text = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let secret: Option<Secret> =
        text.and_then(|text| text.strip_prefix("Bearer ")).and_then(|text| text.trim().parse().ok());
    // Without a token is admitted only what anybody may see.
    let Some(Secret { id, .. }) = secret else { return Ok(Caller { by: Actor::Node { node }, token: None }) };
    let gone = || {
        let hint = format!("make another with `blixard cluster token create --scope {right}`");
        ApiError::unauthorized("the token was revoked", hint)
    };
    let token = api.handle.state().tokens.get(&id).cloned().ok_or_else(gone)?;
    Ok(Caller { by: Actor::Token { id }, token: Some((id, token)) })
}

fn admit(api: &Api, caller: &Caller, need: Need, name: Option<&str>) -> Result<(), ApiError> {
    let Need { right, about } = need;
    let state = api.handle.state();
    match about {
        About::Cluster | About::Handler => caller.check_scope(right),
        About::All if caller.covers_all() => caller.check(right, None),
        About::All => {
            caller.check_scope(right)?;
            Err(ApiError::forbidden(
                "this takes a token for all services",
                format!("make one without --services: `blixard cluster token create --scope {right}`"),
            ))
        }
        About::Service | About::Container if caller.covers_all() => caller.check(right, None),
        About::Service => {
            let name = name.and_then(|name| name.parse::<ServiceName>().ok());
            caller.check(right, name.as_ref())
        }
        About::Container => {
            let text = name.unwrap_or_default();
            let service = service_of(&state, api, text).ok_or_else(|| resolve::unknown(text))?;
            caller.check(right, Some(&service))
        }
    }
}

/// The service of the container that `text` names, by a name or by an id.
fn service_of(state: &ClusterState, api: &Api, text: &str) -> Option<ServiceName> {
    if let Ok(id) = resolve::replica_id(state, api.handle.cluster, text) {
        return state.replicas.get(&id).map(|row| row.service.clone());
    }
    let named = text.parse::<ServiceName>().ok().filter(|name| state.services.contains_key(name));
    named.or_else(|| text.rsplit_once('-').and_then(|(service, _)| service.parse().ok()))
}

impl Caller {
    /// Checks the scope alone.
    fn check_scope(&self, right: Right) -> Result<(), ApiError> {
        match &self.token {
            Some((id, token)) => {
                Token { services: None, ..token.clone() }.check(*id, right, None).map_err(Into::into)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
impl Caller {
    /// Somebody with a token of scope `read`, for services whose names begin with `services`.
    pub(super) fn reading(services: Option<&str>) -> Self {
        let id = TokenId([5; 8]);
        let token = Token {
            secret_sha256: [0; 32],
            scope: blixard_core::cluster::node::TokenScope::Read,
            expires_at: None,
            uses_left: None,
            services: services.map(str::to_owned),
        };
        Self { by: Actor::Token { id }, token: Some((id, token)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_takes_a_right() {
        let check = |method: Method, pattern: &str, right: Right, about: About| {
            assert_eq!(need(&method, pattern), Need { right, about }, "{method} {pattern}");
        };
        use About::{All, Cluster, Container, Handler, Service};
        use Right::{Admin, Read, Write};
        check(Method::GET, "/v1/health", Read, Cluster);
        check(Method::GET, "/v1/services", Read, Handler);
        check(Method::POST, "/v1/services", Write, Handler);
        check(Method::GET, "/v1/services/{name}", Read, Service);
        check(Method::DELETE, "/v1/services/{name}", Write, Service);
        check(Method::POST, "/v1/services/{name}/rollback", Write, Service);
        check(Method::GET, "/v1/replicas/{id}/logs", Read, Container);
        check(Method::GET, "/v1/replicas/{id}/files", Write, Container);
        check(Method::PUT, "/v1/replicas/{id}/files", Write, Container);
        check(Method::POST, "/v1/replicas/{id}/exec", Write, Container);
        check(Method::POST, "/v1/replicas/{id}/kill", Write, Container);
        check(Method::GET, "/v1/nodes/{id}", Read, Cluster);
        check(Method::DELETE, "/v1/nodes/{id}", Admin, All);
        check(Method::POST, "/v1/nodes/{id}/drain", Admin, All);
        check(Method::POST, "/v1/node/down", Admin, All);
        check(Method::GET, "/v1/tokens", Admin, All);
        check(Method::POST, "/v1/tokens", Admin, All);
        check(Method::GET, "/v1/images", Read, All);
        check(Method::POST, "/v1/images/prune", Write, All);
        check(Method::GET, "/v1/audit", Read, All);
        check(Method::GET, "/v1/volumes", Read, All);
        check(Method::POST, "/v1/volumes/{name}/sync", Write, All);
        check(Method::DELETE, "/v1/volumes/{name}", Write, All);
        check(Method::GET, "/v1/what/comes/later", Admin, All);
    }
}

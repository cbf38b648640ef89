//! Who may do what: by where a request comes in, and for TCP by its token, Host and Origin.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use blixard_core::api::token::Secret;
use blixard_core::cluster::ClusterState;
use blixard_core::cluster::node::TokenScope;
use blixard_core::time::UtcMs;
use http::{HeaderMap, Method, header};

use super::context::Api;
use super::error::ApiError;

/// Where a request comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The Unix socket, whose file mode admits: everything.
    Socket,
    /// TCP: reading, and with an API token everything. Host and Origin are checked, so that a
    /// page in somebody's browser cannot reach it.
    Tcp,
    /// Another member's link: everything, on behalf of a caller that member has admitted. Never
    /// passed on to a third.
    Peer,
}

/// What a caller may do, once admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Principal {
    /// Everything.
    Full,
    /// Reading, without the values of environment variables.
    Reader,
}

/// Admits a request or answers why not.
pub(super) async fn check(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let principal = match api.access {
        Access::Socket | Access::Peer => Ok(Principal::Full),
        Access::Tcp => {
            let now = api.handle.platform.clock.utc();
            let token_ok = |token: &Secret| admits(&api.handle.state(), token, now);
            tcp_principal(request.method(), request.headers(), &token_ok)
        }
    };
    match principal {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// What a caller over TCP may do.
fn tcp_principal(
    method: &Method,
    headers: &HeaderMap,
    token_ok: &dyn Fn(&Secret) -> bool,
) -> Result<Principal, ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !host_is_ours(host) {
        return Err(ApiError::forbidden(
            format!("the Host header `{host}` is not this node"),
            "address the node by IP address or as localhost",
        ));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        if origin.strip_prefix("http://") != Some(host) {
            return Err(ApiError::forbidden(format!("requests from pages of `{origin}` are refused"), ""));
        }
    }
    if let Some(authorization) = text(header::AUTHORIZATION) {
        let token = authorization.strip_prefix("Bearer ").and_then(|token| token.trim().parse().ok());
        return match token {
            Some(token) if token_ok(&token) => Ok(Principal::Full),
            _ => Err(ApiError::unauthorized(
                "the API token is unknown, expired or malformed",
                "make one on a node with `blixard cluster token create --scope api`",
            )),
        };
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(Principal::Reader);
    }
    Err(ApiError::unauthorized(
        "over TCP, changing anything takes an API token",
        "use the Unix socket, or a token of `blixard cluster token create --scope api`: --token, BLIXARD_TOKEN or `Authorization: Bearer TOKEN`",
    ))
}

/// Whether a Host header cannot be another site's name that resolves to us: it is an IP address or
/// localhost, with any port.
fn host_is_ours(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a token admits to the API now.
fn admits(state: &ClusterState, token: &Secret, now: UtcMs) -> bool {
    state.tokens.get(&token.id).is_some_and(|known| {
        known.scope == TokenScope::Api
            && known.secret_sha256 == token.sha256()
            && known.expires_at.is_none_or(|end| end > now.max(state.time))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, Method};

    use super::{Principal, Secret, tcp_principal};

    fn ask(method: Method, headers: &[(&str, &str)]) -> Option<Principal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        tcp_principal(&method, &map, &|token: &Secret| token.secret == [0xaa; 32]).ok()
    }

    #[test]
    fn tcp_reads_without_a_token_and_writes_with_one() {
        let host = ("host", "127.0.0.1:8082");
        let good = format!("Bearer 0101010101010101.{}", "aa".repeat(32));
        let wrong = format!("Bearer 0101010101010101.{}", "bb".repeat(32));
        assert_eq!(ask(Method::GET, &[host]), Some(Principal::Reader));
        assert_eq!(ask(Method::POST, &[host]), None);
        assert_eq!(ask(Method::DELETE, &[host]), None);
        assert_eq!(ask(Method::POST, &[host, ("authorization", &good)]), Some(Principal::Full));
        assert_eq!(ask(Method::POST, &[host, ("authorization", &wrong)]), None);
        assert_eq!(ask(Method::GET, &[host, ("authorization", &wrong)]), None);
        assert_eq!(ask(Method::POST, &[host, ("authorization", "Bearer x")]), None);
    }

    #[test]
    fn only_our_own_host_and_origin_are_served() {
        let check = |headers: &[(&str, &str)], expect: bool| {
            assert_eq!(ask(Method::GET, headers).is_some(), expect, "{headers:?}");
        };
        check(&[("host", "localhost:8082")], true);
        check(&[("host", "LOCALHOST")], true);
        check(&[("host", "[::1]:8082")], true);
        check(&[("host", "10.77.0.1")], true);
        check(&[("host", "evil.example:8082")], false);
        check(&[("host", "127.0.0.1.evil.example")], false);
        check(&[], false);
        check(&[("host", "localhost:8082"), ("origin", "http://localhost:8082")], true);
        check(&[("host", "localhost:8082"), ("origin", "http://localhost:9999")], false);
        check(&[("host", "localhost:8082"), ("origin", "https://evil.example")], false);
        check(&[("host", "localhost:8082"), ("origin", "null")], false);
    }
}

//! Who may do what: by where a request comes in, and for TCP by its token, and by the headers that
//! tell what a browser was made to send from what somebody meant to.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use blixard_core::api::token::Secret;
use blixard_core::cluster::node::TokenScope;
use blixard_core::cluster::{ClusterState, Right};
use blixard_core::time::UtcMs;
use http::{HeaderMap, Method, StatusCode, header};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::connections::Standing;
use super::context::Api;
use super::error::ApiError;
use super::rights;

/// What is read over TCP without a token: whether the node serves and its version, the members' names
/// and addresses, and the description of this API. None of it asks another member.
const OPEN: [&str; 3] = ["/v1/health", "/v1/peers", "/v1/openapi.json"];

/// Where a request comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The Unix socket, whose file mode admits: everything.
    Socket,
    /// TCP in the clear, which is loopback: with a token everything, without one next to nothing.
    /// Host, Origin and Sec-Fetch-Site are checked, so that a page in somebody's browser cannot
    /// reach it.
    Tcp,
    /// The same within TLS by this certificate, whose names are the node's as well.
    Tls(CertificateDer<'static>),
    /// Another member's link: everything, on behalf of a caller that member has admitted. Never
    /// passed on to a third.
    Peer,
}

/// What a caller may do, once admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Principal {
    /// Everything.
    Full,
    /// Reading what is open to anybody.
    Reader,
}

/// Admits a request or answers why not.
pub(super) async fn check(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let standing = request.extensions().get::<Standing>().cloned();
    let mut principal = judge(&api, &api.handle.state(), &request);
    if !matches!(principal, Ok(Principal::Full)) {
        api.strangers.turn(&*api.handle.platform.clock).await;
    }
    if principal.as_ref().is_err_and(ApiError::is_unauthorized)
        && request.headers().contains_key(header::AUTHORIZATION)
    {
        // A token that this node's state does not have yet may be one that the cluster has.
        let newest = api.read().await;
        principal = judge(&api, &newest.state, &request).map_err(|error| newest.unconfirmed(error));
    }
    match principal {
        Ok(principal) => {
            if let Some(standing) = standing.as_ref().filter(|_| principal == Principal::Full) {
                standing.admit();
            }
            request.extensions_mut().insert(principal);
            let response = next.run(request).await;
            if let Some(standing) = standing.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS)
            {
                standing.become_session();
            }
            response
        }
        Err(error) => error.into_response(),
    }
}

/// What the caller of a request may do, as far as `state` says.
fn judge(api: &Api, state: &ClusterState, request: &Request) -> Result<Principal, ApiError> {
    let access = match &api.access {
        Access::Socket | Access::Peer => return Ok(Principal::Full),
        access => access,
    };
    let now = api.handle.platform.clock.utc();
    let token_ok = |token: &Secret| admits(state, token, now);
    let (method, path) = (request.method(), request.uri().path());
    let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    tcp_principal(access, method, path, request.headers(), rights::right(method, pattern), &token_ok)
}

/// What a caller over TCP may do; `right` is what the request takes.
fn tcp_principal(
    access: &Access,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    right: Right,
    token_ok: &dyn Fn(&Secret) -> bool,
) -> Result<Principal, ApiError> {
    check_browser(access, headers)?;
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let token = authorization.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        let token = token.and_then(|token| token.trim().parse().ok());
        return match token {
            Some(token) if token_ok(&token) => Ok(Principal::Full),
            _ => {
                let error = "the API token is unknown, expired or malformed";
                Err(ApiError::unauthorized(error, token_hint(right)))
            }
        };
    }
    if (method == Method::GET || method == Method::HEAD) && OPEN.contains(&path) {
        return Ok(Principal::Reader);
    }
    Err(ApiError::unauthorized("over TCP this takes an API token", token_hint(right)))
}

/// What to do without a token.
fn token_hint(right: Right) -> String {
    format!(
        "use the Unix socket, or make a token on a node with `blixard cluster token create --scope {right}` and give it as BLIXARD_TOKEN, --token or `Authorization: Bearer TOKEN`"
    )
}

/// Refuses what a page of another site had a browser send, reading or not.
fn check_browser(access: &Access, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    if headers.get_all(header::HOST).iter().count() > 1 || !host_is_ours(access, host) {
        return Err(ApiError::forbidden(
            format!("the Host header `{}` is not this node", host.escape_debug()),
            "address the node by IP address, as localhost, or by a name that its certificate is for",
        ));
    }
    let scheme = if matches!(access, Access::Tls(_)) { "https://" } else { "http://" };
    if let Some(origin) = text(header::ORIGIN)
        && origin.strip_prefix(scheme) != Some(host)
    {
        let error = format!("requests from pages of `{}` are refused", origin.escape_debug());
        return Err(ApiError::forbidden(error, ""));
    }
    // `none` is what a person typed or chose; browsers tell it, and no page can say otherwise.
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return Err(ApiError::forbidden("requests from pages of other sites are refused", ""));
    }
    Ok(())
}

/// Whether a Host header cannot be another site's name that resolves to us: it is an IP address,
/// localhost, or a name of our certificate, with any port.
fn host_is_ours(access: &Access, host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok()
        || matches!(access, Access::Tls(certificate) if is_named(certificate, name))
}

fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else { return false };
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

/// Whether a token admits to the API now.
fn admits(state: &ClusterState, token: &Secret, now: UtcMs) -> bool {
    state.tokens.get(&token.id).is_some_and(|known| {
        known.scope != TokenScope::Join
            && known.secret_sha256 == token.sha256()
            && known.expires_at.is_none_or(|end| end > now.max(state.time))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, Method};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::{Access, OPEN, Principal, Secret, rights, tcp_principal};

    fn ask_by(
        access: &Access,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Principal, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let token_ok = |token: &Secret| token.secret == [0xaa; 32];
        let right = rights::right(&method, Some(path));
        tcp_principal(access, &method, path, &map, right, &token_ok).map_err(|error| format!("{error:?}"))
    }

    fn ask(method: Method, path: &str, headers: &[(&str, &str)]) -> Option<Principal> {
        ask_by(&Access::Tcp, method, path, headers).ok()
    }

    #[test]
    fn tcp_takes_a_token_for_everything_but_what_is_open() {
        let host = ("host", "127.0.0.1:8082");
        let good = format!("Bearer 0101010101010101.{}", "aa".repeat(32));
        let wrong = format!("Bearer 0101010101010101.{}", "bb".repeat(32));
        for path in OPEN {
            assert_eq!(ask(Method::GET, path, &[host]), Some(Principal::Reader), "{path}");
            assert_eq!(ask(Method::HEAD, path, &[host]), Some(Principal::Reader), "{path}");
            assert_eq!(ask(Method::POST, path, &[host]), None, "{path}");
            assert_eq!(ask(Method::GET, path, &[host, ("authorization", &wrong)]), None, "{path}");
        }
        let closed = ["/v1/services", "/v1/replicas", "/v1/replicas/web-0/logs", "/v1/nodes", "/v1/cluster"];
        let odd =
            ["/v1/events", "/v1/tokens", "/v1/nothing", "/", "/v1/health/", "//v1/health", "/v1/Health"];
        for path in closed.into_iter().chain(odd) {
            assert_eq!(ask(Method::GET, path, &[host]), None, "{path}");
            assert_eq!(ask(Method::HEAD, path, &[host]), None, "{path}");
            assert_eq!(ask(Method::GET, path, &[host, ("authorization", &good)]), Some(Principal::Full));
            assert_eq!(ask(Method::GET, path, &[host, ("authorization", &wrong)]), None);
            assert_eq!(ask(Method::GET, path, &[host, ("authorization", "Bearer x")]), None);
            assert_eq!(ask(Method::GET, path, &[host, ("authorization", "Bearer \u{e9}")]), None);
        }
        assert_eq!(ask(Method::POST, "/v1/services", &[host]), None);
        assert_eq!(
            ask(Method::DELETE, "/v1/services/web", &[host, ("authorization", &good)]),
            Some(Principal::Full)
        );
    }

    #[test]
    fn a_refusal_says_how_to_get_a_token() {
        let refused =
            ask_by(&Access::Tcp, Method::GET, "/v1/services", &[("host", "127.0.0.1")]).unwrap_err();
        assert!(refused.contains("BLIXARD_TOKEN") && refused.contains("cluster token create"), "{refused}");
        assert!(refused.contains("401"), "{refused}");
        let check = |method: Method, path: &str, scope: &str| {
            let refused = ask_by(&Access::Tcp, method, path, &[("host", "127.0.0.1")]).unwrap_err();
            assert!(refused.contains(&format!("--scope {scope}`")), "{refused}");
        };
        check(Method::GET, "/v1/services", "read");
        check(Method::POST, "/v1/services", "write");
        check(Method::GET, "/v1/tokens", "admin");
    }

    #[test]
    fn only_our_own_host_and_origin_are_served() {
        let check = |headers: &[(&str, &str)], expect: bool| {
            assert_eq!(ask(Method::GET, "/v1/health", headers).is_some(), expect, "{headers:?}");
            let token = format!("Bearer 0101010101010101.{}", "aa".repeat(32));
            let with_token: Vec<_> =
                headers.iter().copied().chain([("authorization", token.as_str())]).collect();
            assert_eq!(ask(Method::GET, "/v1/services", &with_token).is_some(), expect, "{headers:?}");
        };
        check(&[("host", "localhost:8082")], true);
        check(&[("host", "LOCALHOST")], true);
        check(&[("host", "[::1]:8082")], true);
        check(&[("host", "10.77.0.1")], true);
        check(&[("host", "evil.example:8082")], false);
        check(&[("host", "127.0.0.1.evil.example")], false);
        check(&[("host", "localhost"), ("host", "evil.example")], false);
        check(&[], false);
        check(&[("host", "localhost:8082"), ("origin", "http://localhost:8082")], true);
        check(&[("host", "localhost:8082"), ("origin", "https://localhost:8082")], false);
        check(&[("host", "localhost:8082"), ("origin", "http://localhost:9999")], false);
        check(&[("host", "localhost:8082"), ("origin", "https://evil.example")], false);
        check(&[("host", "localhost:8082"), ("origin", "null")], false);
        check(&[("host", "localhost"), ("sec-fetch-site", "none")], true);
        check(&[("host", "localhost"), ("sec-fetch-site", "same-origin")], true);
        check(&[("host", "localhost"), ("sec-fetch-site", "same-site")], false);
        check(&[("host", "localhost"), ("sec-fetch-site", "cross-site")], false);
        check(&[("host", "localhost"), ("sec-fetch-site", "")], false);
    }

    #[test]
    fn names_of_the_certificate_are_ours_within_tls() {
        let pem = include_bytes!("../../testdata/http-cert.pem");
        let tls = Access::Tls(CertificateDer::from_pem_slice(pem).unwrap());
        let check = |headers: &[(&str, &str)], expect: bool| {
            assert_eq!(ask_by(&tls, Method::GET, "/v1/health", headers).is_ok(), expect, "{headers:?}");
        };
        check(&[("host", "node1.blixard.test:8082")], true);
        check(&[("host", "10.77.0.1:8082")], true);
        check(&[("host", "node2.example")], false);
        check(&[("host", "node1.blixard.test"), ("origin", "https://node1.blixard.test")], true);
        check(&[("host", "node1.blixard.test"), ("origin", "http://node1.blixard.test")], false);
        check(&[("host", "")], false);
    }
}

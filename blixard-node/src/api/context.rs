//! What handlers share: the node, reading its state, writing through it, and extractors whose
//! failures are JSON errors.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use blixard_core::api::{MADE_AT_HEADER, REQUEST_ID_HEADER, STALE_HEADER};
use blixard_core::cluster::{Actor, ClusterState, Outcome, Write};
use blixard_core::id::RequestId;
use blixard_core::limits::WRITE_DEADLINE;
use blixard_core::time::{Mono, UtcMs};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::access::Access;
use super::error::ApiError;
use super::rights::Caller;
use super::strangers::Strangers;
use super::views;
use crate::handle::{NodeHandle, Unconfirmed};
use crate::platform::Clock;

/// How long a read waits for a quorum before it answers from this node's own state.
const READ_DEADLINE: Duration = Duration::from_millis(1500);

/// One node's API, for callers of one kind.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) handle: NodeHandle,
    pub(super) access: Access,
    pub(super) strangers: Arc<Strangers>,
}

/// A state to answer from, and why it may be old.
pub(super) struct Snapshot {
    pub(super) state: Arc<ClusterState>,
    pub(super) stale: Option<String>,
    /// When a write that this read leads to has waited for long enough.
    give_up: Mono,
}

impl Snapshot {
    /// Answers `body`, which says itself whether it is stale.
    pub(super) fn answer(&self, body: impl Serialize) -> Response {
        let mut response = Json(body).into_response();
        if let Some(why) = &self.stale {
            let text: String = why.chars().map(|c| if (' '..='~').contains(&c) { c } else { ' ' }).collect();
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert(STALE_HEADER, value);
            }
        }
        response
    }

    /// The error for something that is not in the state: that it is not there is certain only of a
    /// state that a quorum confirmed.
    pub(super) fn missing(&self, error: ApiError) -> ApiError {
        if error.is_not_found() { self.unconfirmed(error) } else { error }
    }

    /// The error for what depends on something that is not in the state.
    pub(super) fn unconfirmed(&self, error: ApiError) -> ApiError {
        match &self.stale {
            Some(why) => ApiError::unavailable(
                format!("{}, as far as this node knows; {why}", error.message()),
                "try again when the cluster answers",
            ),
            None => error,
        }
    }

    /// How long a write that this read leads to may still wait.
    pub(super) fn left(&self, api: &Api) -> Duration {
        self.give_up.since(api.handle.platform.clock.now())
    }

    /// Whether the state may be old.
    pub(super) fn is_stale(&self) -> bool {
        self.stale.is_some()
    }
}

impl Api {
    /// The newest state, or without a quorum this node's own, marked stale.
    pub(super) async fn read(&self) -> Snapshot {
        let give_up = self.handle.platform.clock.now() + WRITE_DEADLINE;
        match self.handle.state_confirmed(READ_DEADLINE).await {
            Ok(state) => Snapshot { state, stale: None, give_up },
            Err(Unconfirmed { why, missing }) => {
                let state = views::without(&self.handle.state(), &missing);
                let stale = Some(why);
                Snapshot { state: Arc::new(state), stale, give_up }
            }
        }
    }

    /// Has the cluster apply `write`; a refusal is an error.
    pub(super) async fn write(
        &self,
        request: RequestIdent,
        write: Write,
    ) -> Result<(u64, Outcome), ApiError> {
        self.write_within(request, write, WRITE_DEADLINE).await
    }

    /// As [`Api::write`], for a request that has waited for something else before.
    pub(super) async fn write_within(
        &self,
        request: RequestIdent,
        write: Write,
        limit: Duration,
    ) -> Result<(u64, Outcome), ApiError> {
        match self.handle.write_within(request.id, request.made_at, write, request.by, limit).await? {
            (_, Outcome::Refused(refusal)) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }

    /// Waits for `future`, at most `limit`. The future is dropped when the limit passes.
    pub(super) async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        within(self.handle.platform.clock.as_ref(), limit, future).await
    }
}

async fn within<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let deadline = clock.sleep_until(clock.now() + limit);
    // Cancel safe: whichever loses is dropped, and the caller is told.
    tokio::select! {
        biased;
        output = future => Some(output),
        () = deadline => None,
    }
}

fn derived_request(request: RequestId, n: u64) -> RequestId {
    let mut hash = Sha256::new();
    hash.update(request.0);
    hash.update(n.to_be_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    RequestId(*digest.first_chunk().expect("32 bytes start with 16"))
}

/// The request's id: the header's, or one drawn here, after which retries are not recognised. And
/// when it was first sent, if the client said so.
#[derive(Debug, Clone)]
pub(super) struct RequestIdent {
    pub(super) id: RequestId,
    pub(super) given: bool,
    made_at: Option<UtcMs>,
    /// Who makes it.
    by: Actor,
}

impl RequestIdent {
    /// One that nobody else draws.
    pub(super) fn drawn(api: &Api, caller: &Caller) -> Self {
        let mut bytes = [0; 16];
        api.handle.platform.rng.fill(&mut bytes);
        Self { id: RequestId(bytes), given: false, made_at: None, by: caller.by.clone() }
    }

    /// The `n`-th of several writes that one request makes: the same at every retry.
    pub(super) fn derived(&self, n: u64) -> Self {
        Self { id: derived_request(self.id, n), ..self.clone() }
    }
}

impl FromRequestParts<Api> for RequestIdent {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_else(|| Caller::member(api));
        let Some(value) = parts.headers.get(REQUEST_ID_HEADER) else {
            return Ok(Self::drawn(api, &caller));
        };
        let text = value.to_str().unwrap_or_default();
        let id = text.parse().map_err(|error| {
            ApiError::bad_request(
                format!("header {REQUEST_ID_HEADER}: {error}"),
                "send 32 random hexadecimal digits",
            )
        })?;
        let made_at = parts.headers.get(MADE_AT_HEADER).map(made_at).transpose()?;
        Ok(Self { id, given: true, made_at, by: caller.by })
    }
}

fn made_at(value: &HeaderValue) -> Result<UtcMs, ApiError> {
    let millis = value.to_str().ok().and_then(|text| text.parse().ok()).map(UtcMs);
    millis.ok_or_else(|| {
        let error = format!("header {MADE_AT_HEADER}: not a number of milliseconds");
        ApiError::bad_request(error, "send `time` of GET /v1/health")
    })
}

/// A JSON body.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let Json(body) = Json::from_request(request, api).await?;
        Ok(Self(body))
    }
}

/// Query parameters.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Query(query) = Query::from_request_parts(parts, api).await?;
        Ok(Self(query))
    }
}

/// The one parameter of a path, decoded.
pub(super) struct Segment(pub(super) String);

impl FromRequestParts<Api> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Path(text) = Path::from_request_parts(parts, api).await?;
        Ok(Self(text))
    }
}

/// A query flag: `?all`, `?all=1` and `?all=true` are set.
pub(super) fn flag(value: Option<&str>) -> bool {
    matches!(value, Some("" | "1" | "true"))
}

/// 201 with a JSON body.
pub(super) fn created(body: impl Serialize) -> Response {
    (StatusCode::CREATED, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use blixard_core::id::RequestId;

    use super::{derived_request, flag, made_at};

    #[test]
    fn derived_requests_differ_and_repeat() {
        let request = RequestId([7; 16]);
        assert_eq!(derived_request(request, 1), derived_request(request, 1));
        assert_ne!(derived_request(request, 1), derived_request(request, 2));
        assert_ne!(derived_request(request, 1), derived_request(RequestId([8; 16]), 1));
    }

    #[test]
    fn the_time_of_a_request_is_in_milliseconds() {
        let check = |text: &'static str, expect: Option<u64>| {
            let value = http::HeaderValue::from_static(text);
            assert_eq!(made_at(&value).ok().map(|at| at.0), expect, "{text}");
        };
        check("1795219199999", Some(1_795_219_199_999));
        check("-1", None);
        check("2026-11-21T00:00:00Z", None);
        check("", None);
    }

    #[test]
    fn flags_are_set_by_presence_or_truth() {
        let check = |value, expect| assert_eq!(flag(value), expect, "{value:?}");
        check(None, false);
        check(Some(""), true);
        check(Some("1"), true);
        check(Some("true"), true);
        check(Some("false"), false);
        check(Some("0"), false);
    }
}

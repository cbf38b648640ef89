//! The one map from errors to HTTP statuses, and the JSON body they all share.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use blixard_core::api::ErrorBody;
use blixard_core::cluster::Refusal;
use blixard_core::text::printable;
use http::{HeaderValue, StatusCode, header};

use crate::handle::WriteError;
use crate::platform::{LinkError, RuntimeError};

/// A failed request: its status and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    /// A member was asked and said nothing.
    unanswered: bool,
}

impl ApiError {
    /// What it says may quote what was sent: each text is one line that is safe to show.
    fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        let line = |text: String| printable(&text).into_owned();
        let body = ErrorBody { error: line(error.into()), hint: line(hint.into()), details: Vec::new() };
        Self { status, body, unanswered: false }
    }

    /// 400: the request cannot be understood.
    pub(super) fn bad_request(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }

    /// 401: writing over TCP takes a token.
    pub(super) fn unauthorized(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error, hint)
    }

    /// 403: not for this caller.
    pub(super) fn forbidden(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error, hint)
    }

    /// 404: there is no such thing.
    pub(super) fn not_found(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, hint)
    }

    /// 405: the path exists, the method does not.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not take that method",
            "see GET /v1/openapi.json",
        )
    }

    /// 409: it conflicts with the state as it is.
    pub(super) fn conflict(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error, hint)
    }

    /// 422: it asks for what cannot be.
    pub(super) fn unprocessable(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error, hint)
    }

    /// 503: not now.
    pub(super) fn unavailable(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, hint)
    }

    /// 503: the link to a member broke before it answered.
    pub(super) fn unanswered(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { unanswered: true, ..Self::unavailable(error, hint) }
    }

    /// 500: the state answered what it never answers to such a request.
    pub(super) fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error, "look into the node's log")
    }

    /// Whether it says that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Whether the caller showed nothing that admits it.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Whether a member was asked and said nothing: another attempt may find the link up again.
    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered
    }

    /// The same error with facts behind it.
    pub(super) fn with_details(mut self, details: Vec<String>) -> Self {
        self.body.details = details.iter().map(|detail| printable(detail).into_owned()).collect();
        self
    }

    /// What it says.
    pub(super) fn message(&self) -> &str {
        &self.body.error
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, hint) = match &refusal {
            Refusal::NotFound { what, .. } => (StatusCode::NOT_FOUND, list_hint(what)),
            Refusal::Conflict { .. } | Refusal::TooOld => (StatusCode::CONFLICT, ""),
            Refusal::OutOfBounds { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ""),
            Refusal::Denied { .. } => (StatusCode::FORBIDDEN, ""),
        };
        Self::new(status, refusal.to_string(), hint)
    }
}

/// Which command shows the names there are.
fn list_hint(what: &str) -> &'static str {
    match what {
        "version" => "`blixard service history NAME` lists the versions that are kept",
        "service" => "`blixard service ls` lists the services",
        "replica" => "`blixard ps -a` lists the containers",
        "node" => "`blixard node ls` lists the nodes",
        "volume" => "`blixard volume ls` lists the volumes",
        "token" => "`blixard cluster token ls` lists the tokens",
        _ => "",
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Unavailable(reason) => Self::unavailable(
                reason,
                "it may still be applied: once enough nodes are back, look before you repeat it",
            ),
        }
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Invalid(reason) => Self::bad_request(reason, ""),
            RuntimeError::NotFound(reason) => Self::not_found(reason, "`blixard ps -a` lists the containers"),
            RuntimeError::Unavailable(reason) => {
                Self::unavailable(reason, "try again; the node's log says more")
            }
        }
    }
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        let hint = "`blixard node ls` shows which nodes are up; try again later";
        match error {
            LinkError::Unreachable { .. } | LinkError::Timeout { .. } => {
                Self::unanswered(error.to_string(), hint)
            }
            LinkError::Refused { .. } => Self::unavailable(error.to_string(), hint),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text(), "see GET /v1/openapi.json")
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        let hint = "write each byte that is no letter, digit, `-`, `.`, `_` or `~` as %XX, of UTF-8 text";
        Self::new(rejection.status(), rejection.body_text(), hint)
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text(), "see GET /v1/openapi.json")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::Refusal;
    use http::StatusCode;

    use super::{ApiError, WriteError};

    #[test]
    fn each_refusal_has_its_status() {
        let check = |refusal: Refusal, expect: u16| {
            assert_eq!(ApiError::from(refusal.clone()).status.as_u16(), expect, "{refusal}");
        };
        let message = || "m".to_owned();
        check(Refusal::NotFound { what: "service".into(), name: "web".into() }, 404);
        check(Refusal::Conflict { message: message() }, 409);
        check(Refusal::TooOld, 409);
        check(Refusal::OutOfBounds { message: message() }, 422);
        check(Refusal::Denied { message: message() }, 403);
    }

    #[test]
    fn a_write_without_quorum_is_503_and_may_be_retried() {
        let error = ApiError::from(WriteError::Unavailable("nodes 2 and 3 are missing".into()));
        assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE);
        let response = axum::response::IntoResponse::into_response(error);
        assert_eq!(response.headers()[http::header::RETRY_AFTER], "1");
    }
}

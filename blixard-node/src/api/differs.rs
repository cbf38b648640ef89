//! A node whose state differs from the majority's answers nobody.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ApiError;
use super::context::Api;

/// What is answered all the same: it says nothing of the state.
const DOCUMENT: &str = "/v1/openapi.json";

/// Refuses whatever is asked of a node whose state is known to be wrong, also when that was found while
/// the answer was being made.
pub(super) async fn check(State(api): State<Api>, request: Request, next: Next) -> Response {
    let excepted = request.uri().path() == DOCUMENT;
    let refused = || {
        let why = api.handle.differs().filter(|_| !excepted)?;
        Some(
            ApiError::unavailable(why, "ask another node; `blixard node ls` on one says which differ")
                .into_response(),
        )
    };
    if let Some(refusal) = refused() {
        return refusal;
    }
    let response = next.run(request).await;
    refused().unwrap_or(response)
}

//! `/v1/audit`: which writes were made lately, and by whom.

use axum::extract::State;
use axum::response::Response;
use blixard_core::api::List;
use blixard_core::cluster::AuditRecord;

use super::context::Api;

/// The latest writes, oldest first, with who made them: refused ones too.
#[utoipa::path(
    get, path = "/v1/audit",
    responses((status = 200, description = "The writes", body = List<AuditRecord>))
)]
pub(super) async fn list(State(api): State<Api>) -> Response {
    let snapshot = api.read().await;
    let items: Vec<AuditRecord> = snapshot.state.audit.iter().map(|record| record.as_ref().clone()).collect();
    snapshot.answer(List { items, stale: snapshot.is_stale() })
}

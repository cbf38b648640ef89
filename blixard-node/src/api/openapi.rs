//! `/v1/openapi.json`, generated from the handlers and the types they speak.

use axum::Json;
use utoipa::OpenApi;

use super::{ended, events, exec, files, images, logs, nodes, removal, replicas, services, tokens};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "blixard",
        description = "The API of a blixard node. Times are milliseconds since 1970 in UTC, sizes are bytes. A write may carry the header `blixard-request-id` (32 hexadecimal digits): repeating it with the same value applies it once. An answer with the header `blixard-stale` is what one node last knew."
    ),
    paths(
        nodes::health,
        serve,
        services::list,
        services::submit,
        services::inspect,
        services::remove,
        services::scale,
        services::stop,
        services::start,
        services::rollback,
        replicas::list,
        replicas::inspect,
        replicas::stop,
        replicas::kill,
        logs::logs,
        ended::list,
        replicas::pulls,
        exec::exec,
        files::read,
        files::write,
        nodes::list,
        nodes::inspect,
        nodes::remove,
        nodes::drain,
        nodes::activate,
        nodes::leave,
        nodes::down,
        nodes::cluster,
        events::events,
        images::list,
        images::pull,
        images::import,
        removal::remove,
        removal::prune,
        removal::disk_usage,
        tokens::list,
        tokens::add,
        tokens::remove,
    )
)]
struct Document;

/// The API's description.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    /// Every `.route("...")` of the router, by the router's own source.
    fn routes() -> Vec<String> {
        let source = include_str!("mod.rs");
        let mut paths: Vec<String> = source
            .split(".route(\"")
            .skip(1)
            .filter_map(|rest| rest.split_once('"').map(|(path, _)| path.to_owned()))
            .collect();
        paths.sort();
        paths
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let described: Vec<String> = super::document().paths.paths.into_keys().collect();
        assert_eq!(described, routes());
        assert!(described.len() > 20, "{described:?}");
    }

    #[test]
    fn every_reference_of_the_description_resolves() {
        let document = serde_json::to_value(super::document()).unwrap();
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}

//! `/v1/openapi.json`, generated from the handlers and the types they speak.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::{
    audit, discovery, ended, events, exec, files, images, logs, nodes, removal, replicas, services, tokens,
    volumes,
};

/// Whether an operation can be answered so.
type Applies = fn(&Asked) -> bool;

/// What a request can be answered with besides what its handler says: by who may call, by the
/// extractors, and by the way to the leader.
const SHARED: [(&str, &str, Applies); 10] = [
    ("400", "The request cannot be understood", |asked| asked.parameters || asked.body),
    ("401", "Over TCP, without a token or with a wrong one", |_| true),
    (
        "403",
        "Not for this caller: the Host, Origin or Sec-Fetch-Site header is another's, or the token's scope does not reach",
        |_| true,
    ),
    ("404", "No such thing", |asked| asked.named),
    ("409", "It conflicts with the state as it is, or the request is too old", |asked| {
        asked.named || asked.write
    }),
    ("413", "The body is too large", |asked| asked.body),
    ("415", "The body is not JSON", |asked| asked.body),
    ("422", "Out of bounds, or JSON of another shape", |asked| asked.body || asked.write),
    ("500", "The node does not understand its own state: its log says more", |_| true),
    ("503", "Not now: no majority, or a node or its container runtime does not answer", |_| true),
];

/// What matters of an operation for how it can fail.
struct Asked {
    /// It changes something.
    write: bool,
    body: bool,
    /// Its path names a thing.
    named: bool,
    parameters: bool,
}

/// Adds [`SHARED`] to every operation.
struct SharedErrors;

impl Modify for SharedErrors {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [
                (&mut item.get, false),
                (&mut item.post, true),
                (&mut item.put, true),
                (&mut item.delete, true),
            ];
            for (operation, write) in operations {
                if let Some(operation) = operation {
                    add_errors(operation, write);
                }
            }
        }
    }
}

fn add_errors(operation: &mut Operation, write: bool) {
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let asked = Asked {
        write,
        body: operation.request_body.is_some(),
        named: parameters.iter().any(|parameter| parameter.parameter_in == ParameterIn::Path),
        parameters: write || !parameters.is_empty(),
    };
    for (status, description, applies) in SHARED {
        if applies(&asked) {
            let said = operation.responses.responses.entry(status.to_owned());
            said.or_insert_with(|| RefOr::T(error(description)));
        }
    }
}

fn error(description: &str) -> openapi::Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    ResponseBuilder::new().description(description).content("application/json", body).build()
}

#[derive(OpenApi)]
#[openapi(
    modifiers(&SharedErrors),
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
        replicas::replace,
        replicas::pulls,
        exec::exec,
        files::read,
        files::write,
        nodes::peers,
        discovery::sources,
        discovery::links,
        nodes::list,
        nodes::inspect,
        nodes::remove,
        nodes::drain,
        nodes::activate,
        nodes::leave,
        nodes::down,
        nodes::cluster,
        nodes::rebalance,
        audit::list,
        events::events,
        images::list,
        images::pull,
        images::import,
        removal::remove,
        removal::prune,
        removal::disk_usage,
        tokens::list,
        tokens::add,
        tokens::rotate,
        tokens::remove,
        volumes::list,
        volumes::inspect,
        volumes::remove,
        volumes::sync,
    )
)]
struct Document;

/// The API's description.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The description as it is sent: made once, since anybody may ask for it.
static TEXT: LazyLock<Bytes> =
    LazyLock::new(|| Bytes::from(serde_json::to_vec(&document()).expect("the description is JSON")));

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
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
    fn every_failure_that_any_request_can_meet_is_described() {
        let document = serde_json::to_value(super::document()).unwrap();
        let check = |path: &str, method: &str, expect: &[&str]| {
            let responses = document["paths"][path][method]["responses"].as_object().unwrap();
            let said: Vec<&str> = responses.keys().map(String::as_str).collect();
            assert_eq!(said, expect, "{method} {path}");
        };
        check("/v1/health", "get", &["200", "401", "403", "500", "503"]);
        check("/v1/services", "get", &["200", "401", "403", "500", "503"]);
        let submit = ["201", "400", "401", "403", "409", "413", "415", "422", "500", "503"];
        check("/v1/services", "post", &submit);
        check("/v1/services/{name}", "get", &["200", "400", "401", "403", "404", "409", "500", "503"]);
        let removed = ["200", "400", "401", "403", "404", "409", "422", "500", "503"];
        check("/v1/services/{name}", "delete", &removed);
        let scale = ["200", "400", "401", "403", "404", "409", "413", "415", "422", "500", "503"];
        check("/v1/services/{name}/scale", "post", &scale);
        let exec = ["101", "400", "401", "403", "404", "409", "413", "415", "422", "426", "500", "503"];
        check("/v1/replicas/{id}/exec", "post", &exec);
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

//! `/v1/images`: listing, pulling, and importing an archive into every member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::ErrorBody;
use blixard_core::api::image::{ImageList, ImageRow, ImportAnswer, ImportMember, PullLine, PullRequest};
use blixard_core::api::replica::Progress;
use blixard_core::cluster::NodeStatus;
use blixard_core::id::NodeId;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, header};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{ReaderStream, StreamReader};

use super::access::Access;
use super::context::{Api, JsonBody, Params};
use super::error::ApiError;
use super::proxy;
use super::replicas::{self, ndjson};
use crate::platform::{ImageInfo, ImportedImages, OnProgress, PullProgress};

/// How many lines of a pull's progress wait for a slow reader; more are dropped.
const PROGRESS_LINES: usize = 16;
/// How many members are sent images at a time.
const HANDED_MAX: usize = 4;
/// How often the link may break under one image that is sent to a member.
const HAND_OVER_BREAKS_MAX: u32 = 3;
/// How long an image whose link broke waits before it is sent again.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(1);

/// Which images are listed.
#[derive(serde::Deserialize)]
pub(super) struct ListQuery {
    reference: Option<String>,
}

/// The images of every member; another member is asked for its own only.
#[utoipa::path(
    get, path = "/v1/images",
    params(("reference" = Option<String>, Query, description = "Only the image of this name, of each member")),
    responses((status = 200, description = "The images", body = ImageList))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ApiError> {
    let Some(reference) = &query.reference else {
        if api.access == Access::Peer {
            let own = api.handle.platform.containers.images().await?;
            let items = own.into_iter().map(|image| row(image, api.handle.id)).collect();
            return Ok(Json(ImageList { items, unreachable: Vec::new() }).into_response());
        }
        let (items, unreachable) = all(&api).await?;
        return Ok(Json(ImageList { items, unreachable }).into_response());
    };
    let own = api.handle.platform.containers.image(reference).await?;
    let own: Vec<ImageRow> = own.into_iter().map(|image| row(image, api.handle.id)).collect();
    if api.access == Access::Peer {
        return Ok(Json(ImageList { items: own, unreachable: Vec::new() }).into_response());
    }
    let (items, unreachable) = with_others(&api, own, &of_reference(reference)).await;
    Ok(Json(ImageList { items, unreachable }).into_response())
}

/// The images of every member, and the members that did not answer.
pub(super) async fn all(api: &Api) -> Result<(Vec<ImageRow>, Vec<NodeId>), ApiError> {
    let own = api.handle.platform.containers.images().await?;
    let own = own.into_iter().map(|image| row(image, api.handle.id)).collect();
    Ok(with_others(api, own, "/v1/images").await)
}

async fn with_others(api: &Api, own: Vec<ImageRow>, path: &str) -> (Vec<ImageRow>, Vec<NodeId>) {
    let (mut all, mut unreachable) = (own, Vec::new());
    let others = others(api);
    let answers = others.iter().map(|&node| proxy::ask::<ImageList>(api, node, path));
    for (&node, answer) in others.iter().zip(join_all(answers).await) {
        match answer {
            Ok(list) => all.extend(list.items),
            Err(_) => unreachable.push(node),
        }
    }
    (merge(all), unreachable)
}

/// The path of the image of one name. A reference has no character that a query would need escaped;
/// what is none is refused by whoever is asked.
pub(super) fn of_reference(reference: &str) -> String {
    format!("/v1/images?reference={}", escaped(reference))
}

/// A text as a query's value.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~/:@".contains(&b) => escaped.push(char::from(b)),
            b => escaped.push_str(&format!("%{b:02X}")),
        }
    }
    escaped
}

pub(super) fn row(image: ImageInfo, node: NodeId) -> ImageRow {
    let ImageInfo { reference, digest, bytes, imported } = image;
    ImageRow { reference, digest, bytes, nodes: vec![node], imported }
}

/// One row for each image, with all the members that have it.
pub(super) fn merge(rows: Vec<ImageRow>) -> Vec<ImageRow> {
    let mut merged: BTreeMap<(String, String), ImageRow> = BTreeMap::new();
    for row in rows {
        let key = (row.reference.clone(), row.digest.clone());
        match merged.get_mut(&key) {
            Some(known) => {
                known.bytes = known.bytes.max(row.bytes);
                known.imported |= row.imported;
                known.nodes.extend(row.nodes);
                known.nodes.sort_unstable();
                known.nodes.dedup();
            }
            None => drop(merged.insert(key, row)),
        }
    }
    merged.into_values().collect()
}

pub(super) fn others(api: &Api) -> Vec<NodeId> {
    api.handle.state().nodes.keys().copied().filter(|&node| node != api.handle.id).collect()
}

/// Fetches an image to this node. Progress is one JSON object a line; the last says how it ended.
#[utoipa::path(
    post, path = "/v1/images/pull", request_body = PullRequest,
    responses((status = 200, description = "Progress", body = PullLine, content_type = "application/x-ndjson"))
)]
pub(super) async fn pull(
    State(api): State<Api>,
    JsonBody(PullRequest { reference }): JsonBody<PullRequest>,
) -> Response {
    let (lines, receiver) = mpsc::channel::<Bytes>(PROGRESS_LINES);
    let sink = lines.clone();
    let progress: OnProgress = Arc::new(move |PullProgress { bytes, bytes_total }| {
        let line = PullLine { progress: Some(Progress { bytes, bytes_total }), ..PullLine::default() };
        // A full queue drops the line: the next one says more.
        drop(sink.try_send(ndjson(&line)));
    });
    let containers = Arc::clone(&api.handle.platform.containers);
    let task = async move {
        let last = match containers.pull(&reference, None, progress).await {
            Ok(digest) => PullLine { digest: Some(digest), ..PullLine::default() },
            Err(error) => PullLine { error: Some(error.to_string()), ..PullLine::default() },
        };
        // Nobody may be listening any more; the image is here all the same.
        drop(lines.send(ndjson(&last)).await);
    };
    api.handle.platform.spawner.spawn("api-pull", Box::pin(task));
    let lines = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
    replicas::stream(Body::from_stream(lines))
}

/// How an archive is taken in.
#[derive(serde::Deserialize)]
pub(super) struct ImportQuery {
    name: Option<String>,
}

/// Takes in an OCI or Docker archive (tar, perhaps compressed) here, then at every other member.
#[utoipa::path(
    post, path = "/v1/images/import", request_body(content = Vec<u8>, content_type = "application/x-tar"),
    params(("name" = Option<String>, Query, description = "What the image is called, instead of by the archive")),
    responses((status = 200, description = "What became of it at each member", body = ImportAnswer), (status = 400, description = "Not an image archive", body = ErrorBody))
)]
pub(super) async fn import(
    State(api): State<Api>,
    Params(query): Params<ImportQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let body = Box::pin(StreamReader::new(body));
    let imported = api.handle.platform.containers.import(body, query.name.as_deref()).await?;
    let ImportedImages { images, passed_over } = imported;
    let mut members = vec![ImportMember { node: api.handle.id, error: None }];
    if api.access != Access::Peer {
        let handing = others(&api).into_iter().map(async |node| {
            let error = hand_over(&api, node, &images).await.err();
            ImportMember { node, error: error.map(|error| error.message().to_owned()) }
        });
        members.extend(stream::iter(handing).buffered(HANDED_MAX).collect::<Vec<_>>().await);
    }
    let images = images.into_iter().map(|image| row(image, api.handle.id)).collect();
    Ok(Json(ImportAnswer { images, members, passed_over }).into_response())
}

/// Sends images to another member, one archive each. One whose link breaks is sent again.
async fn hand_over(api: &Api, node: NodeId, images: &[ImageInfo]) -> Result<(), ApiError> {
    for image in images {
        let mut breaks = 0;
        while let Err(error) = hand_over_one(api, node, image).await {
            breaks += 1;
            if !error.is_unanswered() || breaks == HAND_OVER_BREAKS_MAX || is_down(api, node) {
                return Err(error);
            }
            tracing::info!(peer.id = %node, image = image.reference, err = error.message(), "sending an image again");
            let clock = &api.handle.platform.clock;
            clock.sleep_until(clock.now() + HAND_OVER_PAUSE).await;
        }
    }
    Ok(())
}

fn is_down(api: &Api, node: NodeId) -> bool {
    api.handle.state().nodes.get(&node).is_none_or(|node| node.status == NodeStatus::Down)
}

async fn hand_over_one(api: &Api, node: NodeId, image: &ImageInfo) -> Result<(), ApiError> {
    let archive = api.handle.platform.containers.export(&image.reference, Some(&image.digest)).await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/images/import")
        .header(header::CONTENT_TYPE, "application/x-tar")
        .body(Body::from_stream(ReaderStream::new(archive)))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let response = proxy::send(api, node, request).await?;
    proxy::read_json::<ImportAnswer>(node, response).await.map(drop)
}

#[cfg(test)]
mod tests {
    use blixard_core::api::image::ImageRow;
    use blixard_core::id::NodeId;

    use super::merge;

    #[test]
    fn an_image_on_several_members_is_one_row() {
        let row = |reference: &str, digest: &str, node: u64| ImageRow {
            reference: reference.into(),
            digest: digest.into(),
            bytes: 5,
            nodes: vec![NodeId(node)],
            imported: false,
        };
        let merged = merge(vec![row("b", "1", 2), row("a", "1", 1), row("b", "1", 1), row("b", "2", 3)]);
        let short: Vec<_> = merged
            .iter()
            .map(|row| (row.reference.as_str(), row.digest.as_str(), row.nodes.as_slice()))
            .collect();
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        assert_eq!(short, [("a", "1", &[one][..]), ("b", "1", &[one, two][..]), ("b", "2", &[three][..])]);
    }
}

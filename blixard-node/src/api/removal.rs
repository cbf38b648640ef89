//! Removing images from every member, and what members have on disk: `DELETE /v1/images`,
//! `POST /v1/images/prune`, `GET /v1/system/df`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::ErrorBody;
use blixard_core::api::image::{DiskUsageList, DiskUsageRow, ImageRemoval, ImageRow, ImportMember};
use blixard_core::cluster::ClusterState;
use blixard_core::id::NodeId;
use blixard_core::image_reference::ImageReference;
use blixard_core::spec::ImageSpec;
use futures_util::future::join_all;
use http::Method;

use super::access::Access;
use super::context::{Api, Params, Snapshot, flag};
use super::error::ApiError;
use super::images::{self, escaped, merge, others, row};
use super::proxy;
use crate::platform::DiskUsage;

/// How long a member may take to remove images: containerd collects garbage meanwhile.
const REMOVE_DEADLINE: Duration = Duration::from_secs(60);
/// The least digits of a digest that name an image.
const DIGEST_DIGITS_MIN: usize = 7;

/// How many digits of a digest `blixard image ls` shows: so many alone are a digest too.
const SHOWN_DIGITS: usize = 12;

/// Which image is removed.
#[derive(serde::Deserialize)]
pub(super) struct RemoveQuery {
    reference: String,
    force: Option<String>,
}

/// Removes an image from every member; another member removes its own only. One that a service needs
/// is removed by force alone.
#[utoipa::path(
    delete, path = "/v1/images",
    params(
        ("reference" = String, Query, description = "Its name, or `sha256:` and 7 or more digits of its digest"),
        ("force" = Option<bool>, Query, description = "Also when a service needs it")
    ),
    responses(
        (status = 200, description = "Removed", body = ImageRemoval),
        (status = 404, description = "No member has it", body = ErrorBody),
        (status = 409, description = "A service needs it", body = ErrorBody),
        (status = 503, description = "No quorum: what is needed is not certain", body = ErrorBody)
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Params(query): Params<RemoveQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::read(&query.reference)?;
    if api.access == Access::Peer {
        return Ok(Json(remove_here(&api, |image| wanted.names(image)).await?).into_response());
    }
    let (found, unreachable) = images::all(&api).await?;
    let found: Vec<ImageRow> = found.into_iter().filter(|image| wanted.names(image)).collect();
    if found.is_empty() && unreachable.is_empty() {
        return Err(ApiError::not_found(
            format!("no node has an image `{}`", query.reference),
            "`blixard image ls` lists the images",
        ));
    }
    if !flag(query.force.as_deref()) {
        let snapshot = api.read().await;
        certain(&snapshot, "try again when the cluster answers, or use --force")?;
        let mut users: Vec<String> =
            found.iter().flat_map(|image| users_of(&snapshot.state, image)).collect();
        users.sort_unstable();
        users.dedup();
        if !users.is_empty() {
            return Err(ApiError::conflict(
                format!("image `{}` is needed by {}", query.reference, users.join(", ")),
                "remove the service first, or use --force: what runs goes on, what starts again has to fetch it anew",
            ));
        }
    }
    let path = format!("/v1/images?reference={}", escaped(&query.reference));
    let own = remove_here(&api, |image| wanted.names(image)).await?;
    Ok(Json(everywhere(&api, own, Method::DELETE, &path).await).into_response())
}

/// Removes the images that no kept version of a service needs, at every member.
#[utoipa::path(
    post, path = "/v1/images/prune",
    responses(
        (status = 200, description = "Removed", body = ImageRemoval),
        (status = 503, description = "No quorum: what is needed is not certain", body = ErrorBody)
    )
)]
pub(super) async fn prune(State(api): State<Api>) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    certain(&snapshot, "try again when the cluster answers")?;
    let state = snapshot.state.clone();
    let own = remove_here(&api, move |image| users_of(&state, image).is_empty()).await?;
    if api.access == Access::Peer {
        return Ok(Json(own).into_response());
    }
    Ok(Json(everywhere(&api, own, Method::POST, "/v1/images/prune").await).into_response())
}

/// What members have on disk; another member is asked for its own only.
#[utoipa::path(get, path = "/v1/system/df", responses((status = 200, description = "What is on disk", body = DiskUsageList)))]
pub(super) async fn disk_usage(State(api): State<Api>) -> Result<Response, ApiError> {
    let usage = api.handle.platform.containers.disk_usage().await?;
    let DiskUsage { images, image_bytes, unpacked_bytes, containers, container_bytes, log_bytes, data_bytes } =
        usage;
    let own = DiskUsageRow {
        node: api.handle.id,
        images,
        image_bytes,
        unpacked_bytes,
        containers,
        container_bytes,
        log_bytes,
        data_bytes,
    };
    let mut list = DiskUsageList { items: vec![own], unreachable: Vec::new() };
    if api.access != Access::Peer {
        let others = others(&api);
        let asked =
            others.iter().map(|&node| tell::<DiskUsageList>(&api, node, Method::GET, "/v1/system/df"));
        for (&node, answer) in others.iter().zip(join_all(asked).await) {
            match answer {
                Ok(answer) => list.items.extend(answer.items),
                Err(_) => list.unreachable.push(node),
            }
        }
        list.items.sort_by_key(|row| row.node);
    }
    Ok(Json(list).into_response())
}

/// An image as a user names it.
enum Wanted {
    Name(String),
    /// `sha256:` and the first digits.
    Digest(String),
}

impl Wanted {
    fn read(text: &str) -> Result<Self, ApiError> {
        if let Some(digits) = text.strip_prefix("sha256:") {
            let fits = (DIGEST_DIGITS_MIN..=64).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            return if fits {
                Ok(Self::Digest(text.to_ascii_lowercase()))
            } else {
                Err(ApiError::bad_request(
                    format!("`{text}` is not sha256: and {DIGEST_DIGITS_MIN} to 64 hexadecimal digits"),
                    "`blixard image ls` shows digests",
                ))
            };
        }
        if SHOWN_DIGITS == text.len() && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Ok(Self::Digest(format!("sha256:{}", text.to_ascii_lowercase())));
        }
        text.parse::<ImageReference>().map_err(|error| {
            ApiError::bad_request(error.to_string(), "`blixard image ls` lists the images")
        })?;
        Ok(Self::Name(text.to_owned()))
    }

    /// Whether it names an image. Which registry a short name belongs to is each node's to say, so any
    /// image that it may mean by its last parts would be too much: it is read as Docker reads it, or
    /// is the full name.
    fn names(&self, image: &ImageRow) -> bool {
        match self {
            Self::Name(name) => {
                let full = name.parse::<ImageReference>().map(|name| name.to_string());
                image.reference == *name || full.is_ok_and(|full| image.reference == full)
            }
            Self::Digest(digest) => image.digest.starts_with(digest.as_str()),
        }
    }
}

/// Refuses to say which images are needed on the word of a state that may be old.
fn certain(snapshot: &Snapshot, hint: &str) -> Result<(), ApiError> {
    match &snapshot.stale {
        Some(why) => {
            Err(ApiError::unavailable(format!("which images are needed is not certain: {why}"), hint))
        }
        None => Ok(()),
    }
}

/// The services whose kept versions need an image.
fn users_of(state: &ClusterState, image: &ImageRow) -> Vec<String> {
    let needs = |wanted: &ImageSpec| match &wanted.digest {
        Some(digest) => *digest == image.digest,
        // Nobody could say which digest it is: each image that may be meant is needed.
        None => {
            let full = wanted.reference.parse::<ImageReference>().map(|name| name.to_string());
            full.is_ok_and(|full| full == image.reference)
                || image.reference.ends_with(&format!("/{}", wanted.reference))
                || image.reference.ends_with(&format!("/{}:latest", wanted.reference))
        }
    };
    let mut users = Vec::new();
    for (name, service) in &state.services {
        if let Some(version) = service.versions.iter().rev().find(|version| needs(&version.spec.image)) {
            users.push(format!("service {name} (version {})", version.version));
        }
    }
    users
}

/// Removes those of this node's images that `which` chooses.
async fn remove_here(api: &Api, which: impl Fn(&ImageRow) -> bool) -> Result<ImageRemoval, ApiError> {
    let containers = &api.handle.platform.containers;
    let images = containers.images().await?.into_iter().map(|image| row(image, api.handle.id));
    let items: Vec<ImageRow> = images.filter(|image| which(image)).collect();
    if items.is_empty() {
        return Ok(ImageRemoval::default());
    }
    let names: Vec<String> = items.iter().map(|image| image.reference.clone()).collect();
    let bytes_freed = containers.remove_images(&names).await?;
    Ok(ImageRemoval { items, bytes_freed, failed: Vec::new() })
}

/// Has every other member do the same, and adds what they did to what this one did.
async fn everywhere(api: &Api, own: ImageRemoval, method: Method, path: &str) -> ImageRemoval {
    let others = others(api);
    let told = others.iter().map(|&node| tell::<ImageRemoval>(api, node, method.clone(), path));
    let mut all = own;
    for (&node, answer) in others.iter().zip(join_all(told).await) {
        match answer {
            Ok(removal) => {
                all.items.extend(removal.items);
                all.bytes_freed = all.bytes_freed.saturating_add(removal.bytes_freed);
            }
            Err(error) => {
                all.failed.push(ImportMember { node, error: Some(error.message().to_owned()) });
            }
        }
    }
    all.items = merge(all.items);
    all
}

async fn tell<T: serde::de::DeserializeOwned>(
    api: &Api,
    node: NodeId,
    method: Method,
    path: &str,
) -> Result<T, ApiError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let answer = api.within(REMOVE_DEADLINE, async {
        let response = proxy::send(api, node, request).await?;
        proxy::read_json(node, response).await
    });
    answer.await.unwrap_or_else(|| {
        Err(ApiError::unavailable(
            format!("node {node} did not answer within {} s", REMOVE_DEADLINE.as_secs()),
            "`blixard node ls` shows which nodes are up",
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blixard_core::api::image::ImageRow;

    use super::super::views::fixture;
    use super::{SHOWN_DIGITS, Wanted, users_of};

    fn image(reference: &str, digest: &str) -> ImageRow {
        ImageRow {
            reference: reference.into(),
            digest: digest.into(),
            bytes: 1,
            nodes: Vec::new(),
            imported: false,
        }
    }

    #[test]
    fn an_image_is_named_by_its_name_or_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let row = image("docker.io/library/nginx:latest", &digest);
        let check = |text: &str, expect: bool| {
            assert_eq!(Wanted::read(text).ok().is_some_and(|wanted| wanted.names(&row)), expect, "{text}");
        };
        check("nginx", true);
        check("docker.io/library/nginx:latest", true);
        check("nginx:1", false);
        check("sha256:abababa", true);
        check("sha256:ABABABAB", true);
        check("abababababab", true);
        check("sha256:ababab", false);
        check("sha256:abababac", false);
        check("", false);
        check("Not A Name", false);
    }

    #[test]
    fn what_kept_versions_of_services_need_is_known_by_its_digest() {
        let mut state = fixture::state();
        fixture::add_service(&mut state, "web", 1);
        let name: blixard_core::id::ServiceName = "web".parse().expect("a name");
        let mut service = state.services.get(&name).expect("added").clone();
        let mut set = |reference: &str, digest: Option<&str>| {
            let mut spec = service.versions[0].spec.as_ref().clone();
            spec.image.reference = reference.into();
            spec.image.digest = digest.map(str::to_owned);
            service.versions[0].spec = Arc::new(spec);
            state.services.insert(name.clone(), service.clone());
            state.clone()
        };
        let check = |state: &super::ClusterState, row: &ImageRow, expect: bool| {
            assert_eq!(!users_of(state, row).is_empty(), expect, "{row:?}");
        };
        let pinned = set("app:1", Some("sha256:1"));
        check(&pinned, &image("docker.io/library/app:1", "sha256:1"), true);
        check(&pinned, &image("docker.io/library/app:1@sha256:1", "sha256:1"), true);
        check(&pinned, &image("docker.io/library/app:1", "sha256:2"), false);
        let open = set("app", None);
        check(&open, &image("docker.io/library/app:latest", "sha256:2"), true);
        check(&open, &image("reg.lan/app:latest", "sha256:2"), true);
        check(&open, &image("reg.lan/other-app:latest", "sha256:2"), false);
    }

    #[test]
    fn names_of_images_survive_every_damage() {
        let digits = "ab".repeat(SHOWN_DIGITS / 2);
        let seeds = ["nginx:1".to_owned(), format!("sha256:{digits}"), digits].map(String::into_bytes);
        damage::survives("image to remove", &seeds, |input| {
            let row = image("docker.io/library/nginx:latest", &format!("sha256:{}", "ab".repeat(32)));
            let wanted = Wanted::read(&String::from_utf8_lossy(input)).map_err(|_| "it names none")?;
            wanted.names(&row);
            Ok(())
        });
    }
}

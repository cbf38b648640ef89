//! Reads one image's manifests and blobs from its registry or the registry's mirrors, by the OCI
//! distribution protocol.
//!
//! Never writes to a registry and never stores anything. On reqwest rather than oci-client, whose
//! client cannot be made on a machine without CA certificates, not even for plain HTTP, and which
//! hides why a log-in failed.

use std::pin::Pin;
use std::time::Duration;

use blixard_core::image_reference::{ImageReference, is_digest};
use blixard_core::limits::IMAGE_DOCUMENT_BYTES_MAX;
use blixard_core::text::one_line;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use reqwest::{Certificate, Response, Url};
use tokio::sync::Mutex;

use super::digest_of;
use super::manifest::MEDIA_TYPES;
use super::reach::{Names, is_internal, redirects};
use super::registries::{Credentials, Registries, Registry, is_loopback, name_of};
use super::registry_auth::{Challenge, basic, bearer_of};
use crate::platform::RuntimeError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry that sends nothing for so long is taken for dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a pull asks again where a registry is busy, and after how long at least.
const BUSY_RETRIES_MAX: u32 = 2;
const BUSY_BACKOFF: Duration = Duration::from_millis(300);
/// A registry that asks to wait longer is not waited for.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// The largest answer of a token server or error text read, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The rest of a blob.
pub(super) struct BlobStream {
    /// Where in the blob it starts: the offset asked for, or 0.
    pub(super) offset: u64,
    pub(super) bytes: Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>,
}

/// Whom to ask for one image: its registry's mirrors, then the registry.
pub(super) struct RegistrySession {
    reference: ImageReference,
    endpoints: Vec<Endpoint>,
    /// How often it is asked again where it is busy.
    retries: u32,
}

/// What of an image is asked for.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// What its name stands for.
    Name,
    /// A manifest or index by its digest.
    Manifest(&'a str),
    /// A layer or a configuration by its digest.
    Blob(&'a str),
}

impl Asked<'_> {
    fn path(self, reference: &ImageReference) -> String {
        match self {
            Self::Name => format!("manifests/{}", reference.tag().unwrap_or_default()),
            Self::Manifest(digest) => format!("manifests/{digest}"),
            Self::Blob(digest) => format!("blobs/{digest}"),
        }
    }
}

/// One host that may have the image.
struct Endpoint {
    host: String,
    plain_http: bool,
    http: reqwest::Client,
    /// Whether the system has no CA certificates, so that HTTPS cannot work.
    lacks_roots: bool,
    credentials: Option<Credentials>,
    /// The registry this is a mirror of.
    mirror_of: Option<String>,
    /// The Authorization header that last worked.
    authorization: Mutex<Option<String>>,
}

/// Why a host did not answer as hoped.
#[derive(Debug)]
enum Fault {
    NotFound,
    Denied(String),
    Refused(String),
    /// It answered that it is in trouble or asked too often, and perhaps for how long to leave it alone.
    Busy {
        status: StatusCode,
        reason: String,
        wait: Option<Duration>,
    },
    /// It answered nonsense, or closed the connection.
    Unavailable(String),
    /// It is not there, or silent: asking again would only wait again.
    Unreachable(String),
}

impl RegistrySession {
    /// Prepares to ask for `reference`; sends nothing yet.
    ///
    /// # Errors
    /// `Invalid` when a host's settings cannot be used, as a missing `ca_file`.
    pub(super) fn new(registries: &Registries, reference: &ImageReference) -> Result<Self, RuntimeError> {
        let name = reference.registry();
        let mirrors = registries.registry(name).mirrors;
        let mut endpoints = Vec::with_capacity(mirrors.len() + 1);
        for mirror in mirrors {
            endpoints.push(Endpoint::new(&mirror, &registries.registry(&mirror), Some(name))?);
        }
        endpoints.push(Endpoint::new(name, &registries.registry(name), None)?);
        Ok(Self { reference: reference.clone(), endpoints, retries: 0 })
    }

    /// Asks a busy registry again, a few times: for who has the time.
    pub(super) fn patient(self) -> Self {
        Self { retries: BUSY_RETRIES_MAX, ..self }
    }

    /// The digest that the reference's tag stands for.
    pub(super) async fn digest(&self) -> Result<String, RuntimeError> {
        self.first(Asked::Name, |endpoint, url| async move {
            let digest = match endpoint.send(Method::HEAD, &url, None).await {
                Ok(response) => header(&response, "docker-content-digest").map(str::to_owned),
                Err(
                    fault @ (Fault::Unreachable(_)
                    | Fault::Busy { status: StatusCode::TOO_MANY_REQUESTS, .. }),
                ) => return Err(fault),
                // Some registries and their proxies refuse HEAD, each with a status of its own.
                Err(_) => None,
            };
            match digest.filter(|digest| is_digest(digest)) {
                Some(digest) => Ok(digest),
                None => Ok(digest_of(&endpoint.document(&url, None).await?)),
            }
        })
        .await
    }

    /// The manifest or index of that digest.
    pub(super) async fn document(&self, digest: &str) -> Result<Bytes, RuntimeError> {
        let asked = Asked::Manifest(digest);
        self.first(asked, |endpoint, url| async move { endpoint.document(&url, Some(digest)).await }).await
    }

    /// A blob as small as a document, its digest checked.
    pub(super) async fn small_blob(&self, digest: &str) -> Result<Bytes, RuntimeError> {
        let asked = Asked::Blob(digest);
        self.first(asked, |endpoint, url| async move { endpoint.document(&url, Some(digest)).await }).await
    }

    /// A blob from `offset` on, or from its start when the host cannot skip. Not verified.
    pub(super) async fn blob(&self, digest: &str, offset: u64) -> Result<BlobStream, RuntimeError> {
        self.first(Asked::Blob(digest), |endpoint, url| async move {
            let range = (offset > 0).then(|| format!("bytes={offset}-"));
            let response = endpoint.send(Method::GET, &url, range).await?;
            let offset = if response.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
            let host = endpoint.host.clone();
            let bytes = response
                .bytes_stream()
                .map_err(move |err| format!("registry {host} broke off: {}", chain(&err.without_url())));
            Ok(BlobStream { offset, bytes: Box::pin(bytes) })
        })
        .await
    }

    fn url(&self, endpoint: &Endpoint, asked: Asked<'_>) -> Result<Url, Fault> {
        let path = asked.path(&self.reference);
        let host = match endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = if endpoint.plain_http { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/{path}", self.reference.repository());
        let mut url = Url::parse(&text).map_err(|err| Fault::Refused(format!("{text}: {err}")))?;
        if let Some(registry) = &endpoint.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    /// Asks each host in order until one has it, and when all are done with and the registry itself is
    /// busy, perhaps again. The registry's own answer decides the error.
    async fn first<'a, T, F>(
        &'a self,
        asked: Asked<'_>,
        ask: impl Fn(&'a Endpoint, Url) -> F,
    ) -> Result<T, RuntimeError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut retries = 0;
        loop {
            let mut last = None;
            for endpoint in &self.endpoints {
                let answer = match self.url(endpoint, asked) {
                    Ok(url) => ask(endpoint, url).await,
                    Err(fault) => Err(fault),
                };
                match answer {
                    Ok(answer) => return Ok(answer),
                    Err(fault) => {
                        tracing::debug!(registry = endpoint.host, image = %self.reference, err = ?fault, "registry failed");
                        last = Some((endpoint, fault));
                    }
                }
            }
            let (endpoint, fault) = last.expect("the registry itself is always asked");
            let wait = match &fault {
                Fault::Busy { wait, .. } => wait.unwrap_or_default().max(BUSY_BACKOFF * 2_u32.pow(retries)),
                _ => Duration::MAX,
            };
            if retries == self.retries || wait > BUSY_WAIT_MAX {
                return Err(self.error(endpoint, asked, fault));
            }
            retries += 1;
            tokio::time::sleep(wait).await;
        }
    }

    fn error(&self, endpoint: &Endpoint, asked: Asked<'_>, fault: Fault) -> RuntimeError {
        let image = &self.reference;
        let host = &endpoint.host;
        match fault {
            Fault::NotFound => RuntimeError::NotFound(match asked {
                Asked::Blob(digest) => format!(
                    "registry {host} lacks a part of image {image}, {digest}: the image is incomplete there, push it again"
                ),
                Asked::Manifest(digest) if image.digest() != Some(digest) => format!(
                    "registry {host} lacks a part of image {image}, the manifest {digest}: the image is incomplete there or was replaced, push it again, or check the credentials in the registries file"
                ),
                Asked::Name | Asked::Manifest(_) => format!(
                    "no image {image} in registry {host}: check the name and tag, or the credentials in the registries file"
                ),
            }),
            Fault::Denied(reason) => {
                let hint = match &endpoint.credentials {
                    Some(credentials) => {
                        format!(
                            "check the name, and the credentials of {:?} in the registries file",
                            credentials.username
                        )
                    }
                    None => format!("check the name, or set credentials for {host} in the registries file"),
                };
                RuntimeError::Invalid(format!("registry {host} denies access to {image} ({reason}): {hint}"))
            }
            Fault::Refused(reason) => {
                RuntimeError::Invalid(format!("registry {host}, image {image}: {reason}"))
            }
            Fault::Busy { status, reason, wait } => {
                let wait =
                    wait.map(|wait| format!(" and asks to wait {} s", wait.as_secs())).unwrap_or_default();
                let words = match status {
                    StatusCode::TOO_MANY_REQUESTS => format!(
                        "it limits how often it is asked ({reason}){wait}: try again later; with credentials in the registries file it may allow more"
                    ),
                    _ => format!(
                        "it is in trouble itself ({reason}){wait}: the image's name is not to blame, try again later"
                    ),
                };
                RuntimeError::Unavailable(format!("registry {host}, image {image}: {words}"))
            }
            Fault::Unavailable(reason) | Fault::Unreachable(reason) => {
                RuntimeError::Unavailable(format!("registry {host}, image {image}: {reason}"))
            }
        }
    }
}

impl Endpoint {
    fn new(host: &str, registry: &Registry, mirror_of: Option<&str>) -> Result<Self, RuntimeError> {
        let plain_http = registry.is_plain_http(host);
        let (http, lacks_roots) = http_client(host, plain_http, registry)?;
        Ok(Self {
            host: host.to_owned(),
            plain_http,
            http,
            lacks_roots,
            credentials: registry.credentials.clone(),
            mirror_of: mirror_of.map(str::to_owned),
            authorization: Mutex::new(None),
        })
    }

    async fn document(&self, url: &Url, expected: Option<&str>) -> Result<Bytes, Fault> {
        let response = self.send(Method::GET, url, None).await?;
        let announced =
            header(&response, "docker-content-digest").filter(|d| is_digest(d)).map(str::to_owned);
        let bytes = self.body(response, IMAGE_DOCUMENT_BYTES_MAX).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = expected.or(announced.as_deref())
            && digest != expected
        {
            return Err(Fault::Unavailable(format!("it sent {digest} instead of {expected}")));
        }
        Ok(bytes)
    }

    /// Sends a request, logging in once when asked to.
    async fn send(&self, method: Method, url: &Url, range: Option<String>) -> Result<Response, Fault> {
        let mut logged_in = false;
        loop {
            let mut request = self.http.request(method.clone(), url.clone()).header(ACCEPT, MEDIA_TYPES);
            if let Some(authorization) = self.authorization.lock().await.as_deref() {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Some(range) = &range {
                request = request.header(RANGE, range);
            }
            let response = request.send().await.map_err(|err| self.unavailable(err))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !logged_in {
                let challenges: Vec<Challenge> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| Challenge::parse(value.to_str().ok()?))
                    .collect();
                *self.authorization.lock().await = Some(self.log_in(&challenges).await?);
                logged_in = true;
                continue;
            }
            return Err(self.fault(status, response).await);
        }
    }

    /// The Authorization header that answers a registry's challenge.
    async fn log_in(&self, challenges: &[Challenge]) -> Result<String, Fault> {
        let wanted = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
        if let Some(url) = wanted("bearer").and_then(Challenge::token_url) {
            let to = url.host_str().unwrap_or_default();
            if is_internal(to) && !is_internal(name_of(&self.host)) {
                return Err(Fault::Denied(format!(
                    "its token server {to} is inside this machine or its link"
                )));
            }
            let mut request = self.http.get(url.clone());
            if let Some(credentials) = &self.credentials {
                if url.scheme() != "https" && !self.plain_http {
                    return Err(Fault::Denied(format!(
                        "its token server {url} would get the password unencrypted"
                    )));
                }
                request = request.header(AUTHORIZATION, basic(credentials));
            }
            let response = request.send().await.map_err(|err| self.unavailable(err))?;
            let status = response.status();
            if !status.is_success() {
                return Err(match self.fault(status, response).await {
                    Fault::NotFound => Fault::Denied(format!("no token server at {url}")),
                    fault => fault,
                });
            }
            let body = self.body(response, ANSWER_BYTES_MAX).await?;
            return bearer_of(&body).ok_or_else(|| Fault::Refused(format!("{url} sent no token")));
        }
        match (wanted("basic"), &self.credentials) {
            (Some(_), Some(credentials)) => Ok(basic(credentials)),
            (Some(_), None) => Err(Fault::Denied("it wants a user name and password".into())),
            (None, _) => Err(Fault::Denied("it does not say how to log in".into())),
        }
    }

    async fn fault(&self, status: StatusCode, response: Response) -> Fault {
        let wait =
            header(&response, "retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let answer = self.body(response, ANSWER_BYTES_MAX).await.ok();
        let reason = match answer.and_then(|answer| reason_of(&answer)) {
            Some(reason) => format!("{status}, {reason}"),
            None => status.to_string(),
        };
        match status {
            StatusCode::NOT_FOUND => Fault::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied(reason),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Fault::Busy { status, reason, wait }
            }
            status if status.is_server_error() => Fault::Busy { status, reason, wait },
            _ => Fault::Refused(reason),
        }
    }

    async fn body(&self, mut response: Response, bytes_max: usize) -> Result<Bytes, Fault> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|err| self.unavailable(err))? {
            if body.len() + chunk.len() > bytes_max {
                return Err(Fault::Refused(format!("its answer is longer than {bytes_max} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn unavailable(&self, err: reqwest::Error) -> Fault {
        let hint = if self.lacks_roots && err.is_connect() {
            " (this machine has no CA certificates: install the package ca-certificates, or set ca_file in the registries file)"
        } else {
            ""
        };
        let answers = !err.is_connect() && !err.is_timeout();
        let reason = format!("{}{hint}", chain(&err.without_url()));
        if answers { Fault::Unavailable(reason) } else { Fault::Unreachable(reason) }
    }
}

fn http_client(
    host: &str,
    plain_http: bool,
    registry: &Registry,
) -> Result<(reqwest::Client, bool), RuntimeError> {
    let unusable = |reason: String| RuntimeError::Invalid(format!("registry {host}: {reason}"));
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("blixard/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .https_only(!plain_http)
            .redirect(redirects(host))
            .dns_resolver(Names::of(host));
        if is_loopback(host) { builder.no_proxy() } else { builder }
    };
    let bare = || builder().tls_certs_only([]).build().map_err(|err| unusable(chain(&err)));
    if plain_http {
        return Ok((bare()?, false));
    }
    if registry.skip_verify {
        let http = builder().tls_danger_accept_invalid_certs(true).build();
        return Ok((http.map_err(|err| unusable(chain(&err)))?, false));
    }
    if let Some(path) = &registry.ca_file {
        let fault = |reason: String| unusable(format!("ca_file {}: {reason}", path.display()));
        let pem = std::fs::read(path).map_err(|err| fault(err.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|err| fault(chain(&err)))?;
        if certificates.is_empty() {
            return Err(fault("it holds no PEM certificate".into()));
        }
        let http = builder().tls_certs_merge(certificates).build().map_err(|err| fault(chain(&err)))?;
        return Ok((http, false));
    }
    match builder().build() {
        Ok(http) => Ok((http, false)),
        Err(err) => {
            tracing::warn!(
                err = chain(&err),
                "no CA certificates: registries can only be reached in plain HTTP"
            );
            Ok((bare()?, true))
        }
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// An error with its causes, which name the system's fault.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Why a registry refuses, as the first error of its answer says: in one line, and bounded.
fn reason_of(answer: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Detail>,
    }
    #[derive(serde::Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let Detail { code, message } = answer.errors.into_iter().next()?;
    Some(one_line(&format_args!("{code} {message}")))
}

#[cfg(test)]
mod tests;

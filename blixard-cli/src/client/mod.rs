//! Asks a node over its API: HTTP/1.1 on its Unix socket or on TCP, one connection a request.
//!
//! Writes carry a request id and are repeated, under the same id, while the node is away or refuses at
//! once, until a deadline. A node that refuses later has waited for the cluster itself.

mod body;
#[cfg(test)]
pub(crate) mod canned;
mod endpoint;
mod lines;
mod tls;

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blixard_core::api::exec::ExecRequest;
use blixard_core::api::{EXEC_PROTOCOL, ErrorBody, Health, MADE_AT_HEADER, REQUEST_ID_HEADER, STALE_HEADER};
use blixard_core::id::RequestId;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::body::{Upload, chunks, file};
pub(crate) use self::endpoint::Endpoint;
pub(crate) use self::lines::Lines;
use crate::args::Connection;
use crate::failure::{self, Cause, Failure};
use crate::render::text::printable;

/// How long a write is repeated while the node itself is away, as during a restart.
const NODE_AWAY_MAX: Duration = Duration::from_secs(20);
/// How soon a node must refuse a write for it to be repeated. A later refusal comes from a node that
/// has itself waited for the cluster, and asking again would only double the wait.
const REFUSED_SOON: Duration = Duration::from_secs(2);
/// The first pause before a write is repeated; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a write is repeated.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The longest JSON answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A node's API.
pub(crate) struct Client {
    endpoint: Endpoint,
    ca: Option<PathBuf>,
    token: Option<String>,
    warned: Cell<bool>,
}

impl Client {
    /// The API that the options name, or the one found on this machine.
    ///
    /// # Errors
    /// When none is named and none, or several, are found.
    pub(crate) fn new(connection: &Connection) -> anyhow::Result<Self> {
        let endpoint = Endpoint::find(connection)?;
        let said = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let ca = connection.ca.clone().filter(|path| !path.as_os_str().is_empty());
        Ok(Self { endpoint, ca, token: said(&connection.token), warned: Cell::new(false) })
    }

    /// Says no more that answers may be old: the caller knows why.
    pub(crate) fn expect_old_answers(&self) {
        self.warned.set(true);
    }

    /// Reads what is at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        decode(self.send(self.request(Method::GET, path).body(body::empty())?).await?).await
    }

    /// Writes `body` to `path`.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.write(Method::POST, path, Some(serde_json::to_vec(body)?)).await
    }

    /// Writes to `path`, which says it all.
    pub(crate) async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.write(Method::POST, path, None).await
    }

    /// Removes what is at `path`.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.write(Method::DELETE, path, None).await
    }

    /// Sends a long body, once.
    pub(crate) async fn upload<T: DeserializeOwned>(&self, path: &str, body: Upload) -> anyhow::Result<T> {
        decode(self.send(self.request(Method::POST, path).body(body)?).await?).await
    }

    /// Reads the bytes at `path` as they come.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Incoming> {
        let request = self.request(Method::GET, path).body(body::empty())?;
        Ok(self.send(request).await?.into_body())
    }

    /// Sends bytes to `path` as they come, once.
    pub(crate) async fn send_stream(&self, path: &str, body: Upload) -> anyhow::Result<()> {
        self.send(self.request(Method::PUT, path).body(body)?).await.map(drop)
    }

    /// Has something done at `path`, once, that is no write to the cluster's state.
    pub(crate) async fn act(&self, method: Method, path: &str) -> anyhow::Result<()> {
        self.send(self.request(method, path).body(body::empty())?).await.map(drop)
    }

    /// Reads newline-delimited JSON as it comes.
    pub(crate) async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<Lines<T>> {
        Ok(Lines::new(self.send(self.request(method, path).body(body::json(body))?).await?))
    }

    /// Starts a process and turns the connection into its frames.
    pub(crate) async fn exec(&self, path: &str, request: &ExecRequest) -> anyhow::Result<Upgraded> {
        let body = serde_json::to_vec(request)?;
        let request = self
            .request(Method::POST, path)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, EXEC_PROTOCOL)
            .body(body::json(Some(body)))?;
        let mut response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let error = format!("the node answered {} to exec", response.status());
            return Err(Failure::new(error, "run the same version of blixard as the node").into());
        }
        Ok(hyper::upgrade::on(&mut response).await?)
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<T> {
        let id = draw_request_id()?;
        let mut made_at = None;
        let began = Instant::now();
        let mut pause = RETRY_PAUSE;
        let mut reached = false;
        loop {
            let trying = async {
                // The same with every try, so that a retry is never taken for a new write, whatever
                // the cluster's clocks do in between.
                let first_made = match made_at {
                    Some(first_made) => first_made,
                    None => *made_at.insert(self.get::<Health>("/v1/health").await?.time),
                };
                let request = self
                    .request(method.clone(), path)
                    .header(REQUEST_ID_HEADER, id.to_string())
                    .header(MADE_AT_HEADER, first_made.0)
                    .body(body::json(body.clone()))?;
                decode(self.send(request).await?).await
            };
            let answer = trying.await;
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let not_reached = failure::cause(&error) == Some(Cause::NotReached);
            reached |= !not_reached;
            let refused = failure::cause(&error) == Some(Cause::Refused(StatusCode::SERVICE_UNAVAILABLE));
            let broken = failure::cause(&error).is_none() && error.downcast_ref::<hyper::Error>().is_some();
            let patience = match (refused, broken || (not_reached && reached)) {
                (true, _) => REFUSED_SOON,
                (_, true) => NODE_AWAY_MAX,
                _ => Duration::ZERO,
            };
            if began.elapsed() + pause >= patience {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// The start of a request, with what every request has.
    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.endpoint.host())
            .header(header::CONTENT_TYPE, "application/json");
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends one request. Any status but success and 101 is an error.
    async fn send(&self, request: Request<Upload>) -> anyhow::Result<Response<Incoming>> {
        let mut sender = self.endpoint.connect(self.ca.as_deref()).await?;
        let response = sender.send_request(request).await?;
        self.warn_if_stale(&response);
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        Err(refused(response).await.into())
    }

    /// Says once that answers may be old.
    fn warn_if_stale(&self, response: &Response<Incoming>) {
        let why = response.headers().get(STALE_HEADER).and_then(|why| why.to_str().ok());
        if let Some(why) = why
            && !self.warned.replace(true)
        {
            crate::render::warn(&format!("answer may be old: {why}"));
        }
    }
}

/// A value as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> anyhow::Result<T> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let bytes = body
        .collect()
        .await
        .map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => anyhow::Error::from(*error),
            Err(error) => anyhow::anyhow!(error),
        })?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(
            format!("the node's answer is not understood: {error}"),
            "run the same version of blixard as the node",
        )
        .into()
    })
}

async fn refused(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let bytes = collected.map(|body| body.to_bytes()).unwrap_or_default();
    let said: Option<ErrorBody> = serde_json::from_slice(&bytes).ok();
    let ErrorBody { error, hint, details } = said.unwrap_or_else(|| ErrorBody {
        error: format!("the node answered {status}"),
        ..ErrorBody::default()
    });
    // Each is one line, whatever it quotes.
    let (error, hint) = (printable(&error), printable(&hint));
    let body = ErrorBody { error, hint, details: details.iter().map(|detail| printable(detail)).collect() };
    Failure { cause: Cause::Refused(status), body }
}

fn draw_request_id() -> std::io::Result<RequestId> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(RequestId(bytes))
}

#[cfg(test)]
mod tests;

//! Passes a request on to the member it is about, over its link, once; and asks members.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use blixard_core::id::NodeId;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::access::Access;
use super::context::Api;
use super::error::ApiError;

/// How long a member may take to begin an answer to a question asked on the side.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a member may take to accept a connection and begin to answer.
const FORWARD_DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer to a question asked on the side, in bytes.
const ASK_BYTES_MAX: usize = 4 << 20;

/// Passes `request` on to `node` and answers what it answers; an upgraded connection is passed on
/// too.
///
/// # Errors
/// When the request was passed on already, or the member does not answer.
pub(super) async fn forward(api: &Api, node: NodeId, mut request: Request) -> Result<Response, ApiError> {
    if api.access == Access::Peer {
        return Err(ApiError::unavailable(
            format!("node {node} was asked for, and node {} got the request", api.handle.id),
            "the container has just moved: try again",
        ));
    }
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let mut response = match api.within(FORWARD_DEADLINE, send(api, node, request)).await {
        Some(answer) => answer?,
        None => return Err(no_answer(node, FORWARD_DEADLINE)),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = upgrade
        && let Some(theirs) = response.extensions_mut().remove::<hyper::upgrade::OnUpgrade>()
    {
        let join = async move {
            if let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await)
                && let Err(error) = relay(TokioIo::new(ours), TokioIo::new(theirs)).await
            {
                tracing::debug!(node.id = %node, err = %error, "forwarded session ended early");
            }
        };
        api.handle.platform.spawner.spawn("api-upgrade", Box::pin(join));
    }
    Ok(response)
}

/// Passes on what the client and the member say to each other, until the member has ended. That it
/// takes no more from the client, because the program ended before it read what was sent, is no
/// reason not to pass on its last words.
async fn relay(
    client: impl AsyncRead + AsyncWrite,
    member: impl AsyncRead + AsyncWrite,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_member, mut to_member) = tokio::io::split(member);
    let forth = async {
        let copied = tokio::io::copy(&mut from_client, &mut to_member).await;
        copied.and(to_member.shutdown().await)
    };
    let back = async {
        tokio::io::copy(&mut from_member, &mut to_client).await?;
        to_client.shutdown().await
    };
    let (mut forth, mut back) = (std::pin::pin!(forth), std::pin::pin!(back));
    // Cancel safe: the session is over, with whatever has not been passed on.
    tokio::select! {
        biased;
        ended = &mut back => ended,
        passed_on = &mut forth => {
            if let Err(error) = passed_on {
                tracing::debug!(err = %error, "a forwarded session takes nothing more");
            }
            back.await
        }
    }
}

/// Asks `node` for what is at `path`.
///
/// # Errors
/// When the member does not answer in time, or not with that.
pub(super) async fn ask<T: DeserializeOwned>(api: &Api, node: NodeId, path: &str) -> Result<T, ApiError> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .body(Body::empty())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let answer = api.within(ASK_DEADLINE, async {
        let response = send(api, node, request).await?;
        read_json(node, response).await
    });
    answer.await.unwrap_or_else(|| Err(no_answer(node, ASK_DEADLINE)))
}

/// Sends `request` to `node` over its link.
pub(super) async fn send(api: &Api, node: NodeId, mut request: Request) -> Result<Response, ApiError> {
    let stream = api.handle.open_api(node).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(node, &error))?;
    let drive = async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(node.id = %node, err = %error, "connection to a member's API ended early");
        }
    };
    api.handle.platform.spawner.spawn("api-client", Box::pin(drive));
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| ApiError::bad_request(error.to_string(), ""))?;
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    request.headers_mut().remove(header::AUTHORIZATION);
    request.headers_mut().remove(header::ORIGIN);
    let response = sender.send_request(request).await.map_err(|error| broken(node, &error))?;
    Ok(response.map(Body::new))
}

/// Reads a JSON answer; an error status is an error with what the member says.
pub(super) async fn read_json<T: DeserializeOwned>(node: NodeId, response: Response) -> Result<T, ApiError> {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), ASK_BYTES_MAX).await.map_err(|error| broken(node, &error))?;
    if !status.is_success() {
        let said = serde_json::from_slice::<blixard_core::api::ErrorBody>(&bytes).unwrap_or_default();
        return Err(ApiError::unavailable(
            format!("node {node} answered {status}: {}", said.error),
            said.hint,
        ));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::unavailable(
            format!("node {node} gave an answer that cannot be read: {error}"),
            "`blixard node ls` shows which version each node runs",
        )
    })
}

fn broken(node: NodeId, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::unanswered(format!("the connection to node {node} broke: {error}"), "try again")
}

fn no_answer(node: NodeId, within: Duration) -> ApiError {
    ApiError::unavailable(
        format!("node {node} did not answer within {} s", within.as_secs()),
        "`blixard node ls` shows which nodes are up",
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::relay;

    #[tokio::test]
    async fn last_words_of_a_program_that_read_nothing_arrive() {
        let ((ours, mut client), (theirs, mut member)) = (duplex(64), duplex(64));
        client.write_all(b"a size").await.expect("a buffer takes it");
        member.write_all(b"last words").await.expect("a buffer takes it");
        drop(member);
        drop(relay(ours, theirs).await);
        let mut said = String::new();
        client.read_to_string(&mut said).await.expect("text");
        assert_eq!(said, "last words");
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_session() {
        let ((ours, client), (theirs, mut member)) = (duplex(64), duplex(64));
        drop(client);
        let member = async {
            let mut said = Vec::new();
            member.read_to_end(&mut said).await.expect("an end");
            drop(member);
            said
        };
        let (_, said) = tokio::join!(relay(ours, theirs), member);
        assert!(said.is_empty());
    }
}

//! `/v1/replicas/{id}/exec`: a process in a container, over an upgraded connection of frames (see
//! [`blixard_core::api::exec`]).

use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::exec::{ExecRequest, Frame};
use blixard_core::api::{EXEC_PROTOCOL, ErrorBody};
use bytes::BytesMut;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::context::Api;
use super::error::ApiError;
use super::{BODY_BYTES_MAX, proxy, resolve};
use crate::platform::{ExecConfig, ExecIo, ExecSession};

/// How much output is read at once, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// How long the output of a process that ended may stay open, held by its children, and silent.
const DRAIN_QUIET: Duration = Duration::from_millis(500);

/// Runs a process in a container, from whichever node it is on.
#[utoipa::path(
    post, path = "/v1/replicas/{id}/exec", request_body = ExecRequest,
    params(("id" = String, Path, description = "Container id or prefix, `web-0`, or a service with one replica")),
    responses(
        (status = 101, description = "Upgraded to `blixard-exec-1`: frames of kind (1 byte), length (4 bytes, big endian), payload. Kinds: 0 stdin, 1 stdout, 2 stderr, 3 resize (columns, rows: 2 bytes each), 4 exit (4 bytes), 5 end of stdin, 6 error (text)"),
        (status = 404, description = "No such container", body = ErrorBody),
        (status = 426, description = "The request asks for no upgrade", body = ErrorBody)
    )
)]
pub(super) async fn exec(
    State(api): State<Api>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let replica_id = resolve::replica_id(&snapshot.state, api.handle.cluster, &id)?;
    let replica = resolve::with_container(&snapshot.state, replica_id)?;
    if replica.node != api.handle.id {
        return proxy::forward(&api, replica.node, request).await;
    }
    let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value == EXEC_PROTOCOL);
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().filter(|_| asked);
    let Some(upgrade) = upgrade else { return Ok(upgrade_required()) };
    let body = to_bytes(request.into_body(), BODY_BYTES_MAX)
        .await
        .map_err(|error| ApiError::bad_request(error.to_string(), ""))?;
    let config: ExecRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(error.to_string(), "see GET /v1/openapi.json"))?;
    if config.command.is_empty() {
        return Err(ApiError::bad_request("no command to run", "name a program, such as `sh`"));
    }
    let config = ExecConfig {
        command: config.command,
        tty: config.tty,
        stdin: config.stdin,
        environment: config.environment,
        workdir: config.workdir,
        user: config.user,
    };
    let session = api.handle.platform.containers.exec(replica_id, replica.status.attempt, &config).await?;
    let spawner = api.handle.platform.spawner.clone();
    let task = async move {
        match upgrade.await {
            Ok(stream) => run(&api, session, TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(err = %error, "the client left before its exec session began"),
        }
    };
    spawner.spawn("api-exec", Box::pin(task));
    Ok(switching_protocols())
}

fn switching_protocols() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(EXEC_PROTOCOL));
    response
}

fn upgrade_required() -> Response {
    let error = ErrorBody {
        error: "exec takes an upgraded connection".to_owned(),
        hint: format!("send `Connection: upgrade` and `Upgrade: {EXEC_PROTOCOL}`"),
        details: Vec::new(),
    };
    (StatusCode::UPGRADE_REQUIRED, axum::Json(error)).into_response()
}

/// Runs a session to its end. Input and output are pumped side by side, so that a process which
/// does not read its input cannot hold up its own output.
async fn run(api: &Api, mut session: Box<dyn ExecSession>, stream: impl AsyncRead + AsyncWrite + Send) {
    let (reader, writer) = tokio::io::split(stream);
    let ExecIo { stdin, stdout, stderr } = session.take_io();
    let (resizes, resized) = mpsc::channel(4);
    let input = pump_input(Box::pin(reader), stdin, resizes);
    let mut output = Output { api, writer: Box::pin(writer) };
    let output = output.pump(session, stdout, stderr, resized);
    // Cancel safe: the session is over when the client is gone or the process has ended.
    tokio::select! {
        biased;
        ended = output => if let Err(error) = ended {
            tracing::debug!(err = %error, "the client of an exec session went away");
        },
        () = input => {}
    }
}

/// Feeds the client's frames to the process, until the client is gone.
async fn pump_input(
    mut reader: Pin<Box<dyn AsyncRead + Send + '_>>,
    mut stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    resizes: mpsc::Sender<(u16, u16)>,
) {
    let mut buffer = BytesMut::new();
    loop {
        match Frame::decode(&buffer) {
            Ok(Some((frame, taken))) => {
                let _ = buffer.split_to(taken);
                match frame {
                    Some(Frame::Stdin(bytes)) => {
                        if let Some(pipe) = &mut stdin
                            && (pipe.write_all(&bytes).await.is_err() || pipe.flush().await.is_err())
                        {
                            stdin = None;
                        }
                    }
                    Some(Frame::Eof) => {
                        if let Some(mut pipe) = stdin.take() {
                            // The process may have closed its end already.
                            drop(pipe.shutdown().await);
                        }
                    }
                    Some(Frame::Resize { columns, rows }) => drop(resizes.try_send((columns, rows))),
                    _ => {}
                }
            }
            Ok(None) => match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            Err(error) => {
                tracing::debug!(err = %error, "an exec session's client sent what is not a frame");
                return;
            }
        }
    }
}

struct Output<'a, W> {
    api: &'a Api,
    writer: Pin<Box<W>>,
}

impl<W: AsyncWrite> Output<'_, W> {
    /// Sends what the process writes, then how it ended.
    async fn pump(
        &mut self,
        mut session: Box<dyn ExecSession>,
        stdout: Pin<Box<dyn AsyncRead + Send>>,
        stderr: Option<Pin<Box<dyn AsyncRead + Send>>>,
        mut resized: mpsc::Receiver<(u16, u16)>,
    ) -> std::io::Result<()> {
        let mut stdout = Some(stdout);
        let mut stderr = stderr;
        let mut out = BytesMut::with_capacity(CHUNK_BYTES);
        let mut err = BytesMut::with_capacity(CHUNK_BYTES);
        let mut ended: Option<Frame> = None;
        let clock = self.api.handle.platform.clock.clone();
        while ended.is_none() || stdout.is_some() || stderr.is_some() {
            let quiet = clock.sleep_until(clock.now() + DRAIN_QUIET);
            // Every arm is cancel safe: reads leave their bytes in the buffer, `wait` and `recv`
            // say so themselves.
            tokio::select! {
                biased;
                Some((columns, rows)) = resized.recv() => {
                    if let Err(error) = session.resize(columns, rows).await {
                        tracing::debug!(err = %error, "a terminal could not be resized");
                    }
                }
                read = read_some(&mut stdout, &mut out) => match read {
                    true => self.send(Frame::Stdout(out.split().to_vec())).await?,
                    false => stdout = None,
                },
                read = read_some(&mut stderr, &mut err) => match read {
                    true => self.send(Frame::Stderr(err.split().to_vec())).await?,
                    false => stderr = None,
                },
                code = session.wait(), if ended.is_none() => ended = Some(match code {
                    Ok(code) => Frame::Exit(code),
                    Err(error) => Frame::Error(error.to_string()),
                }),
                () = quiet, if ended.is_some() => break,
            }
        }
        let last = ended.unwrap_or_else(|| Frame::Error("the process's end was not seen".to_owned()));
        self.send(last).await?;
        self.writer.shutdown().await
    }

    async fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        self.writer.write_all(&frame.encode()).await?;
        self.writer.flush().await
    }
}

/// Reads some bytes; false at the end. Never ready without a reader.
async fn read_some(reader: &mut Option<Pin<Box<dyn AsyncRead + Send>>>, buffer: &mut BytesMut) -> bool {
    let Some(reader) = reader else { return std::future::pending().await };
    buffer.reserve(CHUNK_BYTES);
    matches!(reader.read_buf(buffer).await, Ok(1..))
}

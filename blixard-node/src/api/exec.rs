//! `/v1/replicas/{id}/exec`: a process in a container, over an upgraded connection of frames (see
//! [`blixard_core::api::exec`]).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use blixard_core::api::exec::{ExecRequest, Frame};
use blixard_core::api::{EXEC_PROTOCOL, ErrorBody};
use bytes::BytesMut;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::context::{Api, Segment};
use super::error::ApiError;
use super::{BODY_BYTES_MAX, proxy, resolve};
use crate::platform::{Clock, ExecConfig, ExecIo, ExecSession};

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
    Segment(id): Segment,
    mut request: Request,
) -> Result<Response, ApiError> {
    let snapshot = api.read().await;
    let replica_id = resolve::replica_id(&snapshot.state, api.handle.cluster, &id)
        .map_err(|error| snapshot.missing(error))?;
    let replica = resolve::running(&snapshot.state, replica_id)?;
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
    check(&config)?;
    let config = ExecConfig {
        command: config.command,
        tty: config.tty,
        stdin: config.stdin,
        columns: config.columns,
        rows: config.rows,
        environment: config.environment,
        workdir: config.workdir,
        user: config.user,
    };
    let session = api.handle.platform.containers.exec(replica_id, replica.status.attempt, &config).await?;
    let clock = api.handle.platform.clock.clone();
    let task = async move {
        match upgrade.await {
            Ok(stream) => run(clock, session, TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(err = %error, "the client left before its exec session began"),
        }
    };
    api.handle.platform.spawner.spawn("api-exec", Box::pin(task));
    Ok(switching_protocols())
}

/// Refuses what no process can be started with.
fn check(config: &ExecRequest) -> Result<(), ApiError> {
    if let Some(bad) = config.environment.iter().find(|setting| setting.find('=').unwrap_or(0) == 0) {
        let error = format!("`{bad}` is no environment variable");
        return Err(ApiError::bad_request(error, "write NAME=VALUE"));
    }
    if let Some(workdir) = config.workdir.as_ref().filter(|workdir| !workdir.starts_with('/')) {
        let error = format!("the directory to start in, `{workdir}`, is not an absolute path");
        return Err(ApiError::bad_request(error, "begin it with /"));
    }
    let texts = config.command.iter().chain(&config.environment).chain(&config.workdir).chain(&config.user);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(ApiError::bad_request(
            "no argument, variable, directory or user holds a NUL character",
            "",
        ));
    }
    Ok(())
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
async fn run(
    clock: Arc<dyn Clock>,
    mut session: Box<dyn ExecSession>,
    stream: impl AsyncRead + AsyncWrite + Send,
) {
    let (reader, writer) = tokio::io::split(stream);
    let ExecIo { stdin, stdout, stderr } = session.take_io();
    let (resizes, resized) = mpsc::channel(4);
    let input = pump_input(Box::pin(reader), stdin, resizes);
    let mut output = Output { clock, writer: Box::pin(writer) };
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

struct Output<W> {
    clock: Arc<dyn Clock>,
    writer: Pin<Box<W>>,
}

impl<W: AsyncWrite> Output<W> {
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
        let clock = Arc::clone(&self.clock);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use blixard_core::api::exec::{ExecRequest, Frame};
    use blixard_core::time::{Mono, UtcMs};
    use bytes::BytesMut;
    use futures_util::future::BoxFuture;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{check, run};
    use crate::platform::{Clock, ExecIo, ExecSession, RuntimeError};

    /// The tests' clock: tokio's.
    struct TokioClock(tokio::time::Instant);

    impl Clock for TokioClock {
        fn now(&self) -> Mono {
            Mono(self.0.elapsed())
        }

        fn utc(&self) -> UtcMs {
            UtcMs(0)
        }

        fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
            Box::pin(tokio::time::sleep_until(self.0 + deadline.0))
        }
    }

    /// A process that copies its input to its output, tells its sizes on its error output, and
    /// ends with code 3 when its input does. Its output is not closed when `leaky`.
    struct Cat {
        io: Option<ExecIo>,
        ended: tokio::sync::watch::Receiver<bool>,
        errors: DuplexStream,
    }

    #[async_trait]
    impl ExecSession for Cat {
        fn take_io(&mut self) -> ExecIo {
            self.io.take().expect("taken once")
        }

        async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
            let text = format!("{columns}x{rows};");
            self.errors.write_all(text.as_bytes()).await.expect("the pump reads");
            Ok(())
        }

        async fn wait(&mut self) -> Result<u32, RuntimeError> {
            while !*self.ended.borrow() {
                self.ended.changed().await.expect("the process says when it ends");
            }
            // The end of the error output shows with the end of the process.
            self.errors.shutdown().await.expect("the pump reads");
            Ok(3)
        }
    }

    /// Starts the process; its pipes hold few bytes, so that pumps that wait for each other stop.
    fn cat(leaky: bool) -> (Box<Cat>, impl Future<Output = ()>) {
        let (stdin, mut process_in) = duplex(64);
        let (mut process_out, stdout) = duplex(64);
        let (errors, stderr) = duplex(64);
        let (end, ended) = tokio::sync::watch::channel(false);
        let process = async move {
            tokio::io::copy(&mut process_in, &mut process_out).await.expect("the pumps run");
            end.send(true).expect("somebody waits");
            if leaky {
                std::future::pending::<()>().await;
            }
        };
        let io =
            ExecIo { stdin: Some(Box::pin(stdin)), stdout: Box::pin(stdout), stderr: Some(Box::pin(stderr)) };
        (Box::new(Cat { io: Some(io), ended, errors }), process)
    }

    /// Sends frames, then gathers everything the session says.
    async fn talk(leaky: bool, frames: &[Frame]) -> (Vec<u8>, Vec<u8>, Vec<Frame>) {
        let (client, server) = duplex(256);
        let clock = Arc::new(TokioClock(tokio::time::Instant::now()));
        let (session, process) = cat(leaky);
        let session = run(clock, session, server);
        let (mut reader, mut writer) = tokio::io::split(client);
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let send = async { writer.write_all(&bytes).await.expect("the session reads") };
        let receive = async {
            let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), Vec::new());
            let mut buffer = BytesMut::new();
            loop {
                while let Some((frame, taken)) = Frame::decode(&buffer).expect("frames") {
                    drop(buffer.split_to(taken));
                    match frame.expect("known kinds") {
                        Frame::Stdout(bytes) => out.extend(bytes),
                        Frame::Stderr(bytes) => err.extend(bytes),
                        other => last.push(other),
                    }
                }
                if reader.read_buf(&mut buffer).await.expect("the session writes") == 0 {
                    return (out, err, last);
                }
            }
        };
        let all = async {
            tokio::select! {
                said = async { tokio::join!(session, send, receive).2 } => said,
                () = async { process.await; std::future::pending().await } => unreachable!("pending"),
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("the session ends")
    }

    #[test]
    fn what_no_process_can_be_started_with_is_refused() {
        let refused = |edit: fn(&mut ExecRequest)| {
            let mut request = ExecRequest { command: vec!["sh".into()], ..ExecRequest::default() };
            edit(&mut request);
            check(&request).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(!refused(|request| request.environment = vec!["A=".into(), "B=c=d".into()]));
        assert!(refused(|request| request.environment = vec!["A".into()]));
        assert!(refused(|request| request.environment = vec!["=a".into()]));
        assert!(!refused(|request| request.workdir = Some("/srv".into())));
        assert!(refused(|request| request.workdir = Some("srv".into())));
        assert!(refused(|request| request.workdir = Some(String::new())));
        assert!(refused(|request| request.command.push("a\0b".into())));
    }

    #[tokio::test]
    async fn input_comes_back_as_output_and_the_code_comes_last() {
        let input: Vec<u8> = (0..50_000_u32).flat_map(u32::to_be_bytes).collect();
        let mut frames = vec![Frame::Resize { columns: 80, rows: 24 }];
        frames.extend(input.chunks(9_000).map(|chunk| Frame::Stdin(chunk.to_vec())));
        frames.push(Frame::Eof);
        let (out, err, last) = talk(false, &frames).await;
        assert!(out == input, "{} of {} bytes came back", out.len(), input.len());
        assert_eq!(err, b"80x24;");
        assert_eq!(last, [Frame::Exit(3)]);
    }

    #[tokio::test]
    async fn an_output_held_open_by_a_child_does_not_hold_up_the_end() {
        let (out, _, last) = talk(true, &[Frame::Stdin(b"hi".to_vec()), Frame::Eof]).await;
        assert_eq!((out.as_slice(), last.as_slice()), (&b"hi"[..], &[Frame::Exit(3)][..]));
    }
}

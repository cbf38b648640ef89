//! Load: clients that each keep one TCP connection and send a request as soon as the last one is
//! answered. The same code drives blixard's API and etcd, so its own cost is on both sides.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blixard_tests::http;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use crate::sample::Samples;

/// Clients that are not answered for this long have met a server that hangs.
const STALL: Duration = Duration::from_secs(20);
/// Time for connections, caches and batches to settle before the clock starts.
const WARM_UP: Duration = Duration::from_millis(500);

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 with keep-alive.
    Http1,
    /// gRPC: HTTP/2, whose answer ends with a status of its own.
    Grpc,
}

/// The request a client sends: of its number and a count that never repeats for that client.
pub(crate) type Make = Arc<dyn Fn(usize, u64) -> Request<Full<Bytes>> + Send + Sync>;

/// Whom to ask for what.
#[derive(Clone)]
pub(crate) struct Target {
    /// The network namespace clients stand in.
    pub(crate) namespace: String,
    /// The server.
    pub(crate) address: SocketAddr,
    /// What it speaks.
    pub(crate) protocol: Protocol,
    /// The requests.
    pub(crate) make: Make,
}

/// What a round of load gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    /// From each request to its acknowledgement.
    pub(crate) samples: Samples,
    /// How long was measured.
    pub(crate) time: Duration,
}

impl Load {
    /// Acknowledged requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Adds another round.
    pub(crate) fn extend(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.time += other.time;
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<()> {
        let answer: Response<Incoming> = match self {
            Self::Http1(sender) => sender.send_request(request).await?,
            Self::Grpc(sender) => sender.send_request(request).await?,
        };
        let status = answer.status();
        let head = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await?;
        let trailer = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        if !status.is_success() {
            bail!("answered {status}: {}", String::from_utf8_lossy(&body.to_bytes()));
        }
        match trailer.or(head) {
            Some(code) if code != "0" => bail!("answered gRPC status {code:?}"),
            None if matches!(self, Self::Grpc(_)) => bail!("the answer has no gRPC status"),
            _ => Ok(()),
        }
    }
}

/// Sends every one of `clients` clients' first request, numbered `count`, and waits for all
/// answers: to make what later requests change.
pub(crate) fn once(target: &Target, clients: usize, count: u64) -> Result<()> {
    drive(target, clients, move |client, sender, make, _| {
        Box::pin(async move {
            sender.ask(make(client, count)).await?;
            Ok(Samples::default())
        })
    })
    .map(drop)
}

/// Has `clients` clients ask for `time`, after a short warm-up. Counts go on from `first`.
pub(crate) fn run(target: &Target, clients: usize, time: Duration, first: u64) -> Result<Load> {
    let samples = drive(target, clients, move |client, sender, make, connected| {
        Box::pin(async move {
            let start = connected + WARM_UP;
            let mut samples = Samples::default();
            for count in first.. {
                let request = make(client, count);
                let asked = Instant::now();
                if asked >= start + time {
                    break;
                }
                tokio::time::timeout(STALL, sender.ask(request)).await.context("no answer")??;
                let answered = Instant::now();
                if asked >= start && answered <= start + time {
                    samples.push(answered - asked);
                }
            }
            Ok(samples)
        })
    })?;
    if samples.len() == 0 {
        bail!("none of {clients} clients was answered within {time:?}");
    }
    Ok(Load { samples, time })
}

type Work<'a> = futures_util::future::BoxFuture<'a, Result<Samples>>;

/// Does `work` for every client at once; the time it is given is when all were connected.
fn drive(
    target: &Target,
    clients: usize,
    work: impl for<'a> Fn(usize, &'a mut Sender, Make, Instant) -> Work<'a> + Clone + Send + Sync + 'static,
) -> Result<Samples> {
    // A socket stays in the namespace it was made in, whichever thread uses it later.
    let sockets = http::inside(&target.namespace, || {
        (0..clients).map(|_| connect(target.address)).collect::<Result<Vec<_>>>()
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut senders = Vec::with_capacity(clients);
        for socket in sockets {
            senders.push(handshake(socket, target.protocol).await?);
        }
        let connected = Instant::now();
        let mut tasks = JoinSet::new();
        for (client, mut sender) in senders.into_iter().enumerate() {
            let (make, work) = (target.make.clone(), work.clone());
            tasks.spawn(async move { work(client, &mut sender, make, connected).await });
        }
        let mut samples = Samples::default();
        while let Some(ended) = tasks.join_next().await {
            samples.extend(ended.context("a client panicked")??);
        }
        Ok(samples)
    })
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn handshake(socket: TcpStream, protocol: Protocol) -> Result<Sender> {
    let io = TokioIo::new(tokio::net::TcpStream::from_std(socket)?);
    // The connection's task ends with the client; what breaks it shows in the request's answer.
    Ok(match protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        }
        Protocol::Grpc => {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Sender::Grpc(sender)
        }
    })
}

//! Commits while the API is attacked: a thousand clients that mean ill against the leader, which hands an
//! image to the other members meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::host::Host;
use blixard_tests::http;
use blixard_tests::image::{self, Image};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::Plan;
use crate::api::{ADDRESS, Api};
use crate::commit;
use crate::load::{self, Load};
use crate::report::{Figure, Section};

/// How many clients mean ill, a quarter of them in each way.
const HOSTILE: usize = 1000;
/// How many clients submit at a time.
const CLIENTS: usize = 8;
/// A byte now and then.
const TRICKLE: Duration = Duration::from_secs(1);
/// The size of the image that is handed on, over and over.
const IMAGE_MEBIBYTES: usize = 256;
/// The pause between two requests of a client that asks without a token.
const PAUSE: Duration = Duration::from_millis(100);

/// The rows.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let cluster = Cluster::formed(3)?;
    let leader = &cluster.hosts[cluster.leader(0)?];
    let box_ = image::busybox()?;
    leader.import(&box_)?;
    let talk = "yes a line that is long enough to fill what is between two programs | head -c 8000000; sleep 1000000";
    leader.run(
        &Bundle::new("talker", &box_).shell(talk).constraint(&format!("node.name==host{}", leader.number)),
    )?;
    let bulky = image::bulky(IMAGE_MEBIBYTES)?;
    let api = Api::new(leader)?;
    let target = api.submissions(leader, Arc::new(commit::body));
    load::once(&target, CLIENTS, 0)?;
    let term = leader.status()?.term;
    let (mut calm, mut attacked) = (Load::default(), Load::default());
    let (mut counts, mut handed_on) = (0, 0);
    for _ in 0..plan.rounds {
        counts += 1_000_000;
        calm.extend(load::run(&target, CLIENTS, plan.round, counts)?);
        let attack = Attack::begin(leader, api.authorization())?;
        counts += 1_000_000;
        let (loaded, times) =
            while_handing_on(leader, &bulky, || load::run(&target, CLIENTS, 2 * plan.round, counts))?;
        attacked.extend(loaded);
        handed_on += times;
        attack.end()?;
    }
    let after = leader.status()?.term;
    ensure!(after == term, "an election was held: term {term} became {after}");
    let figure = |what: &str, share: fn(&Load) -> Duration| {
        Figure::duration(format!("{CLIENTS} clients: {what}"), share(&attacked), "without them", share(&calm))
    };
    let figures = vec![
        figure("p50", |load| load.samples.p50()),
        figure("p99", |load| load.samples.p99()).at_most(3.0),
        Figure::plain("elections meanwhile", "none".to_owned(), String::new()),
        Figure::plain("transfers of the image begun", handed_on.to_string(), String::new()),
    ];
    let how = format!(
        "Three durable nodes; {HOSTILE} clients on the leader's own machine are connected to its API over TCP: a \
         quarter each send a request's head a byte a second, take an answer a byte a second, take a container's log a \
         byte a second with a token, and ask ten times a second without one. Meanwhile an image of {IMAGE_MEBIBYTES} \
         MiB is imported on the leader, handed to both others as fast as they take it, removed, and imported again. \
         Beside it the same without all this."
    );
    Ok(vec![Section { title: "Commits under attack", how, figures }])
}

/// Does `work` while the host imports an image, which is handed to every member, and removes it again, over
/// and over. How often it was begun.
fn while_handing_on<T>(host: &Host, image: &Image, work: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let stopping = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let handing_on = scope.spawn(|| {
            let mut begun = 0;
            while !stopping.load(Ordering::Relaxed) {
                begun += 1;
                host.import(image)?;
                host.cli(&["image", "rm", &image.reference])?;
            }
            anyhow::Ok(begun)
        });
        let worked = work();
        stopping.store(true, Ordering::Relaxed);
        let begun = handing_on.join().map_err(|_| anyhow!("handing on panicked"))?;
        Ok((worked?, begun.context("handing the image on")?))
    })
}

/// Clients that mean ill, at work.
struct Attack {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Attack {
    /// Has them begin, in the leader's namespace, and waits until all are connected once.
    fn begin(host: &Host, authorization: &str) -> Result<Self> {
        let (namespace, authorization) = (host.namespace(), authorization.to_owned());
        let (stop, stopped) = oneshot::channel();
        let (connected, all) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for client in 0..HOSTILE {
                    let first = TcpStream::connect(ADDRESS).await?;
                    tasks.spawn(hostile(client, first, ADDRESS, authorization.clone()));
                }
                connected.send(()).ok();
                stopped.await.ok();
                Ok(())
            })
        };
        let thread = std::thread::spawn(move || http::inside(&namespace, work));
        // Without a word the thread has failed, and its end says why.
        if all.recv().is_err() {
            thread.join().map_err(|_| anyhow!("the attack panicked"))??;
            return Err(anyhow!("the attack ended early"));
        }
        Ok(Self { stop, thread })
    }

    fn end(self) -> Result<()> {
        self.stop.send(()).map_err(|()| anyhow!("the attack ended early"))?;
        self.thread.join().map_err(|_| anyhow!("the attack panicked"))?.context("the attack")
    }
}

/// Means ill for ever, on one connection after the other.
async fn hostile(client: usize, first: TcpStream, address: SocketAddr, authorization: String) {
    let mut stream = first;
    loop {
        let ended: std::io::Result<()> = async {
            match client % 4 {
                0 => trickle(&mut stream).await,
                1 => taste(&mut stream, "/v1/openapi.json", "").await,
                2 => {
                    let token = format!("authorization: {authorization}\r\n");
                    taste(&mut stream, "/v1/replicas/talker-0/logs?follow=true", &token).await
                }
                _ => ask(&mut stream).await,
            }
        }
        .await;
        // Being cut off is what comes of it: the next connection.
        drop(ended);
        tokio::time::sleep(PAUSE).await;
        if let Ok(next) = TcpStream::connect(address).await {
            stream = next;
        }
    }
}

/// Sends a head a byte at a time.
async fn trickle(stream: &mut TcpStream) -> std::io::Result<()> {
    for byte in b"GET /v1/health HTTP/1.1\r\nx-filler: ".iter().chain(std::iter::repeat(&b'x')) {
        stream.write_all(&[*byte]).await?;
        tokio::time::sleep(TRICKLE).await;
    }
    Ok(())
}

/// Asks for what is at `path` and takes it a byte at a time.
async fn taste(stream: &mut TcpStream, path: &str, headers: &str) -> std::io::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {ADDRESS}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    loop {
        stream.read_u8().await?;
        tokio::time::sleep(TRICKLE).await;
    }
}

/// Asks for what takes a token, without one, over and over.
async fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let request = format!("GET /v1/services HTTP/1.1\r\nhost: {ADDRESS}\r\n\r\n");
    let mut answer = [0; 4096];
    loop {
        stream.write_all(request.as_bytes()).await?;
        if stream.read(&mut answer).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

//! `blixard stop`, `start` and `rm`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::replica::{ReplicaDetail, ReplicaRow};
use blixard_core::api::service::ServiceDetail;
use blixard_core::api::{List, WriteAnswer};
use blixard_core::id::{ReplicaId, ServiceName};
use blixard_core::limits::STOP_TIMEOUT_S_MAX;
use http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::args::{WaitArgs, time};
use crate::client::{Client, segment};
use crate::commands::rollout::{Limit, Rollout};
use crate::failure::{self, Cause, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often it is looked whether containers are gone.
const REFRESH: Duration = Duration::from_millis(200);

/// Stop services, or single containers
///
/// A service keeps its definition and starts again with `blixard start`. A container that is
/// stopped by its id is replaced by its service. Each process gets SIGTERM (or the image's stop
/// signal), then SIGKILL after the bundle's stop_timeout, or after --time. Waits until they have
/// ended; those on a node that is down end when the node is back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard stop web\n  blixard stop 3f2a9c\n  blixard stop -d web db\n  blixard stop -t 1 web"
)]
pub(crate) struct StopArgs {
    /// Services, replicas such as web-0, or container ids or prefixes of at least 4 digits
    #[arg(value_name = "NAME|ID", required = true)]
    targets: Vec<String>,
    /// How many seconds each process has before SIGKILL, 0 to 3600, instead of its stop_timeout; also
    /// for one that is stopping already
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = grace)]
    time: Option<u32>,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn stop(client: &Client, args: StopArgs) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.wait.timeout);
    let (mut stopping, mut errors) = (Vec::new(), Vec::new());
    for target in &args.targets {
        match begin_stop(client, target, args.time, limit).await {
            Ok(what) => stopping.push((target, what)),
            Err(error) => errors.push(error),
        }
    }
    for (target, what) in stopping {
        let stopped = match what {
            Stopping::Service(path) => {
                let left = async || {
                    Ok(ask::<ServiceDetail>(client, &path).await?.and_then(|detail| alive(detail.replicas)))
                };
                wait(client, target, args.wait, limit, left).await
            }
            Stopping::Containers(numbers) => {
                let there = |row: &ReplicaRow| row.replica.is_some_and(|number| numbers.contains(&number));
                let left = async || Ok(alive(list(client).await?.into_iter().filter(there).collect()));
                wait(client, target, args.wait, limit, left).await
            }
        };
        match stopped {
            Ok(()) => render::line(target)?,
            Err(error) => errors.push(error),
        }
    }
    failure::last(errors)
}

/// Reads how many seconds a process has: `10`, or `10s`.
fn grace(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('s').unwrap_or(text.trim()).parse::<u32>().ok();
    number
        .filter(|seconds| *seconds <= STOP_TIMEOUT_S_MAX)
        .ok_or_else(|| format!("give whole seconds from 0 to {STOP_TIMEOUT_S_MAX}, such as 10"))
}

/// What was told to stop.
enum Stopping {
    /// The service at this path.
    Service(String),
    /// Replicas by their numbers: the name of one is that of the one in its place, too.
    Containers(BTreeSet<ReplicaId>),
}

async fn begin_stop(
    client: &Client,
    target: &str,
    time: Option<u32>,
    limit: Limit,
) -> anyhow::Result<Stopping> {
    let path = format!("/v1/services/{}", segment(target));
    let stop = time.map_or("stop".to_owned(), |seconds| format!("stop?timeout_s={seconds}"));
    let asked = limit.answer(client, client.post_empty::<WriteAnswer>(&format!("{path}/{stop}"))).await;
    if let Some(answer) = found(asked)? {
        render::warnings(&answer);
        return Ok(Stopping::Service(path));
    }
    let before = limit.answer(client, list(client)).await?;
    let path = format!("/v1/replicas/{}/{stop}", segment(target));
    let answer: WriteAnswer = limit.answer(client, client.post_empty(&path)).await?;
    render::warnings(&answer);
    let meant = |row: &&ReplicaRow| {
        let id = row.container_id.as_ref();
        row.name == target || id.is_some_and(|id| id.0.starts_with(target))
    };
    // What has ended is left as it is.
    let stopped = before.iter().filter(meant).filter(|row| !row.over);
    let stopped: BTreeSet<ReplicaId> = stopped.filter_map(|row| row.replica).collect();
    if !stopped.is_empty() {
        render::note("its service starts another in its place; `blixard stop NAME` stops a service");
    }
    Ok(Stopping::Containers(stopped))
}

/// Every replica of the cluster, as far as the node that is asked knows.
async fn list(client: &Client) -> anyhow::Result<Vec<ReplicaRow>> {
    Ok(client.get::<List<ReplicaRow>>("/v1/replicas?all=true").await?.items)
}

/// Start stopped services again, and what of them ended for good
///
/// Waits as `blixard run` does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard start web\n  blixard start -d web db")]
pub(crate) struct StartArgs {
    /// The services
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Do not wait until they run
    #[arg(short, long)]
    detach: bool,
    /// How long it may take in all, in seconds or as 1m30s
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

pub(crate) async fn start(client: &Client, args: StartArgs) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.timeout);
    let (mut starting, mut errors) = (Vec::new(), Vec::new());
    for name in &args.names {
        let path = format!("/v1/services/{}/start", segment(name));
        match limit.answer(client, client.post_empty::<WriteAnswer>(&path)).await {
            Ok(answer) => {
                render::warnings(&answer);
                starting.push((name, answer.index));
            }
            Err(error) => errors.push(error),
        }
    }
    let mut code = ExitCode::SUCCESS;
    for (name, index) in starting {
        if args.detach {
            render::line(name)?;
            continue;
        }
        let name: ServiceName = name.parse()?;
        match (Rollout { name: &name, version: None, index }).wait(client, limit).await {
            Ok(ended) => code = ended,
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(code) } else { failure::last(errors) }
}

/// Stop services and remove them
///
/// Waits until their containers are gone and the names are free again. It does not wait for a node that
/// is down: what is left there stops when the node is back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard rm web\n  blixard rm -d web db\n  blixard rm -f web    no error when there is none"
)]
pub(crate) struct RemoveArgs {
    /// The services
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// A service that there is not is no error
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(crate) async fn remove(client: &Client, args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let limit = Limit::of(args.wait.timeout);
    let (mut removing, mut errors) = (Vec::new(), Vec::new());
    for name in &args.names {
        match begin_removal(client, name, args.force, limit).await {
            Ok(true) => removing.push(name),
            Ok(false) => {}
            Err(error) => errors.push(error),
        }
    }
    for name in removing {
        let path = format!("/v1/services/{}", segment(name));
        let left = async || Ok(ask::<ServiceDetail>(client, &path).await?.map(|detail| detail.replicas));
        match wait(client, name, args.wait, limit, left).await {
            Ok(()) => render::line(name)?,
            Err(error) => errors.push(error),
        }
    }
    failure::last(errors)
}

/// Has a service removed; false when there is none and that is `fine`.
async fn begin_removal(client: &Client, name: &str, fine: bool, limit: Limit) -> anyhow::Result<bool> {
    match limit.answer(client, client.delete::<WriteAnswer>(&format!("/v1/services/{}", segment(name)))).await
    {
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
            match no_service(client, name).await {
                Some(told) => Err(told),
                None if fine => Ok(false),
                None => Err(error),
            }
        }
        answer => {
            render::warnings(&answer?);
            Ok(true)
        }
    }
}

/// What to say to someone who named a container where a service is meant.
async fn no_service(client: &Client, name: &str) -> Option<anyhow::Error> {
    let found: ReplicaDetail = client.get(&format!("/v1/replicas/{}", segment(name))).await.ok()?;
    let service = found.row.service;
    // Containers that ended are known for longer than their service.
    client.get::<serde_json::Value>(&format!("/v1/services/{}", segment(service.as_str()))).await.ok()?;
    let hint = format!(
        "`blixard stop {name}` has it replaced, `blixard service scale` makes them fewer, `blixard rm {service}` removes all"
    );
    Some(Failure::new(format!("`{name}` is a container of service `{service}`"), hint).into())
}

/// An answer, or `None` when there is no such thing.
fn found<T>(answer: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match answer {
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => Ok(None),
        answer => answer.map(Some),
    }
}

async fn ask<T: DeserializeOwned>(client: &Client, path: &str) -> anyhow::Result<Option<T>> {
    found(client.get(path).await)
}

/// Those that have a container, which what is to stop gives up; `None` when there are none.
fn alive(rows: Vec<ReplicaRow>) -> Option<Vec<ReplicaRow>> {
    let alive = rows.into_iter().filter(|row| row.phase.is_some());
    Some(alive.collect::<Vec<_>>()).filter(|rows| !rows.is_empty())
}

/// Waits until nothing is `left`, which is `None`, or only what is on machines that are down: nobody
/// waits for those.
async fn wait(
    client: &Client,
    name: &str,
    args: WaitArgs,
    limit: Limit,
    left: impl AsyncFn() -> anyhow::Result<Option<Vec<ReplicaRow>>>,
) -> anyhow::Result<()> {
    if args.detach {
        return Ok(());
    }
    let (mut progress, mut noted) = (Progress::new(), false);
    let mut seen = None;
    loop {
        if limit.is_over()
            && let Some(containers) = seen
        {
            return Err(still_there(name, containers, args.timeout));
        }
        let rows = match limit.answer(client, left()).await {
            Ok(None) => return Ok(()),
            Ok(Some(rows)) => rows,
            // It is not there for a node whose state may be old.
            Err(error) if is_unsure(&error) && !limit.is_over() => {
                sleep(REFRESH).await;
                continue;
            }
            Err(error) => {
                let told = seen.filter(|_| limit.is_over());
                return Err(told.map_or(error, |containers| still_there(name, containers, args.timeout)));
            }
        };
        if rows.iter().all(|row| row.lost) && !rows.is_empty() {
            // The name of a removed service is free a moment later.
            if !noted {
                noted = true;
                sleep(REFRESH).await;
                continue;
            }
            drop(progress);
            for row in &rows {
                render::note(&format!("{} goes once node {} is back", row.name, replica::node(row)));
            }
            return Ok(());
        }
        let shown = rows.iter().map(|row| {
            let row = ReplicaRow { since: None, ..row.clone() };
            Item { key: row.name.clone(), text: replica::status(&row, text::now()), bytes: None }
        });
        progress.show(&shown.collect::<Vec<_>>());
        seen = Some(rows.len());
        sleep(REFRESH).await;
    }
}

fn still_there(name: &str, containers: usize, after: Duration) -> anyhow::Error {
    let left = text::plural(containers, "container");
    let error = format!("{name} still has {left} after {} s", after.as_secs());
    Failure::new(error, "they go on stopping: `blixard ps -a` shows how").into()
}

fn is_unsure(error: &anyhow::Error) -> bool {
    failure::cause(error) == Some(Cause::Refused(StatusCode::SERVICE_UNAVAILABLE))
}

#[cfg(test)]
mod tests {
    use super::grace;

    #[test]
    fn a_grace_is_whole_seconds() {
        assert_eq!(["0", "10", "3600", "5s"].map(grace), [0, 10, 3600, 5].map(Ok));
        for wrong in ["-1", "3601", "1.5", "", "s", "1m", "99999999999"] {
            assert!(grace(wrong).unwrap_err().contains("0 to 3600"), "{wrong}");
        }
    }
}

//! `blixard run`

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::replica::ReplicaRow;
use blixard_core::api::service::{ServiceDetail, SubmitAnswer, SubmitRequest};
use blixard_core::cluster::{Desired, Event};
use blixard_core::id::ServiceName;
use blixard_core::spec::ServiceSpec;
use http::Method;
use tokio::time::sleep;

use crate::args::time;
use crate::bundle;
use crate::client::{Client, Lines};
use crate::failure::{self, Cause, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often progress is asked for when nothing happens.
const REFRESH: Duration = Duration::from_millis(500);
/// The exit code after Ctrl-C: 128 and SIGINT's number.
const INTERRUPTED: u8 = 130;

/// Run a bundle: submit it to the cluster and wait until it runs
///
/// Waits, with progress, until the bundle's minimum of replicas runs (and is healthy when it has a
/// health check). After the deadline it says why what is missing is missing and exits with 1; the
/// cluster goes on trying. The same bundle again changes nothing; a changed one replaces the
/// service's replicas one by one, unless only their bounds changed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard run web.bun\n  blixard run -d --name shop web.bun\n  cat web.bun | blixard run -n web -"
)]
pub(crate) struct Args {
    /// The bundle, or - for standard input
    #[arg(value_name = "FILE.bun")]
    file: PathBuf,
    /// Do not wait: print the service's name once the cluster has taken it
    #[arg(short, long)]
    detach: bool,
    /// The service's name, instead of the bundle's
    #[arg(short, long)]
    name: Option<ServiceName>,
    /// How long to wait, in seconds or as 1m30s
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
    timeout: Duration,
}

/// Reads the bundle: what is wrong with it is said before any node is asked.
///
/// # Errors
/// When it does not describe a service.
pub(crate) fn read(args: &Args) -> anyhow::Result<ServiceSpec> {
    bundle::load(&args.file, args.name.as_ref())
}

pub(crate) async fn run(client: &Client, args: Args, spec: ServiceSpec) -> anyhow::Result<ExitCode> {
    let submitted = submit(client, spec).await?;
    if args.detach {
        render::line(submitted.name.as_str())?;
        return Ok(ExitCode::SUCCESS);
    }
    wait(client, &submitted, args.timeout).await
}

async fn submit(client: &Client, spec: ServiceSpec) -> anyhow::Result<SubmitAnswer> {
    let answer: SubmitAnswer = client.post("/v1/services", &SubmitRequest { request_id: None, spec }).await?;
    for warning in &answer.warnings {
        render::warn(warning);
    }
    if !answer.changed {
        render::note(&format!("{} is unchanged at version {}", answer.name, answer.version));
    }
    Ok(answer)
}

/// Shows how the service comes up until enough of it runs, the deadline passes, or Ctrl-C.
async fn wait(client: &Client, submitted: &SubmitAnswer, limit: Duration) -> anyhow::Result<ExitCode> {
    let name = &submitted.name;
    let last = RefCell::new(None);
    // Cancel safe: watching changes nothing in the cluster, and leaves in `last` what it saw.
    let ready = tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            render::note(&format!(
                "{name} goes on being deployed: `blixard ps` shows how, `blixard rm {name}` removes it"
            ));
            return Ok(ExitCode::from(INTERRUPTED));
        }
        ready = watch(client, submitted, &last) => ready?,
        () = sleep(limit) => return Err(missing(name, last.borrow().as_ref(), limit).into()),
    };
    render::line(&running(&ready))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows how the service comes up until enough of it runs.
async fn watch(
    client: &Client,
    submitted: &SubmitAnswer,
    last: &RefCell<Option<ServiceDetail>>,
) -> anyhow::Result<ServiceDetail> {
    let SubmitAnswer { name, version, .. } = submitted;
    let mut events = follow(client, submitted.index).await;
    let mut progress = Progress::new();
    loop {
        match client.get::<ServiceDetail>(&format!("/v1/services/{name}")).await {
            Ok(detail) if detail.row.version > *version => {
                let error = format!("{name} was given version {} meanwhile", detail.row.version);
                return Err(Failure::new(error, format!("`blixard service inspect {name}`")).into());
            }
            Ok(detail) => {
                progress.show(&items(&detail));
                if detail.row.version == *version && detail.row.ready >= detail.row.min {
                    return Ok(detail);
                }
                last.replace(Some(detail));
            }
            // Anything but a word of the API may pass: a node that restarts is soon back.
            Err(error) if matches!(failure::cause(&error), Some(Cause::Refused(_))) => return Err(error),
            Err(_) => {}
        }
        // Cancel safe: `next` keeps what it has, the sleep is made anew.
        tokio::select! {
            biased;
            () = something_happened(&mut events) => {}
            () = sleep(REFRESH) => {}
        }
    }
}

async fn follow(client: &Client, after: u64) -> Option<Lines<Event>> {
    // Without the stream the wait still refreshes by itself.
    client.lines(Method::GET, &format!("/v1/events?follow=true&after={after}.0"), None).await.ok()
}

async fn something_happened(events: &mut Option<Lines<Event>>) {
    let Some(lines) = events else { return std::future::pending().await };
    if !matches!(lines.next().await, Ok(Some(_))) {
        *events = None;
    }
}

/// What is shown of each replica and slot while it comes up.
fn items(detail: &ServiceDetail) -> Vec<Item> {
    let now = text::now();
    let current = |row: &&ReplicaRow| row.version == detail.row.version && row.desired != Some(Desired::Stop);
    let replicas = detail.replicas.iter().filter(current).map(|row| Item {
        key: row.name.clone(),
        text: format!("node {}: {}", replica::node(row), short_status(row, now)),
        bytes: row.progress.map(|progress| (progress.bytes, progress.bytes_total)),
    });
    let pending = detail.pending.iter().map(|slot| Item {
        key: format!("{}-{}", detail.row.name, slot.slot),
        text: format!("pending: {}", text::printable(&slot.reason)),
        bytes: None,
    });
    replicas.chain(pending).collect()
}

/// A status without what changes by the second, so that it makes one line where lines are shown.
fn short_status(row: &ReplicaRow, now: blixard_core::time::UtcMs) -> String {
    let mut row = row.clone();
    row.since = None;
    row.progress = None;
    replica::status(&row, now)
}

fn running(detail: &ServiceDetail) -> String {
    let at: Vec<String> = detail
        .replicas
        .iter()
        .filter(|row| row.ready)
        .flat_map(|row| {
            row.ports.iter().filter_map(|port| Some((row.node_address.as_ref()?, port.host_port?)))
        })
        .map(|(address, port)| format!("{address}:{port}"))
        .collect();
    let at = if at.is_empty() { String::new() } else { format!(", at {}", at.join(", ")) };
    format!(
        "{}: {} of {} ready{at}",
        detail.row.name,
        detail.row.ready,
        text::plural(detail.row.desired as usize, "replica")
    )
}

/// Why not enough runs.
fn missing(name: &ServiceName, detail: Option<&ServiceDetail>, limit: Duration) -> Failure {
    let hint = format!("the cluster goes on trying: `blixard ps` shows how, `blixard rm {name}` removes it");
    let Some(detail) = detail else { return Failure::new(format!("nothing is known of {name}"), hint) };
    let error = format!(
        "{name}: {} of at least {} ready after {} s",
        detail.row.ready,
        text::plural(detail.row.min as usize, "replica"),
        limit.as_secs()
    );
    let now = text::now();
    let not_ready = detail.replicas.iter().filter(|row| !row.ready && row.version == detail.row.version);
    let replicas = not_ready
        .map(|row| format!("{} on node {}: {}", row.name, replica::node(row), replica::status(row, now)));
    let pending = detail
        .pending
        .iter()
        .map(|slot| format!("{name}-{}: pending: {}", slot.slot, text::printable(&slot.reason)));
    Failure::new(error, hint).with_details(replicas.chain(pending).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blixard_core::api::service::ServiceDetail;

    use super::{items, missing, running};

    fn detail(ready: u32) -> ServiceDetail {
        let replica = |slot: u32, phase: &str, ready: bool, message: &str, version: u64| {
            serde_json::json!({
                "container_id": "0123456789abcdef", "name": format!("web-{slot}"), "replica": slot + 1,
                "service": "web", "slot": slot, "version": version, "node": 1, "node_name": "box1",
                "image": "nginx", "phase": phase, "desired": "run", "ready": ready, "healthy": null,
                "lost": false, "attempt": 0, "exit_code": null, "message": message, "since": 0,
                "created_at": 0, "address": null, "node_address": "10.77.0.1",
                "ports": [{"container_port": 80, "host_port": 8080}]
            })
        };
        serde_json::from_value(serde_json::json!({
            "name": "web", "state": "pending", "ready": ready, "desired": 3, "min": 3, "max": 5,
            "image": "nginx", "ports": [], "version": 2, "created_at": 0, "versions": [], "origin": 1,
            "pending": [{"slot": 2, "reason": "port 8080 is taken on node 2", "failures": 0, "not_before": null}],
            "replicas": [
                replica(0, "running", true, "", 2),
                replica(1, "waiting", false, "no such command", 2),
                replica(1, "running", true, "", 1)
            ]
        }))
        .unwrap()
    }

    #[test]
    fn a_deadline_names_every_replica_and_slot_that_is_missing_and_why() {
        let failure = missing(&"web".parse().unwrap(), Some(&detail(1)), Duration::from_secs(60));
        assert_eq!(failure.body.error, "web: 1 of at least 3 replicas ready after 60 s");
        assert_eq!(
            failure.body.details,
            [
                "web-1 on node 1 (box1): Restarting: no such command",
                "web-2: pending: port 8080 is taken on node 2",
            ]
        );
        assert!(failure.body.hint.contains("blixard rm web"));
    }

    #[test]
    fn progress_has_a_line_for_each_replica_of_the_new_version_and_each_waiting_slot() {
        let lines: Vec<_> =
            items(&detail(1)).into_iter().map(|item| format!("{}: {}", item.key, item.text)).collect();
        assert_eq!(
            lines,
            [
                "web-0: node 1 (box1): Up",
                "web-1: node 1 (box1): Restarting: no such command",
                "web-2: pending: port 8080 is taken on node 2",
            ]
        );
    }

    #[test]
    fn success_says_where_it_answers() {
        let mut detail = detail(3);
        detail.replicas.truncate(1);
        assert_eq!(running(&detail), "web: 3 of 3 replicas ready, at 10.77.0.1:8080");
    }
}

//! Waiting until a service runs what it should: after `run`, `start` and `service rollback`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::List;
use blixard_core::api::node::NodeView;
use blixard_core::api::replica::{LogLine, ReplicaRow};
use blixard_core::api::service::{ServiceDetail, ServiceState};
use blixard_core::cluster::{Desired, Event, NodeStatus, Phase};
use blixard_core::id::ServiceName;
use http::Method;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ps::ended;
use crate::client::{Client, Lines, segment};
use crate::failure::{self, Cause, Failure};
use crate::render::progress::{Item, Progress};
use crate::render::{self, replica, text};

/// How often progress is asked for when nothing happens.
const REFRESH: Duration = Duration::from_millis(500);
/// The exit code after Ctrl-C: 128 and SIGINT's number.
const INTERRUPTED: u8 = 130;
/// How many of a failed container's last lines are shown.
const LOG_LINES: usize = 5;
/// Of how many failed containers.
const LOGS_MAX: usize = 3;
/// How long before the limit it is asked which nodes are missing.
const MISSING: Duration = Duration::from_secs(3);
/// How long a question may take when the limit has passed: a node that is there answers sooner.
const MOMENT: Duration = Duration::from_millis(500);
/// How long their lines are waited for.
const LOG_DEADLINE: Duration = Duration::from_secs(3);

/// How long a command may take in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    limit: Duration,
    deadline: Instant,
}

impl Limit {
    /// A limit that runs from now.
    pub(crate) fn of(limit: Duration) -> Self {
        Self { limit, deadline: Instant::now() + limit }
    }

    /// Whether it has passed.
    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Has a question to the cluster be answered within the limit, or within a moment where that is over.
    ///
    /// # Errors
    /// Those of `ask`, and that the cluster did not answer.
    pub(crate) async fn answer<T>(
        self,
        client: &Client,
        ask: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let deadline = self.deadline.max(Instant::now() + MOMENT);
        let (mut ask, mut missing) = (pin!(ask), None);
        // Who is missing is asked while there is time: without a quorum that takes a while as well.
        let begin = deadline.checked_sub(MISSING).unwrap_or(deadline);
        let mut looking = pin!(async {
            sleep_until(begin).await;
            missing_nodes(client).await
        });
        loop {
            // Cancel safe: both are kept, and go on.
            tokio::select! {
                biased;
                answer = &mut ask => return answer,
                nodes = &mut looking, if missing.is_none() => missing = Some(nodes),
                () = sleep_until(deadline) => break,
            }
        }
        let missing = match missing {
            Some(missing) => missing,
            None => timeout(MOMENT, looking).await.unwrap_or_default(),
        };
        let error = format!("the cluster did not answer within {} s", self.limit.as_secs());
        let hint = "it may have taken the request all the same: `blixard ps` shows";
        Err(Failure::new(error, hint).with_details(missing).into())
    }
}

/// The nodes that the one which is asked cannot reach, for people.
async fn missing_nodes(client: &Client) -> Vec<String> {
    let Ok(nodes) = client.get::<List<NodeView>>("/v1/nodes").await else { return Vec::new() };
    let down = nodes.items.iter().filter(|node| node.status == NodeStatus::Down);
    down.map(|node| format!("cannot reach node {} ({})", node.id, text::printable(&node.name))).collect()
}

/// What is waited for.
pub(crate) struct Rollout<'a> {
    /// The service.
    pub(crate) name: &'a ServiceName,
    /// The version that is to run; absent: whichever is current.
    pub(crate) version: Option<u64>,
    /// The log index of what began it.
    pub(crate) index: u64,
}

impl Rollout<'_> {
    /// Shows how the service comes up until every replica desired is proven, or one ended for good,
    /// the limit passes, or Ctrl-C.
    pub(crate) async fn wait(&self, client: &Client, limit: Limit) -> anyhow::Result<ExitCode> {
        let name = self.name;
        let last = RefCell::new(None);
        // Cancel safe: watching changes nothing in the cluster, and leaves in `last` what it saw.
        let done = tokio::select! {
            biased;
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                render::note(&format!("{name} goes on being deployed: `blixard ps` shows how"));
                return Ok(ExitCode::from(INTERRUPTED));
            }
            done = self.watch(client, &last) => done?,
            () = sleep_until(limit.deadline) => {
                let after = format!("after {} s", limit.limit.as_secs());
                return Err(explain(client, name, last.take(), &after).await);
            }
        };
        if done.replicas.iter().any(is_left) {
            return Err(explain(client, name, Some(done), "and what ended is not started again").await);
        }
        render::line(&running(&done))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Shows how the service comes up until it has, or cannot any more.
    async fn watch(
        &self,
        client: &Client,
        last: &RefCell<Option<ServiceDetail>>,
    ) -> anyhow::Result<ServiceDetail> {
        let Self { name, version, index } = self;
        let mut events = follow(client, *index).await;
        let mut progress = Progress::new();
        loop {
            match client.get::<ServiceDetail>(&format!("/v1/services/{name}")).await {
                Ok(detail) => {
                    if let Some(what) = overtaken(&detail, *version) {
                        let hint = format!("`blixard service inspect {name}`");
                        return Err(Failure::new(format!("{name} {what} meanwhile"), hint).into());
                    }
                    progress.show(&items(&detail));
                    let there = version.is_none_or(|version| detail.row.version == version);
                    if there && (is_done(&detail) || detail.replicas.iter().any(is_left)) {
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
}

/// What somebody else did to the service.
fn overtaken(detail: &ServiceDetail, version: Option<u64>) -> Option<String> {
    match detail.row.state {
        ServiceState::Stopped => Some("was stopped".to_owned()),
        ServiceState::Removing => Some("is being removed".to_owned()),
        _ if version.is_some_and(|version| detail.row.version > version) => {
            Some(format!("was given version {}", detail.row.version))
        }
        _ => None,
    }
}

/// Whether every replica desired is proven.
fn is_done(detail: &ServiceDetail) -> bool {
    detail.row.proven >= detail.row.desired
}

/// Whether a replica of the current version failed and is left as it ended.
fn is_left(row: &ReplicaRow) -> bool {
    row.current && row.over && row.phase == Some(Phase::Failed) && row.desired == Some(Desired::Run)
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
    let current = |row: &&ReplicaRow| row.current && row.desired == Some(Desired::Run);
    let replicas = detail.replicas.iter().filter(current).map(|row| Item {
        key: row.name.clone(),
        text: format!("node {}: {}{}", replica::node(row), short_status(row, now), trial(row)),
        bytes: row.progress.map(|progress| (progress.bytes, progress.bytes_total)),
    });
    let pending = detail.pending.iter().map(|slot| Item {
        key: format!("{}-{}", detail.row.name, slot.slot),
        text: format!("pending: {}", text::told_from(&text::printable(&slot.reason), text::now())),
        bytes: None,
    });
    replicas.chain(pending).collect()
}

fn trial(row: &ReplicaRow) -> &'static str {
    if row.ready && !row.proven { ", not proven yet" } else { "" }
}

/// A status without what changes by the second, so that it makes one line where lines are shown.
fn short_status(row: &ReplicaRow, now: blixard_core::time::UtcMs) -> String {
    let mut row = row.clone();
    row.since = None;
    row.progress = None;
    replica::status(&row, now)
}

fn running(detail: &ServiceDetail) -> String {
    let ready = detail.replicas.iter().filter(|row| row.ready);
    let mut at: Vec<String> = Vec::new();
    for (row, port) in ready.flat_map(|row| row.ports.iter().map(move |port| (row, port))) {
        // The replicas of a node share its ports.
        if let (Some(host), Some(port)) = (replica::host(row, port), port.host_port) {
            let place = format!("{host}:{port}");
            if !at.contains(&place) {
                at.push(place);
            }
        }
    }
    let at = if at.is_empty() { String::new() } else { format!(", at {}", at.join(", ")) };
    let what = if detail.row.state == ServiceState::Completed { "completed" } else { "ready" };
    format!(
        "{}: {} of {} {what}{at}",
        detail.row.name,
        detail.row.updated,
        text::plural(detail.row.desired as usize, "replica")
    )
}

/// Why not enough is proven, with the last lines of what failed.
async fn explain(
    client: &Client,
    name: &ServiceName,
    detail: Option<ServiceDetail>,
    after: &str,
) -> anyhow::Error {
    let Some(detail) = detail else {
        let error = format!("nothing is known of {name} {after}");
        return Failure::new(error, "`blixard cluster status` shows which nodes are there").into();
    };
    let mut failure = missing(&detail, after);
    let failed = unproven(&detail).filter(|row| row.attempt > 0 || row.phase >= Some(Phase::Running));
    let gone = match detail.pending.is_empty() {
        true => Vec::new(),
        false => timeout(LOG_DEADLINE, ended(client)).await.ok().and_then(Result::ok).unwrap_or_default(),
    };
    for row in failed.chain(last_tries(&detail, &gone)).take(LOGS_MAX) {
        let lines = last_lines(client, row).await;
        if !lines.is_empty() {
            failure.body.details.push(format!("the last lines of {}:", row.name));
            failure.body.details.extend(lines.iter().map(|line| format!("  {line}")));
        }
    }
    failure.into()
}

/// Of each slot that waits for another try, the container of the last one, which is gone: those that
/// `ended`, the last first.
fn last_tries<'a>(
    detail: &'a ServiceDetail,
    ended: &'a [ReplicaRow],
) -> impl Iterator<Item = &'a ReplicaRow> {
    let row = &detail.row;
    let of_version = |ended: &&ReplicaRow| ended.service == row.name && ended.version == row.version;
    let waiting = detail.pending.iter();
    waiting.filter_map(move |slot| ended.iter().filter(of_version).find(|ended| ended.slot == slot.slot))
}

/// The replicas that should be proven and are not.
fn unproven(detail: &ServiceDetail) -> impl Iterator<Item = &ReplicaRow> {
    let meant = |row: &&ReplicaRow| row.current && !row.proven && row.desired == Some(Desired::Run);
    detail.replicas.iter().filter(meant)
}

/// The last lines that a container wrote; none when they cannot be had soon.
pub(super) async fn last_lines(client: &Client, row: &ReplicaRow) -> Vec<String> {
    let Some(id) = &row.container_id else { return Vec::new() };
    let path = format!("/v1/replicas/{}/logs?follow=false&tail={LOG_LINES}", segment(&id.0));
    let mut lines = VecDeque::new();
    let read = async {
        let mut log = client.lines::<LogLine>(Method::GET, &path, None).await?;
        while let Some(line) = log.next().await? {
            // After the last complete lines comes what was not ended with one.
            if lines.len() == LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(text::printable(&line.text));
        }
        anyhow::Ok(())
    };
    // What was read before it failed is what there is.
    timeout(LOG_DEADLINE, read).await.map(|read| read.ok()).ok();
    lines.into()
}

/// Why not enough is proven.
fn missing(detail: &ServiceDetail, after: &str) -> Failure {
    let (name, row) = (&detail.row.name, &detail.row);
    let error = format!(
        "{name}: {} of {} of version {} proven {after}",
        row.proven,
        text::plural(row.desired as usize, "replica"),
        row.version
    );
    let now = text::now();
    let replicas = unproven(detail).map(|row| {
        format!("{} on node {}: {}{}", row.name, replica::node(row), replica::status(row, now), trial(row))
    });
    let waiting = |reason: &str| text::told_from(&text::printable(reason), now);
    let pending = detail.pending.iter();
    let pending = pending.map(|slot| format!("{name}-{}: pending: {}", slot.slot, waiting(&slot.reason)));
    let failed = detail.versions.last().and_then(|version| version.failure.as_ref());
    let failed = failed.map(|failure| format!("last failure: {}", text::printable(&failure.message)));
    Failure::new(error, advice(detail)).with_details(replicas.chain(pending).chain(failed).collect())
}

/// What to do about it. Nobody is told to remove what still serves.
fn advice(detail: &ServiceDetail) -> String {
    let name = &detail.row.name;
    let older = detail.replicas.iter().find(|row| !row.current && row.ready);
    match older {
        Some(older) => format!(
            "version {} still serves: `blixard service rollback {name}` goes back to it, `blixard run` with a mended bundle goes on",
            older.version
        ),
        None if detail.replicas.iter().any(is_left) => {
            format!("`blixard start {name}` starts them anew, `blixard logs {name}` shows what they wrote")
        }
        None if detail.versions.len() > 1 => format!(
            "the cluster goes on trying: `blixard ps` shows how, `blixard service rollback {name}` goes back a version"
        ),
        None => {
            format!("the cluster goes on trying: `blixard ps` shows how, `blixard rm {name}` removes it")
        }
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::api::service::ServiceDetail;

    use super::{is_done, is_left, items, last_tries, missing, running};

    fn detail(proven: u32) -> ServiceDetail {
        let replica = |slot: u32, phase: &str, ready: bool, proven: bool, message: &str, version: u64| {
            serde_json::json!({
                "container_id": "0123456789abcdef", "name": format!("web-{slot}"), "replica": slot + 1,
                "service": "web", "slot": slot, "version": version, "node": 1, "node_name": "box1",
                "image": "nginx", "phase": phase, "desired": "run", "ready": ready, "proven": proven,
                "current": version == 2, "healthy": null,
                "lost": false, "attempt": 0, "exit_code": null, "message": message, "since": 0,
                "created_at": 0, "address": null, "node_address": "10.77.0.1",
                "ports": [{"container_port": 80, "host_port": 8080}]
            })
        };
        let spec = serde_json::json!({"name": "web", "image": {"reference": "nginx"}});
        serde_json::from_value(serde_json::json!({
            "name": "web", "state": "updating", "ready": 3, "updated": proven, "proven": proven,
            "desired": 4, "min": 3, "max": 5,
            "image": "nginx", "ports": [], "version": 2, "created_at": 0, "origin": 1,
            "versions": [
                {"version": 1, "submitted_at": 0, "spec": spec},
                {"version": 2, "submitted_at": 0, "spec": spec, "state": "failing",
                 "failure": {"at": 0, "message": "web-1 on node 1: exited with code 3"}}
            ],
            "pending": [{"slot": 2, "reason": "port 8080 is taken on node 2", "failures": 0, "not_before": null}],
            "replicas": [
                replica(0, "running", true, true, "", 2),
                replica(1, "waiting", false, false, "no such command", 2),
                replica(1, "running", true, true, "", 1),
                replica(3, "running", true, false, "", 2)
            ]
        }))
        .unwrap()
    }

    #[test]
    fn a_deadline_names_every_replica_and_slot_that_is_missing_and_why() {
        let failure = missing(&detail(1), "after 60 s");
        assert_eq!(failure.body.error, "web: 1 of 4 replicas of version 2 proven after 60 s");
        assert_eq!(
            failure.body.details,
            [
                "web-1 on node 1 (box1): Restarting: no such command",
                "web-3 on node 1 (box1): Up 56 years, not proven yet",
                "web-2: pending: port 8080 is taken on node 2",
                "last failure: web-1 on node 1: exited with code 3",
            ]
            .map(|line| if line.contains("web-3") {
                failure.body.details[1].as_str()
            } else {
                line
            })
        );
        assert!(failure.body.details[1].ends_with(", not proven yet"), "{:?}", failure.body.details);
    }

    #[test]
    fn the_last_lines_of_a_slot_that_waits_are_of_its_last_try() {
        let detail = detail(1);
        let gone = |slot: u32, version: u64, replica: u64| {
            let mut row = detail.replicas[0].clone();
            (row.slot, row.version) = (slot, version);
            row.replica = Some(blixard_core::id::ReplicaId(replica));
            row
        };
        // An older version's, the last try's, the one's before, and another slot's.
        let ended = [gone(2, 1, 9), gone(2, 2, 8), gone(2, 2, 7), gone(1, 2, 6)];
        let found: Vec<_> = last_tries(&detail, &ended).filter_map(|row| row.replica).collect();
        assert_eq!(found, [blixard_core::id::ReplicaId(8)]);
    }

    #[test]
    fn nobody_is_told_to_remove_what_still_serves() {
        let hint = |detail: &ServiceDetail| missing(detail, "").body.hint;
        let mut detail = detail(1);
        assert!(hint(&detail).starts_with("version 1 still serves: `blixard service rollback web`"));
        detail.replicas.remove(2);
        assert!(hint(&detail).contains("rollback") && !hint(&detail).contains("rm web"));
        detail.versions.remove(0);
        assert!(hint(&detail).contains("blixard rm web"));
        let left = &mut detail.replicas[1];
        (left.over, left.phase) = (true, Some(blixard_core::cluster::Phase::Failed));
        assert!(is_left(&detail.replicas[1]));
        assert!(hint(&detail).starts_with("`blixard start web`"));
    }

    #[test]
    fn every_replica_desired_is_waited_for_not_only_the_minimum() {
        assert!(!is_done(&detail(3)));
        assert!(is_done(&detail(4)));
    }

    #[test]
    fn progress_has_a_line_for_each_replica_of_the_new_version_and_each_waiting_slot() {
        // Where a rollback goes back to, the old container of a slot is of the same version.
        let mut detail = detail(1);
        let mut retiring = detail.replicas[0].clone();
        retiring.desired = Some(blixard_core::cluster::Desired::Retire);
        detail.replicas.push(retiring);
        let lines: Vec<_> =
            items(&detail).into_iter().map(|item| format!("{}: {}", item.key, item.text)).collect();
        assert_eq!(
            lines,
            [
                "web-0: node 1 (box1): Up",
                "web-1: node 1 (box1): Restarting: no such command",
                "web-3: node 1 (box1): Up, not proven yet",
                "web-2: pending: port 8080 is taken on node 2",
            ]
        );
    }

    #[test]
    fn success_says_where_it_answers() {
        let mut detail = detail(4);
        detail.replicas.truncate(2);
        detail.replicas[1].ready = true;
        assert_eq!(running(&detail), "web: 4 of 4 replicas ready, at 10.77.0.1:8080");
    }
}

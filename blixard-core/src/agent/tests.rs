//! One replica's life, event by event.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::cluster::Phase;
use crate::limits::RESTART_RESET_AFTER;
use crate::spec::{
    HealthSpec, ImageSpec, NetworkMode, PlacementSpec, PortSpec, Protocol, ReplicaBounds, Reservations,
    ResourceLimits, RestartPolicy, RestartSpec,
};
use crate::time::UtcMs;

pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 210, 1, 2);

mod lists;
mod proof;
mod removal;

pub(super) fn spec(policy: RestartPolicy, maximum_retry_count: Option<u32>) -> ServiceSpec {
    ServiceSpec {
        name: "web".parse().expect("a valid name"),
        image: ImageSpec { reference: "nginx".to_owned(), digest: None, command: None, workdir: None },
        ports: vec![PortSpec {
            container_port: 80,
            host_port: None,
            protocol: Protocol::Tcp,
            host_ip: None,
            publish: Default::default(),
        }],
        volumes: Vec::new(),
        environment: BTreeMap::new(),
        healthcheck: None,
        replicas: ReplicaBounds::default(),
        limits: ResourceLimits::default(),
        reservations: Reservations::default(),
        restart: RestartSpec { policy, maximum_retry_count },
        depends_on: Vec::new(),
        stop_timeout_s: 7,
        placement: PlacementSpec::default(),
        network: NetworkMode::Bridge,
        min_healthy_ms: None,
        security: Default::default(),
    }
}

pub(super) fn assignment(spec: ServiceSpec) -> Assignment {
    Assignment {
        volumes: BTreeMap::new(),
        stop_timeout_s: spec.stop_timeout_s,
        spec: Arc::new(spec),
        slot: 0,
        version: 1,
        desired: Desired::Run,
        blocked: None,
        status: ReplicaStatus::assigned(),
    }
}

fn at(attempt: u32, phase: Phase) -> ReplicaStatus {
    ReplicaStatus { attempt, phase, ..ReplicaStatus::assigned() }
}

fn seen(replica: u64, attempt: u32, state: ObservedState) -> Observed {
    Observed { replica: ReplicaId(replica), attempt, state, oom_killed: false, address: Some(ADDRESS) }
}

/// An agent with its assignments, and the text of what it does.
struct Bench {
    agent: Agent,
    assignments: BTreeMap<ReplicaId, Assignment>,
    now: Mono,
    wake: Option<Mono>,
    /// Whom published ports lead to: `replica/attempt` each.
    published: String,
}

impl Bench {
    /// Replicas 1, 2, 3, … of the given assignments, not yet told to the agent.
    fn new(assignments: impl IntoIterator<Item = Assignment>) -> Self {
        let assignments = (1..).map(ReplicaId).zip(assignments).collect();
        let now = Mono(Duration::from_secs(1000));
        Self { agent: Agent::default(), assignments, now, wake: None, published: "unknown".to_owned() }
    }

    /// One replica of this policy that the agent knows and has no container of.
    fn fresh(policy: RestartPolicy, maximum_retry_count: Option<u32>) -> Self {
        let mut bench = Self::new([assignment(spec(policy, maximum_retry_count))]);
        bench.step(Event::Listed(Vec::new()));
        bench.check_assigned("pull 1; report 1 0:pulling");
        bench
    }

    /// One replica that runs.
    fn running(policy: RestartPolicy, maximum_retry_count: Option<u32>) -> Self {
        let mut bench = Self::fresh(policy, maximum_retry_count);
        bench.check("ready 1", "start 1 0; report 1 0:starting");
        bench.check("started 1 0", "report 1 0:running");
        bench
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let utc = UtcMs(u64::try_from(self.now.0.as_millis()).expect("tests are short"));
        self.agent.step(self.now, utc, event, &mut actions);
        for action in &actions {
            match action {
                Action::WakeAt(time) => {
                    assert!(*time > self.now, "a wish for the past would be a hot loop");
                    self.wake = Some(*time);
                }
                Action::Report { replica, status } => {
                    if let Some(own) = self.assignments.get_mut(replica) {
                        own.status = status.clone();
                    }
                }
                Action::Publish(ready) => {
                    let ready = ready.keys().map(|(replica, attempt)| format!("{replica}/{attempt}"));
                    self.published = ready.collect::<Vec<_>>().join(" ");
                }
                _ => {}
            }
        }
        actions
    }

    fn set(&mut self, change: impl Fn(&mut Assignment)) {
        self.assignments.values_mut().for_each(change);
    }

    #[track_caller]
    fn check_event(&mut self, event: Event, expect: &str) {
        let actions = self.step(event);
        assert_eq!(words(&actions), expect);
    }

    #[track_caller]
    fn check_assigned(&mut self, expect: &str) {
        self.check_event(Event::Assigned(self.assignments.clone()), expect);
    }

    #[track_caller]
    fn check_listed(&mut self, listed: impl Into<Vec<Observed>>, expect: &str) {
        self.check_event(Event::Listed(listed.into()), expect);
    }

    /// Feeds one event, as [`event`] reads it.
    #[track_caller]
    fn check(&mut self, text: &str, expect: &str) {
        self.check_event(event(text), expect);
    }

    /// Lets time pass until the agent wishes to be woken, which must be in `seconds`.
    #[track_caller]
    fn check_wakes_after(&mut self, seconds: u64, expect: &str) {
        let wake = self.wake.take().expect("the agent waits for a time");
        assert_eq!(wake.since(self.now), Duration::from_secs(seconds));
        self.now = wake;
        self.check_event(Event::Tick, expect);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    fn message(&self) -> &str {
        &self.assignments[&ReplicaId(1)].status.message
    }
}

/// Reads `<what> <replica> [<attempt> [<code>]]`.
fn event(text: &str) -> Event {
    let mut parts = text.split(' ');
    let what = parts.next().expect("an event has a name");
    let mut numbers = parts.map(|part| part.parse::<u32>().expect("events carry numbers"));
    let replica = ReplicaId(numbers.next().expect("an event is about a replica").into());
    let attempt = numbers.next().unwrap_or_default();
    let code = numbers.next().unwrap_or_default();
    let error = "boom".to_owned();
    match what {
        "ready" => Event::Prepared { replica },
        "unready" => Event::PrepareFailed { replica, error },
        "started" => Event::Started { replica, attempt, address: Some(ADDRESS) },
        "unstarted" => Event::StartFailed { replica, attempt, error },
        "exited" => Event::Exited { replica, attempt, code, oom_killed: false },
        "killed" => Event::Exited { replica, attempt, code, oom_killed: true },
        "removed" => Event::Removed { replica, attempt },
        "unremoved" => Event::RemoveFailed { replica, attempt, error },
        "well" => Event::Probed { replica, attempt, failed: None },
        "ill" => Event::Probed { replica, attempt, failed: Some(error) },
        other => panic!("no event is called {other}"),
    }
}

/// Actions as text, but for wishes to be woken.
fn words(actions: &[Action]) -> String {
    let words = actions.iter().filter_map(|action| match action {
        Action::Prepare { replica, .. } => Some(format!("pull {replica}")),
        Action::Start { replica, attempt, .. } => Some(format!("start {replica} {attempt}")),
        Action::Remove { replica, attempt, timeout } => {
            Some(format!("remove {replica} {attempt} within {}s", timeout.as_secs()))
        }
        Action::Kill { replica, attempt } => Some(format!("kill {replica} {attempt}")),
        Action::Probe { replica, attempt, address, .. } => {
            Some(format!("probe {replica} {attempt} {address}"))
        }
        Action::Report { replica, status } => {
            let phase = format!("{:?}", status.phase).to_lowercase();
            let code = status.exit_code.map_or(String::new(), |code| format!(" code {code}"));
            let healthy = match status.healthy {
                Some(true) => " healthy",
                Some(false) => " unhealthy",
                None => "",
            };
            let proven = if status.proven { " proven" } else { "" };
            let left = if status.left { " left" } else { "" };
            Some(format!("report {replica} {}:{phase}{code}{healthy}{proven}{left}", status.attempt))
        }
        Action::WakeAt(_) | Action::Publish(_) => None,
    });
    words.collect::<Vec<_>>().join("; ")
}

#[test]
fn a_process_killed_for_want_of_memory_is_called_that_with_its_limit() {
    let check = |limit: Option<u64>, message: &str| {
        let mut bench = Bench::running(RestartPolicy::Never, None);
        bench.set(|own| {
            let limits = ResourceLimits { memory_bytes: limit, ..ResourceLimits::default() };
            own.spec = Arc::new(ServiceSpec { limits, ..ServiceSpec::clone(&own.spec) });
        });
        bench.check_assigned("");
        bench.step(event("killed 1 0 137"));
        let status = &bench.assignments[&ReplicaId(1)].status;
        assert_eq!(
            (status.message.as_str(), status.exit_code, status.oom_killed),
            (message, Some(137), true)
        );
    };
    check(Some(64 << 20), "out of memory: killed at its memory limit of 64 MiB");
    check(Some(70_000_001), "out of memory: killed at its memory limit of 70000001 bytes");
    check(None, "out of memory: killed by the kernel, without a memory limit of its own");
    let mut bench = Bench::running(RestartPolicy::Never, None);
    bench.step(event("exited 1 0 137"));
    assert_eq!(bench.message(), "exited with code 137");
    assert!(!bench.assignments[&ReplicaId(1)].status.oom_killed);
}

#[test]
fn a_kill_for_want_of_memory_that_nobody_saw_is_told_from_the_list_and_not_of_the_next_attempt() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    let killed = Observed { oom_killed: true, ..seen(1, 0, ObservedState::Exited(137)) };
    bench.step(Event::Listed(vec![killed]));
    assert!(bench.message().starts_with("out of memory: "), "{}", bench.message());
    bench.step(event("removed 1 0"));
    bench.pass(10);
    bench.step(Event::Tick);
    bench.step(event("ready 1"));
    bench.step(event("started 1 1"));
    bench.step(event("exited 1 1 137"));
    assert!(bench.message().starts_with("exited with code 137"), "{}", bench.message());
}

#[test]
fn a_kill_of_a_child_is_told_with_the_code_its_parent_ended_with_and_makes_no_failure_of_a_success() {
    let limited = |restart| {
        let mut bench = Bench::running(restart, None);
        bench.set(|own| {
            let limits = ResourceLimits { memory_bytes: Some(64 << 20), ..ResourceLimits::default() };
            own.spec = Arc::new(ServiceSpec { limits, ..ServiceSpec::clone(&own.spec) });
        });
        bench.check_assigned("");
        bench
    };
    let words = "exited with code 1 after a process in it was killed for memory (limit 64 MiB)";
    let mut bench = limited(RestartPolicy::Never);
    bench.step(event("killed 1 0 1"));
    let status = &bench.assignments[&ReplicaId(1)].status;
    assert_eq!((status.message.as_str(), status.exit_code), (words, Some(1)));
    assert!(!status.oom_killed, "its own process was not killed");

    let mut bench = limited(RestartPolicy::Always);
    let killed = Observed { oom_killed: true, ..seen(1, 0, ObservedState::Exited(1)) };
    bench.step(Event::Listed(vec![killed]));
    assert!(bench.message().starts_with(&format!("{words}; starting again at ")), "{}", bench.message());

    let mut bench = limited(RestartPolicy::OnFailure);
    bench.step(event("killed 1 0 0"));
    let status = &bench.assignments[&ReplicaId(1)].status;
    assert_eq!((status.phase, status.message.as_str(), status.oom_killed), (Phase::Completed, "", false));
}

#[test]
fn a_placed_replica_is_pulled_started_and_runs() {
    let bench = Bench::running(RestartPolicy::Unsaid, None);
    let status = &bench.assignments[&ReplicaId(1)].status;
    assert_eq!(status.address, Some(ADDRESS));
    assert_eq!(status.message, "");
    let proof = bench.wake.map(|wake| wake.since(bench.now));
    assert_eq!(proof, Some(Duration::from_secs(5)), "nothing else is waited for");
}

#[test]
fn published_ports_lead_to_what_runs_and_is_not_to_stop() {
    let mut bench = Bench::fresh(RestartPolicy::Always, None);
    assert_eq!(bench.published, "");
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    assert_eq!(bench.published, "");
    bench.check("started 1 0", "report 1 0:running");
    assert_eq!(bench.published, "1/0");
    bench.check("exited 1 0 3", "remove 1 0 within 7s; report 1 0:waiting code 3");
    assert_eq!(bench.published, "");
    bench.check("removed 1 0", "");
    bench.check_wakes_after(1, "pull 1; report 1 1:starting");
    bench.check("ready 1", "start 1 1");
    bench.check("started 1 1", "report 1 1:running");
    assert_eq!(bench.published, "1/1");
    bench.set(|own| own.desired = Desired::Retire);
    bench.check_assigned("");
    assert_eq!(bench.published, "1/1", "until its replacement has made it stop");
    bench.set(|own| own.desired = Desired::Stop);
    let actions = bench.step(Event::Assigned(bench.assignments.clone()));
    assert_eq!(words(&actions), "remove 1 1 within 7s; report 1 1:stopping");
    assert_eq!(actions.first(), Some(&Action::Publish(Ready::new())), "before it is told to stop");
}

#[test]
fn published_ports_lead_to_what_passes_its_probes() {
    let mut spec = spec(RestartPolicy::Never, None);
    spec.healthcheck =
        Some(HealthSpec { path: "/".to_owned(), interval_ms: 1_000, timeout_ms: 500, retries: 1 });
    let mut bench = Bench::new([assignment(spec)]);
    bench.step(Event::Listed(Vec::new()));
    bench.check_assigned("pull 1; report 1 0:pulling");
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    bench.check("started 1 0", "report 1 0:running");
    assert_eq!(bench.published, "", "nobody knows yet");
    bench.check_wakes_after(1, "probe 1 0 10.210.1.2");
    bench.check("well 1 0", "report 1 0:running healthy");
    assert_eq!(bench.published, "1/0");
    // A daemon that starts again knows it from the state.
    let (assignments, running) = (bench.assignments.clone(), [seen(1, 0, ObservedState::Running)]);
    let mut again = Bench::new(assignments.into_values());
    again.check_assigned("");
    assert_eq!(again.published, "unknown", "what is published stays until both truths are known");
    again.check_listed(running, "");
    assert_eq!(again.published, "1/0");
    bench.check_wakes_after(1, "probe 1 0 10.210.1.2");
    bench.check("ill 1 0", "report 1 0:running unhealthy");
    assert_eq!(bench.published, "");
}

#[test]
fn nothing_happens_before_both_truths_are_known() {
    let stray = [seen(9, 0, ObservedState::Running)];
    let mut bench = Bench::new([assignment(spec(RestartPolicy::Unsaid, None))]);
    bench.check_listed(stray.clone(), "");
    bench.check("exited 9 0", "");
    bench.check_event(Event::Tick, "");
    bench.check_event(Event::ReportAll, "");
    bench.check_assigned("pull 1; remove 9 0 within 10s; report 1 0:pulling");

    let mut bench = Bench::new([assignment(spec(RestartPolicy::Unsaid, None))]);
    bench.check_assigned("");
    bench.check_event(Event::Tick, "");
    bench.check_listed(stray, "pull 1; remove 9 0 within 10s; report 1 0:pulling");
}

#[test]
fn the_policy_decides_what_an_exit_leads_to() {
    #[track_caller]
    fn check(policy: RestartPolicy, max: Option<u32>, code: u32, expect: &str) {
        let mut bench = Bench::running(policy, max);
        bench.check(&format!("exited 1 0 {code}"), expect);
    }
    check(RestartPolicy::Unsaid, None, 0, "report 1 0:completed code 0");
    check(RestartPolicy::Unsaid, None, 3, "report 1 0:failed code 3");
    check(RestartPolicy::OnFailure, None, 0, "report 1 0:completed code 0");
    check(RestartPolicy::OnFailure, None, 3, "remove 1 0 within 7s; report 1 0:waiting code 3");
    check(RestartPolicy::OnFailure, Some(0), 3, "report 1 0:failed code 3 left");
    for policy in [RestartPolicy::Always, RestartPolicy::UnlessStopped] {
        check(policy, None, 0, "remove 1 0 within 7s; report 1 0:waiting code 0");
        check(policy, None, 3, "remove 1 0 within 7s; report 1 0:waiting code 3");
    }
}

#[test]
fn restarts_back_off_and_start_only_when_the_old_container_is_removed() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    for (attempt, seconds) in [1_u32, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300].into_iter().enumerate() {
        let (old, new) = (attempt, attempt + 1);
        bench.check(
            &format!("exited 1 {old} 1"),
            &format!("remove 1 {old} within 7s; report 1 {old}:waiting code 1"),
        );
        bench.check(&format!("removed 1 {old}"), "");
        bench.check_wakes_after(seconds.into(), &format!("pull 1; report 1 {new}:starting"));
        bench.check("ready 1", &format!("start 1 {new}"));
        bench.check(&format!("started 1 {new}"), &format!("report 1 {new}:running"));
    }
    bench.check("exited 1 11 1", "remove 1 11 within 7s; report 1 11:waiting code 1");
    bench.pass(10_000);
    bench.check_event(Event::Tick, "");
    bench.check("removed 1 11", "pull 1; report 1 12:starting");
}

#[test]
fn a_long_run_forgives_the_failures_before_it() {
    let mut bench = Bench::running(RestartPolicy::OnFailure, Some(1));
    bench.check("exited 1 0 1", "remove 1 0 within 7s; report 1 0:waiting code 1");
    assert_eq!(bench.message(), "exited with code 1; starting again at 1970-01-01T00:16:41.000Z");
    bench.check("removed 1 0", "");
    bench.check_wakes_after(1, "pull 1; report 1 1:starting");
    bench.check("ready 1", "start 1 1");
    bench.check("started 1 1", "report 1 1:running");
    bench.pass(10);
    bench.check("exited 1 1 1", "remove 1 1 within 7s; report 1 1:waiting code 1 proven");
    bench.check("removed 1 1", "");
    bench.check_wakes_after(1, "pull 1; report 1 2:starting proven");
    bench.check("ready 1", "start 1 2");
    bench.check("started 1 2", "report 1 2:running proven");
    bench.pass(9);
    bench.check("exited 1 2 1", "report 1 2:failed code 1 proven left");
    assert_eq!(bench.message(), "exited with code 1 after 1 restarts");
}

#[test]
fn an_ended_container_is_kept_until_the_state_has_its_end() {
    let mut bench = Bench::running(RestartPolicy::Unsaid, None);
    let old = bench.assignments.clone();
    bench.check("exited 1 0 5", "report 1 0:failed code 5");
    bench.check_event(Event::Assigned(old), "");
    bench.check_assigned("remove 1 0 within 7s");
    bench.check("removed 1 0", "");
    bench.set(|own| own.desired = Desired::Stop);
    bench.check_assigned("report 1 0:gone code 5");
}

#[test]
fn an_exit_that_overtakes_its_start_counts() {
    let mut bench = Bench::fresh(RestartPolicy::Unsaid, None);
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    bench.check("exited 1 0", "");
    bench.check("started 1 0", "report 1 0:completed code 0");
}

#[test]
fn a_failed_pull_is_tried_again_with_back_off_for_ever() {
    let mut bench = Bench::fresh(RestartPolicy::Unsaid, None);
    for seconds in [1, 2, 4, 8, 16, 32] {
        bench.check("unready 1", "report 1 0:pulling");
        assert!(
            bench.message().starts_with("pull failed: boom; trying again at 1970-"),
            "{}",
            bench.message()
        );
        bench.check_event(Event::Tick, "");
        bench.check_wakes_after(seconds, "pull 1");
    }
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    assert_eq!(bench.message(), "");
}

#[test]
fn an_image_that_gets_a_name_here_is_tried_soon() {
    let mut bench = Bench::fresh(RestartPolicy::Unsaid, None);
    for seconds in [1, 2, 4, 8] {
        bench.check("unready 1", "report 1 0:pulling");
        bench.check_wakes_after(seconds, "pull 1");
    }
    // While it waits for the next try.
    bench.check("unready 1", "report 1 0:pulling");
    bench.check_event(Event::ImageNamed, "report 1 0:pulling");
    assert_eq!(bench.message(), "pull failed: boom; trying again now");
    bench.check_event(Event::ImageNamed, "");
    bench.check_wakes_after(2, "pull 1");
    // While it is tried: what was asked may have been too early.
    bench.check_event(Event::ImageNamed, "");
    bench.check("unready 1", "report 1 0:pulling");
    bench.check_wakes_after(2, "pull 1");
    // Its failures are not forgiven: it may have been another image.
    bench.check("unready 1", "report 1 0:pulling");
    bench.check_wakes_after(64, "pull 1");
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    bench.check_event(Event::ImageNamed, "");
}

#[test]
fn a_container_that_cannot_start_fails_after_five_tries() {
    for policy in [RestartPolicy::Unsaid, RestartPolicy::Always] {
        let mut bench = Bench::fresh(policy, None);
        bench.check("ready 1", "start 1 0; report 1 0:starting");
        for seconds in [1, 2, 4, 8] {
            bench.check("unstarted 1 0", "report 1 0:starting");
            assert!(
                bench.message().starts_with("start failed: boom; trying again at"),
                "{}",
                bench.message()
            );
            bench.check_wakes_after(seconds, "pull 1");
            bench.check("ready 1", "start 1 0");
        }
        bench.check("unstarted 1 0", "report 1 0:failed");
        assert_eq!(bench.message(), "start failed 5 times: boom");
    }
}

#[test]
fn replicas_of_one_image_share_a_pull() {
    let mut other = spec(RestartPolicy::Unsaid, None);
    other.image.reference = "redis".to_owned();
    let web = || assignment(spec(RestartPolicy::Unsaid, None));
    let mut bench = Bench::new([web(), web(), assignment(other)]);
    bench.check_listed([], "");
    bench.check_assigned("pull 1; pull 3; report 1 0:pulling; report 2 0:pulling; report 3 0:pulling");
    bench.check("ready 2", "");
    bench.check("unready 1", "report 1 0:pulling; report 2 0:pulling");
    bench.check_wakes_after(1, "pull 1");
    bench.assignments.remove(&ReplicaId(1));
    bench.check_assigned("");
    bench.check("ready 1", "start 2 0; report 2 0:starting");
}

#[test]
fn only_so_many_containers_start_at_a_time() {
    let mut bench = Bench::new((0..6).map(|_| assignment(spec(RestartPolicy::Unsaid, None))));
    bench.check_listed([], "");
    bench.step(Event::Assigned(bench.assignments.clone()));
    let actions = bench.step(Event::Prepared { replica: ReplicaId(1) });
    let starts = actions.iter().filter(|action| matches!(action, Action::Start { .. })).count();
    assert_eq!(starts, crate::limits::STARTS_MAX);
    bench.check("started 3 0", "start 5 0; report 3 0:running; report 5 0:starting");
    bench.check("unstarted 1 0", "start 6 0; report 1 0:starting; report 6 0:starting");
}

#[test]
fn a_blocked_replica_says_why_and_starts_when_it_may() {
    let mut bench = Bench::new([assignment(spec(RestartPolicy::Unsaid, None))]);
    bench.set(|own| own.blocked = Some("waits for replica 7 on node 2 to stop".to_owned()));
    bench.check_listed([], "");
    bench.check_assigned("report 1 0:assigned");
    assert_eq!(bench.message(), "waits for replica 7 on node 2 to stop");
    bench.set(|own| own.blocked = None);
    bench.check_assigned("pull 1; report 1 0:pulling");
    assert_eq!(bench.message(), "");
}

#[test]
fn a_daemon_that_starts_again_forgives_no_failures() {
    let check = |ran: Duration, expect: &str| {
        let mut own = assignment(spec(RestartPolicy::OnFailure, Some(2)));
        let now = Duration::from_secs(1000);
        let since = UtcMs(u64::try_from((now - ran).as_millis()).expect("tests are short"));
        own.status = ReplicaStatus { since, ..at(2, Phase::Running) };
        let mut bench = Bench::new([own]);
        bench.check_listed([seen(1, 2, ObservedState::Running)], "");
        bench.check_assigned("report 1 2:running");
        bench.check("exited 1 2 1", expect);
    };
    let short = RESTART_RESET_AFTER - Duration::from_millis(1);
    check(short, "report 1 2:failed code 1 left");
    check(RESTART_RESET_AFTER, "remove 1 2 within 7s; report 1 2:waiting code 1");
}

fn probed(policy: RestartPolicy) -> Bench {
    let mut spec = spec(policy, None);
    spec.healthcheck =
        Some(HealthSpec { path: "/".to_owned(), interval_ms: 5_000, timeout_ms: 1_000, retries: 2 });
    let mut bench = Bench::new([assignment(spec)]);
    bench.check_listed([], "");
    bench.check_assigned("pull 1; report 1 0:pulling");
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    bench.check("started 1 0", "report 1 0:running");
    bench.check_wakes_after(1, "probe 1 0 10.210.1.2");
    bench.check("well 1 0", "report 1 0:running healthy");
    bench
}

#[test]
fn an_unhealthy_container_is_restarted() {
    let mut bench = probed(RestartPolicy::Always);
    bench.check_wakes_after(5, "probe 1 0 10.210.1.2; report 1 0:running healthy proven");
    bench.check_event(Event::Tick, "");
    bench.check("ill 1 0", "");
    bench.check_wakes_after(5, "probe 1 0 10.210.1.2");
    bench.check("ill 1 0", "remove 1 0 within 7s; report 1 0:waiting unhealthy proven");
    assert!(bench.message().starts_with("unhealthy: 2 probes in a row failed: boom; starting again at"));
    bench.check("exited 1 0 137", "");
    bench.check("removed 1 0", "");
    bench.check_wakes_after(1, "pull 1; report 1 1:starting proven");
    bench.check("ill 1 0", "");
}

#[test]
fn an_unhealthy_container_that_is_never_restarted_is_only_reported() {
    let mut bench = probed(RestartPolicy::Unsaid);
    bench.check_wakes_after(5, "probe 1 0 10.210.1.2; report 1 0:running healthy proven");
    bench.check("ill 1 0", "");
    for expect in ["report 1 0:running unhealthy proven", ""] {
        bench.check_wakes_after(5, "probe 1 0 10.210.1.2");
        bench.check("ill 1 0", expect);
        assert_eq!(bench.message(), "its probes fail: boom");
    }
    bench.check_wakes_after(5, "probe 1 0 10.210.1.2");
    bench.check("well 1 0", "report 1 0:running healthy proven");
}

//! Proof: how long a replica has been ready; and what a restart policy leaves as it ended.

use super::*;

#[test]
fn a_replica_is_proven_once_it_ran_for_its_time() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.check_wakes_after(5, "report 1 0:running proven");
    assert_eq!(bench.wake, None, "nothing is waited for");
    bench.check("exited 1 0 1", "remove 1 0 within 7s; report 1 0:waiting code 1 proven");
    bench.check("removed 1 0", "");
    bench.check_wakes_after(1, "pull 1; report 1 1:starting proven");
    bench.check("ready 1", "start 1 1");
    bench.check("started 1 1", "report 1 1:running proven");
}

#[test]
fn an_end_before_that_begins_the_time_anew() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.pass(4);
    bench.check("exited 1 0 1", "remove 1 0 within 7s; report 1 0:waiting code 1");
    bench.check("removed 1 0", "");
    bench.check_wakes_after(1, "pull 1; report 1 1:starting");
    bench.check("ready 1", "start 1 1");
    bench.check("started 1 1", "report 1 1:running");
    bench.pass(4);
    bench.check_event(Event::Tick, "");
    bench.check_wakes_after(1, "report 1 1:running proven");
}

#[test]
fn an_end_that_is_told_late_is_proof_of_the_time_before_it() {
    let mut bench = Bench::running(RestartPolicy::Unsaid, None);
    bench.pass(5);
    bench.check("exited 1 0 0", "report 1 0:completed code 0 proven");
    let mut bench = Bench::running(RestartPolicy::Unsaid, None);
    bench.pass(4);
    bench.check("exited 1 0 0", "report 1 0:completed code 0");
}

#[test]
fn the_time_is_the_bundles() {
    let timed = |ms| {
        let mut spec = spec(RestartPolicy::Always, None);
        spec.min_healthy_ms = Some(ms);
        let mut bench = Bench::new([assignment(spec)]);
        bench.step(Event::Listed(Vec::new()));
        bench.check_assigned("pull 1; report 1 0:pulling");
        bench.check("ready 1", "start 1 0; report 1 0:starting");
        bench
    };
    timed(0).check("started 1 0", "report 1 0:running proven");
    let mut bench = timed(60_000);
    bench.check("started 1 0", "report 1 0:running");
    bench.check_wakes_after(60, "report 1 0:running proven");
}

#[test]
fn a_probed_replica_is_proven_by_the_time_since_its_probes_pass() {
    let mut bench = probed(RestartPolicy::Unsaid);
    bench.pass(4);
    bench.check_event(Event::Tick, "");
    bench.check_wakes_after(1, "probe 1 0 10.210.1.2; report 1 0:running healthy proven");

    let mut bench = probed(RestartPolicy::Unsaid);
    bench.set(|own| Arc::make_mut(&mut own.spec).min_healthy_ms = Some(12_000));
    bench.check_assigned("");
    for expect in ["", "report 1 0:running unhealthy"] {
        bench.check_wakes_after(5, "probe 1 0 10.210.1.2");
        bench.check("ill 1 0", expect);
    }
    bench.check_wakes_after(5, "probe 1 0 10.210.1.2");
    bench.check("well 1 0", "report 1 0:running healthy");
    for expect in ["probe 1 0 10.210.1.2", "probe 1 0 10.210.1.2"] {
        bench.check_wakes_after(5, expect);
        bench.check("well 1 0", "");
    }
    bench.check_wakes_after(2, "report 1 0:running healthy proven");
}

#[test]
fn a_restarted_agent_keeps_a_proof_and_begins_the_time_of_another_anew() {
    let found = |proven| {
        let status = ReplicaStatus { proven, address: Some(ADDRESS), ..at(0, Phase::Running) };
        let own = Assignment { status, ..assignment(spec(RestartPolicy::Always, None)) };
        let mut bench = Bench::new([own]);
        bench.check_listed([seen(1, 0, ObservedState::Running)], "");
        bench.check_assigned("");
        bench
    };
    assert_eq!(found(true).wake, None);
    let mut bench = found(false);
    bench.pass(2);
    bench.check_listed([seen(1, 0, ObservedState::Running)], "");
    bench.check_wakes_after(3, "report 1 0:running proven");
}

#[test]
fn what_a_policy_starts_no_more_is_left_as_it_ended() {
    let check = |policy, max, code: u32, expect: &str| {
        let mut bench = Bench::running(policy, max);
        bench.check(&format!("exited 1 0 {code}"), expect);
        bench.check_assigned("remove 1 0 within 7s");
        bench.check("removed 1 0", "");
        bench.pass(10_000);
        bench.check_event(Event::Tick, "");
    };
    check(RestartPolicy::Never, None, 3, "report 1 0:failed code 3 left");
    check(RestartPolicy::Never, None, 0, "report 1 0:completed code 0");
    check(RestartPolicy::OnFailure, Some(0), 3, "report 1 0:failed code 3 left");
    check(RestartPolicy::Unsaid, None, 3, "report 1 0:failed code 3");
}

#[test]
fn what_its_node_ended_is_not_left() {
    let lost = |listed: &[Observed]| {
        let own =
            Assignment { status: at(0, Phase::Running), ..assignment(spec(RestartPolicy::Never, None)) };
        let mut bench = Bench::new([own]);
        bench.check_listed(listed, "");
        bench.check_assigned("report 1 0:failed code 137");
    };
    lost(&[]);
    lost(&[seen(1, 0, ObservedState::Exited(137))]);
}

//! What an agent makes of lists: after its own start, and of what it missed.

use super::*;

#[test]
fn a_restarted_agent_goes_on_from_state_and_containers() {
    use ObservedState::{Exited, Running};
    #[track_caller]
    fn check(policy: RestartPolicy, status: (u32, Phase), listed: &[(u32, ObservedState)], expect: &str) {
        let listed: Vec<Observed> = listed.iter().map(|(attempt, state)| seen(1, *attempt, *state)).collect();
        let status = ReplicaStatus { address: Some(ADDRESS), ..at(status.0, status.1) };
        let assigned = Assignment { status, ..assignment(spec(policy, None)) };
        let mut bench = Bench::new([assigned.clone()]);
        bench.check_listed(listed.clone(), "");
        bench.check_assigned(expect);
        let mut bench = Bench::new([assigned]);
        bench.check_assigned("");
        bench.check_listed(listed, expect);
    }
    let (no, always) = (RestartPolicy::Unsaid, RestartPolicy::Always);
    check(no, (0, Phase::Running), &[(0, Running)], "");
    check(no, (0, Phase::Starting), &[(0, Running)], "report 1 0:running");
    check(no, (0, Phase::Assigned), &[(3, Running)], "report 1 3:running");
    check(always, (4, Phase::Running), &[(3, Exited(1)), (4, Running)], "remove 1 3 within 7s");
    check(no, (0, Phase::Running), &[(0, Exited(0))], "report 1 0:completed code 0");
    check(no, (0, Phase::Starting), &[(0, Exited(0))], "report 1 0:completed code 0");
    check(always, (2, Phase::Running), &[(2, Exited(9))], "remove 1 2 within 7s; report 1 2:waiting code 9");
    check(no, (0, Phase::Starting), &[(0, Exited(137))], "remove 1 0 within 7s; report 1 0:starting");
    check(no, (0, Phase::Running), &[], "report 1 0:failed code 137");
    check(always, (0, Phase::Running), &[], "report 1 0:waiting code 137");
    check(no, (0, Phase::Starting), &[], "pull 1");
    check(no, (0, Phase::Pulling), &[], "pull 1");
    check(always, (2, Phase::Waiting), &[], "pull 1; report 1 3:starting");
    check(always, (2, Phase::Waiting), &[(2, Running)], "remove 1 2 within 7s");
    check(no, (0, Phase::Completed), &[], "");
    check(no, (0, Phase::Completed), &[(0, Exited(0))], "remove 1 0 within 7s");
    check(no, (1, Phase::Failed), &[], "");
}

#[test]
fn a_container_lost_with_its_machine_fails_its_replica_by_name() {
    let lost = Assignment { status: at(0, Phase::Running), ..assignment(spec(RestartPolicy::Unsaid, None)) };
    let mut bench = Bench::new([lost]);
    bench.check_listed([], "");
    bench.check_assigned("report 1 0:failed code 137");
    assert_eq!(bench.message(), "container was lost when its node restarted");
}

#[test]
fn a_later_list_finds_what_was_missed() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.check_listed([seen(1, 0, ObservedState::Running)], "");
    bench.check_listed(
        [seen(1, 0, ObservedState::Exited(2))],
        "remove 1 0 within 7s; report 1 0:waiting code 2",
    );
    bench.check("exited 1 0 2", "");
    bench.check("removed 1 0", "");

    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.check_listed([], "report 1 0:waiting code 137");
    assert!(bench.message().starts_with("container disappeared from its runtime"), "{}", bench.message());
}

#[test]
fn a_list_taken_during_a_start_or_removal_is_not_believed() {
    let mut bench = Bench::fresh(RestartPolicy::Unsaid, None);
    bench.check("ready 1", "start 1 0; report 1 0:starting");
    bench.check_listed([], "");
    bench.check_listed([seen(1, 0, ObservedState::Running)], "");
    bench.check("started 1 0", "report 1 0:running");
    bench.set(|own| own.desired = Desired::Stop);
    bench.check_assigned("remove 1 0 within 7s; report 1 0:stopping");
    bench.check_listed([], "");
    bench.check("removed 1 0", "report 1 0:gone");
}

#[test]
fn everything_is_told_again_on_request() {
    let mut bench = Bench::running(RestartPolicy::Unsaid, None);
    bench.check_assigned("");
    bench.check_event(Event::ReportAll, "report 1 0:running");
    bench.check_event(Event::Tick, "");
}

#[test]
fn a_final_status_that_the_state_has_and_the_agent_lacks_is_taken_over() {
    let mut bench = Bench::new([assignment(spec(RestartPolicy::Unsaid, None))]);
    bench.set(|own| own.blocked = Some("waits".to_owned()));
    bench.check_listed([], "");
    bench.check_assigned("report 1 0:assigned");
    bench.set(|own| {
        own.blocked = None;
        own.status = at(0, Phase::Completed);
    });
    bench.check_assigned("");
}

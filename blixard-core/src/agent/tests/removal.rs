//! Containers that are to stop: how long they have, and what interrupts what.

use super::*;

#[test]
fn a_running_container_is_stopped_removed_and_gone() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.set(|own| own.desired = Desired::Retire);
    bench.check_assigned("");
    bench.set(|own| own.desired = Desired::Stop);
    bench.check_assigned("remove 1 0 within 7s; report 1 0:stopping");
    bench.check("exited 1 0 143", "");
    bench.check("unremoved 1 0", "report 1 0:stopping");
    assert_eq!(bench.message(), "removal failed: boom; trying again at 1970-01-01T00:16:41.000Z");
    bench.check_wakes_after(1, "remove 1 0 within 7s");
    bench.check("removed 1 0", "report 1 0:gone");
    bench.check_assigned("");
    bench.assignments.clear();
    bench.check_assigned("");
}

#[test]
fn stop_interrupts_whatever_is_under_way() {
    #[track_caller]
    fn check(before: &[&str], at_stop: &str, after: &[(&str, &str)]) {
        let mut bench = Bench::fresh(RestartPolicy::Always, None);
        for step in before {
            if *step == "wake" {
                bench.now = bench.wake.expect("the agent waits for a time");
                bench.step(Event::Tick);
            } else {
                bench.step(event(step));
            }
        }
        bench.set(|own| own.desired = Desired::Stop);
        bench.check_assigned(at_stop);
        for (step, expect) in after {
            bench.check(step, expect);
        }
    }
    check(&[], "report 1 0:gone", &[("ready 1", "")]);
    check(
        &["ready 1"],
        "report 1 0:stopping",
        &[("started 1 0", "remove 1 0 within 7s"), ("removed 1 0", "report 1 0:gone")],
    );
    check(&["ready 1"], "report 1 0:stopping", &[("unstarted 1 0", "report 1 0:gone")]);
    let exited = ["ready 1", "started 1 0", "exited 1 0 1"];
    check(&exited, "", &[("removed 1 0", "report 1 0:gone code 1")]);
    check(&[&exited[..], &["removed 1 0"]].concat(), "report 1 0:gone code 1", &[]);
    check(&[&exited[..], &["removed 1 0", "wake"]].concat(), "report 1 1:gone", &[]);
}

#[test]
fn a_replica_without_a_row_is_removed_without_a_word() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.assignments.clear();
    bench.check_assigned("remove 1 0 within 10s");
    bench.check("removed 1 0", "");
    bench.check_event(Event::ReportAll, "");
}

#[test]
fn a_stop_takes_as_long_as_the_state_says() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.set(|own| (own.desired, own.stop_timeout_s) = (Desired::Stop, 30));
    bench.check_assigned("remove 1 0 within 30s; report 1 0:stopping");
    // Cut short while it is ending: what is left of the new time is waited for, and then it is killed once.
    bench.wake = None;
    bench.pass(2);
    bench.set(|own| own.stop_timeout_s = 6);
    bench.check_assigned("");
    bench.check_wakes_after(4, "kill 1 0");
    assert_eq!(bench.wake, None, "it is killed once");
    bench.check_assigned("");
    bench.check("removed 1 0", "report 1 0:gone");
}

#[test]
fn a_stop_that_is_cut_to_nothing_kills_at_once_and_a_longer_time_changes_nothing() {
    let mut bench = Bench::running(RestartPolicy::Always, None);
    bench.set(|own| own.desired = Desired::Stop);
    bench.check_assigned("remove 1 0 within 7s; report 1 0:stopping");
    bench.pass(1);
    bench.set(|own| own.stop_timeout_s = 60);
    bench.check_assigned("");
    bench.set(|own| own.stop_timeout_s = 0);
    bench.check_assigned("kill 1 0");
    bench.check("exited 1 0 137", "");
    bench.check("removed 1 0", "report 1 0:gone");
}

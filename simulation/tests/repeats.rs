//! The same seed gives the same history in another process; another seed gives another; what the
//! program is asked wrongly it says.

use std::process::{Command, Output};

fn simulation(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulation"));
    command.args(arguments.split_whitespace()).output().expect("the program was built for this test")
}

/// Runs a seed and returns its last line.
fn hash_of(seed: u64) -> String {
    let output = simulation(&format!("run --seed {seed} --minutes 1"));
    let text = String::from_utf8(output.stdout).expect("the summary is text");
    assert!(output.status.success(), "seed {seed} failed:\n{text}");
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert_eq!(text.matches("trace hash: ").count(), 1, "{text}");
    assert!(last.starts_with("trace hash: ") && last.len() == "trace hash: ".len() + 64, "{last}");
    last
}

#[test]
fn a_seed_repeats_in_another_process_and_another_seed_differs() {
    let [first, again, other] = [1, 1, 2].map(|seed| std::thread::spawn(move || hash_of(seed)));
    let first = first.join().expect("seed 1 runs");
    assert_eq!(first, again.join().expect("seed 1 runs again"));
    assert_ne!(first, other.join().expect("seed 2 runs"));
}

#[test]
fn worlds_on_other_threads_change_nothing() {
    let output = simulation("meta --seeds 2 --minutes 1");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.ends_with("meta: 2 seeds, 0 divergent\n"), "{text}");
    let alone = hash_of(2);
    let alone = alone.strip_prefix("trace hash: ").expect("it was checked");
    assert!(text.contains(alone), "{alone} is not in\n{text}");
}

#[test]
fn fixed_seeds_hold_every_invariant() {
    let output = simulation("sweep --seeds 6 --start 100 --minutes 1 --jobs 2");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("sweep: 6 seeds, 0 failed"), "{text}");
}

#[test]
fn a_history_stops_where_it_is_asked_to_and_shows_the_cluster() {
    let output = simulation("run --seed 1 --until 20");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.starts_with("at 20.000 s\n"), "{text}");
    for part in ["machine 3: node 3 ", " in term ", "the newest state, of index ", "  service "] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

#[test]
fn a_sweep_ends_with_the_wall_clock_and_says_how_many_seeds_it_ran() {
    let output = simulation("sweep --wall 1 --jobs 1 --start 7");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.starts_with("seeds from 7, 1 at a time\n"), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("sweep: ")
            && last.ends_with(" seeds, 0 failed")
            && last != "sweep: 0 seeds, 0 failed",
        "{text}"
    );
}

#[test]
fn bad_arguments_are_named() {
    let check = |arguments: &str, expect: &str| {
        let output = simulation(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expect), "`{arguments}`: `{expect}` in {text}");
    };
    check("run", "--seed <SEED>");
    check("run --seed many", "invalid value 'many' for '--seed <SEED>'");
    check("run --seed 1 --nodes 0", "0 is not in 1..=9");
    check("run --seed 1 --minutes 0", "0 is not in 1..=600");
    check("run --seed 1 --until soon", "it is no number of seconds");
    check("run --seed 1 --until 0", "nothing has happened yet");
    check("run --seed 1 --minutes 601", "601 is not in 1..=600");
    check("sweep", "--seeds <SEEDS>");
    check("sweep --seeds 0", "0 is not in 1..");
    check("sweep --wall 0", "0 is not in 1..");
    check("meta --seeds 0", "0 is not in 1..");
    check("sweep --seeds 1 --jobs 0", "invalid value '0' for '--jobs <JOBS>'");
    check("mutants --only no-such-bug --check", "no planted bug's name contains `no-such-bug`");
    check("mutants --jobs 0", "invalid value '0' for '--jobs <JOBS>'");
    check("guess", "unrecognized subcommand 'guess'");
}

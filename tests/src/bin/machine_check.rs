//! Says whether this machine offers what tests and demo need, before anything long begins.

use std::process::ExitCode;

fn main() -> ExitCode {
    match blixard_tests::capability::check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

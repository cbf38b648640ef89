//! Runs programs and says what they printed when they fail.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `program` to its end and returns what it printed; an error holds both of its outputs.
///
/// # Errors
/// When it cannot be started or ends with another code than 0.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(program, arguments)?;
    if !output.status.success() {
        bail!("`{program} {}` ended with {}:\n{}", arguments.join(" "), output.status, printed(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `program` to its end, whatever its code.
///
/// # Errors
/// When it cannot be started.
pub fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{program}`: is its package installed?"))
}

/// Both outputs of a program, one after the other.
pub fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

//! Waits for conditions, never for a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Waits until `probe` gives a value, at most `deadline`; an error tells what was waited for and
/// the last reason it was not so.
///
/// # Errors
/// When the deadline passes first.
pub fn until<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("waited {deadline:?} for: {what}"));
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Fails unless `condition`, for probes.
///
/// # Errors
/// When it does not hold.
pub fn ensure(condition: bool, otherwise: impl std::fmt::Display) -> Result<()> {
    if !condition {
        bail!("{otherwise}");
    }
    Ok(())
}

//! What decoding some small inputs may cost.

use std::time::{Duration, Instant};

/// How long the inputs may take: far longer than any do on a busy machine in a debug build.
const TIME_MAX: Duration = Duration::from_secs(30);
/// By how much the memory that the process asks for may grow, in KiB: less than the 4 GiB of a length of
/// 32 bits, all set.
const MEMORY_KIB_MAX: u64 = 3 << 20;
/// With more threads than this others of them may ask for as much meanwhile: glibc reserves 128 MiB for
/// the memory of a new one.
const THREADS_MAX: u64 = 16;

/// Where they began.
pub(crate) struct Bounds {
    at: Instant,
    memory_kib: Option<u64>,
}

impl Bounds {
    pub(crate) fn begin() -> Self {
        Self { at: Instant::now(), memory_kib: memory_kib() }
    }

    /// Whether what happened since was within bounds.
    pub(crate) fn passed(&self) -> Result<(), String> {
        let took = self.at.elapsed();
        if took > TIME_MAX {
            return Err(format!("they take {took:?}"));
        }
        let (Some(before), Some(after)) = (self.memory_kib, memory_kib()) else { return Ok(()) };
        let asked = after.saturating_sub(before);
        if asked > MEMORY_KIB_MAX {
            return Err(format!("it asks for {asked} KiB of memory"));
        }
        Ok(())
    }
}

/// The most memory that this process ever asked for, used or not, in KiB: proc_pid_status(5). Nothing
/// while others may ask for much at the same time.
fn memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    (value("Threads:")? <= THREADS_MAX).then(|| value("VmPeak:"))?
}

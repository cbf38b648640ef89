//! Removes what runs of tests, the demo and the benchmarks leave when they cannot do so themselves:
//! after Ctrl-C, or kill -9.
//!
//! Everything a run makes carries its pid: namespaces are named `bxPID-…`, processes are marked
//! with such a name, and directories too.

use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::command::run;
use crate::{machine, process};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The start of every name that the process `pid` gives.
pub fn prefix(pid: u32) -> String {
    format!("bx{pid:x}-")
}

/// Fails once the process was told to end, so that nothing new is started.
///
/// # Errors
/// Then.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// From now on, SIGINT and SIGTERM remove everything this process made and end it with 130.
///
/// # Errors
/// When signals cannot be listened to.
pub fn on_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            // Cancel safe: a signal that is not taken is not lost, and the process ends anyway.
            tokio::select! {
                biased;
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("interrupted: removing what was made");
        remove(&prefix(std::process::id()));
        std::process::exit(130);
    });
    Ok(())
}

/// Removes what processes left that have ended. Does its work once in a process.
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for namespace in namespaces() {
            let pid = namespace.strip_prefix("bx").and_then(|rest| rest.split_once('-'));
            let Some(pid) = pid.and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok()) else { continue };
            if !process::is_alive(pid) {
                remove(&prefix(pid));
            }
        }
    });
}

/// Ends the processes and removes the namespaces, mounts and directories whose names start so.
fn remove(prefix: &str) {
    process::end(|| process::of_prefix(prefix));
    for namespace in namespaces().iter().filter(|name| name.starts_with(prefix)) {
        // Nothing more can be done about a namespace that does not go.
        run("ip", &["netns", "delete", namespace]).ok();
    }
    let directories = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for directory in directories.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        forget_directory(&directory.path());
    }
}

/// What this process made and has not removed: namespaces, processes, mounts, directories.
pub fn leftovers() -> Vec<String> {
    let prefix = prefix(std::process::id());
    let mut found: Vec<String> = namespaces().into_iter().filter(|name| name.starts_with(&prefix)).collect();
    found.extend(process::of_prefix(&prefix).iter().map(|pid| format!("process {pid}")));
    let place = std::env::temp_dir().join(&prefix);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&*place.to_string_lossy())).map(str::to_owned));
    let directories = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let names = directories.map(|entry| entry.file_name().to_string_lossy().into_owned());
    found.extend(names.filter(|name| name.starts_with(&prefix)));
    found
}

/// Removes a cluster's directory, with what its hosts still have mounted.
pub fn forget_directory(directory: &Path) {
    for host in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        machine::forget_running_state(&host.path().join("data"));
    }
    machine::unmount_below(directory);
    std::fs::remove_dir_all(directory).ok();
}

fn namespaces() -> Vec<String> {
    let listed = run("ip", &["netns", "list"]).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

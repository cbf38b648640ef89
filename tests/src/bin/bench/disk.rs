//! The floor under every durable write: fdatasync on the disk that the nodes write to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sample::Samples;

/// What is written between two syncs: one page, the least a store writes.
const PAGE: usize = 4096;
/// How far the file reaches; written once before the clock starts, so that no sync has to make
/// room.
const PAGES: u64 = 1024;
/// `statfs` of a file system in memory (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;

/// Refuses a directory in memory, where nothing is durable and every figure would flatter.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let found = rustix::fs::statfs(directory)?;
    if found.f_type as i64 == TMPFS {
        bail!("{} is in memory: set TMPDIR to a directory on a disk", directory.display());
    }
    Ok(())
}

/// Writes a page and syncs it, again and again for `time`.
pub(crate) fn fdatasync(directory: &Path, time: Duration) -> Result<Samples> {
    let file = tempfile::tempfile_in(directory)?;
    fill(&file)?;
    let page = [0x5a; PAGE];
    let begun = Instant::now();
    let mut samples = Samples::default();
    for turn in 0.. {
        if begun.elapsed() >= time {
            break;
        }
        let written = Instant::now();
        file.write_all_at(&page, turn % PAGES * PAGE as u64)?;
        file.sync_data()?;
        samples.push(written.elapsed());
    }
    Ok(samples)
}

fn fill(file: &File) -> Result<()> {
    for page in 0..PAGES {
        file.write_all_at(&[0; PAGE], page * PAGE as u64)?;
    }
    Ok(file.sync_all()?)
}

//! The hash of a history: two runs are the same when every delivery, applied entry, disk
//! operation and container action is, at the same simulated time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// What is recorded of a world, in order. Cloning shares it.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    hash: Sha256,
    start: Instant,
    events: u64,
    print: bool,
}

impl Trace {
    /// A trace that begins now, in simulated time; `print` writes each event to stderr.
    pub fn new(print: bool) -> Self {
        let inner = Inner { hash: Sha256::new(), start: Instant::now(), events: 0, print };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event: its kind, where it happened and what it held.
    pub fn record(&self, kind: &str, node: u64, what: &[u8]) {
        let mut inner = self.lock();
        let at = inner.start.elapsed();
        inner.events += 1;
        inner.hash.update(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        inner.hash.update(kind.as_bytes());
        inner.hash.update(node.to_le_bytes());
        inner.hash.update((what.len() as u64).to_le_bytes());
        inner.hash.update(what);
        if inner.print {
            let shown = hex::encode(&Sha256::digest(what)[..6]);
            eprintln!("{:>12.6} node {node} {kind} {} B {shown}", at.as_secs_f64(), what.len());
        }
    }

    /// Records an event that is words, and prints them when the trace is printed.
    pub fn say(&self, node: u64, words: &str) {
        self.record("note", node, words.as_bytes());
        if self.lock().print {
            eprintln!("{:>12} node {node} {words}", "");
        }
    }

    /// How long the world has run, in simulated time.
    pub fn elapsed(&self) -> Duration {
        self.lock().start.elapsed()
    }

    /// The hash of everything so far, in hexadecimal, and how many events it covers.
    pub fn finish(&self) -> (String, u64) {
        let inner = self.lock();
        (hex::encode(inner.hash.clone().finalize()), inner.events)
    }
}

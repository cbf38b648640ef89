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
    show: Show,
    kept: Vec<String>,
}

/// What becomes of a trace's events besides their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Nothing.
    Hash,
    /// Each is written to stderr.
    Print,
    /// Each is kept as text, to compare two runs by.
    Keep,
}

impl Trace {
    /// A trace that begins now, in simulated time.
    pub fn new(show: Show) -> Self {
        let inner = Inner { hash: Sha256::new(), start: Instant::now(), events: 0, show, kept: Vec::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event: its kind, where it happened and what it held.
    pub fn record(&self, kind: &str, node: u64, what: &[u8]) {
        self.record_at(kind, node, 0, what);
    }

    /// Records an event that has a number besides.
    pub fn record_at(&self, kind: &str, node: u64, number: u64, what: &[u8]) {
        self.lock().record(kind, node, number, what);
    }

    /// Records an event that is words, and shows them as they are.
    pub fn say(&self, node: u64, words: &str) {
        let mut inner = self.lock();
        inner.record("note", node, 0, words.as_bytes());
        let at = inner.start.elapsed();
        inner.show(|| format!("{:>12.6} node {node} {words}", at.as_secs_f64()));
    }

    /// Whether each event is shown as text.
    pub fn shows(&self) -> bool {
        self.lock().show != Show::Hash
    }

    /// How long the world has run, in simulated time.
    pub fn elapsed(&self) -> Duration {
        self.lock().start.elapsed()
    }

    /// When the world began, by tokio's clock.
    pub fn start(&self) -> Instant {
        self.lock().start
    }

    /// The hash of everything so far, in hexadecimal.
    pub fn hash(&self) -> String {
        hex::encode(self.lock().hash.clone().finalize())
    }

    /// How many events it covers.
    pub fn events(&self) -> u64 {
        self.lock().events
    }

    /// The events kept as text.
    pub fn take_kept(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().kept)
    }
}

impl Inner {
    fn record(&mut self, kind: &str, node: u64, number: u64, what: &[u8]) {
        let at = self.start.elapsed();
        self.events += 1;
        self.hash.update(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        self.hash.update(kind.as_bytes());
        self.hash.update([0]);
        self.hash.update(node.to_le_bytes());
        self.hash.update(number.to_le_bytes());
        self.hash.update((what.len() as u64).to_le_bytes());
        self.hash.update(what);
        self.show(|| {
            let shown = hex::encode(&Sha256::digest(what)[..6]);
            format!("{:>12.6} node {node} {kind} {number} {} B {shown}", at.as_secs_f64(), what.len())
        });
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        match self.show {
            Show::Hash => {}
            Show::Print => eprintln!("{}", line()),
            Show::Keep => self.kept.push(line()),
        }
    }
}

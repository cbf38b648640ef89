//! Newline-delimited JSON, as it comes.

use anyhow::Context;
use std::marker::PhantomData;

use blixard_core::api::{ATTEMPT_HEADER, ATTEMPTS_HEADER, GAP_HEADER};
use bytes::BytesMut;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

/// The longest line read, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;

/// A stream of values, one a line. Empty lines, which are signs of life, are skipped.
pub(crate) struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    gap: bool,
    attempt: Option<u32>,
    attempts: Vec<u32>,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(response: Response<Incoming>) -> Self {
        let gap = response.headers().contains_key(GAP_HEADER);
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let attempt = header(ATTEMPT_HEADER).and_then(|value| value.parse().ok());
        let attempts = header(ATTEMPTS_HEADER).unwrap_or_default();
        let attempts = attempts.split(',').filter_map(|attempt| attempt.parse().ok()).collect();
        let (body, buffer) = (response.into_body(), BytesMut::new());
        Self { body, buffer, gap, attempt, attempts, value: PhantomData }
    }

    /// Whether something before the first value is forgotten.
    pub(crate) fn has_gap(&self) -> bool {
        self.gap
    }

    /// Which attempt's log it is; absent when it is no log, or the node is too old to tell.
    pub(crate) fn attempt(&self) -> Option<u32> {
        self.attempt
    }

    /// Of which attempts of the same replica there are logs, the oldest first.
    pub(crate) fn attempts(&self) -> &[u32] {
        &self.attempts
    }

    /// The next value; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks, or a line is not such a value.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<T>> {
        let mut scanned = 0;
        loop {
            let end = self.buffer[scanned..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(scanned + end + 1);
                scanned = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            scanned = self.buffer.len();
            anyhow::ensure!(scanned <= LINE_BYTES_MAX, "a line of the node's answer is too long");
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => anyhow::bail!("the node's answer ends within a line"),
                Some(frame) => {
                    let frame =
                        frame.context("the connection broke to the node it comes from, which may be down")?;
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

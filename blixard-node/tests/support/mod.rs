//! What tests on real components share: images that tests build themselves, a private containerd,
//! registries. Knows nothing of the crate under test, so it can move.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part; written to become a crate")]

pub mod containerd;
pub mod fake_registry;
pub mod image;
pub mod registry;

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A port of 127.0.0.1 that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

/// Waits until `ready` says so.
pub async fn wait_until(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready().await {
        assert!(Instant::now() < deadline, "{what} within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

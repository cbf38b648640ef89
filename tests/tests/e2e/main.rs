//! End to end: real processes, real containerd, a network namespace for each host.
//!
//! One file a theme. Every test makes its own LAN, hosts and cluster and removes them, so tests
//! may run beside each other; two or three at a time is what four cores bear.

mod adoption;
mod containers;
mod data;
mod differing;
mod discovery;
mod disk;
mod documents;
mod durability;
mod failover;
mod formation;
mod images;
mod network;
mod quorum;
mod reboot;
mod routing;
mod run;
mod security;
mod service;
mod snapshot;
mod soak;
mod software;
mod updates;
mod volumes;

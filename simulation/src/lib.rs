//! Runs the production node under simulated time, network, disk and containers.
//!
//! Everything above the seams of `blixard_node::platform` is the production's: redb, the codec,
//! Raft's adapter, the drivers, the API's handlers. This crate only implements the seams, drives
//! a history from one seed and hashes what happened. All nodes of a world live on one thread, and
//! nothing in it reads a real clock or an unseeded random number, so one seed is one history.

pub mod containers;
pub mod disk;
pub mod net;
pub mod random;
pub mod tasks;
pub mod time;
pub mod trace;

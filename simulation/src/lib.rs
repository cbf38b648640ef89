//! Runs the production node under simulated time, network, disk and containers.
//!
//! Only the seams of [`blixard_node::platform`] are implemented here; redb, the codecs, the HTTP
//! router, openraft's adapter and the drivers are production's. A run is a function of its seed:
//! the same seed gives the same history, whose hash covers every delivery, applied entry, disk
//! operation and container action.

pub mod checks;
pub mod clients;
pub mod containers;
mod damage;
pub mod disk;
pub mod ether;
pub mod faults;
mod held;
pub mod machine;
pub mod mutants;
pub mod net;
mod panics;
pub mod random;
pub mod registries;
pub mod scenario;
mod stream;
pub mod sweep;
pub mod tasks;
pub mod time;
pub mod trace;
pub mod view;
pub mod world;

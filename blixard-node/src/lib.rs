//! Everything blixard does: the daemon behind `blixard node`.
//!
//! [`node::Node`] is the only composition root. Whatever touches the world goes through the seams
//! of [`platform`], so that the simulator runs this same crate on simulated clocks, links, disks
//! and containers.

pub mod api;
mod attempts;
pub mod config;
pub mod context;
mod copies;
pub mod daemon;
mod database;
mod digests;
pub mod discovery;
pub mod disk;
pub mod drivers;
mod facts;
pub mod formation;
mod full_disk;
pub mod handle;
pub mod identity;
mod images;
mod inbound;
mod join_input;
mod join_token;
pub mod linux;
pub mod mdns;
pub mod network;
pub mod node;
mod own_token;
pub mod platform;
pub mod purge;
pub mod raft;
mod route;
pub mod runtime;
mod seldom;
mod shared;
mod telemetry;
pub mod transport;
pub mod tree;
mod volumes;
pub mod watch;

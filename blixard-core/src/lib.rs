//! Everything blixard decides.
//!
//! This crate holds the rules of the cluster: what a bundle means, how the replicated state
//! changes, what the leader plans, what an agent does next. It performs no I/O, reads no clock,
//! draws no random number and spawns nothing; every ordering is a `BTreeMap`'s or an
//! [`imbl::OrdMap`]'s, so the same input always gives the same output on every node.

pub mod agent;
pub mod api;
pub mod bundle;
pub mod cluster;
pub mod discovery;
pub mod id;
pub mod image_reference;
pub mod limits;
pub mod orchestrator;
pub mod readiness;
pub mod route;
pub mod scheduler;
pub mod security;
pub mod spec;
pub mod text;
pub mod time;
pub mod volume;
pub mod wire;

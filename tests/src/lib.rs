//! What the end-to-end tests, the demo and the benchmarks stand on: hosts that are network
//! namespaces, real daemons in them, real images, a real registry.
//!
//! Nothing here touches the machine's own interfaces: every address belongs to a namespace that
//! the test made itself, and goes with it.

pub mod bundle;
pub mod capability;
pub mod cleanup;
pub mod client;
pub mod cluster;
pub mod command;
pub mod document;
pub mod host;
pub mod http;
pub mod image;
pub mod lan;
pub mod machine;
pub mod process;
pub mod registry;
pub mod soak;
pub mod traffic;
pub mod wait;
pub mod web;

//! From the replicated state to what the API says: pure functions, without a clock.

#[cfg(test)]
pub(super) mod fixture;
mod node;
mod replica;
mod service;

pub use self::node::{cluster_status, node, nodes, peers, survives, unconfirmed, without};
pub use self::replica::{replica, replicas};
pub use self::service::{hide_environment, service, service_row, services};

//! The tasks that act for what `blixard-core` decides: each waits for an event, takes a step and
//! runs the actions.

pub mod agent;
pub mod announce;
pub(crate) mod batch;
pub(crate) mod beats;
pub(crate) mod heartbeat;
pub mod leader;
pub(crate) mod membership;
pub(crate) mod peers;
pub(crate) mod rebuild;
pub(crate) mod standing;
pub(crate) mod volumes;

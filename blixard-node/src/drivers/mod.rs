//! The tasks that act for what `blixard-core` decides: each waits for an event, takes a step and
//! runs the actions.

pub mod agent;

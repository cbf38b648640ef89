//! Raft.
mod codec;
mod log_store;
mod message;
mod runtime;
mod snapshot;
mod state_machine;
mod store;
mod tail;
#[cfg(test)]
mod testing;
mod types;

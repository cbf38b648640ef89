//! Finding the other members: what the sources of addresses say, how they are merged, whom to
//! dial when, and how joining proceeds.
//!
//! Everything here is a function of its input. Reading files and dialling is blixard-node's
//! `discovery` and `transport`, its callers.

pub mod announce;
pub mod book;
pub mod contact;
pub mod copies;
pub mod dial;
pub mod file;
pub mod join;
pub mod proof;
pub mod target;
mod text;
pub mod ticket;

//! Volumes' content: what a tree of files is, how two of them differ, and how the one becomes the other.
//!
//! An [`Index`] says what a tree holds, down to a hash of every 4 KiB, and its [`Index::root`] stands for
//! all of it. [`plan`] compares two indexes and answers [`Step`]s; [`Index::advance`] says what a step
//! makes of a tree. Whoever receives steps advances its own index by them before it touches a file: only
//! where that ends at the root it was promised are the steps done, so that a version is never half
//! applied, and nothing that a sender invents reaches a disk.
//!
//! Steps may be done again from the first after any of them was: a copy that was interrupted redoes them
//! all. No clock, no file system, no async: `blixard-node` reads, writes and sends.

mod index;
mod path;
mod plan;
mod step;
#[cfg(test)]
mod tests;

pub use self::index::{Attributes, Entry, Index, Kind, LEAF_BYTES, Leaf, Leaves, leaf_of, leaves_of};
pub use self::path::{PathError, TreePath};
pub use self::plan::plan;
pub use self::step::{Step, StepError, WRITE_BYTES_MAX};

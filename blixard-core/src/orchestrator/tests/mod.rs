//! Golden plans: a cluster is set up in a few words, and the plan is compared as text.

mod fill;
mod moves;
mod nodes;
mod random;
mod replacing;
mod updates;
mod volumes;
pub(crate) mod world;

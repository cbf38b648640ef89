//! What is planned for a small cluster: it is set up in a few words, and the plan is compared as text.

mod costs;
mod fill;
mod golden;
mod moves;
mod nodes;
mod random;
mod replacing;
mod stranded;
mod updates;
mod volumes;
pub(crate) mod world;

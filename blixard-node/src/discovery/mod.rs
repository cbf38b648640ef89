//! Finding the other members: reads the sources that name them, keeps the transport hinted with
//! their addresses, writes this node's own registry file, and joins.
//!
//! What a source means and whom to ask next is decided in [`blixard_core::discovery`]. No source
//! here makes anyone a member: that is the cluster's to say.

pub mod address;
mod announced;
pub mod files;
pub mod finder;
pub mod join;
mod program;
pub mod registry;
pub mod source;
pub mod sources;
#[cfg(test)]
mod testing;
mod url;

use crate::platform::{Announcer, Clock, Platform, RandomSource, Spawner, Transport};

/// The seams that finding and joining a cluster takes: less than a [`Platform`], so that a node can
/// join before it has a container runtime.
#[derive(Clone, Copy)]
pub struct Seams<'a> {
    /// The clocks.
    pub clock: &'a dyn Clock,
    /// The only source of randomness.
    pub rng: &'a dyn RandomSource,
    /// For work that blocks.
    pub spawner: &'a dyn Spawner,
    /// Links.
    pub transport: &'a dyn Transport,
    /// The local network.
    pub announcer: &'a dyn Announcer,
}

impl<'a> From<&'a Platform> for Seams<'a> {
    fn from(platform: &'a Platform) -> Self {
        Self {
            clock: &*platform.clock,
            rng: &*platform.rng,
            spawner: &*platform.spawner,
            transport: &*platform.transport,
            announcer: &*platform.announcer,
        }
    }
}

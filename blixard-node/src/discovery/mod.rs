//! Finding the other members: reads the sources that name them, keeps the transport hinted with
//! their addresses, writes this node's own registry file, and joins.
//!
//! What a source means and whom to ask next is decided in [`blixard_core::discovery`]. No source
//! here makes anyone a member: that is the cluster's to say.

pub mod join;
pub mod refresh;
pub mod registry;
pub mod sources;

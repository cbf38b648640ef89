//! What clients of a service notice of what is done to it: nothing.

use std::time::Duration;

use anyhow::Result;
use blixard_tests::cluster::Cluster;
use blixard_tests::soak;

#[test]
fn no_request_fails_on_a_node_with_a_ready_replica_whatever_a_user_does() -> Result<()> {
    Cluster::formed(3)?
        .check(|cluster| soak::soak(cluster, Duration::ZERO, &|step| eprintln!("* {step}"))?.check())
}

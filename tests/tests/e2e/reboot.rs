//! All machines lose power at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use blixard_tests::bundle::Bundle;
use blixard_tests::cluster::Cluster;
use blixard_tests::{image, wait};

const BACK: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_whose_machines_all_rebooted_reforms_from_disk() -> Result<()> {
    reforms(&[1, 2, 3])
}

#[test]
fn a_cluster_whose_machines_all_got_other_addresses_reforms_from_disk() -> Result<()> {
    reforms(&[21, 22, 23])
}

fn reforms(addresses: &[u8; 3]) -> Result<()> {
    Cluster::formed(3)?.check(|cluster| {
        let web = image::web()?;
        cluster.hosts[0].import(&web)?;
        cluster.hosts[0].run(&Bundle::new("web", &web).replicas(3, 3).port(80, 8080).always())?;
        let before = cluster.hosts[0].status()?;
        for host in &mut cluster.hosts {
            host.power_off()?;
        }
        for (host, last) in cluster.hosts.iter_mut().zip(addresses) {
            host.readdress(*last);
            host.power_on()?;
        }
        let registry = cluster.registry()?;
        for host in cluster.hosts.iter_mut().rev() {
            // A machine that was renumbered is told where to find one of the others. The file says
            // where that was before, until the last to start writes it anew.
            host.spawn(&["--join", &registry])?;
            if host.number == 3 {
                host.wait_ready()?;
            }
        }
        for host in &mut cluster.hosts {
            host.wait_ready()?;
        }
        cluster.wait_formed()?;
        let after = cluster.hosts[2].status()?;
        ensure!(after.id == before.id && after.voters == before.voters, "{after:?} is not {before:?}");
        cluster.wait_ready(1, "web", 3, BACK)?;
        wait::until("every node to answer", BACK, || {
            for host in &cluster.hosts {
                ensure!(host.get(8080, "/")?.0 == 200, "host {} does not", host.number);
            }
            Ok(())
        })?;
        // The cluster still takes work.
        cluster.hosts[2].cli(&["rm", "web"])?;
        Ok(())
    })
}

//! Hosts that form a cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::host::Host;
use crate::lan::Lan;
use crate::wait;

/// A LAN of hosts whose daemons are members of one cluster. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts; host `n` at position `n - 1`. Declared before what they stand on, so that they
    /// are dropped first.
    pub hosts: Vec<Host>,
    /// The LAN.
    pub lan: Arc<Lan>,
    directory: TempDir,
}

impl Cluster {
    /// Makes `count` hosts without starting anything on them.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn hosts(count: u8) -> Result<Self> {
        let lan = Arc::new(Lan::new()?);
        let directory = tempfile::Builder::new().prefix("bx").tempdir()?;
        let hosts =
            (1..=count).map(|number| Host::new(&lan, number, directory.path())).collect::<Result<_>>()?;
        Ok(Self { hosts, lan, directory })
    }

    /// Makes `count` hosts, bootstraps on the first and joins the others by its registry file.
    ///
    /// # Errors
    /// When a daemon does not come up or the members do not see each other in time.
    pub fn formed(count: u8) -> Result<Self> {
        let mut cluster = Self::hosts(count)?;
        cluster.hosts[0].start(&[])?;
        let registry = cluster.hosts[0].data_dir().join("node-registry.json");
        let registry = registry.to_str().context("the temporary directory is not UTF-8")?.to_owned();
        for host in &mut cluster.hosts[1..] {
            host.spawn(&["--join", &registry])?;
        }
        for host in &mut cluster.hosts[1..] {
            host.wait_ready()?;
        }
        cluster.wait_formed()?;
        Ok(cluster)
    }

    /// Where the test may keep files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until every running daemon sees all of them up and the expected number of voters.
    ///
    /// # Errors
    /// When that takes more than 30 seconds.
    pub fn wait_formed(&self) -> Result<()> {
        let count = self.hosts.len();
        let voters = if count == 2 { 1 } else { (count - 1) / 2 * 2 + 1 }.min(5);
        wait::until("the cluster to form", Duration::from_secs(30), || {
            for host in &self.hosts {
                let nodes = host.cli_json(&["node", "ls", "-o", "json"])?;
                let nodes = nodes.as_array().context("node ls gives no array")?;
                let up = nodes.iter().filter(|node| node["status"] == "up").count();
                let voting = nodes.iter().filter(|node| node["role"] == "voter").count();
                wait::ensure(up == count && voting == voters, format!("{up} of {count} up, {voting} vote"))?;
            }
            Ok(())
        })
    }

    /// The position of the host whose node leads.
    ///
    /// # Errors
    /// When the host at `asked` knows no leader.
    pub fn leader(&self, asked: usize) -> Result<usize> {
        let status = self.hosts[asked].cli_json(&["cluster", "status", "-o", "json"])?;
        let id = status["leader"].as_u64().context("no leader is known")?;
        self.hosts.iter().position(|host| u64::from(host.number) == id).context("the leader is no host")
    }
}

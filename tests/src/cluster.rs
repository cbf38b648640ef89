//! Hosts that form a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blixard_core::api::node::Role;
use blixard_core::cluster::NodeStatus;

use crate::cleanup;
use crate::host::Host;
use crate::lan::Lan;
use crate::wait;

/// How long members may take to see each other.
const FORMED: Duration = Duration::from_secs(30);

/// A LAN of hosts whose daemons are members of one cluster. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts; host `n` at position `n - 1`.
    pub hosts: Vec<Host>,
    /// The LAN.
    pub lan: Arc<Lan>,
    directory: PathBuf,
}

impl Cluster {
    /// Makes `count` hosts without starting anything on them.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn hosts(count: u8) -> Result<Self> {
        let lan = Arc::new(Lan::new()?);
        let directory = std::env::temp_dir().join(lan.namespace());
        std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut cluster = Self { hosts: Vec::new(), lan, directory };
        for number in 1..=count {
            cluster.add_host(number)?;
        }
        Ok(cluster)
    }

    /// Plugs in one more host; its position in `hosts` is given.
    ///
    /// # Errors
    /// When there is one with that number.
    pub fn add_host(&mut self, number: u8) -> Result<usize> {
        self.hosts.push(Host::new(&self.lan, number, &self.directory)?);
        Ok(self.hosts.len() - 1)
    }

    /// Makes `count` hosts, bootstraps on the first and joins the others by its registry file.
    ///
    /// # Errors
    /// When a daemon does not come up or the members do not see each other in time.
    pub fn formed(count: u8) -> Result<Self> {
        Self::hosts(count)?.form()
    }

    /// Bootstraps on the first host and joins the others by its registry file.
    ///
    /// # Errors
    /// When a daemon does not come up or the members do not see each other in time.
    pub fn form(mut self) -> Result<Self> {
        self.hosts[0].start(&[])?;
        let registry = self.registry()?;
        for host in &mut self.hosts[1..] {
            host.spawn(&["--join", &registry])?;
        }
        for host in &mut self.hosts[1..] {
            host.wait_ready()?;
        }
        self.wait_formed()?;
        Ok(self)
    }

    /// The first host's registry file, as an argument of `--join`.
    ///
    /// # Errors
    /// When its path is not UTF-8.
    pub fn registry(&self) -> Result<String> {
        let path = self.hosts[0].registry_file();
        Ok(path.to_str().context("the temporary directory is not UTF-8")?.to_owned())
    }

    /// Where the test may keep files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a scenario; when it fails, the error is followed by the end of every host's log.
    ///
    /// # Errors
    /// Those of the scenario.
    pub fn check(mut self, scenario: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let result = scenario(&mut self);
        if result.is_err() {
            for host in &self.hosts {
                eprintln!("--- the end of host {}'s log\n{}", host.number, host.log_tail(60));
            }
        }
        result
    }

    /// Waits until every daemon sees all hosts up and the expected number of voters.
    ///
    /// # Errors
    /// When that takes more than 30 seconds.
    pub fn wait_formed(&self) -> Result<()> {
        let count = self.hosts.len();
        let voters = if count == 2 { 1 } else { (count - 1) / 2 * 2 + 1 }.min(5);
        wait::until("the cluster to form", FORMED, || {
            for host in &self.hosts {
                let nodes = host.nodes()?;
                let up = nodes.iter().filter(|node| node.status == NodeStatus::Up).count();
                let voting =
                    nodes.iter().filter(|node| matches!(node.role, Role::Leader | Role::Voter)).count();
                let told = format!("host {} sees {up} of {count} up, {voting} vote", host.number);
                wait::ensure(up == count && voting == voters, told)?;
            }
            Ok(())
        })
    }

    /// Waits until the node on the host at `asked` believes the node on the host at `about` to be
    /// so.
    ///
    /// # Errors
    /// When that takes more than 30 seconds.
    pub fn wait_status(&self, asked: usize, about: usize, status: NodeStatus) -> Result<()> {
        let id = u64::from(self.hosts[about].number);
        wait::until(&format!("node {id} to be {status:?}"), FORMED, || {
            let nodes = self.hosts[asked].nodes()?;
            let node = nodes.iter().find(|node| node.id.0 == id).context("the node is not listed")?;
            wait::ensure(node.status == status, format!("it is {:?}", node.status))
        })
    }

    /// The position of the host whose node leads, as the node on the host at `asked` says.
    ///
    /// # Errors
    /// When it knows no leader.
    pub fn leader(&self, asked: usize) -> Result<usize> {
        let id = self.hosts[asked].status()?.leader.context("no leader is known")?;
        let leads = |host: &Host| u64::from(host.number) == id.0;
        self.hosts.iter().position(leads).context("the leader is no host")
    }

    /// The positions of the leader's host and of all others, the leader first asked at position 0.
    ///
    /// # Errors
    /// When no leader is known within 20 seconds.
    pub fn leader_and_followers(&self) -> Result<(usize, Vec<usize>)> {
        let leader = wait::until("a leader", Duration::from_secs(20), || self.leader(0))?;
        Ok((leader, (0..self.hosts.len()).filter(|position| *position != leader).collect()))
    }

    /// Waits until `count` replicas of `service` are ready, as the node on the host at `asked`
    /// says, and gives the numbers of the nodes they run on, by slot.
    ///
    /// # Errors
    /// When that takes longer than `deadline`.
    pub fn wait_ready(
        &self,
        asked: usize,
        service: &str,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<u64>> {
        wait::until(&format!("{count} replicas of {service}"), deadline, || {
            let rows = self.hosts[asked].replicas(service)?;
            let mut ready: Vec<_> = rows.iter().filter(|row| row.ready && !row.lost).collect();
            ready.sort_by_key(|row| row.slot);
            let told = || rows.iter().map(|row| format!("{} {:?} {}", row.name, row.phase, row.message));
            ensure!(
                ready.len() == count,
                "{} are ready: {}",
                ready.len(),
                told().collect::<Vec<_>>().join("; ")
            );
            Ok(ready.iter().filter_map(|row| row.node).map(|node| node.0).collect())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.hosts.clear();
        cleanup::forget_directory(&self.directory);
    }
}

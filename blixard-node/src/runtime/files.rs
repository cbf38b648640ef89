//! The files that a node keeps of its containers: what it binds over their `/etc`, and where their
//! logs are.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blixard_core::id::{ContainerId, ReplicaId};

use super::resolver;

/// The directories of one node.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    data: PathBuf,
    /// Whether it was told that containers have no name server, since they last had one.
    told_no_servers: Arc<AtomicBool>,
}

/// What is bound over files of a container's `/etc`.
#[derive(Debug, Clone)]
pub(crate) struct ContainerFiles {
    /// `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// `/etc/hostname`.
    pub(crate) hostname: PathBuf,
    /// `/etc/resolv.conf`.
    pub(crate) resolv: PathBuf,
}

impl Files {
    pub(crate) fn new(data: PathBuf) -> Self {
        Self { data, told_no_servers: Arc::default() }
    }

    /// The node's data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where generated files of all containers are.
    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// Where the fifos of running exec sessions are.
    pub(crate) fn exec(&self) -> PathBuf {
        self.data.join("exec")
    }

    /// Where logs of all replicas are.
    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Where logs of a replica's attempts are.
    pub(crate) fn replica_logs(&self, replica: ReplicaId) -> PathBuf {
        self.logs().join(replica.to_string())
    }

    /// The newest file of an attempt's log.
    pub(crate) fn log(&self, replica: ReplicaId, attempt: u32) -> PathBuf {
        self.replica_logs(replica).join(format!("{attempt}.log"))
    }

    /// What is kept of an attempt's container once that is removed.
    pub(crate) fn ended(&self, replica: ReplicaId, attempt: u32) -> PathBuf {
        self.replica_logs(replica).join(format!("{attempt}.json"))
    }

    /// Writes a container's files. Without an address it is on the host's network and uses the
    /// host's name servers as they are.
    pub(crate) fn write(
        &self,
        id: &ContainerId,
        hostname: &str,
        address: Option<Ipv4Addr>,
    ) -> io::Result<ContainerFiles> {
        let directory = self.containers().join(&id.0);
        std::fs::create_dir_all(&directory)?;
        let files = ContainerFiles {
            hosts: directory.join("hosts"),
            hostname: directory.join("hostname"),
            resolv: directory.join("resolv.conf"),
        };
        std::fs::write(&files.hosts, hosts(hostname, address))?;
        std::fs::write(&files.hostname, format!("{hostname}\n"))?;
        let resolv = if address.is_some() { self.resolver()? } else { resolver::host_file()? };
        std::fs::write(&files.resolv, resolv)?;
        Ok(files)
    }

    /// The name servers of a container on the container network; that there are none is told once.
    fn resolver(&self) -> io::Result<String> {
        let found = resolver::of_host()?;
        if !self.told_no_servers.swap(!found.reachable, Ordering::Relaxed) && !found.reachable {
            tracing::warn!(
                "containers have no name server: those of the host's /etc/resolv.conf answer on the host \
                 alone; name one there that the container network reaches"
            );
        }
        Ok(found.text)
    }

    /// Removes a container's files; its log stays.
    pub(crate) fn remove(&self, id: &ContainerId) -> io::Result<()> {
        absent_is_fine(std::fs::remove_dir_all(self.containers().join(&id.0)))
    }
}

/// Success when what was to be removed is not there.
pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{own}\t{hostname}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::hosts;

    #[test]
    fn a_container_finds_itself_by_name() {
        assert!(hosts("web-1", Some([10, 1, 2, 3].into())).ends_with("10.1.2.3\tweb-1\n"));
        assert!(hosts("web-1", None).ends_with("127.0.1.1\tweb-1\n"));
    }
}

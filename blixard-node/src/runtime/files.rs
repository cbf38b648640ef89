//! The files that a node keeps of its containers: what it binds over their `/etc`, and where their
//! logs are.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use blixard_core::id::{ContainerId, ReplicaId};

/// Where the host's resolver configuration is when systemd-resolved answers on a loopback address.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The directories of one node.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    data: PathBuf,
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
        Self { data }
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
        std::fs::write(&files.resolv, resolver(address.is_some())?)?;
        Ok(files)
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

fn resolver(isolated: bool) -> io::Result<String> {
    let read = |path: &str| match std::fs::read_to_string(Path::new(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    };
    let host = read(RESOLV_CONF)?;
    if !isolated {
        return Ok(host);
    }
    let filtered = without_loopback(&host);
    if filtered.contains("nameserver") {
        return Ok(filtered);
    }
    Ok(without_loopback(&read(RESOLVED)?))
}

/// Drops name servers on loopback addresses: from another network namespace nobody answers there.
fn without_loopback(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let loopback = line
            .trim()
            .strip_prefix("nameserver")
            .and_then(|rest| rest.trim().parse::<std::net::IpAddr>().ok())
            .is_some_and(|address| address.is_loopback());
        if !loopback {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{hosts, without_loopback};

    #[test]
    fn loopback_name_servers_are_dropped() {
        let text = "search lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0\n";
        assert_eq!(without_loopback(text), "search lan\nnameserver 192.0.2.1\noptions edns0\n");
    }

    #[test]
    fn a_container_finds_itself_by_name() {
        assert!(hosts("web-1", Some([10, 1, 2, 3].into())).ends_with("10.1.2.3\tweb-1\n"));
        assert!(hosts("web-1", None).ends_with("127.0.1.1\tweb-1\n"));
    }
}

//! What each container has of the network, on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use blixard_core::id::ContainerId;
use blixard_core::limits::NODE_ADDRESSES;
use blixard_core::spec::PortSpec;
use serde::{Deserialize, Serialize};

use super::NetworkError;

/// What one container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The file that keeps its namespace alive.
    pub netns_path: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
    /// What is published.
    pub ports: Vec<PortSpec>,
}

/// The file that holds the address last given out.
const LAST: &str = "last-address";
/// The last parts of the addresses of a /24 that containers get; the first is the bridge's.
const HOSTS: std::ops::RangeInclusive<u8> = 2..=254;
// As many as the planner counts on.
const _: () = assert!((*HOSTS.end() - *HOSTS.start()) as u32 + 1 == NODE_ADDRESSES);

/// The leases of a node: a JSON file each, named by the container.
#[derive(Debug)]
pub(super) struct Leases {
    directory: PathBuf,
    by_id: BTreeMap<ContainerId, Lease>,
    /// The last part of the address last given out.
    last: u8,
}

impl Leases {
    /// Reads the leases in `directory`; those that cannot be read or whose namespace is gone are
    /// removed.
    pub(super) fn load(directory: &Path) -> Result<Self, NetworkError> {
        let last = std::fs::read_to_string(directory.join(LAST)).ok();
        let last = last.and_then(|text| text.trim().parse().ok()).unwrap_or(*HOSTS.start() - 1);
        let mut leases = Self { directory: directory.to_owned(), by_id: BTreeMap::new(), last };
        let listing = NetworkError::io(format!("list {}", directory.display()));
        for entry in std::fs::read_dir(directory).map_err(listing)?.flatten() {
            let path = entry.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else {
                continue;
            };
            let id = ContainerId(id.to_owned());
            let lease =
                std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Lease>(&text).ok());
            match lease {
                Some(lease) if super::namespace::exists(&lease.netns_path) => {
                    leases.by_id.insert(id, lease);
                }
                gone => {
                    if let Some(lease) = gone {
                        super::namespace::remove(&lease.netns_path)?;
                    }
                    leases.remove(&id)?;
                }
            }
        }
        Ok(leases)
    }

    pub(super) fn get(&self, id: &ContainerId) -> Option<&Lease> {
        self.by_id.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ContainerId, &Lease)> {
        self.by_id.iter()
    }

    /// Gives out the next address of the /24 that no lease has, after the one last given out: one
    /// that was just given up is still in the minds of clients, neighbours and connections.
    pub(super) fn take_address(&mut self, subnet: Ipv4Addr) -> Result<Ipv4Addr, NetworkError> {
        let taken: BTreeSet<Ipv4Addr> = self.by_id.values().map(|lease| lease.address).collect();
        let address = |host: u8| Ipv4Addr::from(u32::from(subnet) | u32::from(host));
        let (before, after): (Vec<u8>, Vec<u8>) = HOSTS.partition(|host| *host <= self.last);
        let free = after.into_iter().chain(before).find(|host| !taken.contains(&address(*host)));
        let free = free.ok_or(NetworkError::AddressesExhausted { subnet })?;
        let path = self.directory.join(LAST);
        std::fs::write(&path, free.to_string())
            .map_err(NetworkError::io(format!("write {}", path.display())))?;
        self.last = free;
        Ok(address(free))
    }

    pub(super) fn insert(&mut self, id: ContainerId, lease: Lease) -> Result<(), NetworkError> {
        let text =
            serde_json::to_vec(&lease).map_err(|error| NetworkError::io("encode a lease")(error.into()))?;
        let path = self.path(&id);
        std::fs::write(&path, text).map_err(NetworkError::io(format!("write {}", path.display())))?;
        self.by_id.insert(id, lease);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &ContainerId) -> Result<(), NetworkError> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(NetworkError::io(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
        self.by_id.remove(id);
        Ok(())
    }

    fn path(&self, id: &ContainerId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_in_turn_and_run_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut leases = Leases::load(directory.path()).expect("an empty directory");
        let subnet = Ipv4Addr::new(10, 210, 3, 0);
        let id = |host: u8| ContainerId(format!("{host:064x}"));
        let take = |leases: &mut Leases, expect: u8| {
            let address = leases.take_address(subnet).expect("not all are taken");
            assert_eq!(address, Ipv4Addr::new(10, 210, 3, expect));
            let lease = Lease { netns_path: PathBuf::new(), address, ports: Vec::new() };
            leases.insert(id(expect), lease).expect("the directory takes files");
        };
        take(&mut leases, 2);
        take(&mut leases, 3);
        leases.remove(&id(2)).expect("it has one");
        take(&mut leases, 4);
        leases.remove(&id(4)).expect("it has one");
        // A daemon that starts again goes on where the one before was.
        let mut leases = Leases { by_id: leases.by_id, ..Leases::load(directory.path()).expect("readable") };
        for host in 5..=254 {
            take(&mut leases, host);
        }
        take(&mut leases, 2);
        take(&mut leases, 4);
        let error = leases.take_address(subnet).expect_err("all are taken");
        assert!(error.to_string().contains("10.210.3.0/24 has no free address"), "{error}");
        leases.remove(&id(7)).expect("it has one");
        take(&mut leases, 7);
    }

    #[test]
    fn leases_without_a_namespace_or_unreadable_ones_are_dropped() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut leases = Leases::load(directory.path()).expect("an empty directory");
        let gone = Lease {
            netns_path: directory.path().join("gone"),
            address: Ipv4Addr::new(10, 210, 3, 2),
            ports: Vec::new(),
        };
        leases.insert(ContainerId("a".repeat(64)), gone).expect("the directory takes files");
        std::fs::write(directory.path().join(format!("{}.json", "b".repeat(64))), "{")
            .expect("it takes files");
        let again = Leases::load(directory.path()).expect("it can be listed");
        assert_eq!(again.iter().count(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).expect("it can be listed").count(), 0);
    }

    #[test]
    fn leases_survive_every_damage() {
        let ports = vec![PortSpec {
            container_port: 80,
            host_port: Some(8080),
            protocol: Default::default(),
            host_ip: Some(Ipv4Addr::LOCALHOST),
            publish: Default::default(),
        }];
        let netns_path = PathBuf::from("/run/netns/a");
        let lease = Lease { netns_path, address: Ipv4Addr::new(10, 210, 3, 2), ports };
        damage::survives("lease", &[serde_json::to_vec(&lease).expect("JSON")], |input| {
            let lease: Lease = serde_json::from_slice(input).map_err(|_| "it is removed")?;
            let again = serde_json::to_vec(&lease).expect("JSON");
            assert_eq!(serde_json::from_slice::<Lease>(&again).expect("it was written"), lease);
            Ok(())
        });
    }
}

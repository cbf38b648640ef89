//! The container network of one node: a bridge with the node's /24, a namespace for each
//! container, outbound access and published ports.
//!
//! Everything a container has is recorded in a lease file beside its namespace, so a daemon that
//! restarts finds it all again. Links and addresses are made over netlink; translation is one
//! nftables table that is replaced as a whole, so a half-made rule set never exists. Both live in
//! whatever network namespace the daemon runs in: several nodes on one machine do not meet.

mod firewall;
mod lease;
mod link;
mod namespace;
mod ports;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use blixard_core::id::{ClusterId, ContainerId, NodeId};
use blixard_core::spec::PortSpec;
use tokio::sync::Mutex;

pub use self::lease::Lease;
use self::lease::Leases;
use self::ports::HeldPorts;

/// Why a container could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A published port is held by another program on this node.
    #[error(
        "port {port}/{protocol} is taken on this node by another program: stop it, or publish another host_port"
    )]
    PortTaken {
        /// The port on the node.
        port: u16,
        /// `tcp` or `udp`.
        protocol: blixard_core::spec::Protocol,
    },
    /// Every address of the node's /24 is in use.
    #[error("the node's container network {subnet}/24 has no free address: move replicas to other nodes")]
    AddressesExhausted {
        /// The network.
        subnet: Ipv4Addr,
    },
    /// The network overlaps one that the node already reaches otherwise.
    #[error(
        "the container network {subnet}/24 is also reached through {device}: form the cluster with other --subnets"
    )]
    Overlap {
        /// The network.
        subnet: Ipv4Addr,
        /// The device that reaches it.
        device: String,
    },
    /// The kernel refused a link, an address or a route.
    #[error("cannot {what}")]
    Netlink {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
    /// nftables refused the rules, or its program is missing.
    #[error("cannot load the port rules: {0}")]
    Firewall(String),
    /// Its container was removed before it was connected.
    #[error("the container was removed meanwhile")]
    Removed,
    /// A file or namespace could not be made or read.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl NetworkError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A namespace that is not connected yet. One that is never connected is removed by
/// [`ContainerNetwork::remove`].
pub struct Opening<'a> {
    network: &'a ContainerNetwork,
    id: ContainerId,
    lease: Lease,
    inside: namespace::Namespace,
}

impl Opening<'_> {
    /// What the container has.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Links the namespace to the bridge and publishes the ports.
    ///
    /// # Errors
    /// When the kernel refuses; what was made is left for [`ContainerNetwork::remove`].
    pub async fn connect(self) -> Result<Lease, NetworkError> {
        let Self { network, id, lease, inside } = self;
        let (name, gateway) = (veth_name(&id), first_host(network.subnet));
        link::connect(&network.name, &name, inside, lease.address, gateway).await?;
        // A connection that is dealt to an address that nobody has yet waits for seconds.
        let mut state = network.state.lock().await;
        if state.leases.get(&id) != Some(&lease) {
            return Err(NetworkError::Removed);
        }
        state.unlinked.remove(&id);
        network.load_rules(&state, None).await?;
        Ok(lease)
    }
}

/// The container network of one node.
#[derive(Debug)]
pub struct ContainerNetwork {
    directory: PathBuf,
    /// The bridge's and the table's name: told apart by cluster and node.
    name: String,
    subnet: Ipv4Addr,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    leases: Leases,
    /// Whose address nobody has yet: nothing is sent there.
    unlinked: BTreeSet<ContainerId>,
    held: HeldPorts,
}

impl ContainerNetwork {
    /// Makes or finds the node's bridge, and takes up what earlier runs left: leases whose
    /// namespace is gone, as after a reboot, are dropped.
    ///
    /// `directory` holds leases and namespaces and should not survive a reboot: under `/run`.
    ///
    /// # Errors
    /// When the bridge, the rules or the directory cannot be made, or the /24 overlaps a route
    /// of the machine.
    pub async fn open(
        directory: &Path,
        cluster: ClusterId,
        node: NodeId,
        subnet: Ipv4Addr,
    ) -> Result<Self, NetworkError> {
        let name = name_of(cluster, node);
        std::fs::create_dir_all(directory)
            .map_err(NetworkError::io(format!("make {}", directory.display())))?;
        let leases = Leases::load(directory)?;
        link::ensure_bridge(&name, subnet).await?;
        enable_forwarding(&name)?;
        let mut held = HeldPorts::default();
        for (id, lease) in leases.iter() {
            if let Err(error) = held.hold(id, &lease.ports).await {
                tracing::warn!(container.id = id.short(), err = %error, "a published port is no longer ours");
            }
        }
        let state = State { leases, unlinked: BTreeSet::new(), held };
        let network = Self { directory: directory.to_owned(), name, subnet, state: Mutex::new(state) };
        network.load_rules(&*network.state.lock().await, None).await?;
        Ok(network)
    }

    /// Makes a namespace for a container that does not run yet, and takes an address and its ports
    /// for it; what an earlier try left is made anew.
    ///
    /// # Errors
    /// When a port is taken, no address is free, or the kernel refuses; nothing is left then.
    pub async fn create(&self, id: &ContainerId, ports: &[PortSpec]) -> Result<Opening<'_>, NetworkError> {
        let mut state = self.state.lock().await;
        self.forget(&mut state, id).await?;
        let address = state.leases.take_address(self.subnet)?;
        state.held.hold(id, ports).await?;
        let netns_path = self.directory.join(format!("{}.netns", id.short()));
        let lease = Lease { netns_path, address, ports: ports.to_vec() };
        // Written first: whatever is made is found again by its lease.
        state.unlinked.insert(id.clone());
        let made = match state.leases.insert(id.clone(), lease.clone()) {
            Ok(()) => namespace::create(&lease.netns_path).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(inside) => Ok(Opening { network: self, id: id.clone(), lease, inside }),
            Err(error) => {
                if let Err(left) = self.forget(&mut state, id).await {
                    tracing::warn!(container.id = id.short(), err = %left, "cannot clean up a namespace");
                }
                Err(error)
            }
        }
    }

    /// Takes everything of a container away again, also what a start that was cut off left.
    ///
    /// # Errors
    /// When the kernel refuses; it can be tried again.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        self.forget(&mut state, id).await
    }

    /// Removes what a container has: first the rules, so that no port is free while packets to it
    /// still go elsewhere, last the lease, so that what failed is tried again.
    async fn forget(&self, state: &mut State, id: &ContainerId) -> Result<(), NetworkError> {
        if state.leases.get(id).is_some() {
            self.load_rules(state, Some(id)).await?;
        }
        self.disconnect(state, id).await
    }

    /// Removes the link pair, the namespace, the lease and the held ports.
    async fn disconnect(&self, state: &mut State, id: &ContainerId) -> Result<(), NetworkError> {
        if let Some(lease) = state.leases.get(id) {
            link::disconnect(&self.name, &veth_name(id), lease.address).await?;
            namespace::remove(&lease.netns_path)?;
            state.leases.remove(id)?;
        }
        state.unlinked.remove(id);
        // Held without a lease when a start was cut off while it waited for another port.
        state.held.release(id);
        Ok(())
    }

    /// The address of a container.
    pub async fn address_of(&self, id: &ContainerId) -> Option<Ipv4Addr> {
        self.state.lock().await.leases.get(id).map(|lease| lease.address)
    }

    /// The containers that have a namespace.
    pub async fn list(&self) -> Vec<ContainerId> {
        self.state.lock().await.leases.iter().map(|(id, _)| id.clone()).collect()
    }

    /// Removes every namespace, the rules and the bridge.
    ///
    /// # Errors
    /// When the kernel refuses; what could be removed is.
    pub async fn purge(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        firewall::delete(&self.name).await?;
        let ids: Vec<ContainerId> = state.leases.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.disconnect(&mut state, &id).await?;
        }
        link::delete(&self.name).await?;
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::io(format!("remove {}", self.directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Publishes the ports of every container that is linked, but for one.
    async fn load_rules(&self, state: &State, but: Option<&ContainerId>) -> Result<(), NetworkError> {
        let linked = state.leases.iter().filter(|(id, _)| Some(*id) != but && !state.unlinked.contains(*id));
        firewall::load(&firewall::ruleset(&self.name, self.subnet, linked.map(|(_, lease)| lease))).await
    }
}

/// `bx` and what tells cluster and node apart, within the kernel's 15 bytes for a device.
fn name_of(cluster: ClusterId, node: NodeId) -> String {
    let cluster = cluster.to_string();
    format!("bx{}n{node}", &cluster[..6]).chars().take(15).collect()
}

fn veth_name(id: &ContainerId) -> String {
    format!("bxv{}", &id.short()[..10.min(id.short().len())])
}

/// The bridge's own address: the network's first.
fn first_host(subnet: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet) | 1)
}

/// Lets packets pass between the bridge and the world, and from the node's localhost to
/// containers.
fn enable_forwarding(bridge: &str) -> Result<(), NetworkError> {
    for path in [
        "/proc/sys/net/ipv4/ip_forward".to_owned(),
        format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"),
    ] {
        std::fs::write(&path, "1").map_err(NetworkError::io(format!("write 1 to {path}")))?;
    }
    Ok(())
}

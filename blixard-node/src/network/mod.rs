//! The container network of one node: a bridge with the node's /24, a namespace for each
//! container, outbound access and published ports.
//!
//! Everything a container has is recorded in a lease file beside its namespace, so a daemon that
//! restarts finds it all again. Links and addresses are made over netlink; translation is one
//! nftables table whose rules are replaced in one transaction, so a half-made rule set never exists.
//! Both live in whatever network namespace the daemon runs in: several nodes on one machine do not meet.
//!
//! The network is a boundary: containers reach the world, each other and what the node serves them;
//! what reaches them is what is published. Which containers a published port leads to is told by
//! [`ContainerNetwork::publish`], and is on disk as well.

mod conntrack;
mod firewall;
mod forwarding;
mod guard;
mod lease;
mod link;
mod namespace;
mod ports;
mod published;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::id::{ClusterId, ContainerId, NodeId};
use blixard_core::spec::{PortSpec, Protocol};
use tokio::sync::Mutex;

use self::firewall::{Rules, Targets};
pub use self::lease::Lease;
use self::lease::Leases;
use self::ports::HeldPorts;
use self::published::Published;

/// How long after loading rules that were taken away it is looked whether they are there.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether what was made is still there.
const LOOK: Duration = Duration::from_secs(10);

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
    /// A port is to be published on an address that the node does not have.
    #[error("port {port} cannot be published on {address}: this node has no such address")]
    NoSuchAddress {
        /// The address.
        address: Ipv4Addr,
        /// The port on it.
        port: u16,
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

    /// Links the namespace to the bridge. Its ports are published later, by
    /// [`ContainerNetwork::publish`].
    ///
    /// # Errors
    /// When the kernel refuses; what was made is left for [`ContainerNetwork::remove`].
    pub async fn connect(self) -> Result<Lease, NetworkError> {
        let Self { network, id, lease, inside } = self;
        let (name, gateway) = (veth_name(&id), first_host(network.subnet));
        link::connect(&network.name, &name, inside, lease.address, gateway).await?;
        let state = network.state.lock().await;
        if state.leases.get(&id) != Some(&lease) {
            return Err(NetworkError::Removed);
        }
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

/// What the bridges of nodes begin with.
const BRIDGES: &str = "bx";
/// What the node's ends of containers' link pairs begin with.
const VETH: &str = "bxv";

/// What rules were made of: where ports lead, what the node serves, what else is forwarded.
type Loaded = (Targets, BTreeSet<(Protocol, u16)>, Option<forwarding::Forwarded>);

#[derive(Debug)]
struct State {
    leases: Leases,
    published: Published,
    held: HeldPorts,
    /// Ports that the daemon takes connections on.
    listening: BTreeSet<u16>,
    /// Whether everything was taken away, for good.
    purged: bool,
    /// What the loaded rules are made of; absent before the first were, or when they may be others.
    loaded: Option<Loaded>,
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
        let published = Published::load(directory, || leases.iter().map(|(id, _)| id.clone()).collect());
        link::ensure_bridge(&name, subnet).await?;
        let mut held = HeldPorts::default();
        for (id, lease) in leases.iter() {
            if let Err(error) = held.hold(id, &lease.ports).await {
                tracing::warn!(container.id = id.short(), err = %error, "a published port is no longer ours");
            }
        }
        let state =
            State { leases, published, held, listening: BTreeSet::new(), purged: false, loaded: None };
        let network = Self { directory: directory.to_owned(), name, subnet, state: Mutex::new(state) };
        network.load_rules(&mut *network.state.lock().await).await?;
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

    /// Makes the published ports lead to these containers, and to no others; and lets containers
    /// reach these ports of the node itself, which services on the host's network have. Connections
    /// that are established go on.
    ///
    /// # Errors
    /// When nftables refuses the rules; they are as before then, and it can be tried again.
    pub async fn publish(
        &self,
        containers: BTreeSet<ContainerId>,
        served: BTreeSet<(Protocol, u16)>,
    ) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let wanted = Published { containers, served };
        if state.published == wanted && state.loaded.is_some() {
            return Ok(());
        }
        state.published = wanted;
        self.load_rules(&mut state).await
    }

    /// Takes connections to a TCP port of the node that no rule translates, also those of containers of the
    /// node.
    ///
    /// # Errors
    /// When another program has the port, or nftables refuses the rules.
    pub async fn listen(&self, port: u16) -> Result<std::net::TcpListener, NetworkError> {
        let mut state = self.state.lock().await;
        let listener = state.held.listen(port).await?;
        state.listening.insert(port);
        self.load_rules(&mut state).await?;
        Ok(listener)
    }

    /// Takes no more connections to a port that was listened on.
    ///
    /// # Errors
    /// When nftables refuses the rules: containers go on being let through to the port.
    pub async fn unlisten(&self, port: u16) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        state.held.unlisten(port);
        state.listening.remove(&port);
        self.load_rules(&mut state).await
    }

    /// The address of a container that published ports lead to.
    pub async fn published_address_of(&self, id: &ContainerId) -> Option<Ipv4Addr> {
        let state = self.state.lock().await;
        state.published.containers.get(id).and_then(|id| state.leases.get(id)).map(|lease| lease.address)
    }

    /// Takes a container out of the published ports. Its connections go on.
    ///
    /// # Errors
    /// As [`ContainerNetwork::publish`].
    pub async fn withdraw(&self, id: &ContainerId) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if state.published.containers.remove(id) {
            self.load_rules(&mut state).await?;
        }
        Ok(())
    }

    /// How many connections to a container's published ports are open and not idle, which is one that
    /// was silent for `idle` or longer.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn connections(&self, id: &ContainerId, idle: Duration) -> Result<usize, NetworkError> {
        let Some(address) = self.address_of(id).await else { return Ok(0) };
        let (established, gateway) = (conntrack::established_timeout(), first_host(self.subnet));
        let counts = move |flow: &conntrack::Flow| {
            let open = flow.protocol == Protocol::Tcp && flow.open && flow.silent_for(established) < idle;
            // Translated here, or led here by another node and made by the daemon.
            open && (flow.is_translated_to(address) || flow.is_made_by(gateway, address))
        };
        conntrack::count(counts).await
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
        let published = state.published.containers.remove(id);
        if published && state.leases.get(id).is_some() {
            self.load_rules(state).await?;
        }
        let refused = |port: &PortSpec| port.protocol == Protocol::Udp && port.host_port.is_some();
        let was_refused = state.leases.get(id).is_some_and(|lease| lease.ports.iter().any(refused));
        self.disconnect(state, id).await?;
        if was_refused {
            // Datagrams to its port were refused while it had it: from now on whoever has the port answers.
            self.load_rules(state).await?;
        }
        Ok(())
    }

    /// Removes the link pair, the namespace, the lease and the held ports, and makes the kernel
    /// forget whom the address was connected with: it will be somebody else's.
    async fn disconnect(&self, state: &mut State, id: &ContainerId) -> Result<(), NetworkError> {
        if let Some(lease) = state.leases.get(id) {
            link::disconnect(&self.name, &veth_name(id), lease.address).await?;
            let address = lease.address;
            // The kernel forgets them by itself in time; a container that cannot go would be worse.
            if let Err(error) = conntrack::forget(move |flow| flow.involves(address)).await {
                tracing::warn!(container.id = id.short(), err = %error, "its connections are remembered");
            }
            namespace::remove(&lease.netns_path)?;
            state.leases.remove(id)?;
        }
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

    /// Loads the rules again whenever another program takes them away, until the network is purged.
    ///
    /// # Errors
    /// When the kernel does not tell of it.
    pub async fn keep_rules(&self) -> Result<(), NetworkError> {
        let mut deletions = guard::Deletions::open().map_err(NetworkError::io("listen to nftables"))?;
        loop {
            deletions.next(&self.name).await.map_err(NetworkError::io("listen to nftables"))?;
            loop {
                let mut state = self.state.lock().await;
                if state.purged {
                    return Ok(());
                }
                if firewall::is_loaded(&self.name).await {
                    break;
                }
                state.loaded = None;
                match self.load_rules(&mut state).await {
                    Ok(()) => {
                        tracing::warn!(table = %self.name, "another program deleted the port rules: they are loaded again")
                    }
                    Err(error) => {
                        tracing::warn!(err = %error, "another program deleted the port rules, and they cannot be loaded");
                    }
                }
                drop(state);
                tokio::time::sleep(RELOAD_PAUSE).await;
            }
        }
    }

    /// Looks now and then whether what was made is still as it is to be.
    pub async fn keep_ways(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.restore().await {
                tracing::warn!(err = %error, "containers may be cut off: the network cannot be made as it is to be");
            }
        }
    }

    /// Makes anew what another program took away: the bridge, or that the node forwards for containers. Takes
    /// back what is not needed any more where another program has the node forward for all. Does nothing
    /// once the network is purged.
    ///
    /// # Errors
    /// When the kernel or nftables refuses; it can be tried again.
    pub async fn restore(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if state.purged {
            return Ok(());
        }
        let links = state.leases.iter().map(|(id, lease)| (veth_name(id), lease.address));
        if !link::restore_bridge(&self.name, self.subnet, links).await? {
            tracing::warn!(bridge = %self.name, "another program deleted the bridge: it is made anew");
        }
        self.load_rules(&mut state).await
    }

    /// Removes every namespace, the rules and the bridge.
    ///
    /// # Errors
    /// When the kernel refuses; what could be removed is.
    pub async fn purge(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        state.purged = true;
        firewall::delete(&self.name).await?;
        let ids: Vec<ContainerId> = state.leases.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.disconnect(&mut state, &id).await?;
        }
        link::delete(&self.name).await?;
        forwarding::restore(&self.directory)?;
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::io(format!("remove {}", self.directory.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Loads the rules that the leases and what is published ask for.
    async fn load_rules(&self, state: &mut State) -> Result<(), NetworkError> {
        let leads_to = |id| state.published.containers.contains(id);
        let targets = firewall::targets(state.leases.iter().map(|(id, lease)| (lease, leads_to(id))));
        // What a daemon that starts again finds is never less than what the rules lead to by then.
        state.published.save(&self.directory)?;
        let closed = forwarding::enable(&self.directory, &self.name)?;
        let listening = state.listening.iter().map(|port| (Protocol::Tcp, *port));
        let served = state.published.served.iter().copied().chain(listening).collect();
        let wanted = (targets, served, closed);
        if state.loaded.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let before = state.loaded.take();
        let (targets, served, closed) = &wanted;
        let closed = closed.as_ref();
        let rules = Rules { name: &self.name, subnet: self.subnet, targets, served, closed };
        firewall::replace(&self.name, &rules.text(), before.is_none()).await?;
        self.forget_datagrams(before.map(|(targets, ..)| targets).unwrap_or_default(), targets).await;
        state.loaded = Some(wanted);
        Ok(())
    }

    /// Makes the kernel forget where datagrams of ports go whose rules changed: a client that goes on
    /// sending from the same port would be sent to where its first one went for ever.
    async fn forget_datagrams(&self, before: Targets, now: &Targets) {
        let ports = before.keys().chain(now.keys()).filter(|published| published.protocol == Protocol::Udp);
        let changed = ports.filter(|published| before.get(published) != now.get(published));
        let changed: BTreeSet<u16> = changed.map(|published| published.port).collect();
        if changed.is_empty() {
            return;
        }
        let leads: BTreeSet<_> = now
            .iter()
            .filter(|(published, _)| published.protocol == Protocol::Udp)
            .flat_map(|(published, to)| to.iter().map(|target| (published.port, *target)))
            .collect();
        let forgotten = async {
            let own = link::addresses().await?;
            let subnet = self.subnet;
            let is_ours = move |flow: &conntrack::Flow| {
                own.contains(flow.original.destination.ip()) || is_in(subnet, *flow.reply.source.ip())
            };
            let stale = move |flow: &conntrack::Flow| {
                let port = flow.original.destination.port();
                flow.protocol == Protocol::Udp
                    && changed.contains(&port)
                    && is_ours(flow)
                    && !is_in(subnet, *flow.original.destination.ip())
                    && !leads.contains(&(port, flow.reply.source))
            };
            conntrack::forget(stale).await
        };
        match forgotten.await {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "datagrams of published ports are dealt out anew"),
            Err(error) => tracing::warn!(err = %error, "datagrams may go on to where they went"),
        }
    }
}

/// `bx` and what tells cluster and node apart, within the kernel's 15 bytes for a device.
fn name_of(cluster: ClusterId, node: NodeId) -> String {
    let cluster = cluster.to_string();
    format!("{BRIDGES}{}n{node}", &cluster[..6]).chars().take(15).collect()
}

fn veth_name(id: &ContainerId) -> String {
    format!("{VETH}{}", &id.short()[..10.min(id.short().len())])
}

/// The bridge's own address: the network's first.
fn first_host(subnet: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet) | 1)
}

/// Whether `address` is of the /24, and not the bridge's.
fn is_in(subnet: Ipv4Addr, address: Ipv4Addr) -> bool {
    u32::from(address) & !0xff == u32::from(subnet) && address != first_host(subnet)
}

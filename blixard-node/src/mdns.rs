//! mDNS and DNS-SD (RFC 6762, 6763) by mdns-sd: the [`Announcer`] seam's production side, what `chirp`
//! listens with, and the only user of the crate's types.
//!
//! One stack for what nodes and containers are announced as, beside whatever else uses port 5353 on the
//! machine. The host's label is the node's own, never the machine's, so that no other stack's name is
//! fought for. It has a thread of its own, which is started anew should it end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blixard_core::discovery::announce::{AnnouncedContainer, Announcement, CONTAINERS, Heard, NODES};
use blixard_core::id::NodeKey;
use blixard_core::limits::{CHIRP_CONTAINERS_MAX, HEARD_NODES_MAX};
use mdns_sd::{
    IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo, TryRecvError,
};

use crate::config::Announce;
use crate::platform::Announcer;

/// How long withdrawing everything waits for the packets to be on their way.
const WITHDRAW_DEADLINE: Duration = Duration::from_millis(300);
/// How the names of interfaces begin that lead to this machine's own containers and machines, or nowhere.
const INNER: [&str; 13] = [
    "bx", "docker", "br-", "veth", "virbr", "vnet", "cni", "flannel", "cali", "lxc", "lxdbr", "podman", "tap",
];

/// On which interfaces is announced and listened. None of them includes loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// Those that have one of these addresses.
    Holding(Vec<IpAddr>),
    /// Those with these names.
    Named(Vec<String>),
    /// All that may lead to other machines, by their names.
    Outward,
}

impl Interfaces {
    /// Where a node that links come to at `own` announces, or listens.
    pub fn of(announce: &Announce, own: &[IpAddr]) -> Self {
        match announce {
            Announce::Interfaces(names) => Self::Named(names.clone()),
            Announce::On | Announce::Off => Self::Holding(own.to_vec()),
        }
    }

    fn predicate(&self) -> IfPredicate {
        match self.clone() {
            Self::Holding(addresses) => IfPredicate::new(move |interface| {
                !interface.is_loopback() && addresses.contains(&interface.ip())
            }),
            Self::Named(names) => {
                IfPredicate::new(move |interface| !interface.is_loopback() && names.contains(&interface.name))
            }
            Self::Outward => {
                IfPredicate::new(|interface| !interface.is_loopback() && leads_outward(&interface.name))
            }
        }
    }

    /// A stack on these interfaces alone.
    fn open(&self) -> Result<ServiceDaemon, MdnsError> {
        let daemon = ServiceDaemon::new()?;
        // Commands are heeded in their order, before anything that is to be said or asked.
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(IfKind::Predicate(self.predicate()))?;
        Ok(daemon)
    }
}

fn leads_outward(name: &str) -> bool {
    !INNER.iter().any(|prefix| name.starts_with(prefix))
}

/// The local network cannot be spoken to.
#[derive(Debug, thiserror::Error)]
#[error("mDNS does not work here: {0}")]
pub struct MdnsError(String);

impl From<mdns_sd::Error> for MdnsError {
    fn from(error: mdns_sd::Error) -> Self {
        Self(error.to_string())
    }
}

/// What one node announces and hears.
pub struct Mdns {
    interfaces: Interfaces,
    /// What its addresses are known as.
    host: String,
    addresses: Vec<IpAddr>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    daemon: Option<ServiceDaemon>,
    said: BTreeSet<Announcement>,
    nodes: Option<Browse>,
    /// What went wrong the last time, which is logged once.
    told: Option<String>,
}

impl Mdns {
    /// Begins silent: nothing is opened before there is something to say or to hear.
    pub fn new(interfaces: Interfaces, key: NodeKey, addresses: Vec<IpAddr>) -> Self {
        let key = key.to_string();
        let host = format!("blixard-{}.local.", key.get(..16).unwrap_or(&key));
        Self { interfaces, host, addresses, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, inner: &mut Inner, wanted: BTreeSet<Announcement>) -> Result<(), MdnsError> {
        if inner.daemon.as_ref().is_some_and(|daemon| daemon.status().is_err()) {
            // Its thread has ended, and with it everything that it said.
            *inner = Inner::default();
        }
        if wanted == inner.said {
            return Ok(());
        }
        let daemon = match &inner.daemon {
            Some(daemon) => daemon.clone(),
            None => inner.daemon.insert(self.interfaces.open()?).clone(),
        };
        let names: BTreeSet<(&str, &str)> =
            wanted.iter().map(|said| (said.service, said.name.as_str())).collect();
        let mut withdrawn = Vec::new();
        for gone in inner.said.iter().filter(|said| !names.contains(&(said.service, said.name.as_str()))) {
            withdrawn.push(daemon.unregister(self.info(gone)?.get_fullname())?);
        }
        for new in wanted.difference(&inner.said) {
            daemon.register(self.info(new)?)?;
        }
        if wanted.is_empty() {
            // The node is ending: what is said now is the last of it.
            let end = now() + WITHDRAW_DEADLINE;
            withdrawn.iter().for_each(|status| drop(status.recv_deadline(end)));
        }
        inner.said = wanted;
        Ok(())
    }

    fn info(&self, said: &Announcement) -> Result<ServiceInfo, MdnsError> {
        let texts: Vec<(&str, &str)> = said.texts.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let addresses = self.addresses.as_slice();
        let mut info =
            ServiceInfo::new(said.service, &said.name, &self.host, addresses, said.port, &texts[..])?;
        // Its name holds a key or a container's id: nobody else has it, and asking takes a second.
        info.set_requires_probe(false);
        Ok(info)
    }
}

impl Announcer for Mdns {
    fn announce(&self, all: BTreeSet<Announcement>) {
        let mut inner = self.inner();
        let changed = self.change(&mut inner, all);
        let told = changed.err().map(|error| error.to_string());
        if let Some(error) = told.as_ref().filter(|error| inner.told.as_ref() != Some(*error)) {
            tracing::warn!(err = error, "the local network cannot be told what is here; trying on");
        }
        inner.told = told;
    }

    fn nodes(&self) -> Result<Vec<Heard>, String> {
        let mut inner = self.inner();
        let heard = listen(&mut inner, &self.interfaces);
        heard.map_err(|error: MdnsError| error.to_string())
    }
}

/// What others announce as nodes now.
fn listen(inner: &mut Inner, interfaces: &Interfaces) -> Result<Vec<Heard>, MdnsError> {
    let daemon = match &inner.daemon {
        Some(daemon) => daemon.clone(),
        None => inner.daemon.insert(interfaces.open()?).clone(),
    };
    if inner.nodes.is_none() {
        inner.nodes = Some(Browse::new(&daemon)?);
    }
    if !inner.nodes.as_mut().is_some_and(Browse::take_in) {
        // Too much came at once, or the thread ended: what was heard is heard again.
        inner.nodes = None;
        if daemon.status().is_err() {
            *inner = Inner::default();
        }
    }
    Ok(inner.nodes.iter().flat_map(|browse| browse.heard.values().cloned()).collect())
}

/// Nodes as they are heard and taken back.
struct Browse {
    events: Receiver<ServiceEvent>,
    heard: BTreeMap<String, Heard>,
}

impl Browse {
    fn new(daemon: &ServiceDaemon) -> Result<Self, MdnsError> {
        Ok(Self { events: daemon.browse(NODES)?, heard: BTreeMap::new() })
    }

    /// Takes in what came since. False when nothing more will come.
    fn take_in(&mut self) -> bool {
        loop {
            match self.events.try_recv() {
                Ok(ServiceEvent::ServiceResolved(service)) => {
                    let known = self.heard.contains_key(&service.fullname);
                    if known || self.heard.len() < HEARD_NODES_MAX {
                        self.heard.insert(service.fullname.clone(), heard(&service));
                    }
                }
                Ok(ServiceEvent::ServiceRemoved(_, name)) => {
                    self.heard.remove(&name);
                }
                Ok(_) => {}
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

fn heard(service: &ResolvedService) -> Heard {
    let texts = service.txt_properties.iter();
    let text = |property: &mdns_sd::TxtProperty| {
        let value = String::from_utf8_lossy(property.val().unwrap_or_default()).into_owned();
        (property.key().to_ascii_lowercase(), value)
    };
    Heard {
        addresses: service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).collect(),
        port: service.port,
        texts: texts.map(text).collect(),
    }
}

/// Listens for containers on the local network for `timeout` and hands each that is new, or was heard
/// otherwise before, to `found`. Blocks. At most [`CHIRP_CONTAINERS_MAX`]; returns whether there are more.
///
/// # Errors
/// When the local network cannot be spoken to.
pub fn scan(
    interfaces: &Interfaces,
    timeout: Duration,
    mut found: impl FnMut(AnnouncedContainer),
) -> Result<bool, MdnsError> {
    let end = now() + timeout;
    let daemon = interfaces.open()?;
    let events = daemon.browse(CONTAINERS)?;
    let mut known: BTreeMap<String, AnnouncedContainer> = BTreeMap::new();
    let mut more = false;
    while let Ok(event) = events.recv_deadline(end) {
        let ServiceEvent::ServiceResolved(service) = event else { continue };
        let Some(container) = heard(&service).container() else { continue };
        if known.get(&container.container_id) == Some(&container) {
            continue;
        }
        if known.len() >= CHIRP_CONTAINERS_MAX && !known.contains_key(&container.container_id) {
            more = true;
            continue;
        }
        known.insert(container.container_id.clone(), container.clone());
        found(container);
    }
    Ok(more)
}

#[expect(clippy::disallowed_methods, reason = "the stack's channels are waited for by the system's clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::leads_outward;

    #[test]
    fn bridges_and_cables_of_containers_are_never_spoken_on() {
        for name in ["docker0", "br-1a2b3c", "veth1a2b", "bx0a1b2c", "virbr0", "cni0", "flannel.1", "lxcbr0"]
        {
            assert!(!leads_outward(name), "{name}");
        }
        for name in ["eth0", "enp3s0", "wlan0", "wlp2s0", "bond0", "br0", "end0", "eno1.20"] {
            assert!(leads_outward(name), "{name}");
        }
    }
}

//! What a node tells the local network: that it is a member of a cluster, and which containers run on
//! it; and what is made of what others tell. DNS-SD (RFC 6763): a service type, an instance's name, a
//! port, and texts `key=value`.
//!
//! An announcement carries no secret and gives no trust: anybody can announce anything. What is read
//! of one is a key to ask, or a line to show.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::book::ADDRESSES_MAX;
use super::contact::Contact;
use crate::cluster::{ClusterState, Desired, Phase, Replica};
use crate::id::{ClusterId, ContainerId, NodeId, NodeKey, ReplicaId};
use crate::limits::{ANNOUNCED_CONTAINERS_MAX, ANNOUNCED_TEXT_BYTES_MAX};

/// The type that nodes are announced as.
pub const NODES: &str = "_blixard._tcp.local.";
/// The type that containers are announced as.
pub const CONTAINERS: &str = "_budgie._tcp.local.";
/// The longest name of an instance, in bytes: a label of the DNS.
const NAME_BYTES_MAX: usize = 63;
/// The longest text `key=value`, in bytes (RFC 6763, 6.1).
const TEXT_BYTES_MAX: usize = 255;

/// Something a node announces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// [`NODES`] or [`CONTAINERS`].
    pub service: &'static str,
    /// The instance's name. It holds a key or a container's id, so no two are alike.
    pub name: String,
    /// The port; 0 where there is none.
    pub port: u16,
    /// Keys and values; each text fits.
    pub texts: Vec<(&'static str, String)>,
}

/// What the node announces of itself.
pub fn node(id: NodeId, key: NodeKey, cluster: ClusterId, port: u16, version: &str) -> Announcement {
    let key = key.to_string();
    let texts = vec![
        ("node_id", id.to_string()),
        ("iroh_node_id", key.clone()),
        ("cluster_id", cluster.to_string()),
        ("version", cut(version, ANNOUNCED_TEXT_BYTES_MAX)),
    ];
    let name = format!("node {id} {}", key.get(..16).unwrap_or(&key));
    Announcement { service: NODES, name, port, texts }
}

/// What the node announces of the containers that run on it, at most [`ANNOUNCED_CONTAINERS_MAX`].
pub fn containers(state: &ClusterState, cluster: ClusterId, own: NodeId) -> Vec<Announcement> {
    let name = state.nodes.get(&own).map(|node| node.facts.name.clone()).unwrap_or_default();
    let runs = |replica: &Replica| replica.status.phase == Phase::Running && replica.desired != Desired::Stop;
    let running = state.replicas_on(own).filter(|(_, replica)| runs(replica));
    let announced = running.map(|(id, replica)| container(state, cluster, &name, id, replica));
    announced.take(ANNOUNCED_CONTAINERS_MAX).collect()
}

fn container(
    state: &ClusterState,
    cluster: ClusterId,
    node: &str,
    id: ReplicaId,
    replica: &Replica,
) -> Announcement {
    let spec = state.services.get(&replica.service).and_then(|service| service.spec_of(replica.version));
    let container = ContainerId::new(cluster, id, replica.status.attempt);
    let name = format!("{}-{}", replica.service, replica.slot);
    // Whoever reads it comes from elsewhere: what is published on loopback is not for them.
    let mut ports = spec.iter().flat_map(|spec| &spec.ports);
    let port =
        ports.find_map(|port| port.host_port.filter(|_| !port.host_ip.is_some_and(|ip| ip.is_loopback())));
    let image = spec.map(|spec| spec.image.reference.as_str()).unwrap_or_default();
    let short = container.short();
    let label = format!("{} {short}", cut(&name, NAME_BYTES_MAX - 1 - short.len()));
    let texts = [
        ("container_id", container.0.as_str()),
        ("node_id", node),
        ("container_name", name.as_str()),
        ("image", image),
    ];
    let texts = texts.into_iter().map(|(key, value)| (key, cut(value, TEXT_BYTES_MAX - key.len() - 1)));
    Announcement { service: CONTAINERS, name: label, port: port.unwrap_or(0), texts: texts.collect() }
}

/// What somebody announces, as it was heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// Where.
    pub addresses: Vec<IpAddr>,
    /// At which port.
    pub port: u16,
    /// Its texts, keys in lower case.
    pub texts: BTreeMap<String, String>,
}

impl Heard {
    /// The node that is announced: to be asked, and believed in nothing. None when it is no node.
    pub fn contact(&self) -> Option<Contact> {
        let key = self.texts.get("iroh_node_id").and_then(|text| super::text::KeyText::parse(text))?;
        let mut addresses: Vec<IpAddr> = self.addresses.iter().copied().filter(is_reachable).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let at = |ip| SocketAddr::new(ip, self.port);
        Some(Contact {
            key: key.0,
            node: self
                .texts
                .get("node_id")
                .and_then(|text| text.parse().ok())
                .filter(|id| *id > 0)
                .map(NodeId),
            addresses: addresses.into_iter().map(at).take(ADDRESSES_MAX).collect(),
            relay_url: None,
            cluster: self.texts.get("cluster_id").and_then(|text| text.parse().ok()),
            token: None,
            seen_at: None,
            named: false,
        })
    }

    /// The container that is announced; none when it is none.
    pub fn container(&self) -> Option<AnnouncedContainer> {
        let text = |key: &str| {
            let value = self.texts.get(key).map(String::as_str).unwrap_or_default();
            cut(value, ANNOUNCED_TEXT_BYTES_MAX)
        };
        let id = text("container_id");
        let mut addresses: Vec<IpAddr> = self.addresses.clone();
        // IPv4 first: what people type.
        addresses.sort_unstable();
        (!id.is_empty()).then(|| AnnouncedContainer {
            container_id: id,
            name: text("container_name"),
            ip: addresses.first().copied(),
            port: Some(self.port).filter(|port| *port != 0),
            image: text("image"),
            node: text("node_id"),
        })
    }
}

/// A container that somebody on the local network announces, as `chirp` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AnnouncedContainer {
    /// Its id.
    pub container_id: String,
    /// Its name.
    pub name: String,
    /// Where its published port is.
    pub ip: Option<IpAddr>,
    /// Its published port.
    pub port: Option<u16>,
    /// The image it runs.
    pub image: String,
    /// The node it runs on, by name.
    pub node: String,
}

/// Whether a link can be made there: what is of one interface alone needs to know which.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_unicast_link_local(),
    }
}

/// At most so many bytes of a text, of whole characters.
fn cut(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{CONTAINERS, Heard, NAME_BYTES_MAX, NODES, TEXT_BYTES_MAX, containers, cut, node};
    use crate::cluster::Phase;
    use crate::cluster::testing::{CLUSTER, Cluster, place, publishing, spec, status};
    use crate::id::{ClusterId, NodeId, NodeKey};

    fn heard(texts: &[(&str, &str)], addresses: &[&str]) -> Heard {
        Heard {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            port: 7001,
            texts: texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn a_node_that_is_announced_is_found_and_not_named() {
        let said = node(NodeId(3), NodeKey([8; 32]), ClusterId([4; 16]), 7001, "0.1.0");
        assert_eq!(said.service, NODES);
        assert!(said.name.len() <= NAME_BYTES_MAX);
        let texts: Vec<_> = said.texts.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let contact = heard(&texts, &["fe80::1", "10.0.0.2", "10.0.0.2", "224.0.0.1", "fd00::2"]).contact();
        let contact = contact.unwrap();
        assert_eq!((contact.key, contact.node), (NodeKey([8; 32]), Some(NodeId(3))));
        assert_eq!((contact.cluster, contact.named), (Some(ClusterId([4; 16])), false));
        assert_eq!(contact.addresses, ["10.0.0.2:7001".parse().unwrap(), "[fd00::2]:7001".parse().unwrap()]);
    }

    #[test]
    fn what_is_announced_badly_is_no_node_and_no_container() {
        for texts in [&[][..], &[("iroh_node_id", "")], &[("iroh_node_id", "zz")], &[("node_id", "1")]] {
            assert_eq!(heard(texts, &[]).contact(), None, "{texts:?}");
        }
        let key = "08".repeat(32);
        let odd = heard(&[("iroh_node_id", &key), ("node_id", "0"), ("cluster_id", "x")], &[]);
        let contact = odd.contact().unwrap();
        assert_eq!((contact.node, contact.cluster, contact.addresses.len()), (None, None, 0));
        assert_eq!(heard(&[("container_name", "web")], &[]).container(), None);
    }

    #[test]
    fn a_container_of_any_program_is_read() {
        let texts =
            [("container_id", "abc"), ("container_name", "web"), ("image", "nginx"), ("node_id", "laptop")];
        let container = heard(&texts, &["fd00::2", "192.168.1.5"]).container().unwrap();
        assert_eq!((container.name.as_str(), container.node.as_str()), ("web", "laptop"));
        assert_eq!((container.ip, container.port), (Some("192.168.1.5".parse().unwrap()), Some(7001)));
        let long = "é".repeat(4000);
        let container = heard(&[("container_id", &long), ("image", &long)], &[]).container().unwrap();
        assert!(container.image.len() <= 255 && container.container_id.len() <= 255);
    }

    #[test]
    fn texts_are_cut_at_whole_characters() {
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("", 5), "");
        assert_eq!(cut("é", 0), "");
    }

    #[test]
    fn running_containers_are_announced_with_what_is_published() {
        let mut cluster = Cluster::of(2);
        cluster.submit(publishing(spec("web", 1, 1), &[8080]));
        cluster.planned(vec![place("web", 0, 1, 1)]);
        let replica = cluster.state.replicas_on(NodeId(1)).next().unwrap().0;
        let mut check = |phase: Phase, count: usize| {
            cluster.report(1, replica.0, status(0, phase));
            let said = containers(&cluster.state, CLUSTER, NodeId(1));
            assert_eq!(said.len(), count, "{phase:?}");
            assert!(containers(&cluster.state, CLUSTER, NodeId(2)).is_empty());
            said
        };
        check(Phase::Starting, 0);
        let said = check(Phase::Running, 1).remove(0);
        assert_eq!((said.service, said.port), (CONTAINERS, 8080));
        let texts: BTreeMap<_, _> = said.texts.iter().cloned().collect();
        assert_eq!(texts["container_name"], "web-0");
        assert_eq!(texts["container_id"].len(), 64);
        assert!(said.name.ends_with(&texts["container_id"][..12]) && said.name.len() <= NAME_BYTES_MAX);
        check(Phase::Stopping, 0);
    }

    #[test]
    fn whatever_a_service_is_called_its_texts_and_name_fit() {
        let long = "a".repeat(63);
        let mut cluster = Cluster::of(1);
        let mut wide = spec(&long, 1, 1);
        wide.image.reference = format!("{}:{}", "r".repeat(220), "t".repeat(120));
        cluster.submit(wide);
        cluster.planned(vec![place(&long, 0, 1, 1)]);
        let replica = cluster.state.replicas_on(NodeId(1)).next().unwrap().0;
        cluster.report(1, replica.0, status(0, Phase::Running));
        let announced = containers(&cluster.state, CLUSTER, NodeId(1));
        assert_eq!(announced.len(), 1);
        for said in announced {
            assert_eq!(said.name.len(), NAME_BYTES_MAX);
            assert!(said.texts.iter().all(|(key, value)| key.len() + 1 + value.len() <= TEXT_BYTES_MAX));
        }
    }
}

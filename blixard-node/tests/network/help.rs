//! Networks, hosts beside them, and who asks and answers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use blixard_core::id::{ClusterId, ContainerId, NodeId};
use blixard_core::spec::{PortSpec, Protocol};
use blixard_node::network::{ContainerNetwork, Lease, NetworkError};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

pub(crate) const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 210, 7, 0);

/// Runs `case` on a thread in a fresh network namespace with a loopback device.
pub(crate) fn in_own_namespace<F: Future<Output = ()>>(
    case: impl FnOnce(ContainerNetwork, std::path::PathBuf) -> F + Send,
) {
    #[expect(deprecated, reason = "its replacement is unsafe for flags that are not asked for")]
    fn unshare() {
        rustix::thread::unshare(UnshareFlags::NEWNET).expect("root may make namespaces");
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare();
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("iproute2 is installed").success());
            // A namespace begins with what the machine has, which other tests may have changed.
            for key in ["conf/all/forwarding", "conf/default/forwarding"] {
                std::fs::write(format!("/proc/sys/net/ipv4/{key}"), "0").expect("root may set it");
            }
            // One thread: a second would stand in another namespace.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let network = open(directory.path()).await.expect("root may make bridges");
                case(network, directory.path().to_owned()).await;
            });
        });
    });
}

pub(crate) async fn open(directory: &std::path::Path) -> Result<ContainerNetwork, NetworkError> {
    ContainerNetwork::open(&directory.join("net"), ClusterId([7; 16]), NodeId(1), SUBNET).await
}

/// Makes a namespace, connects it, and publishes its ports beside those of all others.
pub(crate) async fn create(
    network: &ContainerNetwork,
    id: &ContainerId,
    ports: &[PortSpec],
) -> Result<Lease, NetworkError> {
    let lease = network.create(id, ports).await?.connect().await?;
    publish(network, network.list().await).await?;
    Ok(lease)
}

/// Makes the published ports lead to these containers.
pub(crate) async fn publish(
    network: &ContainerNetwork,
    containers: impl IntoIterator<Item = ContainerId>,
) -> Result<(), NetworkError> {
    network.publish(containers.into_iter().collect(), BTreeSet::new()).await
}

/// What a program of the machine prints, run where the node is.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().expect("it is installed");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The node's only bridge.
pub(crate) fn bridge() -> String {
    let listed = run("ip", &["-o", "link", "show", "type", "bridge"]);
    listed.split([':', '@']).nth(1).expect("there is one").trim().to_owned()
}

/// The hardware address of a device of the node.
pub(crate) fn hardware_address(device: &str) -> String {
    let shown = run("ip", &["-o", "link", "show", device]);
    shown.split("link/ether ").nth(1).expect("it has one").split(' ').next().expect("a word").to_owned()
}

pub(crate) fn container(letter: char) -> ContainerId {
    ContainerId(letter.to_string().repeat(64))
}

pub(crate) fn published(container_port: u16, host_port: u16) -> Vec<PortSpec> {
    vec![PortSpec {
        container_port,
        host_port: Some(host_port),
        protocol: Protocol::Tcp,
        host_ip: None,
        publish: Default::default(),
    }]
}

/// A listener in the container's namespace that answers each connection with `word`.
pub(crate) fn answer_inside(lease: &Lease, port: u16, word: &'static str) {
    let path = lease.netns_path.clone();
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        enter(&path);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("nobody else is there");
        ready.send(()).expect("the test waits");
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            stream.write_all(word.as_bytes()).expect("the asker reads");
        }
    });
    listening.recv().expect("the listener starts");
}

pub(crate) fn ask(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) fn ask_from_inside(lease: &Lease, address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let address = address.into();
    inside(&lease.netns_path, move || ask(address))
}

/// Moves this thread into a network namespace.
pub(crate) fn enter(namespace: &Path) {
    let namespace = std::fs::File::open(namespace).expect("the namespace exists");
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
        .expect("root may enter namespaces");
}

/// What `work` gives in another network namespace.
pub(crate) fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            work()
        });
        thread.join().expect("it does not panic")
    })
}

/// A host on a link of its own with the node: the node is `NETWORK.1`, the host `NETWORK.2`.
pub(crate) struct Neighbour {
    name: String,
}

impl Neighbour {
    pub(crate) fn new(network: &str) -> Self {
        let name = format!("bxn{}-{}", std::process::id(), network.replace('.', "-"));
        let device = format!("n{}", network.replace('.', "-"));
        run("ip", &["netns", "add", &name]);
        run("ip", &["link", "add", &device, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        run("ip", &["addr", "add", &format!("{network}.1/24"), "dev", &device]);
        run("ip", &["link", "set", &device, "up"]);
        let host = Self { name };
        host.ip(&["addr", "add", &format!("{network}.2/24"), "dev", "eth0"]);
        host.ip(&["link", "set", "eth0", "up"]);
        host.ip(&["route", "add", "default", "via", &format!("{network}.1")]);
        host
    }

    pub(crate) fn ip(&self, arguments: &[&str]) {
        run("ip", &[&["-n", &self.name], arguments].concat());
    }

    pub(crate) fn lease(&self) -> Lease {
        let netns_path = Path::new("/run/netns").join(&self.name);
        Lease { netns_path, address: Ipv4Addr::UNSPECIFIED, ports: Vec::new() }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
    }
}

/// A server of datagrams in the container's namespace that answers each with `word`.
pub(crate) fn echo_inside(lease: &Lease, port: u16, word: &'static str) {
    let path = lease.netns_path.clone();
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        enter(&path);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("nobody else is there");
        ready.send(()).expect("the test waits");
        let mut datagram = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(word.as_bytes(), from).expect("the asker is there");
        }
    });
    listening.recv().expect("the server starts");
}

/// What is answered to a datagram; nothing when nobody answers for a while.
pub(crate) fn asked(socket: &UdpSocket, address: (Ipv4Addr, u16)) -> Option<String> {
    let mut datagram = [0; 64];
    // The first one may be answered that there is nobody, by an error of the next call.
    for _ in 0..3 {
        if socket.send_to(b"?", address).is_err() {
            continue;
        }
        return match socket.recv_from(&mut datagram) {
            Ok((length, _)) => Some(String::from_utf8_lossy(&datagram[..length]).into_owned()),
            Err(_) => None,
        };
    }
    None
}

pub(crate) fn datagrams() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("free ports");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("it takes a time");
    socket
}

pub(crate) fn published_udp(container_port: u16, host_port: u16) -> Vec<PortSpec> {
    vec![PortSpec {
        container_port,
        host_port: Some(host_port),
        protocol: Protocol::Udp,
        host_ip: None,
        publish: Default::default(),
    }]
}

pub(crate) fn forwards(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    std::fs::read_to_string(path).expect("the interface exists").trim() == "1"
}

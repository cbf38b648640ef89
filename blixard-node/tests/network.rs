//! The container network on a real kernel. Each case stands in a network namespace of its own,
//! which needs root.

#![expect(clippy::disallowed_methods, reason = "tests of the Linux implementation of a seam")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use blixard_core::id::{ClusterId, ContainerId, NodeId};
use blixard_core::spec::{PortSpec, Protocol};
use blixard_node::network::{ContainerNetwork, Lease, NetworkError};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 210, 7, 0);

/// Runs `case` on a thread in a fresh network namespace with a loopback device.
fn in_own_namespace<F: Future<Output = ()>>(
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

async fn open(directory: &std::path::Path) -> Result<ContainerNetwork, NetworkError> {
    ContainerNetwork::open(&directory.join("net"), ClusterId([7; 16]), NodeId(1), SUBNET).await
}

/// Makes a namespace, connects it, and publishes its ports beside those of all others.
async fn create(
    network: &ContainerNetwork,
    id: &ContainerId,
    ports: &[PortSpec],
) -> Result<Lease, NetworkError> {
    let lease = network.create(id, ports).await?.connect().await?;
    publish(network, network.list().await).await?;
    Ok(lease)
}

/// Makes the published ports lead to these containers.
async fn publish(
    network: &ContainerNetwork,
    containers: impl IntoIterator<Item = ContainerId>,
) -> Result<(), NetworkError> {
    network.publish(containers.into_iter().collect(), BTreeSet::new()).await
}

/// What a program of the machine prints, run where the node is.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().expect("it is installed");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The node's only bridge.
fn bridge() -> String {
    let listed = run("ip", &["-o", "link", "show", "type", "bridge"]);
    listed.split([':', '@']).nth(1).expect("there is one").trim().to_owned()
}

/// The hardware address of a device of the node.
fn hardware_address(device: &str) -> String {
    let shown = run("ip", &["-o", "link", "show", device]);
    shown.split("link/ether ").nth(1).expect("it has one").split(' ').next().expect("a word").to_owned()
}

fn container(letter: char) -> ContainerId {
    ContainerId(letter.to_string().repeat(64))
}

fn published(container_port: u16, host_port: u16) -> Vec<PortSpec> {
    vec![PortSpec {
        container_port,
        host_port: Some(host_port),
        protocol: Protocol::Tcp,
        host_ip: None,
        publish: Default::default(),
    }]
}

/// A listener in the container's namespace that answers each connection with `word`.
fn answer_inside(lease: &Lease, port: u16, word: &'static str) {
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

fn ask(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_from_inside(lease: &Lease, address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let address = address.into();
    inside(&lease.netns_path, move || ask(address))
}

/// Moves this thread into a network namespace.
fn enter(namespace: &Path) {
    let namespace = std::fs::File::open(namespace).expect("the namespace exists");
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
        .expect("root may enter namespaces");
}

/// What `work` gives in another network namespace.
fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            work()
        });
        thread.join().expect("it does not panic")
    })
}

/// A host on a link of its own with the node: the node is `NETWORK.1`, the host `NETWORK.2`.
struct Neighbour {
    name: String,
}

impl Neighbour {
    fn new(network: &str) -> Self {
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

    fn ip(&self, arguments: &[&str]) {
        run("ip", &[&["-n", &self.name], arguments].concat());
    }

    fn lease(&self) -> Lease {
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
fn echo_inside(lease: &Lease, port: u16, word: &'static str) {
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
fn asked(socket: &UdpSocket, address: (Ipv4Addr, u16)) -> Option<String> {
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

fn datagrams() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("free ports");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("it takes a time");
    socket
}

fn published_udp(container_port: u16, host_port: u16) -> Vec<PortSpec> {
    vec![PortSpec {
        container_port,
        host_port: Some(host_port),
        protocol: Protocol::Udp,
        host_ip: None,
        publish: Default::default(),
    }]
}

fn forwards(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    std::fs::read_to_string(path).expect("the interface exists").trim() == "1"
}

#[test]
fn published_ports_answer_from_everywhere() {
    in_own_namespace(|network, _directory| async move {
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        let other = create(&network, &container('b'), &[]).await.expect("it connects");
        assert_eq!(web.address, Ipv4Addr::new(10, 210, 7, 2));
        answer_inside(&web, 80, "web");
        let gateway = Ipv4Addr::new(10, 210, 7, 1);
        assert_eq!(ask((web.address, 80)).expect("the node reaches it"), "web");
        assert_eq!(ask((gateway, 8080)).expect("the node's address answers"), "web");
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("localhost answers"), "web");
        assert_eq!(ask_from_inside(&other, (web.address, 80)).expect("a neighbour reaches it"), "web");
        assert_eq!(ask_from_inside(&other, (gateway, 8080)).expect("the published port too"), "web");
        assert_eq!(ask_from_inside(&web, (gateway, 8080)).expect("also from itself"), "web");
        network.remove(&container('a')).await.expect("it goes");
        assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_err(), "nothing answers any more");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn containers_that_share_a_port_take_turns() {
    in_own_namespace(|network, _directory| async move {
        let first = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        let second = create(&network, &container('b'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&first, 80, "first");
        answer_inside(&second, 80, "second");
        let mut answers: Vec<String> =
            (0..4).map(|_| ask((Ipv4Addr::LOCALHOST, 8080)).expect("one answers")).collect();
        answers.sort();
        assert_eq!(answers, ["first", "first", "second", "second"]);

        // One that is not connected yet gets no turn, whatever else changes meanwhile.
        let third = network.create(&container('c'), &published(80, 8080)).await.expect("it is made");
        network.remove(&container('b')).await.expect("it goes");
        for _ in 0..3 {
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("it answers"), "first");
        }
        let third = third.connect().await.expect("it connects");
        answer_inside(&third, 80, "third");
        for _ in 0..3 {
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("it answers"), "first");
        }
        publish(&network, [container('a'), container('c')]).await.expect("it is published");
        let mut answers: Vec<String> =
            (0..2).map(|_| ask((Ipv4Addr::LOCALHOST, 8080)).expect("one answers")).collect();
        answers.sort();
        assert_eq!(answers, ["first", "third"]);

        // Connections that are established go on, and are counted until they end.
        let mut open = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).expect("one answers");
        let within = Duration::from_secs(600);
        let count =
            async |letter| network.connections(&container(letter), within).await.expect("they are counted");
        network.withdraw(&container('a')).await.expect("it is withdrawn");
        network.withdraw(&container('c')).await.expect("it is withdrawn");
        assert_eq!(count('a').await + count('c').await, 1);
        for letter in ['a', 'c'] {
            let idle = network.connections(&container(letter), Duration::ZERO).await;
            assert_eq!(idle.expect("they are counted"), 0, "any silence is long");
        }
        let refused = ask((Ipv4Addr::LOCALHOST, 8080)).expect_err("nobody is left");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let mut answer = String::new();
        open.read_to_string(&mut answer).expect("it goes on");
        assert!(["first", "third"].contains(&&*answer), "{answer}");
        drop(open);
        while count('a').await + count('c').await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn hardware_addresses_follow_from_addresses_and_stay() {
    in_own_namespace(|network, directory| async move {
        let bridge = bridge();
        assert_eq!(hardware_address(&bridge), "02:42:0a:d2:07:01");
        // What the node believes of an address before anybody has it is wrong at once.
        let wrong = ["10.210.7.2", "lladdr", "02:00:00:00:00:01", "nud", "reachable", "dev", &bridge];
        run("ip", &[&["neigh", "replace"], wrong.as_slice()].concat());
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("the node knows where it is"), "web");
        let known = run("ip", &["neigh", "show", "dev", &bridge]);
        assert!(known.contains("10.210.7.2 lladdr 02:42:0a:d2:07:02 PERMANENT"), "{known}");
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        assert_eq!(run("ip", &["neigh", "show", "dev", &bridge]), known, "a restart forgets nothing");
        for letter in ['b', 'c', 'd'] {
            create(&network, &container(letter), &[]).await.expect("it connects");
            network.remove(&container(letter)).await.expect("it goes");
            assert_eq!(hardware_address(&bridge), "02:42:0a:d2:07:01");
        }
        network.remove(&container('a')).await.expect("it goes");
        assert_eq!(run("ip", &["neigh", "show", "dev", &bridge]), "");
        network.purge().await.expect("everything goes");
        // A bridge of a release that gave it none keeps the one that its containers know.
        run("ip", &["link", "add", &bridge, "type", "bridge"]);
        run("ip", &["link", "add", "port5", "address", "02:00:00:00:00:05", "type", "veth"]);
        run("ip", &["link", "set", "port5", "master", &bridge]);
        let network = open(&directory).await.expect("it opens again");
        run("ip", &["link", "del", "port5"]);
        assert_eq!(hardware_address(&bridge), "02:00:00:00:00:05");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_restarted_daemon_finds_its_network_again() {
    in_own_namespace(|network, directory| async move {
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        network.create(&container('b'), &published(80, 8080)).await.expect("it is made");
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        assert_eq!(network.list().await, [container('a'), container('b')]);
        assert_eq!(network.address_of(&container('a')).await, Some(web.address));
        for _ in 0..2 {
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("the port still answers"), "web");
        }
        network.purge().await.expect("everything goes");
        assert!(!directory.join("net").exists());
        let links = std::process::Command::new("ip").args(["-o", "link"]).output().expect("iproute2");
        assert_eq!(String::from_utf8_lossy(&links.stdout).lines().count(), 1, "only loopback is left");
    });
}

#[test]
fn what_was_never_connected_is_made_anew_or_removed() {
    in_own_namespace(|network, directory| async move {
        let cut_off = network.create(&container('a'), &published(80, 8080)).await.expect("it is made");
        drop(cut_off);
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        assert_eq!(network.list().await, [container('a')]);
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("the port answers"), "web");
        let cut_off = network.create(&container('b'), &published(80, 8081)).await.expect("it is made");
        let path = cut_off.lease().netns_path.clone();
        network.remove(&container('b')).await.expect("it goes");
        let late = cut_off.connect().await.expect_err("it is gone");
        assert!(matches!(late, NetworkError::Removed), "{late}");
        assert!(!path.exists() && network.list().await == [container('a')]);
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_port_of_another_program_is_refused_and_nothing_is_left() {
    in_own_namespace(|network, _directory| async move {
        let taken = TcpListener::bind("127.0.0.1:8080").expect("it is free");
        let error = create(&network, &container('a'), &published(80, 8080)).await.expect_err("it is taken");
        assert!(matches!(error, NetworkError::PortTaken { port: 8080, .. }), "{error}");
        assert!(network.list().await.is_empty());
        drop(taken);
        create(&network, &container('a'), &published(80, 8080)).await.expect("it is free again");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_network_the_machine_reaches_otherwise_is_refused() {
    in_own_namespace(|network, directory| async move {
        network.purge().await.expect("everything goes");
        let taken = ["addr", "add", "10.210.0.1/16", "dev", "lo"];
        assert!(std::process::Command::new("ip").args(taken).status().expect("iproute2").success());
        let error = open(&directory).await.expect_err("it overlaps");
        assert!(matches!(&error, NetworkError::Overlap { device, .. } if device == "lo"), "{error}");
    });
}

#[test]
fn a_container_reaches_of_the_node_what_it_serves_and_nothing_else() {
    in_own_namespace(|network, _directory| async move {
        let own = TcpListener::bind("0.0.0.0:9000").expect("it is free");
        let local = TcpListener::bind("127.0.0.1:9001").expect("it is free");
        for listener in [own, local] {
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    stream.write_all(b"node").expect("the asker reads");
                }
            });
        }
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        let other = create(&network, &container('b'), &[]).await.expect("it connects");
        let gateway = Ipv4Addr::new(10, 210, 7, 1);
        let refused = ask_from_inside(&other, (gateway, 9000)).expect_err("nothing serves it to containers");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let published: BTreeSet<_> = network.list().await.into_iter().collect();
        let served = BTreeSet::from([(Protocol::Tcp, 9000)]);
        network.publish(published.clone(), served).await.expect("it is published");
        assert_eq!(ask_from_inside(&other, (gateway, 9000)).expect("it is served"), "node");
        network.publish(published, BTreeSet::new()).await.expect("it is published");
        ask_from_inside(&other, (gateway, 9000)).expect_err("it is served no more");

        // A container that sends the node packets for the node's loopback.
        let route = |arguments: &str| {
            let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
            inside(&other.netns_path, || {
                run("ip", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
            });
        };
        inside(&other.netns_path, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("root may");
        });
        route("link set lo down");
        route("route flush table local dev lo");
        route("route add 127.0.0.1/32 via 10.210.7.1 src 10.210.7.3");
        for port in [9001, 8080] {
            let from_inside = || ask((Ipv4Addr::LOCALHOST, port));
            let unreached = inside(&other.netns_path, from_inside).expect_err("it is the node's alone");
            assert_ne!(unreached.kind(), std::io::ErrorKind::ConnectionRefused, "the node answered");
        }
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("the node's own localhost answers"), "web");
        // Nor is there a way by IPv6.
        let addresses = run("ip", &["-6", "addr", "show", "dev", &bridge()]);
        assert_eq!(addresses, "");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_neighbour_reaches_published_ports_alone_and_the_node_is_no_router() {
    in_own_namespace(|network, directory| async move {
        assert!(!forwards("all"), "a new namespace is no router");
        let (lan, far) = (Neighbour::new("10.99.1"), Neighbour::new("10.99.2"));
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        answer_inside(&web, 81, "unpublished");
        answer_inside(&lan.lease(), 70, "lan");
        answer_inside(&far.lease(), 70, "far");
        let node = Ipv4Addr::new(10, 99, 1, 1);
        let (lan_address, far_address) = (Ipv4Addr::new(10, 99, 1, 2), Ipv4Addr::new(10, 99, 2, 2));
        assert_eq!(ask_from_inside(&lan.lease(), (node, 8080)).expect("it is published"), "web");
        assert_eq!(ask_from_inside(&web, (lan_address, 70)).expect("containers reach the world"), "lan");
        ask_from_inside(&lan.lease(), (web.address, 80)).expect_err("by its published port alone");
        ask_from_inside(&lan.lease(), (web.address, 81)).expect_err("it is not published");
        ask_from_inside(&lan.lease(), (far_address, 70)).expect_err("the node is no router");
        assert!(!forwards("all") && forwards("default"));

        // Somebody makes it one, before a daemon starts or after.
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        assert_eq!(ask_from_inside(&lan.lease(), (far_address, 70)).expect("it is one"), "far");
        ask_from_inside(&lan.lease(), (web.address, 81)).expect_err("it is not published");
        network.purge().await.expect("everything goes");
        assert!(forwards("all") && forwards("default"), "somebody else wants it");
    });
}

#[test]
fn the_frames_of_another_bridge_are_its_own() {
    in_own_namespace(|network, _directory| async move {
        run("ip", &["link", "add", "guests", "type", "bridge"]);
        run("ip", &["link", "set", "guests", "up"]);
        let (one, other) = (Neighbour::new("10.99.1"), Neighbour::new("10.99.2"));
        for device in ["n10-99-1", "n10-99-2"] {
            run("ip", &["link", "set", device, "master", "guests"]);
        }
        other.ip(&["addr", "add", "10.99.1.3/24", "dev", "eth0"]);
        answer_inside(&other.lease(), 70, "guest");
        // Where it is there, the rules of routers see what a bridge forwards.
        if Path::new("/proc/sys/net/bridge").exists() {
            run("sysctl", &["-qw", "net.bridge.bridge-nf-call-iptables=1"]);
        }
        create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        let answer = ask_from_inside(&one.lease(), (Ipv4Addr::new(10, 99, 1, 3), 70));
        assert_eq!(answer.expect("guests reach each other"), "guest");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn forwarding_ends_with_the_network_that_turned_it_on() {
    in_own_namespace(|network, _directory| async move {
        assert!(forwards("default") && !forwards("all"));
        network.purge().await.expect("everything goes");
        assert!(!forwards("default") && !forwards("all"));
    });
}

#[test]
fn datagrams_follow_the_rules_of_their_port() {
    in_own_namespace(|network, directory| async move {
        let lan = Neighbour::new("10.99.3");
        let node = (Ipv4Addr::new(10, 99, 3, 1), 5300);
        let client = inside(&lan.lease().netns_path, datagrams);
        assert_eq!(asked(&client, node), None, "nobody is there yet");
        let first = create(&network, &container('a'), &published_udp(53, 5300)).await.expect("it connects");
        echo_inside(&first, 53, "first");
        assert_eq!(asked(&client, node).as_deref(), Some("first"), "who asked too early is answered");
        let second = create(&network, &container('b'), &published_udp(53, 5300)).await.expect("it connects");
        echo_inside(&second, 53, "second");
        assert_eq!(asked(&client, node).as_deref(), Some("first"), "a client stays where it was");
        network.withdraw(&container('a')).await.expect("it is withdrawn");
        assert_eq!(asked(&client, node).as_deref(), Some("second"), "it goes to who is left");
        network.remove(&container('b')).await.expect("it goes");
        assert_eq!(asked(&client, node), None, "nobody is left");
        network.remove(&container('a')).await.expect("it goes");
        // Another takes the address, which publishes nothing.
        std::fs::write(directory.join("net/last-address"), "1").expect("root may");
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        let other = create(&network, &container('c'), &[]).await.expect("it connects");
        assert_eq!(other.address, first.address);
        echo_inside(&other, 53, "other");
        assert_eq!(asked(&client, node), None, "it is nobody's port any more");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_refused_connection_is_dealt_to_another_container() {
    in_own_namespace(|network, _directory| async move {
        let first = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        let refused = ask((Ipv4Addr::LOCALHOST, 8080)).expect_err("it does not listen");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "at once, there being no other");
        create(&network, &container('b'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&first, 80, "first");
        let lan = Neighbour::new("10.99.4");
        for _ in 0..4 {
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("another answers"), "first");
            let node = (Ipv4Addr::new(10, 99, 4, 1), 8080);
            assert_eq!(ask_from_inside(&lan.lease(), node).expect("another answers"), "first");
        }
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn a_port_published_on_one_address_answers_there_alone() {
    in_own_namespace(|network, _directory| async move {
        let lan = Neighbour::new("10.99.5");
        let node = Ipv4Addr::new(10, 99, 5, 1);
        let on = |address, host_port| {
            vec![PortSpec { host_ip: Some(address), ..published(80, host_port)[0].clone() }]
        };
        let ports = [on(Ipv4Addr::LOCALHOST, 8080), on(node, 8081)].concat();
        let web = create(&network, &container('a'), &ports).await.expect("it connects");
        answer_inside(&web, 80, "web");
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("it is published there"), "web");
        ask((node, 8080)).expect_err("and nowhere else");
        assert_eq!(ask((node, 8081)).expect("it is published there"), "web");
        ask((Ipv4Addr::LOCALHOST, 8081)).expect_err("and nowhere else");
        ask_from_inside(&lan.lease(), (node, 8080)).expect_err("it is the node's alone");
        assert_eq!(ask_from_inside(&lan.lease(), (node, 8081)).expect("it is published there"), "web");
        // A neighbour that sends the node packets for the node's loopback.
        inside(&lan.lease().netns_path, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("root may");
            run("ip", &["route", "flush", "table", "local", "dev", "lo"]);
            run("ip", &["route", "add", "127.0.0.1/32", "via", "10.99.5.1", "src", "10.99.5.2"]);
        });
        ask_from_inside(&lan.lease(), (Ipv4Addr::LOCALHOST, 8080)).expect_err("it is the node's alone");
        network.purge().await.expect("everything goes");
    });
}

#[test]
fn rules_that_another_program_deletes_are_loaded_again() {
    in_own_namespace(|network, _directory| async move {
        let network = &network;
        let case = async {
            // Whoever waits for the news listens by now.
            tokio::task::yield_now().await;
            let web = create(network, &container('a'), &published(80, 8080)).await.expect("it connects");
            answer_inside(&web, 80, "web");
            assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("it is published"), "web");
            for round in 0..3 {
                run("nft", &["flush", "ruleset"]);
                let again = async {
                    while ask((Ipv4Addr::LOCALHOST, 8080)).is_err() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                let again = tokio::time::timeout(Duration::from_secs(30), again).await;
                assert!(again.is_ok(), "round {round}: the port stays dead");
            }
            network.purge().await.expect("everything goes");
        };
        let (kept, ()) = tokio::join!(network.keep_rules(), case);
        kept.expect("it ends with the network");
        assert!(!run("nft", &["list", "tables"]).contains("bx"), "rules of a network that is gone");
    });
}

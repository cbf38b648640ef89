//! The container network on a real kernel. Each case stands in a network namespace of its own,
//! which needs root.

#![expect(clippy::disallowed_methods, reason = "tests of the Linux implementation of a seam")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
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

/// Makes a namespace and connects it.
async fn create(
    network: &ContainerNetwork,
    id: &ContainerId,
    ports: &[PortSpec],
) -> Result<Lease, NetworkError> {
    network.create(id, ports).await?.connect().await
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
    vec![PortSpec { container_port, host_port: Some(host_port), protocol: Protocol::Tcp }]
}

/// A listener in the container's namespace that answers each connection with `word`.
fn answer_inside(lease: &Lease, port: u16, word: &'static str) {
    let path = lease.netns_path.clone();
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(path).expect("the lease's namespace exists");
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .expect("root may enter namespaces");
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
    let path = lease.netns_path.clone();
    let thread = std::thread::spawn(move || {
        let namespace = std::fs::File::open(path)?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        ask(address)
    });
    thread.join().expect("it does not panic")
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
        let mut answers: Vec<String> =
            (0..2).map(|_| ask((Ipv4Addr::LOCALHOST, 8080)).expect("one answers")).collect();
        answers.sort();
        assert_eq!(answers, ["first", "third"]);
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
        drop(network);
        let network = open(&directory).await.expect("it opens again");
        assert_eq!(network.list().await, [container('a')]);
        assert_eq!(network.address_of(&container('a')).await, Some(web.address));
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).expect("the port still answers"), "web");
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

//! The container network on a real kernel. Each case stands in a network namespace of its own,
//! which needs root.

#![expect(clippy::disallowed_methods, reason = "tests of the Linux implementation of a seam")]

mod help;
mod rules;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use blixard_core::spec::Protocol;
use blixard_node::network::NetworkError;

use self::help::*;

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

/// Other programs change the machine while the daemon runs: `sysctl --system`, Docker, a firewall's start.
#[test]
fn what_other_programs_take_away_comes_back() {
    in_own_namespace(|network, _directory| async move {
        let (lan, far) = (Neighbour::new("10.99.1"), Neighbour::new("10.99.2"));
        let web = create(&network, &container('a'), &published(80, 8080)).await.expect("it connects");
        answer_inside(&web, 80, "web");
        answer_inside(&lan.lease(), 70, "lan");
        answer_inside(&far.lease(), 70, "far");
        let (node, lan_address) = (Ipv4Addr::new(10, 99, 1, 1), Ipv4Addr::new(10, 99, 1, 2));
        let is_whole = |when: &str| {
            let answer = ask_from_inside(&lan.lease(), (node, 8080));
            assert_eq!(answer.unwrap_or_else(|error| panic!("{when}: {error}")), "web");
            let answer = ask_from_inside(&web, (lan_address, 70));
            assert_eq!(answer.unwrap_or_else(|error| panic!("{when}: {error}")), "lan");
            assert_eq!(ask_from_inside(&web, (node, 8080)).expect("its own published port"), "web");
        };
        is_whole("at first");
        network.restore().await.expect("there is nothing to do");
        is_whole("when nothing was to be done");

        run("ip", &["link", "del", &bridge()]);
        ask_from_inside(&lan.lease(), (node, 8080)).expect_err("its bridge is gone");
        network.restore().await.expect("the bridge is made anew");
        is_whole("with another bridge");

        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        let far_address = Ipv4Addr::new(10, 99, 2, 2);
        network.restore().await.expect("the rules change");
        assert_eq!(ask_from_inside(&lan.lease(), (far_address, 70)).expect("the node is a router"), "far");
        is_whole("on a router");

        run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
        network.restore().await.expect("the node forwards for containers");
        ask_from_inside(&lan.lease(), (far_address, 70)).expect_err("the node is no router any more");
        is_whole("on what is no router any more");
        network.purge().await.expect("everything goes");
        network.restore().await.expect("nothing is to be done");
        assert_eq!(run("ip", &["-o", "link", "show", "type", "bridge"]), "", "nothing comes back");
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
fn a_port_that_was_given_up_is_the_nodes_own_again() {
    in_own_namespace(|network, _directory| async move {
        create(&network, &container('a'), &published_udp(53, 5300)).await.expect("it connects");
        network.withdraw(&container('a')).await.expect("it is withdrawn");
        network.remove(&container('a')).await.expect("it goes");
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 5300)).expect("it is free");
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are many");
        client.connect(own.local_addr().expect("it is bound")).expect("it is near");
        own.set_read_timeout(Some(Duration::from_secs(10))).expect("it can wait");
        client.send(b"question").expect("it is sent");
        let mut bytes = [0; 16];
        let length = own.recv(&mut bytes).expect("the rules let it through");
        assert_eq!(&bytes[..length], b"question");
        network.purge().await.expect("everything goes");
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

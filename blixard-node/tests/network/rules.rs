//! Whom published ports lead to.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use blixard_core::spec::PortSpec;

use crate::help::*;

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
        let ended = async {
            while count('a').await + count('c').await > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), ended).await.is_ok(), "it is counted for ever");
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

/// What `nft` says of the node's table and its chains that packets begin in: each with its number.
fn chains() -> Vec<String> {
    let listed = run("nft", &["-a", "list", "ruleset"]);
    let lines: Vec<&str> = listed.lines().map(str::trim).collect();
    let named = lines.windows(2).filter(|pair| pair[0].starts_with("table") || pair[1].starts_with("type "));
    named.map(|pair| pair[0].to_owned()).collect()
}

/// A chain that takes another's place leaves a moment in which a packet meets neither, and so do the
/// elements of a map.
#[test]
fn rules_change_in_chains_that_stay_and_translate_without_maps() {
    in_own_namespace(|network, directory| async move {
        let before = chains();
        assert!(before.len() > 4, "{before:?}");
        for letter in ['a', 'b', 'c'] {
            create(&network, &container(letter), &published(80, 8080)).await.expect("it connects");
            assert_eq!(chains(), before);
        }
        let listed = run("nft", &["list", "ruleset"]);
        assert!(listed.contains("numgen inc mod 3 0 dnat ip to") && !listed.contains(" map {"), "{listed}");
        network.withdraw(&container('a')).await.expect("it is withdrawn");
        drop(network);
        let again = open(&directory).await.expect("it is found");
        assert_eq!(chains(), before, "a daemon that starts again");
        // Another release's, of the same name.
        let table = table();
        run("nft", &["delete", "table", "inet", &table]);
        run("nft", &["add", "table", "inet", &table]);
        let other = "{ type filter hook forward priority 5; }";
        run("nft", &["add", "chain", "inet", &table, "prerouting", other]);
        drop(again);
        let again = open(&directory).await.expect("what it cannot keep is made anew");
        assert_eq!(chains().len(), before.len());
        again.purge().await.expect("everything goes");
    });
}

/// The name of the node's table.
fn table() -> String {
    let listed = run("nft", &["list", "tables"]);
    listed.split_whitespace().last().expect("there is one").to_owned()
}

use super::sources;
use blixard_core::api::token::Secret;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{ClusterId, NodeKey, TokenId};
use blixard_core::wire::Peer;

use crate::discovery::files::STATIC_FILE;
use crate::discovery::finder::Finder;
use crate::discovery::testing::{OWN, World, run};

fn member(key: u8) -> String {
    format!(r#"{{"iroh_node_id": "{}", "direct_addresses": ["10.0.0.{key}:7001"]}}"#, NodeKey([key; 32]))
}

#[test]
fn every_source_is_read_and_every_fault_reported() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = write("two.json", &member(2));
    let own = write("own.json", &member(OWN.0[0]));
    let bad = write("bad.json", "{");
    write(STATIC_FILE, &format!("[{}, {}]", member(3), member(2)));
    let paths = [good, own, bad, dir.path().join("absent")];
    let targets = paths.into_iter().map(JoinTarget::File).collect();
    let (finder, world) = (Finder::new(sources(targets, Some(dir.path()))), World::default());
    assert!(finder.is_configured());
    let reading = run(finder.read(world.seams()));
    let keys: Vec<u8> = reading.contacts.iter().map(|contact| contact.key.0[0]).collect();
    assert_eq!(keys, [2, 3]);
    let problems = reading.problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("bad.json:1:1: the file ends in the middle"), "{}", problems[0]);
    assert!(
        problems[1].contains("No such file") && problems[1].contains("check the path"),
        "{}",
        problems[1]
    );
}

#[test]
fn an_absent_static_file_is_no_source_and_an_unreadable_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let (finder, world) = (Finder::new(sources(Vec::new(), Some(dir.path()))), World::default());
    assert!(!finder.is_configured() && finder.reports().is_empty());
    assert!(run(finder.read(world.seams())).problems.is_empty());
    std::fs::create_dir(dir.path().join(STATIC_FILE)).unwrap();
    assert!(finder.is_configured());
    assert_eq!(run(finder.read(world.seams())).problems.len(), 1);
}

#[test]
fn a_ticket_is_taken_from_a_file_and_a_file_without_one_never_founds() {
    let dir = tempfile::tempdir().unwrap();
    let ticket = Ticket {
        cluster: ClusterId([4; 16]),
        peer: Peer { key: NodeKey([2; 32]), addresses: Vec::new(), relay_url: None },
        token: Secret { id: TokenId([5; 8]), secret: [6; 32] },
    };
    let check = |text: Option<&str>, expect: &[u8], problem: &str| {
        let path = dir.path().join("ticket");
        drop(std::fs::remove_file(&path));
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let (finder, world) =
            (Finder::new(sources(vec![JoinTarget::TicketFile(path)], None)), World::default());
        assert!(finder.is_configured(), "{text:?}");
        let reading = run(finder.read(world.seams()));
        let keys: Vec<u8> = reading.contacts.iter().map(|contact| contact.key.0[0]).collect();
        assert_eq!(keys, expect, "{text:?}");
        let problems = reading.problems;
        assert_eq!(problems.is_empty(), problem.is_empty(), "{problems:?}");
        assert!(problems.iter().all(|said| said.contains(problem)), "{problems:?}");
    };
    check(Some(&format!("# for box2\n{ticket}\n\n")), &[2], "");
    check(Some(&member(3)), &[3], "");
    check(Some(""), &[], "holds no ticket");
    check(Some("bxt1zz"), &[], "ticket");
    check(
        None,
        &[],
        "No such file or directory (os error 2) (put the output of `blixard cluster token create`",
    );
    let (finder, world) =
        (Finder::new(sources(vec![JoinTarget::parse("-").unwrap()], None)), World::default());
    assert!(finder.is_configured());
    assert!(run(finder.read(world.seams())).problems[0].contains("standard input"));
}

#[test]
fn only_what_may_still_become_a_source_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &[u8]| std::fs::write(path(name), text).unwrap();
    write("html", b"<html>not here</html>");
    write("other.json", b"{\"name\": 1}");
    write("empty", b"\n");
    write("cut.json", b"{\"iroh_node_id\": \"08");
    write("large", &vec![b' '; (1 << 20) + 1]);
    write("damaged", b"bxt1aaaaaaaaaaaaaaaa");
    write("good.json", member(2).as_bytes());
    let check = |targets: &[&str], hopeless: bool, said: &str| {
        let parsed = targets.iter().map(|text| {
            let (sign, name) = text.strip_prefix('@').map_or(("", *text), |name| ("@", name));
            JoinTarget::parse(&format!("{sign}{}", path(name).display())).unwrap()
        });
        let (finder, world) = (Finder::new(sources(parsed.collect(), Some(&path("none")))), World::default());
        let reading = run(finder.read(world.seams()));
        assert_eq!(reading.is_hopeless, hopeless, "{targets:?}: {:?}", reading.problems);
        assert!(reading.problems.join("; ").contains(said), "{targets:?}: {:?}", reading.problems);
    };
    check(&["html"], true, "html:1:1");
    check(&["other.json"], true, "missing field `iroh_node_id`");
    check(&["."], true, "name the registry file in it");
    check(&["large"], true, "it is not a registry file");
    check(&["@empty"], true, "holds no ticket");
    check(&["@damaged"], true, "ticket");
    check(&["@html"], true, "a ticket begins with");
    check(&["html", "@damaged"], true, "html:1:1");
    // Not there yet, still being written, or answered by another.
    check(&["absent"], false, "No such file");
    check(&["@absent"], false, "No such file");
    check(&["cut.json"], false, "still being written");
    check(&["html", "absent"], false, "html:1:1");
    check(&["html", "good.json"], false, "html:1:1");
    let finder = Finder::new(sources(Vec::new(), Some(dir.path())));
    assert!(!run(finder.read(World::default().seams())).is_hopeless, "without sources a node founds");
}

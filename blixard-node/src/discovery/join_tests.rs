//! Joining, against a transport that answers from a script.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use blixard_core::api::token::Secret;
use blixard_core::cluster::node::NodeFacts;
use blixard_core::discovery::contact::Contact;
use blixard_core::discovery::proof::{Joining, is_proof};
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{ClusterId, NodeId, NodeKey, TokenId};
use blixard_core::wire::{JoinResponse, Peer};

use super::{Admitted, JoinError, JoinStatus, JoinWish, join};
use crate::discovery::Seams;
use crate::discovery::finder::Finder;
use crate::discovery::source::{Source, SourceError};
use crate::discovery::sources::sources;
use crate::discovery::testing::{OWN, World, run};

const CLUSTER: ClusterId = ClusterId([1; 16]);

fn peer(key: u8) -> Peer {
    Peer { key: NodeKey([key; 32]), addresses: vec![([10, 0, 0, key], 7001).into()], relay_url: None }
}

fn wish() -> JoinWish {
    let facts = NodeFacts {
        name: "box".to_owned(),
        addresses: vec![],
        labels: BTreeMap::new(),
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0".to_owned(),
        level: 1,
        reserved_ports: vec![],
    };
    JoinWish { node: Some(NodeId(4)), facts, token: None }
}

const TOKEN: Secret = Secret { id: TokenId([5; 8]), secret: [6; 32] };

fn ticket(key: u8) -> JoinTarget {
    JoinTarget::Ticket(Box::new(Ticket { cluster: CLUSTER, peer: peer(key), token: TOKEN }))
}

/// Joins by tickets of members 1 and 2, with these answers; returns also who was asked and what
/// was told.
fn joined(
    script: impl IntoIterator<Item = (u8, Result<JoinResponse, &'static str>)>,
) -> (Result<Admitted, JoinError>, World, Vec<String>) {
    let world = World { script: Mutex::new(script.into_iter().collect()), ..World::default() };
    let sources = Finder::new(sources(vec![ticket(1), ticket(2)], None));
    let told = Mutex::new(Vec::new());
    let status = |status: JoinStatus| match status {
        JoinStatus::Tried { candidate, reason } => {
            told.lock().unwrap().push(format!("{}: {reason}", candidate.key.0[0]));
        }
        JoinStatus::NoCandidates | JoinStatus::NoToken => panic!("there are candidates"),
    };
    let wish = wish();
    let result = run(join(world.seams(), &sources, &wish, &status));
    (result, world, told.into_inner().unwrap())
}

/// Joins by what was found alone, with a token of the user's.
fn joined_by_found(
    script: impl IntoIterator<Item = (u8, Result<JoinResponse, &'static str>)>,
) -> (Result<Admitted, JoinError>, World) {
    struct Found;

    #[async_trait]
    impl Source for Found {
        fn name(&self) -> String {
            "found".to_owned()
        }

        async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
            let contact = |key| {
                let Peer { key, addresses, relay_url } = peer(key);
                let (node, cluster, token, seen_at) = (None, None, None, None);
                Contact { key, node, addresses, relay_url, cluster, token, seen_at, named: false }
            };
            Ok(vec![contact(1), contact(2)])
        }
    }

    let world = World { script: Mutex::new(script.into_iter().collect()), ..World::default() };
    let wish = JoinWish { token: Some(TOKEN), ..wish() };
    let result = run(join(world.seams(), &Finder::new(vec![Box::new(Found)]), &wish, &|_| ()));
    (result, world)
}

/// What the member with this key proves when it admits.
fn proven(key: u8) -> JoinResponse {
    let joining =
        Joining { token: TOKEN.id, secret_sha256: TOKEN.sha256(), joiner: OWN, member: NodeKey([key; 32]) };
    match admitted() {
        JoinResponse::Admitted { node, cluster, peers, .. } => {
            let proof = Some(hex::encode(joining.answer(cluster, node)));
            JoinResponse::Admitted { node, cluster, peers, proof }
        }
        other => other,
    }
}

fn admitted() -> JoinResponse {
    JoinResponse::Admitted {
        node: NodeId(4),
        cluster: CLUSTER,
        peers: [(NodeId(1), peer(1))].into(),
        proof: None,
    }
}

#[test]
fn the_leader_that_a_member_names_admits() {
    let (result, world, told) =
        joined([(1, Ok(JoinResponse::Redirect { leader: peer(3) })), (3, Ok(admitted()))]);
    let peers = [(NodeId(1), peer(1))].into();
    assert_eq!(result, Ok(Admitted { node: NodeId(4), cluster: CLUSTER, peers, token: TOKEN }));
    assert!(told.is_empty(), "{told:?}");
    let asked = world.asked.into_inner().unwrap();
    for (_, request) in &asked {
        assert_eq!(
            (request.cluster, request.node, request.token),
            (Some(CLUSTER), Some(NodeId(4)), TokenId([5; 8]))
        );
        assert_eq!(request.secret, "06".repeat(32));
    }
}

#[test]
fn what_may_pass_is_tried_again_after_a_wait() {
    let unavailable = JoinResponse::Unavailable { message: "no leader".to_owned() };
    let (result, world, told) =
        joined([(1, Err("no answer")), (2, Ok(unavailable)), (1, Err("no answer")), (2, Ok(admitted()))]);
    assert!(result.is_ok());
    assert_eq!(told, ["1: cannot reach 1: no answer", "2: no leader", "1: cannot reach 1: no answer"]);
    assert_eq!(*world.now.lock().unwrap(), Duration::from_millis(125), "one wait");
}

#[test]
fn a_refusal_is_final() {
    let message = "token 0505050505050505 has expired".to_owned();
    let (result, world, _) = joined([(1, Ok(JoinResponse::Refused { message: message.clone() }))]);
    assert_eq!(result, Err(JoinError::Refused { reason: message }));
    assert_eq!(world.asked.into_inner().unwrap().len(), 1);
}

#[test]
fn members_that_redirect_in_a_circle_do_not_hold_the_joiner() {
    let to = |key: u8| Ok(JoinResponse::Redirect { leader: peer(key) });
    let (result, _, told) = joined([(1, to(2)), (2, to(1)), (1, to(2)), (2, to(1)), (2, Ok(admitted()))]);
    assert!(result.is_ok());
    assert_eq!(told, ["2: the members do not agree on who leads"]);
}

#[test]
fn who_was_only_found_sees_no_secret_and_has_to_prove_that_it_knows_it() {
    // A liar that admits without a proof, one that repeats another's, and the leader that a member names.
    let script = [
        (1, Ok(admitted())),
        (2, Ok(proven(1))),
        (1, Ok(JoinResponse::Redirect { leader: peer(3) })),
        (3, Ok(admitted())),
        (2, Ok(JoinResponse::Redirect { leader: peer(3) })),
        (3, Ok(proven(3))),
    ];
    let (result, world) = joined_by_found(script);
    assert_eq!(result.map(|admitted| (admitted.cluster, admitted.token)), Ok((CLUSTER, TOKEN)));
    let asked = world.asked.into_inner().unwrap();
    assert_eq!(asked.len(), 6);
    for (key, request) in asked {
        let member = NodeKey([key; 32]);
        let joining = Joining { token: TOKEN.id, secret_sha256: TOKEN.sha256(), joiner: OWN, member };
        assert_eq!((request.secret.as_str(), request.token), ("", TOKEN.id));
        assert!(is_proof(&request.proof.unwrap(), &joining.request()), "{key}");
    }
}

#[test]
fn a_refusal_of_who_was_only_found_ends_nothing_until_all_refuse_for_long_enough() {
    let refused = || Ok(JoinResponse::Refused { message: "the token is not valid here".to_owned() });
    let (result, _) = joined_by_found([(1, refused()), (2, Ok(proven(2)))]);
    assert!(result.is_ok(), "{result:?}");
    let rounds = (0..20).flat_map(|_| [(1, refused()), (2, Err("nobody there"))]);
    let (result, world) = joined_by_found(rounds);
    assert_eq!(result, Err(JoinError::Refused { reason: "the token is not valid here".to_owned() }));
    assert!(*world.now.lock().unwrap() > Duration::from_secs(3));
}

#[test]
fn sources_that_can_never_be_used_end_joining_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let join_by = |targets: Vec<JoinTarget>| {
        let world = World::default();
        let wish = wish();
        let result = run(join(world.seams(), &Finder::new(sources(targets, None)), &wish, &|_| ()));
        assert_eq!(*world.now.lock().unwrap(), Duration::ZERO, "nothing is waited for");
        result
    };
    let error = join_by(vec![JoinTarget::File(dir.path().to_owned())]).unwrap_err();
    assert!(matches!(&error, JoinError::NoSource { problems } if problems.len() == 1), "{error}");
    let said = error.to_string();
    assert!(said.contains("Is a directory") && said.contains("blixard cluster token create"), "{said}");
}

//! Every decoder of this crate against damaged input: one row of [`TARGETS`] a decoder.
//!
//! The input is what the decoder reads in earnest, damaged ([`damage::survives`]); it is the same on every
//! run. A decoder must neither panic nor run on nor believe a length, what it accepts must encode to what
//! reads back the same, and what it says in refusing is one short line.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use blixard_core::api;
use blixard_core::api::exec::{ExecRequest, Frame};
use blixard_core::api::token::Secret;
use blixard_core::bundle;
use blixard_core::cluster::digests::{Agreed, Difference, StateDigest};
use blixard_core::cluster::volume::{VersionId, VolumeCopy, VolumeStatus, VolumeVersion};
use blixard_core::cluster::{Actor, ClusterState, Event, Write, snapshot};
use blixard_core::discovery::announce::{self, Heard};
use blixard_core::discovery::book::AddressesMessage;
use blixard_core::discovery::file::{self, Registry};
use blixard_core::discovery::proof::is_proof;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::id::{
    ClusterId, NodeId, NodeKey, ReplicaId, RequestId, ServiceName, TokenId, VolumeId, VolumeName, VolumeRoot,
};
use blixard_core::image_reference::ImageReference;
use blixard_core::text::printable;
use blixard_core::time::UtcMs;
use blixard_core::volume::{Attributes, Index, Step, TreePath};
use blixard_core::wire::{self, Peer};
use serde::Serialize;
use serde::de::DeserializeOwned;

type Decoded = Result<(), String>;

struct Target {
    name: &'static str,
    /// What is valid.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes and checks what came of it.
    decode: fn(&[u8]) -> Decoded,
}

const TARGETS: &[Target] = &[
    Target { name: "log entry", seeds: entries, decode: entry },
    Target { name: "snapshot of the state", seeds: states, decode: state },
    Target { name: "peer: join request", seeds: join_requests, decode: message::<wire::JoinRequest> },
    Target { name: "peer: join response", seeds: join_responses, decode: message::<wire::JoinResponse> },
    Target { name: "peer: heartbeat", seeds: beats, decode: message::<wire::Heartbeat> },
    Target { name: "peer: heartbeat ack", seeds: acks, decode: message::<wire::HeartbeatAck> },
    Target { name: "peer: forwarded write", seeds: forwards, decode: message::<wire::ForwardRequest> },
    Target { name: "peer: answer to a write", seeds: answers, decode: message::<wire::ForwardResponse> },
    Target { name: "peer: hold", seeds: holds, decode: message::<wire::HoldRequest> },
    Target { name: "peer: image request", seeds: image_requests, decode: message::<wire::ImageRequest> },
    Target { name: "peer: state request", seeds: state_requests, decode: message::<wire::StateRequest> },
    Target { name: "peer: addresses", seeds: addresses, decode: message::<AddressesMessage> },
    Target { name: "peer: volume request", seeds: volume_requests, decode: message::<wire::VolumeRequest> },
    Target { name: "peer: volume answer", seeds: volume_answers, decode: message::<wire::VolumeAnswer> },
    Target { name: "peer: step of a volume", seeds: volume_steps, decode: message::<Step> },
    Target { name: "peer: index of a volume", seeds: volume_indexes, decode: message::<Index> },
    Target { name: "peer: routed connection", seeds: routes, decode: message::<wire::RouteRequest> },
    Target { name: "peer: proof of a token", seeds: proofs, decode: proof },
    Target { name: "exec frame", seeds: frames, decode: frame },
    Target { name: "API: submission", seeds: submissions, decode: body::<api::service::SubmitRequest> },
    Target { name: "API: scale", seeds: scales, decode: body::<api::service::ScaleRequest> },
    Target { name: "API: rollback", seeds: rollbacks, decode: body::<api::service::RollbackRequest> },
    Target { name: "API: token", seeds: token_requests, decode: body::<api::token::TokenRequest> },
    Target { name: "API: exec", seeds: execs, decode: body::<ExecRequest> },
    Target { name: "API: pull", seeds: pulls, decode: body::<api::image::PullRequest> },
    Target { name: "API: line of a log", seeds: log_lines, decode: log_line },
    Target { name: "API's answer: an error", seeds: errors, decode: body::<api::ErrorBody> },
    Target { name: "API's answer: health", seeds: healths, decode: body::<api::Health> },
    Target { name: "API's answer: a link", seeds: links, decode: body::<api::discovery::LinkView> },
    Target { name: "API's answer: events", seeds: events, decode: body::<Event> },
    Target { name: "registry file", seeds: registries, decode: registry },
    Target { name: "static file", seeds: static_files, decode: contacts },
    Target { name: "announcement", seeds: announcements, decode: announcement },
    Target { name: "bundle", seeds: bundles, decode: bundle },
    Target { name: "Compose file", seeds: compose_files, decode: compose },
    Target { name: "env_file of a bundle", seeds: env_files, decode: env_file },
    Target { name: "value of --join", seeds: targets, decode: target },
    Target { name: "ticket", seeds: tickets, decode: text::<Ticket> },
    Target { name: "token", seeds: tokens, decode: text::<Secret> },
    Target { name: "image reference", seeds: references, decode: reference },
    Target { name: "time", seeds: times, decode: text::<UtcMs> },
    Target { name: "name of a service", seeds: service_names, decode: text::<ServiceName> },
    Target { name: "name of a volume", seeds: volume_names, decode: text::<VolumeName> },
    Target { name: "number of a node", seeds: node_numbers, decode: text::<NodeId> },
    Target { name: "id of a request", seeds: hex_ids::<16>, decode: text::<RequestId> },
    Target { name: "id of a cluster", seeds: hex_ids::<16>, decode: text::<ClusterId> },
    Target { name: "id of a token", seeds: hex_ids::<8>, decode: text::<TokenId> },
    Target { name: "key of a node", seeds: hex_ids::<32>, decode: text::<NodeKey> },
];

#[test]
fn decoders_survive_every_damage() {
    for Target { name, seeds, decode } in TARGETS {
        damage::survives(name, &seeds(), decode);
    }
}

/// What one channel's decoder makes of another's message.
#[test]
fn decoders_survive_what_is_meant_for_others() {
    for message in TARGETS.iter().flat_map(|target| (target.seeds)()) {
        for target in TARGETS {
            // Some take what is another's, by what the two have in common.
            let _ = (target.decode)(&message);
        }
    }
}

fn refusal(error: impl Display) -> String {
    error.to_string()
}

fn entry(input: &[u8]) -> Decoded {
    let entry = snapshot::decode_entry(input).map_err(refusal)?;
    assert_eq!(snapshot::decode_entry(&snapshot::encode_entry(&entry)), Ok(entry));
    Ok(())
}

fn state(input: &[u8]) -> Decoded {
    let state = snapshot::decode_state(input).map_err(refusal)?;
    let bytes = snapshot::encode_state(&state);
    let again = snapshot::decode_state(&bytes).expect("what was encoded decodes");
    assert_eq!(snapshot::encode_state(&again), bytes);
    Ok(())
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) -> Decoded {
    let message = wire::decode::<T>(input).map_err(refusal)?;
    assert_eq!(wire::decode::<T>(&wire::encode(&message)), Ok(message));
    Ok(())
}

fn frame(input: &[u8]) -> Decoded {
    let Some((frame, taken)) = Frame::decode(input).map_err(refusal)? else { return Ok(()) };
    assert!(taken <= input.len());
    if let Some(frame) = frame {
        let bytes = frame.encode();
        assert_eq!(Frame::decode(&bytes), Ok(Some((Some(frame), bytes.len()))));
    }
    Ok(())
}

/// The API's JSON; who is refused is shown why with what is unseen escaped.
fn body<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) -> Decoded {
    let body: T =
        serde_json::from_slice(input).map_err(|error| printable(&error.to_string()).into_owned())?;
    let again = serde_json::to_vec(&body).expect("it is JSON");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what was encoded decodes"), body);
    Ok(())
}

fn log_line(input: &[u8]) -> Decoded {
    body::<api::replica::LogLine>(input)?;
    let line: api::replica::LogLine = serde_json::from_slice(input).map_err(refusal)?;
    assert!(line.bytes().len() <= input.len());
    Ok(())
}

fn registry(input: &[u8]) -> Decoded {
    contacts(input)
}

fn contacts(input: &[u8]) -> Decoded {
    file::parse("peers.json", &String::from_utf8_lossy(input)).map(drop).map_err(refusal)
}

/// Texts as an announcement has them, one a line.
fn announcement(input: &[u8]) -> Decoded {
    let text = String::from_utf8_lossy(input).into_owned();
    let texts = text.lines().filter_map(|line| line.split_once('='));
    let texts = texts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let heard = Heard { addresses: vec![[10, 0, 0, 1].into()], port: 7001, texts };
    let bounded = heard.container().is_none_or(|found| {
        [found.container_id, found.name, found.image, found.node].iter().all(|text| text.len() <= 255)
    });
    assert!(bounded, "a text is kept that is longer than a text may be");
    match (heard.contact(), heard.container()) {
        (None, None) => Err("neither a node nor a container".to_owned()),
        (contact, _) => {
            assert!(contact.is_none_or(|contact| !contact.named && contact.token.is_none()));
            Ok(())
        }
    }
}

fn context() -> bundle::Context<'static> {
    bundle::Context {
        file_name: "fuzz.bun",
        name: None,
        default_name: Some("fuzz"),
        base_dir: Some("/srv"),
        env_files: &|_| Ok("A=b\n".to_owned()),
    }
}

fn bundle(input: &[u8]) -> Decoded {
    checked(&bundle::parse(input, &context()))
}

/// The variables of a bundle, as a file beside it has them.
fn env_file(input: &[u8]) -> Decoded {
    let text = String::from_utf8_lossy(input).into_owned();
    let context = bundle::Context { env_files: &|_| Ok(text.clone()), ..context() };
    checked(&bundle::parse(b"image: {docker_image: a}\nenv_file: variables\n", &context))
}

fn checked(parsed: &bundle::Parsed) -> Decoded {
    assert!(parsed.diagnostics.len() <= blixard_core::limits::BUNDLE_FAULTS_MAX + 1);
    let Some(spec) = &parsed.spec else {
        let error = parsed.diagnostics.iter().find(|found| found.severity == bundle::Severity::Error);
        return Err(error.expect("why there is none").message.clone());
    };
    let printed = bundle::to_bundle(spec);
    let again = bundle::parse(printed.as_bytes(), &context());
    assert_eq!(again.spec.as_ref(), Some(spec), "{printed}\n{:?}", again.diagnostics);
    Ok(())
}

/// A Compose file is refused, with bundles to go on with.
fn compose(input: &[u8]) -> Decoded {
    let parsed = bundle::parse(input, &context());
    if parsed.drafts.is_empty() {
        return bundle(input);
    }
    assert_eq!(parsed.spec, None);
    for draft in &parsed.drafts {
        assert!(!draft.file.contains(['/', '\0']), "{}", draft.file);
        // What a draft still lacks is told like any other fault.
        let _ = bundle(draft.text.as_bytes());
    }
    Ok(())
}

/// No proof but the one expected, however it is written.
fn proof(input: &[u8]) -> Decoded {
    let sent = String::from_utf8_lossy(input);
    let is_it = is_proof(&sent, &PROOF);
    assert_eq!(is_it, sent.eq_ignore_ascii_case(&hex::encode(PROOF)), "{sent:?}");
    is_it.then_some(()).ok_or("it proves nothing".to_owned())
}

fn target(input: &[u8]) -> Decoded {
    JoinTarget::parse(&String::from_utf8_lossy(input)).map(drop).map_err(refusal)
}

fn text<T: std::str::FromStr<Err: Display> + Display + PartialEq + Debug>(input: &[u8]) -> Decoded {
    let value = String::from_utf8_lossy(input).parse::<T>().map_err(refusal)?;
    assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value));
    Ok(())
}

fn reference(input: &[u8]) -> Decoded {
    text::<ImageReference>(input)
}

fn states() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/state-v1.bin").to_vec()]
}

fn golden() -> ClusterState {
    snapshot::decode_state(&states()[0]).expect("the golden state")
}

fn entries() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/entry-v1.bin").to_vec()]
}

fn encoded<T: Serialize>(messages: &[T]) -> Vec<Vec<u8>> {
    messages.iter().map(wire::encode).collect()
}

fn json<T: Serialize>(bodies: &[T]) -> Vec<Vec<u8>> {
    bodies.iter().map(|body| serde_json::to_vec(body).expect("it is JSON")).collect()
}

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const CLUSTER: ClusterId = ClusterId([3; 16]);
const PROOF: [u8; 32] = [0xab; 32];

fn secret() -> Secret {
    Secret { id: TokenId([0xa1; 8]), secret: [0x5b; 32] }
}

fn peer() -> Peer {
    let key = NodeKey([0xc4; 32]);
    let addresses = ["10.77.0.1:7001", "[fd00::1]:7001"].map(|text| text.parse().expect("an address"));
    Peer { key, addresses: addresses.to_vec(), relay_url: Some("https://relay.example/".to_owned()) }
}

fn join_requests() -> Vec<Vec<u8>> {
    let facts = golden().nodes.values().next().expect("a node").facts.clone();
    let Secret { id: token, secret } = secret();
    let secret = hex::encode(secret);
    let proof = Some("ab".repeat(32));
    let (cluster, node) = (Some(CLUSTER), Some(NodeId(2)));
    let request = wire::JoinRequest { cluster, node, token, secret, proof, facts };
    encoded(&[wire::JoinRequest { cluster: None, node: None, proof: None, ..request.clone() }, request])
}

fn join_responses() -> Vec<Vec<u8>> {
    let peers = [(NodeId(1), peer())].into();
    let message = || "no such token".to_owned();
    encoded(&[
        wire::JoinResponse::Admitted {
            node: NodeId(2),
            cluster: CLUSTER,
            peers,
            proof: Some("ab".repeat(32)),
        },
        wire::JoinResponse::Redirect { leader: peer() },
        wire::JoinResponse::Unavailable { message: message() },
        wire::JoinResponse::Removed { message: message() },
        wire::JoinResponse::Refused { message: message() },
    ])
}

fn beats() -> Vec<Vec<u8>> {
    let state = golden();
    let facts = state.nodes.values().next().expect("a node").facts.clone();
    let statuses = state.replicas.iter().map(|(id, replica)| (*id, replica.status.clone())).collect();
    let copy = VolumeCopy { version: Some(volume_version()), trouble: Some("full".to_owned()) };
    let volumes = [(VolumeId(1), VolumeStatus { epoch: 2, copy })].into();
    encoded(&[wire::Heartbeat {
        boot: 7,
        facts,
        statuses,
        generation: 3,
        volumes,
        twice: Default::default(),
        digests: vec![state_digest()],
    }])
}

fn state_digest() -> StateDigest {
    StateDigest { index: 9, version: 1, sha256: snapshot::digest(&golden()) }
}

fn acks() -> Vec<Vec<u8>> {
    let agreed = Some(Agreed { digest: state_digest(), holders: [NodeId(1), NodeId(2)].into() });
    let difference = Difference { index: 9, from: [NodeId(1)].into(), by_majority: true };
    let (twice, differing) = (Default::default(), [(NodeId(3), difference)].into());
    encoded(&[wire::HeartbeatAck { term: 4, generation: 3, twice, agreed, differing }])
}

fn state_requests() -> Vec<Vec<u8>> {
    encoded(&[wire::StateRequest { digest: state_digest() }])
}

fn forwards() -> Vec<Vec<u8>> {
    let state = golden();
    let (service, spec) = state
        .services
        .iter()
        .find_map(|(name, service)| Some((name.clone(), service.versions.last()?.spec.clone())))
        .expect("a service");
    let writes = [
        Write::Submit { spec: Arc::new((*spec).clone()), origin: NodeId(1) },
        Write::Scale { service: service.clone(), replicas: 3 },
        Write::Remove { service },
        Write::RemoveToken { id: secret().id },
    ];
    let by = Some(Actor::Node { node: NodeId(1) });
    let forwards = writes.map(|write| wire::ForwardRequest {
        request: RequestId([9; 16]),
        made_at: UtcMs(1_700_000_000_000),
        write,
        by: by.clone(),
    });
    encoded(&forwards)
}

fn answers() -> Vec<Vec<u8>> {
    encoded(&[
        wire::ForwardResponse::NotLeader { leader: Some(NodeId(3)) },
        wire::ForwardResponse::Unavailable { message: "no majority".to_owned() },
    ])
}

fn holds() -> Vec<Vec<u8>> {
    encoded(&[wire::HoldRequest { until: UtcMs(1_700_000_000_000) }])
}

fn image_requests() -> Vec<Vec<u8>> {
    let digest = Some(format!("sha256:{:064x}", 5));
    encoded(&[wire::ImageRequest { reference: "docker.io/library/a:1".to_owned(), digest }])
}

fn addresses() -> Vec<Vec<u8>> {
    encoded(&[AddressesMessage { members: [(peer().key, peer().addresses)].into() }])
}

fn volume_version() -> VolumeVersion {
    let id = VersionId { epoch: 2, seq: 9 };
    VolumeVersion { id, root: VolumeRoot([7; 32]), files: 3, bytes: 4_100, at: UtcMs(1_700_000_000_000) }
}

fn volume_requests() -> Vec<Vec<u8>> {
    encoded(&[wire::VolumeRequest { volume: VolumeId(1), epoch: 2, base: VolumeRoot([7; 32]) }])
}

fn volume_answers() -> Vec<Vec<u8>> {
    encoded(&[
        wire::VolumeAnswer::NeedsIndex,
        wire::VolumeAnswer::Version(volume_version()),
        wire::VolumeAnswer::Refused("no such volume".to_owned()),
    ])
}

fn volume_step_list() -> Vec<Step> {
    let path = |text: &str| TreePath::new(text.as_bytes()).expect("a path");
    let attributes = Attributes { mode: 0o644, uid: 1, gid: 2, mtime_ns: -3 };
    vec![
        Step::Directory { path: path("d") },
        Step::File { path: path("d/f"), size: 4_100 },
        Step::Write { path: path("d/f"), leaf: 1, content: b"tail".to_vec() },
        Step::Symlink { path: path("l"), target: b"../x".to_vec() },
        Step::Link { path: path("h"), to: path("d/f") },
        Step::Set { path: Some(path("d/f")), attributes },
        Step::Set { path: None, attributes },
        Step::Stash { path: path("d/f"), slot: 0 },
        Step::Remove { path: path("l") },
        Step::Restore { slot: 0, path: path("m") },
        Step::Resize { path: path("m"), size: 1 },
    ]
}

fn volume_steps() -> Vec<Vec<u8>> {
    encoded(&volume_step_list())
}

fn volume_indexes() -> Vec<Vec<u8>> {
    let mut advance = Index::empty().advance();
    volume_step_list().iter().for_each(|step| advance.step(step).expect("it fits"));
    encoded(&[Index::empty(), advance.into_index()])
}

fn routes() -> Vec<Vec<u8>> {
    encoded(&[wire::RouteRequest { replica: ReplicaId(7), container_port: 8080 }])
}

fn proofs() -> Vec<Vec<u8>> {
    vec![hex::encode(PROOF).into_bytes()]
}

fn frames() -> Vec<Vec<u8>> {
    let frames = [
        Frame::Stdin(b"input".to_vec()),
        Frame::Resize { columns: 80, rows: 24 },
        Frame::Exit(1),
        Frame::Eof,
        Frame::Error("gone".to_owned()),
    ];
    frames.iter().map(Frame::encode).collect()
}

fn submissions() -> Vec<Vec<u8>> {
    let specs = bundles().into_iter().filter_map(|text| bundle::parse(&text, &context()).spec);
    let requests = specs.map(|spec| api::service::SubmitRequest { request_id: Some("ab".repeat(16)), spec });
    json(&requests.collect::<Vec<_>>())
}

fn scales() -> Vec<Vec<u8>> {
    json(&[api::service::ScaleRequest { replicas: 3 }])
}

fn rollbacks() -> Vec<Vec<u8>> {
    json(&[None, Some(2)].map(|version| api::service::RollbackRequest { version }))
}

fn token_requests() -> Vec<Vec<u8>> {
    let scope = api::token::Scope::Write;
    json(&[api::token::TokenRequest {
        scope,
        expires_in_s: Some(60),
        uses: Some(1),
        services: Some("a-".to_owned()),
    }])
}

fn execs() -> Vec<Vec<u8>> {
    json(&[ExecRequest {
        command: vec!["sh".to_owned(), "-c".to_owned(), "id".to_owned()],
        tty: true,
        environment: vec!["A=b".to_owned()],
        workdir: Some("/srv".to_owned()),
        user: Some("1000:1000".to_owned()),
        ..ExecRequest::default()
    }])
}

fn pulls() -> Vec<Vec<u8>> {
    json(&[api::image::PullRequest { reference: "a:1".to_owned() }])
}

fn log_lines() -> Vec<Vec<u8>> {
    let line = |bytes: &[u8]| {
        api::replica::LogLine::new("2026-11-28T06:00:00.000Z".to_owned(), true, bytes.to_vec(), true)
    };
    json(&[line(b"text"), line(&[0xff, 0, 1])])
}

fn errors() -> Vec<Vec<u8>> {
    let (error, hint) = ("no such service".to_owned(), "`blixard service ls`".to_owned());
    json(&[api::ErrorBody { error, hint, details: vec!["node 2 is down".to_owned()] }])
}

fn healths() -> Vec<Vec<u8>> {
    let (node, version) = (NodeId(1), "0.1.0".to_owned());
    json(&[api::Health { node, leader: Some(NodeId(2)), applied: 9, version, time: UtcMs(5) }])
}

fn links() -> Vec<Vec<u8>> {
    let (key, state) = (peer().key, api::discovery::LinkState::HalfOpen);
    json(&[api::discovery::LinkView {
        id: NodeId(2),
        name: "box2".to_owned(),
        key,
        state,
        address: Some("10.77.0.2:7001".to_owned()),
        rtt_us: Some(512),
        failures: 1,
        error: Some("timed out".to_owned()),
        addresses: vec!["10.77.0.2:7001".to_owned()],
        sources: vec!["multicast DNS".to_owned()],
    }])
}

fn events() -> Vec<Vec<u8>> {
    json(&golden().events.iter().map(|event| event.as_ref().clone()).collect::<Vec<Event>>())
}

fn registries() -> Vec<Vec<u8>> {
    let registry = Registry { node: NodeId(1), peer: peer(), cluster: CLUSTER, token: Some(secret()) };
    vec![registry.to_json().into_bytes()]
}

fn static_files() -> Vec<Vec<u8>> {
    let (key, address) = ("ab".repeat(32), "127.0.0.1:7946");
    vec![
        format!(
            r#"{{"cluster_node_id":"1","iroh_node_id":"{key}","direct_addresses":["{address}"],"relay_url":null}}"#
        )
        .into_bytes(),
        format!(r#"[{{"node_id":"1","iroh_node_id":"{key}","direct_addresses":["{address}"]}}]"#).into_bytes(),
    ]
}

fn announcements() -> Vec<Vec<u8>> {
    let node = announce::node(NodeId(1), NodeKey([8; 32]), CLUSTER, 7001, "0.1.0");
    let node: Vec<String> = node.texts.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let container = "container_id=ab12\nnode_id=laptop\ncontainer_name=web\nimage=nginx:alpine";
    vec![node.join("\n").into_bytes(), container.as_bytes().to_vec()]
}

fn bundles() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../testdata/bundles/full.bun").to_vec(),
        include_bytes!("../testdata/bundles/smallest.bun").to_vec(),
    ]
}

fn compose_files() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/bundles/compose.bun").to_vec()]
}

fn env_files() -> Vec<Vec<u8>> {
    bytes(&["# of the service\nLOG_LEVEL=info\n\nQUOTED=\"a b\"\nURL=http://a/?b=c\n"])
}

fn targets() -> Vec<Vec<u8>> {
    let mut targets = bytes(&["data/node1/node-registry.json", "@/run/ticket", "-"]);
    targets.extend(tickets());
    targets
}

fn tickets() -> Vec<Vec<u8>> {
    let ticket = |peer| Ticket { cluster: CLUSTER, peer, token: secret() }.to_string().into_bytes();
    vec![ticket(peer()), ticket(Peer { relay_url: None, ..peer() })]
}

fn tokens() -> Vec<Vec<u8>> {
    vec![secret().to_string().into_bytes()]
}

fn references() -> Vec<Vec<u8>> {
    let digest = format!("registry.example:5000/a/b:1@sha256:{:064x}", 7);
    bytes(&["docker.io/library/nginx:1.27", "a", "localhost/a_b/c__d:x", &digest])
}

fn times() -> Vec<Vec<u8>> {
    bytes(&["2026-11-28T06:00:00.000Z", "2026-02-28T06:00:00Z"])
}

fn service_names() -> Vec<Vec<u8>> {
    bytes(&["web", "a-1"])
}

fn volume_names() -> Vec<Vec<u8>> {
    bytes(&["pgdata", "Db_1.copy-2"])
}

fn node_numbers() -> Vec<Vec<u8>> {
    bytes(&["1", "18446744073709551615"])
}

fn hex_ids<const BYTES: usize>() -> Vec<Vec<u8>> {
    vec![hex::encode([0xa1; BYTES]).into_bytes()]
}

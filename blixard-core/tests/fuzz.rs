//! Every decoder of this crate against damaged input: one row of [`TARGETS`] per decoder.
//!
//! The input is what the decoder reads in earnest, with bits flipped, cut, spliced, repeated and
//! its lengths grown, and bytes that were never valid. It is the same on every run. A decoder
//! must neither panic nor run on, what it accepts must encode to what reads back the same, and
//! what it says in refusing must stay short.

use std::fmt::{Debug, Display};

use blixard_core::api::exec::Frame;
use blixard_core::api::token::Secret;
use blixard_core::bundle;
use blixard_core::cluster::snapshot;
use blixard_core::discovery::file;
use blixard_core::discovery::ticket::Ticket;
use blixard_core::image_reference::ImageReference;
use blixard_core::time::UtcMs;
use blixard_core::wire;

/// Inputs per target: a debug build takes them in seconds.
const CASES: usize = 1_500;
/// No input grows past this.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// A refusal may quote what it refuses, so it is bounded by the input and no more than this
/// beyond it.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

struct Target {
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes and checks what came of it.
    decode: fn(&[u8]),
}

const TARGETS: &[Target] = &[
    Target { name: "log entry", seeds: entries, decode: entry },
    Target { name: "snapshot of the state", seeds: states, decode: state },
    Target { name: "peer: join request", seeds: messages, decode: message::<wire::JoinRequest> },
    Target { name: "peer: join response", seeds: messages, decode: message::<wire::JoinResponse> },
    Target { name: "peer: heartbeat", seeds: messages, decode: message::<wire::Heartbeat> },
    Target { name: "peer: heartbeat ack", seeds: messages, decode: message::<wire::HeartbeatAck> },
    Target { name: "peer: forwarded write", seeds: messages, decode: message::<wire::ForwardRequest> },
    Target { name: "peer: answer to a write", seeds: messages, decode: message::<wire::ForwardResponse> },
    Target { name: "peer: hold", seeds: messages, decode: message::<wire::HoldRequest> },
    Target { name: "peer: image request", seeds: messages, decode: message::<wire::ImageRequest> },
    Target { name: "exec frame", seeds: frames, decode: frame },
    Target { name: "registry or peers file", seeds: peers_files, decode: peers_file },
    Target { name: "bundle or Compose file", seeds: bundles, decode: bundle },
    Target { name: "ticket", seeds: texts, decode: text::<Ticket> },
    Target { name: "token", seeds: texts, decode: text_only::<Secret> },
    Target { name: "image reference", seeds: texts, decode: text_only::<ImageReference> },
    Target { name: "time", seeds: texts, decode: text::<UtcMs> },
];

#[test]
fn decoders_survive_every_damage() {
    for (place, target) in TARGETS.iter().enumerate() {
        let seeds = (target.seeds)();
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (place as u64 + 1));
        for seed in &seeds {
            (target.decode)(seed);
        }
        for case in 0..CASES {
            let input = damaged(&seeds, &mut random);
            let decoded = std::panic::catch_unwind(|| (target.decode)(&input));
            assert!(decoded.is_ok(), "{}: case {case} panics: {input:02x?}", target.name);
        }
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

fn damaged(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.byte(),
            2 => bytes.truncate(at),
            3 => {
                let other = &seeds[random.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
            4 => {
                let end = at + random.below(bytes.len() - at);
                let repeated = bytes[at..end].repeat(1 + random.below(4));
                bytes.splice(at..at, repeated);
            }
            // The longest lengths MessagePack and the frames have: 32 bits, all set.
            5 if bytes.len() >= at + 5 => {
                bytes[at] = 0xdb + random.below(5) as u8;
                bytes[at + 1..at + 5].fill(0xff);
            }
            // Depth: arrays of one, maps of one, and what opens a list in text.
            6 => {
                let opener = [0x91, 0x81, b'[', b'{', b'(', b'-'][random.below(6)];
                bytes.splice(at..at, vec![opener; random.below(20_000)]);
            }
            _ => bytes = (0..random.below(256)).map(|_| random.byte()).collect(),
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn short(refusal: &impl Display, input: usize) {
    let bytes = refusal.to_string().len();
    assert!(bytes <= REFUSAL_BYTES_MAX + 6 * input, "a refusal of {bytes} bytes for {input}");
}

fn entry(input: &[u8]) {
    match snapshot::decode_entry(input) {
        Ok(entry) => assert_eq!(snapshot::decode_entry(&snapshot::encode_entry(&entry)), Ok(entry)),
        Err(error) => short(&error, input.len()),
    }
}

fn state(input: &[u8]) {
    match snapshot::decode_state(input) {
        Ok(state) => {
            let bytes = snapshot::encode_state(&state);
            let again = snapshot::decode_state(&bytes).expect("what was encoded decodes");
            assert_eq!(snapshot::encode_state(&again), bytes);
        }
        Err(error) => short(&error, input.len()),
    }
}

fn message<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(input: &[u8]) {
    match wire::decode::<T>(input) {
        Ok(message) => assert_eq!(wire::decode::<T>(&wire::encode(&message)), Ok(message)),
        Err(error) => short(&error, input.len()),
    }
}

fn frame(input: &[u8]) {
    match Frame::decode(input) {
        Ok(Some((frame, taken))) => {
            assert!(taken <= input.len());
            if let Some(frame) = frame {
                let bytes = frame.encode();
                assert_eq!(Frame::decode(&bytes), Ok(Some((Some(frame), bytes.len()))));
            }
        }
        Ok(None) => {}
        Err(error) => short(&error, input.len()),
    }
}

fn peers_file(input: &[u8]) {
    if let Err(error) = file::parse("peers.json", &String::from_utf8_lossy(input)) {
        short(&error, input.len());
    }
}

fn bundle(input: &[u8]) {
    let context = bundle::Context {
        file_name: "fuzz.bun",
        name: None,
        default_name: Some("fuzz"),
        base_dir: Some("/srv"),
        env_files: &|_| Err("there is none".to_owned()),
    };
    let parsed = bundle::parse(input, &context);
    assert!(parsed.diagnostics.len() <= blixard_core::limits::BUNDLE_FAULTS_MAX + 1);
    if let Some(spec) = parsed.spec {
        let printed = bundle::to_bundle(&spec);
        let again = bundle::parse(printed.as_bytes(), &context);
        assert_eq!(again.spec.as_ref(), Some(&spec), "{printed}\n{:?}", again.diagnostics);
    }
}

fn text<T: std::str::FromStr<Err: Display> + Display + PartialEq + Debug>(input: &[u8]) {
    match String::from_utf8_lossy(input).parse::<T>() {
        Ok(value) => assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value)),
        Err(error) => short(&error, input.len()),
    }
}

/// For what has no one text form of its own.
fn text_only<T: std::str::FromStr<Err: Display>>(input: &[u8]) {
    if let Err(error) = String::from_utf8_lossy(input).parse::<T>() {
        short(&error, input.len());
    }
}

fn states() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/state-v1.bin").to_vec()]
}

fn entries() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/entry-v1.bin").to_vec()]
}

/// Messages made of a real state's values. Each target reads all of them: what one channel's
/// decoder makes of another's message is part of the question.
fn messages() -> Vec<Vec<u8>> {
    let state = snapshot::decode_state(&states()[0]).expect("the golden state");
    let (id, node) = state.nodes.iter().next().expect("a node");
    let statuses = state.replicas.iter().map(|(id, replica)| (*id, replica.status.clone()));
    let facts = node.facts.clone();
    let beat = wire::Heartbeat {
        boot: 7,
        facts,
        statuses: statuses.collect(),
        generation: 3,
        twice: Default::default(),
    };
    vec![
        wire::encode(&beat),
        wire::encode(&wire::HeartbeatAck { term: 4, generation: 3, twice: Default::default() }),
        wire::encode(&wire::ForwardResponse::NotLeader { leader: Some(*id) }),
        wire::encode(&wire::ForwardResponse::Unavailable { message: "no majority".to_owned() }),
        wire::encode(&wire::JoinResponse::Refused { message: "no such token".to_owned() }),
        wire::encode(&wire::HoldRequest { until: node.joined_at }),
        wire::encode(&wire::ImageRequest { reference: "a:1".to_owned(), digest: None }),
    ]
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

fn peers_files() -> Vec<Vec<u8>> {
    let key = "ab".repeat(32);
    let address = "127.0.0.1:7946";
    vec![
        format!(
            r#"{{"cluster_node_id":"1","iroh_node_id":"{key}","direct_addresses":["{address}"],"relay_url":null}}"#
        )
        .into_bytes(),
        format!(r#"[{{"node_id":"1","iroh_node_id":"{key}","direct_addresses":["{address}"]}}]"#).into_bytes(),
    ]
}

fn bundles() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../testdata/bundles/full.bun").to_vec(),
        include_bytes!("../testdata/bundles/smallest.bun").to_vec(),
        include_bytes!("../testdata/bundles/compose.bun").to_vec(),
    ]
}

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "bxt1aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "registry.example:5000/a/b:1@sha256:00",
        "docker.io/library/nginx:1.27",
        "2026-11-28T06:00:00.000Z",
        "[::1]:7946",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

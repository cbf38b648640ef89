//! A data directory of the first format, kept for ever: what is on users' disks must open.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::cluster::node::{NodeFacts, Token, TokenScope};
use blixard_core::cluster::snapshot::digest;
use blixard_core::cluster::{Command, SubnetRange, Write};
use blixard_core::id::{ClusterId, NodeId, NodeKey, RequestId, TokenId};
use blixard_core::spec::ServiceSpec;
use blixard_core::time::UtcMs;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::testing::{Links, platform};
use super::{LOG_FILE, RaftConfig, RaftNode, STATE_FILE};

const PATIENCE: Duration = Duration::from_secs(30);
/// Set to make the fixture anew: only when a format that nobody has on disk yet is changed.
const UPDATE: &str = "BLIXARD_UPDATE_GOLDEN";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-dir-v1")
}

async fn open(directory: &Path) -> RaftNode {
    let (platform, _spawner) = platform(NodeId(1), directory, &Links::default());
    let config = RaftConfig { snapshot_entries: 8, log_keep: 2, ..RaftConfig::default() };
    RaftNode::open(platform, ClusterId([7; 16]), NodeId(1), config).await.expect("the stores open")
}

/// Has a member that is alone apply `command`, once it has elected itself.
async fn propose(node: &RaftNode, command: Command) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = node.propose(vec![command.clone()], PATIENCE).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn bootstrap() -> Command {
    let facts = NodeFacts {
        name: "golden".to_owned(),
        addresses: vec!["10.77.0.1:7001".parse().expect("an address")],
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        cpu_millis: 4_000,
        memory_bytes: 8 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        level: 1,
        reserved_ports: vec![22],
    };
    let token = Token {
        secret_sha256: [9; 32],
        scope: TokenScope::Join,
        expires_at: None,
        uses_left: None,
        services: None,
    };
    Command::Bootstrap {
        cluster: ClusterId([7; 16]),
        subnets: SubnetRange::default(),
        node: NodeId(1),
        key: NodeKey([8; 32]),
        facts,
        token: (TokenId([1; 8]), token),
    }
}

fn submission(number: u8) -> Command {
    let spec = serde_json::json!({
        "name": format!("web-{number}"),
        "image": { "reference": "web:1" },
        "ports": [{ "container_port": 80, "host_port": 8000 + u16::from(number) }],
        "replicas": { "min": 1, "max": 3 },
    });
    let spec: ServiceSpec = serde_json::from_value(spec).expect("a specification");
    Command::Write {
        request: RequestId([number; 16]),
        made_at: UtcMs(1_700_000_000_000),
        write: Write::Submit { spec: Arc::new(spec), origin: NodeId(1) },
        by: None,
    }
}

/// Makes the fixture: a snapshot, and entries that came after it.
async fn make() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = open(directory.path()).await;
    node.initialize().await.expect("Raft runs");
    propose(&node, bootstrap()).await;
    for number in 1..=20 {
        propose(&node, submission(number)).await;
    }
    let state = hex::encode(digest(&node.state()));
    node.shutdown().await;
    std::fs::create_dir_all(fixture()).expect("the folder can be made");
    for name in [LOG_FILE, STATE_FILE] {
        let bytes = std::fs::read(directory.path().join(name)).expect("the store is there");
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&bytes).expect("memory takes it");
        let packed = packed.finish().expect("memory takes it");
        std::fs::write(fixture().join(format!("{name}.gz")), packed).expect("the file can be written");
    }
    std::fs::write(fixture().join("digest"), state).expect("the file can be written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_the_first_format_opens_with_its_state_and_goes_on() {
    if std::env::var_os(UPDATE).is_some() {
        make().await;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for name in [LOG_FILE, STATE_FILE] {
        let packed = std::fs::read(fixture().join(format!("{name}.gz"))).expect("the fixture is there");
        let mut bytes = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the fixture is whole");
        std::fs::write(directory.path().join(name), bytes).expect("the directory takes files");
    }
    let expect = std::fs::read_to_string(fixture().join("digest")).expect("the fixture is there");
    let node = open(directory.path()).await;
    assert!(node.state().applied > 20, "a snapshot and the log behind it are there");
    assert_eq!(hex::encode(digest(&node.state())), expect, "the state is another than was stored");
    assert_eq!(node.state().services.len(), 20);
    propose(&node, submission(99)).await;
    assert_eq!(node.state().services.len(), 21);
}

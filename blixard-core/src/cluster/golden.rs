//! The first format, as files: what was written then must be read for ever.
//!
//! A file is written once, by [`write_files`], and never again. When a type gains a field, the
//! values below gain its default and the files stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, Vector, vector};

use super::digests::DIGEST_VERSION;
use super::node::{NodeFacts, TokenScope};
use super::replica::{Phase, ReplicaStatus};
use super::service::SlotBackoff;
use super::snapshot::{decode_entry, decode_state, digest, encode_entry, encode_state};
use super::*;
use crate::spec::*;

const ENTRY: &[u8] = include_bytes!("../../testdata/entry-v1.bin");
const STATE: &[u8] = include_bytes!("../../testdata/state-v1.bin");

const AT: UtcMs = UtcMs(1_795_219_199_999);
const KEY: NodeKey = NodeKey([0x11; 32]);
const TOKEN: TokenId = TokenId([0x22; 8]);
const CLUSTER: ClusterId = ClusterId([0x33; 16]);

fn web() -> ServiceName {
    "web".parse().expect("a name")
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "box-1".to_owned(),
        addresses: vec!["10.77.0.1:7001".parse().expect("v4"), "[fd00::1]:7001".parse().expect("v6")],
        labels: BTreeMap::from([("zone".to_owned(), "cellar".to_owned())]),
        cpu_millis: 4_000,
        memory_bytes: 8 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        level: 1,
        reserved_ports: vec![22, 8_082],
    }
}

fn token() -> Token {
    Token {
        secret_sha256: [0x44; 32],
        scope: TokenScope::Join,
        expires_at: Some(UtcMs(AT.0 + 1)),
        uses_left: Some(3),
        services: None,
    }
}

/// A specification with every field set to something other than its default.
fn spec() -> Arc<ServiceSpec> {
    Arc::new(ServiceSpec {
        name: web(),
        image: ImageSpec {
            reference: "registry.lan:5000/web:1".to_owned(),
            digest: Some("sha256:00".to_owned()),
            command: Some(vec!["serve".to_owned(), "-v".to_owned()]),
            workdir: Some("/srv".to_owned()),
        },
        ports: vec![
            PortSpec {
                container_port: 80,
                host_port: Some(8_080),
                protocol: Protocol::Tcp,
                host_ip: None,
                publish: Default::default(),
            },
            PortSpec {
                container_port: 53,
                host_port: None,
                protocol: Protocol::Udp,
                host_ip: None,
                publish: Default::default(),
            },
        ],
        volumes: vec![MountSpec::host_path("/a".to_owned(), "/b".to_owned(), true)],
        environment: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        healthcheck: Some(HealthSpec {
            path: "/healthz".to_owned(),
            interval_ms: 10_000,
            timeout_ms: 1_000,
            retries: 3,
        }),
        replicas: ReplicaBounds { min: 2, max: 5 },
        limits: ResourceLimits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(1 << 29),
            memory_swap_bytes: Some(-1),
            blkio_weight: Some(500),
            pids: Some(100),
        },
        reservations: Reservations { cpu_millis: 250, memory_bytes: 1 << 28 },
        restart: RestartSpec { policy: RestartPolicy::OnFailure, maximum_retry_count: Some(4) },
        depends_on: vec!["db".parse().expect("a name")],
        stop_timeout_s: 30,
        placement: PlacementSpec {
            constraints: vec![Constraint {
                label: "zone".to_owned(),
                operator: ConstraintOperator::NotEqual,
                value: "attic".to_owned(),
            }],
            spread: Some("zone".to_owned()),
        },
        network: NetworkMode::Host,
        min_healthy_ms: None,
        security: Default::default(),
    })
}

fn status() -> ReplicaStatus {
    ReplicaStatus {
        attempt: 2,
        phase: Phase::Running,
        healthy: Some(true),
        address: Some([10, 210, 0, 5].into()),
        exit_code: Some(137),
        oom_killed: false,
        message: "started".to_owned(),
        since: AT,
        proven: false,
        left: false,
    }
}

/// Every write there is.
fn writes() -> Vec<Write> {
    let (service, node) = (web(), NodeId(2));
    vec![
        Write::Submit { spec: spec(), origin: node },
        Write::Scale { service: service.clone(), replicas: 3 },
        Write::Stop { service: service.clone(), timeout_s: None },
        Write::Start { service: service.clone() },
        Write::Remove { service },
        Write::StopReplica { replica: ReplicaId(4), timeout_s: None },
        Write::SetAvailability { node, availability: Availability::Draining },
        Write::RemoveNode { node, force: true },
        Write::AddToken { id: TOKEN, token: token() },
        Write::RemoveToken { id: TOKEN },
    ]
}

/// Every step there is.
fn steps() -> Vec<PlanStep> {
    let service = web();
    let after = Some(ReplicaId(3));
    vec![
        PlanStep::Place { service: service.clone(), slot: 1, version: 2, node: NodeId(1), after },
        PlanStep::SetDesired { replica: ReplicaId(4), desired: Desired::Retire },
        PlanStep::SetLost { replica: ReplicaId(4), lost: true },
        PlanStep::Forget { replica: ReplicaId(4) },
        PlanStep::Backoff { service: service.clone(), slot: 1, failures: 3, not_before: AT },
        PlanStep::Pending { service: service.clone(), slot: 1, reason: Some("no node fits".to_owned()) },
        PlanStep::ForgetService { service },
    ]
}

/// Every command there is.
fn entry() -> Entry {
    let node = NodeId(1);
    let mut commands = vec![
        Command::Bootstrap {
            cluster: CLUSTER,
            subnets: SubnetRange::default(),
            node,
            key: KEY,
            facts: facts(),
            token: (TOKEN, token()),
        },
        Command::Join { node: Some(node), key: KEY, facts: facts(), token: TOKEN, secret_sha256: [0x44; 32] },
        Command::Facts { node, facts: facts() },
        Command::Addresses { node, addresses: facts().addresses },
        Command::Health { node, status: NodeStatus::Unknown },
        Command::Hold { node, until: Some(AT) },
        Command::Report { node, statuses: BTreeMap::from([(ReplicaId(4), status())]) },
        Command::Plan(Plan { steps: steps() }),
        Command::Level { level: 1 },
    ];
    commands.extend((0..).zip(writes()).map(|(n, write)| {
        let request = RequestId([n; 16]);
        Command::Write { request, made_at: AT, write, by: None }
    }));
    Entry { format: 1, level: 1, at: AT, commands }
}

fn outcomes() -> Vec<Outcome> {
    let message = || "a message".to_owned();
    vec![
        Outcome::Done,
        Outcome::Service { version: 2, changed: true },
        Outcome::Joined { node: NodeId(1), cluster: CLUSTER },
        Outcome::Planned { dropped: vec![(1, message())] },
        Outcome::Refused(Refusal::NotFound { what: "node".to_owned(), name: "9".to_owned() }),
        Outcome::Refused(Refusal::Conflict { message: message() }),
        Outcome::Refused(Refusal::OutOfBounds { message: message() }),
        Outcome::Refused(Refusal::Denied { message: message() }),
        Outcome::Refused(Refusal::TooOld),
    ]
}

fn events() -> Vector<Event> {
    use EventKind::*;
    let kinds = [
        NodeJoined,
        NodeChanged,
        NodeRemoved,
        ServiceSubmitted,
        ServiceChanged,
        ServiceRemoved,
        ReplicaPlaced,
        ReplicaChanged,
        ReplicaLost,
        ReplicaRemoved,
        SlotPending,
    ];
    let event = |(n, kind)| Event {
        id: EventId { index: 41, n },
        at: AT,
        kind,
        service: Some(web()),
        replica: Some(ReplicaId(4)),
        node: Some(NodeId(1)),
        message: "something happened".to_owned(),
        by: None,
    };
    (0..).zip(kinds).map(event).collect()
}

/// A state with a row in every table.
fn state() -> ClusterState {
    let node = Node {
        key: KEY,
        facts: facts(),
        subnet: [10, 210, 0, 0].into(),
        status: NodeStatus::Up,
        availability: Availability::Active,
        hold_until: Some(AT),
        joined_at: AT,
        status_since: AT,
    };
    let service = Service {
        versions: vector![ServiceVersion::new(2, spec(), AT)],
        desired: 3,
        suspended: false,
        removing: false,
        origin: NodeId(1),
        backoff: BTreeMap::from([(2, SlotBackoff { failures: 3, not_before: AT, version: None })]),
        pending: BTreeMap::from([(2, "no node fits".to_owned())]),
        created_at: AT,
    };
    let replica = Replica {
        service: web(),
        slot: 1,
        version: 2,
        node: NodeId(1),
        desired: Desired::Run,
        stop_timeout_s: None,
        lost_since: Some(AT),
        after: Some(ReplicaId(3)),
        status: status(),
        created_at: AT,
    };
    let requests = (0..).zip(outcomes()).map(|(n, outcome)| (RequestId([n; 16]), (AT, outcome)));
    let mut state = ClusterState {
        applied: 42,
        time: AT,
        cluster: Some(CLUSTER),
        level: 1,
        subnets: SubnetRange::default(),
        nodes: OrdMap::unit(NodeId(1), node),
        removed_nodes: OrdMap::unit(NodeId(2), NodeKey([0x55; 32])),
        tokens: OrdMap::unit(TOKEN, token()),
        services: OrdMap::unit(web(), service),
        replicas: OrdMap::unit(ReplicaId(4), replica),
        next_replica: ReplicaId(5),
        requests: requests.collect(),
        requests_by_time: OrdMap::new(),
        requests_from: UtcMs(7),
        events: events().into_iter().map(Arc::new).collect(),
        audit: Vector::new(),
        volumes: OrdMap::new(),
        next_volume: super::first_volume(),
        index: Index::default(),
    };
    state.reindex();
    state
}

#[test]
fn the_first_entry_is_still_read() {
    assert_eq!(decode_entry(ENTRY), Ok(entry()));
}

#[test]
fn the_first_snapshot_is_still_read() {
    assert_eq!(decode_state(STATE), Ok(state()));
    assert_eq!(invariants::check(&state()), Ok(()));
}

/// Members compare digests of their states: when this fails, the same state is encoded in another way
/// than by software that has the same version of digests. Raise [`DIGEST_VERSION`] where such software
/// was released, so that nobody takes the difference for damage, and put the new digest here.
#[test]
fn what_digests_are_made_of_is_what_their_version_says() {
    let expect = "34602ebc1b74bfea1041ed5d7481886b6529c57cecf367497de45bdd6b2f1edb";
    assert_eq!((DIGEST_VERSION, hex::encode(digest(&state())).as_str()), (1, expect));
}

#[test]
#[ignore = "writes the files that the tests above read: only for a new format"]
fn write_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    std::fs::write(format!("{folder}/entry-v1.bin"), encode_entry(&entry())).expect("the entry is written");
    std::fs::write(format!("{folder}/state-v1.bin"), encode_state(&state())).expect("the state is written");
}

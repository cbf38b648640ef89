//! States and commands for tests. Every entry applied here is followed by every invariant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::level::LEVEL;
use super::node::{NodeFacts, TokenScope};
use super::{
    ClusterState, Command, Desired, Entry, NodeStatus, Outcome, Phase, Plan, PlanStep, Refusal,
    ReplicaStatus, SubnetRange, Token, Write, invariants,
};
use crate::id::{ClusterId, NodeId, NodeKey, ReplicaId, RequestId, ServiceName, TokenId};
use crate::spec::{ImageSpec, MountSpec, PortSpec, Protocol, ReplicaBounds, ServiceSpec};
use crate::time::UtcMs;

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const TOKEN: TokenId = TokenId([1; 8]);
pub(super) const SECRET: [u8; 32] = [9; 32];
pub(super) const START: UtcMs = UtcMs(1_795_219_200_000);

pub(super) fn name(text: &str) -> ServiceName {
    text.parse().expect("a test names services well")
}

pub(super) fn key(n: u8) -> NodeKey {
    NodeKey([n; 32])
}

pub(super) fn facts(name: &str) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        addresses: vec!["10.77.0.1:7001".parse().expect("an address")],
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        cpu_millis: 4_000,
        memory_bytes: 8 << 30,
        arch: "amd64".to_owned(),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        level: LEVEL,
        reserved_ports: vec![22],
    }
}

pub(super) fn join_token() -> Token {
    Token {
        secret_sha256: SECRET,
        scope: TokenScope::Join,
        expires_at: None,
        uses_left: None,
        services: None,
    }
}

/// A service of `min` to `max` replicas that asks for nothing else.
pub(crate) fn spec(service: &str, min: u32, max: u32) -> ServiceSpec {
    ServiceSpec {
        name: name(service),
        image: ImageSpec { reference: "nginx".to_owned(), digest: None, command: None, workdir: None },
        ports: Vec::new(),
        volumes: Vec::new(),
        environment: BTreeMap::new(),
        healthcheck: None,
        replicas: ReplicaBounds { min, max },
        limits: Default::default(),
        reservations: Default::default(),
        restart: Default::default(),
        depends_on: Vec::new(),
        stop_timeout_s: 10,
        placement: Default::default(),
        network: Default::default(),
        min_healthy_ms: None,
        security: Default::default(),
    }
}

pub(crate) fn publishing(spec: ServiceSpec, ports: &[u16]) -> ServiceSpec {
    let port = |host_port: &u16| PortSpec {
        container_port: *host_port,
        host_port: Some(*host_port),
        protocol: Protocol::Tcp,
        host_ip: None,
        publish: Default::default(),
    };
    ServiceSpec { ports: ports.iter().map(port).collect(), ..spec }
}

/// Another version of a service, by its environment.
pub(super) fn marked(mark: u32, spec: ServiceSpec) -> ServiceSpec {
    ServiceSpec { environment: [("MARK".to_owned(), mark.to_string())].into(), ..spec }
}

pub(super) fn with_volume(spec: ServiceSpec) -> ServiceSpec {
    let volume = MountSpec::host_path("/srv".to_owned(), "/data".to_owned(), false);
    ServiceSpec { volumes: vec![volume], ..spec }
}

pub(super) fn mounting(volume: &str, spec: ServiceSpec) -> ServiceSpec {
    let name = volume.parse().expect("a test names volumes well");
    ServiceSpec { volumes: vec![MountSpec::volume(name, "/data".to_owned(), false)], ..spec }
}

pub(super) fn needing(spec: ServiceSpec, names: &[&str]) -> ServiceSpec {
    ServiceSpec { depends_on: names.iter().map(|text| name(text)).collect(), ..spec }
}

pub(super) fn bootstrap() -> Command {
    Command::Bootstrap {
        cluster: CLUSTER,
        subnets: SubnetRange::default(),
        node: NodeId(1),
        key: key(1),
        facts: facts("one"),
        token: (TOKEN, join_token()),
    }
}

pub(super) fn join(node: Option<u64>, key_byte: u8) -> Command {
    Command::Join {
        node: node.map(NodeId),
        key: key(key_byte),
        facts: facts("joiner"),
        token: TOKEN,
        secret_sha256: SECRET,
    }
}

pub(crate) fn place(service: &str, slot: u32, version: u64, node: u64) -> PlanStep {
    PlanStep::Place { service: name(service), slot, version, node: NodeId(node), after: None }
}

pub(super) fn desire(replica: u64, desired: Desired) -> PlanStep {
    PlanStep::SetDesired { replica: ReplicaId(replica), desired }
}

pub(crate) fn status(attempt: u32, phase: Phase) -> ReplicaStatus {
    ReplicaStatus { attempt, phase, ..ReplicaStatus::assigned() }
}

/// A cluster under test.
pub(crate) struct Cluster {
    pub(crate) state: ClusterState,
    pub(super) now: UtcMs,
    requests: u64,
}

impl Cluster {
    /// A cluster of nodes 1 to `nodes`, all up, with 4 CPUs and 8 GiB each.
    pub(crate) fn of(nodes: u64) -> Self {
        Self::of_level(nodes, LEVEL)
    }

    /// As [`Cluster::of`], of members whose software knows feature level `level`.
    pub(super) fn of_level(nodes: u64, level: u16) -> Self {
        let mut cluster = Self { state: ClusterState::new(), now: START, requests: 0 };
        let knowing = |mut command| {
            if let Command::Bootstrap { facts, .. } | Command::Join { facts, .. } = &mut command {
                facts.level = level;
            }
            command
        };
        cluster.command(knowing(bootstrap()));
        for node in 2..=nodes {
            let key_byte = u8::try_from(node).expect("tests have few nodes");
            let joined = cluster.command(knowing(join(None, key_byte)));
            assert_eq!(joined, Outcome::Joined { node: NodeId(node), cluster: CLUSTER });
        }
        cluster
    }

    pub(super) fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        let before = self.state.clone();
        let outcomes = self.state.apply(before.applied + 1, &Entry::new(self.now, commands));
        invariants::check(&self.state).expect("every state is consistent");
        invariants::check_step(&before, &self.state).expect("every step is legal");
        outcomes
    }

    pub(super) fn command(&mut self, command: Command) -> Outcome {
        self.apply(vec![command]).pop().expect("one outcome for each command")
    }

    pub(super) fn write(&mut self, write: Write) -> Outcome {
        self.requests += 1;
        let request = RequestId(u128::from(self.requests).to_be_bytes());
        self.command(Command::Write { request, made_at: self.now, write, by: None })
    }

    pub(crate) fn submit(&mut self, spec: ServiceSpec) -> Outcome {
        self.submit_on(1, spec)
    }

    pub(super) fn submit_on(&mut self, node: u64, spec: ServiceSpec) -> Outcome {
        self.write(Write::Submit { spec: Arc::new(spec), origin: NodeId(node) })
    }

    /// Applies a plan and answers why each dropped step was.
    pub(super) fn plan(&mut self, steps: Vec<PlanStep>) -> Vec<String> {
        match self.command(Command::Plan(Plan { steps })) {
            Outcome::Planned { dropped } => dropped.into_iter().map(|(_, reason)| reason).collect(),
            other => panic!("a plan answers Planned, not {other:?}"),
        }
    }

    /// Applies a plan of which every step holds.
    pub(crate) fn planned(&mut self, steps: Vec<PlanStep>) {
        assert_eq!(self.plan(steps), Vec::<String>::new());
    }

    pub(crate) fn report(&mut self, node: u64, replica: u64, status: ReplicaStatus) -> Outcome {
        let statuses = BTreeMap::from([(ReplicaId(replica), status)]);
        self.command(Command::Report { node: NodeId(node), statuses })
    }

    pub(super) fn health(&mut self, node: u64, status: NodeStatus) {
        assert_eq!(self.command(Command::Health { node: NodeId(node), status }), Outcome::Done);
    }

    /// What is desired of a replica; absent when it has no row.
    pub(super) fn desired(&self, replica: u64) -> Option<Desired> {
        self.state.replicas.get(&ReplicaId(replica)).map(|row| row.desired)
    }

    pub(super) fn events(&self) -> Vec<&str> {
        let last = self.state.applied;
        let latest = self.state.events.iter().filter(|event| event.id.index == last);
        latest.map(|event| event.message.as_str()).collect()
    }
}

/// Two nodes and `web`, of which slot 0 of two is filled on node 1.
pub(super) fn two_nodes() -> Cluster {
    let mut cluster = Cluster::of(2);
    cluster.submit(spec("web", 2, 3));
    cluster.planned(vec![place("web", 0, 1, 1)]);
    cluster
}

/// Expects a refusal whose message contains `part`.
pub(super) fn assert_refused(outcome: Outcome, part: &str) {
    match outcome {
        Outcome::Refused(refusal) => {
            assert!(refusal.to_string().contains(part), "`{refusal}` lacks `{part}`")
        }
        other => panic!("expected a refusal with `{part}`, got {other:?}"),
    }
}

pub(super) fn too_old() -> Outcome {
    Outcome::Refused(Refusal::TooOld)
}

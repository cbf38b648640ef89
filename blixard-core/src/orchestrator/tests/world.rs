//! A small cluster to plan for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::super::{Observations, Report, ServiceReport, plan};
use crate::cluster::level::LEVEL;
use crate::cluster::node::NodeFacts;
use crate::cluster::replica::Desired;
use crate::cluster::{
    Availability, ClusterState, Command, Entry, Node, NodeStatus, Outcome, Phase, Plan, PlanStep, Replica,
    ReplicaStatus, Write, invariants,
};
use crate::id::{NodeId, NodeKey, ReplicaId, RequestId, ServiceName};
use crate::spec::{
    HealthSpec, ImageSpec, MountSpec, NetworkMode, PlacementSpec, PortSpec, Protocol, ReplicaBounds,
    Reservations, ServiceSpec,
};
use crate::time::UtcMs;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const START: UtcMs = UtcMs(1_000_000);

/// A cluster, what its leader observed, and the time.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) state: ClusterState,
    pub(crate) observations: Observations,
    pub(crate) now: UtcMs,
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().expect("tests use service names")
}

/// A specification of one replica that asks for nothing.
pub(crate) fn spec(service: &str, change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name(service),
        image: ImageSpec { reference: "image".to_owned(), digest: None, command: None, workdir: None },
        ports: Vec::new(),
        volumes: Vec::new(),
        environment: BTreeMap::new(),
        healthcheck: None,
        replicas: ReplicaBounds::default(),
        limits: Default::default(),
        reservations: Reservations::default(),
        restart: Default::default(),
        depends_on: Vec::new(),
        stop_timeout_s: 10,
        placement: PlacementSpec::default(),
        network: NetworkMode::Bridge,
        min_healthy_ms: None,
        security: Default::default(),
    };
    change(&mut spec);
    spec
}

pub(crate) fn replicas(count: u32) -> ReplicaBounds {
    ReplicaBounds { min: 1, max: count.max(1) }
}

pub(crate) fn memory(mib: u64) -> Reservations {
    Reservations { cpu_millis: 0, memory_bytes: mib * MIB }
}

pub(crate) fn volume(read_only: bool) -> Vec<MountSpec> {
    vec![MountSpec::host_path("/srv".to_owned(), "/data".to_owned(), read_only)]
}

/// A volume of the cluster, written to.
pub(crate) fn mounted(volume: &str) -> Vec<MountSpec> {
    vec![MountSpec::volume(volume.parse().expect("a name"), "/data".to_owned(), false)]
}

/// Has a health check ask a port of the container.
pub(crate) fn probe(spec: &mut ServiceSpec) {
    let port = PortSpec {
        container_port: 80,
        host_port: None,
        protocol: Protocol::Tcp,
        host_ip: None,
        publish: Default::default(),
    };
    spec.ports.push(port);
    let check = HealthSpec { path: "/".to_owned(), interval_ms: 1000, timeout_ms: 1000, retries: 3 };
    spec.healthcheck = Some(check);
}

pub(crate) fn node(id: u64) -> Node {
    let names = ["zero", "alpha", "beta", "gamma", "delta", "epsilon"];
    let named = usize::try_from(id).ok().and_then(|id| names.get(id));
    Node {
        key: NodeKey([u8::try_from(id).unwrap_or(0); 32]),
        facts: NodeFacts {
            name: named.map_or_else(|| format!("host{id}"), |name| (*name).to_owned()),
            addresses: Vec::new(),
            labels: BTreeMap::new(),
            cpu_millis: 4000,
            memory_bytes: 1024 * MIB,
            arch: "amd64".to_owned(),
            os: "linux".to_owned(),
            version: "0.1.0".to_owned(),
            level: LEVEL,
            reserved_ports: Vec::new(),
        },
        subnet: Ipv4Addr::new(10, 210, u8::try_from(id).unwrap_or(0), 0),
        status: NodeStatus::Up,
        availability: Availability::Active,
        hold_until: None,
        joined_at: UtcMs(0),
        status_since: UtcMs(0),
    }
}

impl World {
    /// A cluster of this many nodes (1 alpha, 2 beta, 3 gamma, …), each with 4 CPUs and 1 GiB.
    pub(crate) fn new(nodes: u64) -> Self {
        let mut state = ClusterState::new();
        (state.applied, state.time, state.level) = (1, START, LEVEL);
        state.nodes = (1..=nodes).map(|id| (NodeId(id), node(id))).collect();
        Self { state, observations: Observations::default(), now: START }
    }

    /// Submits a specification from node 1 and scales the service to its maximum.
    pub(crate) fn submit(&mut self, spec: ServiceSpec) -> &mut Self {
        let (service, replicas) = (spec.name.clone(), spec.replicas.max);
        self.write(Write::Submit { spec: Arc::new(spec), origin: NodeId(1) });
        if self.state.services[&service].desired != replicas {
            self.write(Write::Scale { service, replicas });
        }
        self
    }

    pub(crate) fn write(&mut self, write: Write) -> &mut Self {
        let request = RequestId(u128::from(self.state.applied).to_be_bytes());
        let outcome = self.apply(Command::Write { request, made_at: self.now, write, by: None });
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        self
    }

    /// Applies a command and checks every invariant.
    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        let before = self.state.clone();
        let outcomes = self.state.apply(before.applied + 1, &Entry::new(self.now, vec![command]));
        invariants::check(&self.state).expect("the state keeps its invariants");
        invariants::check_step(&before, &self.state).expect("the step keeps its invariants");
        outcomes.into_iter().next().expect("one command has one outcome")
    }

    pub(crate) fn node(&mut self, node: u64) -> &mut Node {
        self.state.nodes.get_mut(&NodeId(node)).expect("the test made the node")
    }

    pub(crate) fn replica(&mut self, replica: u64) -> &mut Replica {
        self.state.replicas.get_mut(&ReplicaId(replica)).expect("the test placed it")
    }

    /// Reports a replica's phase; one that runs has done so for long enough.
    pub(crate) fn phase(&mut self, replica: u64, phase: Phase) -> &mut Self {
        let known = self.state.replicas[&ReplicaId(replica)].status.clone();
        let proven = known.proven || phase == Phase::Running;
        self.report_status(replica, ReplicaStatus { phase, proven, ..known })
    }

    /// Reports that a replica runs, and has not for long.
    pub(crate) fn begins(&mut self, replica: u64) -> &mut Self {
        let known = self.state.replicas[&ReplicaId(replica)].status.clone();
        self.report_status(replica, ReplicaStatus { phase: Phase::Running, ..known })
    }

    /// Reports that a replica ended for good, with this code, and is left so.
    pub(crate) fn ends(&mut self, replica: u64, code: u32) -> &mut Self {
        let known = self.state.replicas[&ReplicaId(replica)].status.clone();
        let phase = if code == 0 { Phase::Completed } else { Phase::Failed };
        self.report_status(
            replica,
            ReplicaStatus { phase, exit_code: Some(code), left: code != 0, healthy: None, ..known },
        )
    }

    /// Reports a replica's next attempt.
    pub(crate) fn again(&mut self, replica: u64) -> &mut Self {
        let known = self.state.replicas[&ReplicaId(replica)].status.clone();
        let attempt = known.attempt + 1;
        self.report_status(replica, ReplicaStatus { attempt, phase: Phase::Starting, ..known })
    }

    /// Reports a failure.
    pub(crate) fn fail(&mut self, replica: u64, message: &str) -> &mut Self {
        let status = self.state.replicas[&ReplicaId(replica)].status.clone();
        self.report_status(
            replica,
            ReplicaStatus { phase: Phase::Failed, message: message.to_owned(), ..status },
        )
    }

    fn report_status(&mut self, replica: u64, status: ReplicaStatus) -> &mut Self {
        let id = ReplicaId(replica);
        let node = self.state.replicas[&id].node;
        self.apply(Command::Report { node, statuses: BTreeMap::from([(id, status)]) });
        match self.state.replicas.get(&id) {
            Some(row) => self.observations.note(id, row, self.now),
            None => self.observations.forget(id),
        }
        self
    }

    /// Every agent that answers does what it is told: what should run runs and passes its probe,
    /// what should stop is gone.
    pub(crate) fn agents_act(&mut self) -> &mut Self {
        let rows: Vec<(ReplicaId, Replica)> =
            self.state.replicas.iter().map(|(id, row)| (*id, row.clone())).collect();
        for (id, row) in rows {
            let up = self.state.nodes.get(&row.node).is_some_and(|node| node.status == NodeStatus::Up);
            match row.desired {
                _ if !up => {}
                Desired::Stop => {
                    self.phase(id.0, Phase::Gone);
                }
                Desired::Run if row.status.phase < Phase::Running && self.may_start(&row) => {
                    self.replica(id.0).status.healthy = Some(true);
                    self.phase(id.0, Phase::Running);
                }
                Desired::Run | Desired::Retire => {}
            }
        }
        self
    }

    fn may_start(&self, replica: &Replica) -> bool {
        replica.after.is_none_or(|after| !self.state.replicas.contains_key(&after))
    }

    pub(crate) fn advance(&mut self, millis: u64) -> &mut Self {
        self.now = UtcMs(self.now.0 + millis);
        self
    }

    pub(crate) fn plan(&self) -> (Plan, Report) {
        plan(&self.state, &self.observations, self.now)
    }

    /// Plans, applies the plan, plans again and expects nothing more; answers the plan as text.
    pub(crate) fn settle(&mut self) -> String {
        let (made, _) = self.plan();
        let outcome = self.apply(Command::Plan(made.clone()));
        let Outcome::Planned { dropped } = outcome else { panic!("a plan answers {outcome:?}") };
        assert!(dropped.is_empty(), "{dropped:?} of\n{}", show(&made, self.now));
        let again = self.plan().0;
        assert!(
            again.steps.is_empty(),
            "a second plan changes more:\n{}after\n{}",
            show(&again, self.now),
            show(&made, self.now)
        );
        show(&made, self.now)
    }

    /// Plans and compares.
    #[track_caller]
    pub(crate) fn expect(&mut self, steps: &str) -> &mut Self {
        let lines = |text: &str| {
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let made = self.settle();
        assert_eq!(lines(&made), lines(steps), "the plan is\n{made}");
        self
    }

    /// Lets agents act and plans until nothing more happens.
    pub(crate) fn converge(&mut self) -> &mut Self {
        for _ in 0..100 {
            self.settle();
            let before = self.state.clone();
            self.agents_act();
            if self.settle().is_empty() && before.replicas == self.state.replicas {
                return self;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Where a service's counting replicas are, by slot: `0@1 v1`.
    pub(crate) fn places(&self, service: &str) -> String {
        let name = name(service);
        let counting = self.state.replicas_of(&name).map(|(_, row)| row).filter(|row| row.counts());
        counting
            .map(|row| format!("{}@{} v{}", row.slot, row.node, row.version))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(crate) fn report(&self, service: &str) -> ServiceReport {
        ServiceReport::of(&self.state, &name(service)).expect("the test submitted it")
    }
}

/// A plan as text, one step a line; times are relative to `now`.
pub(crate) fn show(plan: &Plan, now: UtcMs) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let line = match step {
            PlanStep::Place { service, slot, version, node, after } => {
                let after = after.map(|after| format!(" after {after}")).unwrap_or_default();
                format!("place {service}/{slot} v{version} on {node}{after}")
            }
            PlanStep::PlaceOlder { service, slot, version, node, after } => {
                let after = after.map(|after| format!(" after {after}")).unwrap_or_default();
                format!("place older {service}/{slot} v{version} on {node}{after}")
            }
            PlanStep::SetDesired { replica, desired } => format!("{desired:?} {replica}").to_lowercase(),
            PlanStep::SetLost { replica, lost: true } => format!("lost {replica}"),
            PlanStep::SetLost { replica, lost: false } => format!("back {replica}"),
            PlanStep::Forget { replica } => format!("forget {replica}"),
            PlanStep::Backoff { service, slot, failures: 0, .. } => format!("forgive {service}/{slot}"),
            PlanStep::Backoff { service, slot, failures, not_before } => {
                let wait = not_before.since(now).as_millis();
                format!("backoff {service}/{slot} failures {failures} wait {wait} ms")
            }
            PlanStep::Pending { service, slot, reason: Some(reason) } => {
                format!("pending {service}/{slot}: {reason}")
            }
            PlanStep::Pending { service, slot, reason: None } => format!("filled {service}/{slot}"),
            PlanStep::ForgetService { service } => format!("forget {service}"),
            PlanStep::AddVolumeCopy { volume, node } => format!("copy {volume} on {node}"),
            PlanStep::PromoteVolume { volume, node } => format!("promote {volume} on {node}"),
        };
        writeln!(text, "{line}").expect("writing to a string cannot fail");
    }
    text
}

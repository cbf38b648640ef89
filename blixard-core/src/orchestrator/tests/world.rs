//! A small cluster to plan for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{OrdMap, Vector};

use super::super::{Index, Observations, Report, ServiceReport, plan};
use crate::cluster::node::NodeFacts;
use crate::cluster::replica::Desired;
use crate::cluster::service::SlotBackoff;
use crate::cluster::{
    Availability, ClusterState, Node, NodeStatus, Phase, Plan, PlanStep, Replica, ReplicaStatus, Service,
    ServiceVersion, SubnetRange,
};
use crate::id::{NodeId, NodeKey, ReplicaId, ServiceName};
use crate::spec::{
    HealthSpec, ImageSpec, NetworkMode, PlacementSpec, ReplicaBounds, Reservations, ServiceSpec, VolumeSpec,
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

pub(crate) fn volume(read_only: bool) -> Vec<VolumeSpec> {
    vec![VolumeSpec { source: "/srv".to_owned(), target: "/data".to_owned(), read_only }]
}

pub(crate) fn probe() -> Option<HealthSpec> {
    Some(HealthSpec { path: "/".to_owned(), interval_ms: 1000, timeout_ms: 1000, retries: 3 })
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
            level: 1,
            reserved_ports: Vec::new(),
        },
        subnet: Ipv4Addr::new(10, 210, 1, 0),
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
        let state = ClusterState {
            applied: 1,
            time: START,
            cluster: None,
            level: 1,
            subnets: SubnetRange::default(),
            nodes: (1..=nodes).map(|id| (NodeId(id), node(id))).collect(),
            removed_nodes: OrdMap::new(),
            tokens: OrdMap::new(),
            services: OrdMap::new(),
            replicas: OrdMap::new(),
            next_replica: ReplicaId(1),
            requests: OrdMap::new(),
            requests_by_time: OrdMap::new(),
            events: Vector::new(),
        };
        Self { state, observations: Observations::default(), now: START }
    }

    /// Submits a specification from node 1, a millisecond ago: a new service at its maximum, or a
    /// new version.
    pub(crate) fn submit(&mut self, spec: ServiceSpec) -> &mut Self {
        let version =
            ServiceVersion { version: 1, spec: Arc::new(spec), submitted_at: UtcMs(self.now.0 - 1) };
        let spec = version.spec.clone();
        match self.state.services.get_mut(&spec.name) {
            Some(service) => {
                let version = ServiceVersion { version: service.current().version + 1, ..version };
                service.desired = spec.replicas.max;
                service.versions.push_back(version);
            }
            None => {
                let service = Service {
                    versions: Vector::unit(version),
                    desired: spec.replicas.max,
                    suspended: false,
                    removing: false,
                    origin: NodeId(1),
                    backoff: BTreeMap::new(),
                    pending: BTreeMap::new(),
                    created_at: self.now,
                };
                self.state.services.insert(spec.name.clone(), service);
            }
        }
        self
    }

    pub(crate) fn service(&mut self, service: &str) -> &mut Service {
        self.state.services.get_mut(&name(service)).expect("the test submitted it")
    }

    pub(crate) fn node(&mut self, node: u64) -> &mut Node {
        self.state.nodes.get_mut(&NodeId(node)).expect("the test made the node")
    }

    pub(crate) fn replica(&mut self, replica: u64) -> &mut Replica {
        self.state.replicas.get_mut(&ReplicaId(replica)).expect("the test placed it")
    }

    /// Reports a replica's phase.
    pub(crate) fn phase(&mut self, replica: u64, phase: Phase) -> &mut Self {
        self.replica(replica).status.phase = phase;
        let row = self.state.replicas[&ReplicaId(replica)].clone();
        self.observations.note(ReplicaId(replica), &row, self.now);
        self
    }

    /// Reports a failure.
    pub(crate) fn fail(&mut self, replica: u64, message: &str) -> &mut Self {
        self.replica(replica).status.message = message.to_owned();
        self.phase(replica, Phase::Failed)
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
        apply(&mut self.state, &made, self.now);
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
            if self.settle().is_empty() && before == self.state {
                return self;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Where a service's counting replicas are, by slot: `0@1 v1`.
    pub(crate) fn places(&self, service: &str) -> String {
        let index = Index::of(&self.state);
        let rows = index.replicas(&name(service)).map(|(_, id)| &self.state.replicas[&id]);
        let counting = rows.filter(|row| row.counts());
        counting
            .map(|row| format!("{}@{} v{}", row.slot, row.node, row.version))
            .collect::<Vec<_>>()
            .join(", ")
    }

    pub(crate) fn report(&self, service: &str) -> ServiceReport {
        ServiceReport::of(&self.state, &Index::of(&self.state), &name(service))
            .expect("the test submitted it")
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
        };
        writeln!(text, "{line}").expect("writing to a string cannot fail");
    }
    text
}

/// Applies a plan that must hold, step by step.
pub(crate) fn apply(state: &mut ClusterState, plan: &Plan, now: UtcMs) {
    for step in &plan.steps {
        apply_step(state, step, now);
    }
}

fn apply_step(state: &mut ClusterState, step: &PlanStep, now: UtcMs) {
    match step.clone() {
        PlanStep::Place { service, slot, version, node, after } => {
            assert_eq!(state.services[&service].current().version, version, "places an old version");
            assert!(slot < state.services[&service].wanted(), "places a surplus replica");
            let target = &state.nodes[&node];
            assert_eq!((target.status, target.availability), (NodeStatus::Up, Availability::Active));
            let mut rows = state.replicas.values();
            assert!(!rows.any(|row| row.service == service && row.slot == slot && row.counts()), "{step:?}");
            let replica = Replica {
                service,
                slot,
                version,
                node,
                desired: Desired::Run,
                lost_since: None,
                after,
                status: ReplicaStatus::assigned(),
                created_at: now,
            };
            state.replicas.insert(state.next_replica, replica);
            state.next_replica = ReplicaId(state.next_replica.0 + 1);
            let reserved: u64 = state
                .replicas
                .values()
                .filter(|row| row.node == node && row.desired != Desired::Stop)
                .filter_map(|row| state.services[&row.service].spec_of(row.version))
                .map(|spec| spec.reservations.memory_bytes)
                .sum();
            assert!(reserved <= state.nodes[&node].facts.memory_bytes, "{step:?} overcommits");
        }
        PlanStep::SetDesired { replica, desired } => {
            let row = state.replicas.get_mut(&replica).expect("the plan names replicas that exist");
            assert!(row.desired < desired, "{step:?} does not move {row:?} down");
            row.desired = desired;
        }
        PlanStep::SetLost { replica, lost } => {
            let row = state.replicas.get_mut(&replica).expect("the plan names replicas that exist");
            assert_ne!(row.lost_since.is_some(), lost, "{step:?} changes nothing");
            row.lost_since = lost.then_some(now);
            let (service, slot) = (row.service.clone(), row.slot);
            let rows = state.replicas.values().filter(|row| row.service == service && row.slot == slot);
            assert!(rows.filter(|row| row.counts()).count() <= 1, "{step:?}: two replicas count");
        }
        PlanStep::Forget { replica } => {
            let row = state.replicas.remove(&replica).expect("the plan names replicas that exist");
            assert!(row.status.phase == Phase::Gone || !state.nodes.contains_key(&row.node));
        }
        PlanStep::Backoff { service, slot, failures, not_before } => {
            let row = state.services.get_mut(&service).expect("the plan names services that exist");
            if failures == 0 {
                row.backoff.remove(&slot).expect("only what failed is forgiven");
            } else {
                row.backoff.insert(slot, SlotBackoff { failures, not_before });
            }
        }
        PlanStep::Pending { service, slot, reason } => {
            let row = state.services.get_mut(&service).expect("the plan names services that exist");
            assert_ne!(row.pending.get(&slot), reason.as_ref(), "{step:?} changes nothing");
            match reason {
                Some(reason) => row.pending.insert(slot, reason),
                None => row.pending.remove(&slot),
            };
        }
        PlanStep::ForgetService { service } => {
            assert!(!state.replicas.values().any(|row| row.service == service), "{step:?} leaves replicas");
            state.services.remove(&service);
        }
    }
}

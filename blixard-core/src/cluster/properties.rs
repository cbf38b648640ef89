//! Random histories: whatever is applied, in whatever order, the state stays consistent, and two
//! members that apply the same hold the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;

use super::level::LEVEL;
use super::node::NodeFacts;
use super::replica::Phase;
use super::snapshot::{decode_entry, decode_state, digest, encode_entry, encode_state};
use super::testing::{
    START, bootstrap, facts, join, join_token, mounting, name, needing, publishing, spec, status, with_volume,
};
use super::volume::{VersionId, VolumeCopy, VolumeRoot, VolumeStatus, VolumeVersion};
use super::*;
use crate::spec::{NetworkMode, Reservations, ServiceSpec};

/// Histories live in a small world, so that commands meet.
const NODES: u64 = 4;
const SERVICES: [&str; 3] = ["api", "db", "web"];

/// One entry to be made from the state as it is then.
#[derive(Debug, Clone)]
enum Step {
    /// These commands, whatever the state.
    Commands(Vec<Command>),
    /// A placement in every slot that holds no replica, on nodes in turn from this one, and the
    /// reason why it is empty when that is dropped.
    Fill(u64),
    /// A report of every replica of a node, in this phase or one attempt later.
    Advance { node: u64, phase: Phase, again: bool },
    /// A node's fall, or its return, with all its replicas.
    Lost { node: u64, lost: bool },
    /// A report that nothing is left of any replica, then an attempt to forget every service.
    Forget,
    /// A blank entry of Raft's.
    Blank,
}

impl Step {
    fn entry(&self, state: &ClusterState, at: UtcMs) -> Option<Entry> {
        let commands = match self {
            Self::Commands(commands) => {
                commands.iter().cloned().map(|command| made_before(command, at)).collect()
            }
            Self::Fill(first) => vec![Command::Plan(Plan { steps: fill(state, *first) })],
            Self::Advance { node, phase, again } => {
                advance_all(state, *node, *phase, *again).into_iter().collect()
            }
            Self::Lost { node, lost } => {
                let status = if *lost { NodeStatus::Down } else { NodeStatus::Up };
                let rows = state.replicas_on(NodeId(*node)).map(|(id, _)| id);
                let steps = rows.map(|replica| PlanStep::SetLost { replica, lost: *lost }).collect();
                vec![Command::Health { node: NodeId(*node), status }, Command::Plan(Plan { steps })]
            }
            Self::Forget => {
                let gone = (1..=NODES).filter_map(|node| advance_all(state, node, Phase::Gone, false));
                let services = state.services.keys().cloned();
                let steps = services.map(|service| PlanStep::ForgetService { service }).collect();
                gone.chain([Command::Plan(Plan { steps })]).collect()
            }
            Self::Blank => return None,
        };
        Some(Entry::new(at, commands))
    }
}

/// A report of every replica of a node, if it has any.
fn advance_all(state: &ClusterState, node: u64, phase: Phase, again: bool) -> Option<Command> {
    let node = NodeId(node);
    let told = |row: &Replica| status(row.status.attempt + u32::from(again), phase);
    let statuses: BTreeMap<_, _> = state.replicas_on(node).map(|(id, row)| (id, told(row))).collect();
    (!statuses.is_empty()).then_some(Command::Report { node, statuses })
}

/// Writes are generated with their age in the place of when they were made.
fn made_before(mut command: Command, at: UtcMs) -> Command {
    if let Command::Write { made_at, .. } = &mut command {
        *made_at = UtcMs(at.0.saturating_sub(made_at.0));
    }
    command
}

fn fill(state: &ClusterState, first: u64) -> Vec<PlanStep> {
    let slots =
        state.services.iter().flat_map(|(name, service)| (0..service.wanted()).map(move |slot| (name, slot)));
    let empty = slots.filter(|(name, slot)| state.counting_in(name, *slot).is_none());
    (first..)
        .zip(empty)
        .flat_map(|(n, (service, slot))| try_slot(state, n % NODES + 1, service, slot))
        .collect()
}

fn try_slot(state: &ClusterState, node: u64, service: &ServiceName, slot: u32) -> [PlanStep; 2] {
    let (service, node) = (service.clone(), NodeId(node));
    let version = state.services[&service].current().version;
    let after = state.replicas_in(&service, slot).last().map(|(id, _)| id);
    let reason = Some("it does not fit".to_owned());
    let pending = PlanStep::Pending { service: service.clone(), slot, reason };
    [PlanStep::Place { service, slot, version, node, after }, pending]
}

fn specs() -> impl Strategy<Value = ServiceSpec> {
    let ports = proptest::collection::vec(select(vec![80, 81, 443]), 0..3);
    let bounds = (select(vec![0, 1, 1, 1, 2, 2, 3]), 1..6_u32);
    let cpu = select(vec![0, 1_000, 3_000]);
    (select(&SERVICES[..]), bounds, ports, select(&SERVICES[..]), cpu, 0..8_u8).prop_map(
        |(service, (min, max), ports, needed, cpu_millis, kind)| {
            let mut spec = publishing(spec(service, min, max), &ports);
            spec.reservations = Reservations { cpu_millis, memory_bytes: 1 << 20 };
            if kind & 1 != 0 {
                spec.network = NetworkMode::Host;
            }
            if kind & 6 == 2 {
                spec = with_volume(spec);
            }
            if kind & 6 == 6 {
                spec = mounting("data", spec);
            }
            if kind & 6 == 4 { needing(spec, &[needed]) } else { spec }
        },
    )
}

fn node() -> impl Strategy<Value = NodeId> {
    (1..=NODES + 1).prop_map(NodeId)
}

fn service() -> impl Strategy<Value = ServiceName> {
    select(&SERVICES[..]).prop_map(name)
}

fn replica() -> impl Strategy<Value = ReplicaId> {
    (1..12_u64).prop_map(ReplicaId)
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::*;
    select(vec![
        Assigned, Pulling, Starting, Running, Running, Stopping, Waiting, Completed, Failed, Gone, Gone, Gone,
    ])
}

fn write() -> impl Strategy<Value = Write> {
    let availability = select(vec![
        Availability::Active,
        Availability::Active,
        Availability::Draining,
        Availability::Leaving,
    ]);
    prop_oneof![
        24 => (specs(), node()).prop_map(|(spec, origin)| Write::Submit { spec: Arc::new(spec), origin }),
        12 => (service(), 1..6_u32).prop_map(|(service, replicas)| Write::Scale { service, replicas }),
        3 => service().prop_map(|service| Write::Stop { service, timeout_s: None }),
        6 => service().prop_map(|service| Write::Start { service }),
        2 => service().prop_map(|service| Write::Remove { service }),
        4 => replica().prop_map(|replica| Write::StopReplica { replica, timeout_s: None }),
        3 => replica().prop_map(|replica| Write::Replace { replica }),
        4 => (node(), availability)
            .prop_map(|(node, availability)| Write::SetAvailability { node, availability }),
        1 => node().prop_map(|node| Write::StopNode { node }),
        1 => (node(), any::<bool>()).prop_map(|(node, force)| Write::RemoveNode { node, force }),
        1 => (0..3_u8).prop_map(|n| Write::AddToken { id: TokenId([n; 8]), token: join_token() }),
        1 => (0..3_u8).prop_map(|n| Write::RemoveToken { id: TokenId([n; 8]) }),
    ]
}

fn plan_step() -> impl Strategy<Value = PlanStep> {
    let desired = select(vec![Desired::Run, Desired::Retire, Desired::Stop]);
    prop_oneof![
        (service(), 0..5_u32, 1..4_u64, node(), proptest::option::of(replica())).prop_map(
            |(service, slot, version, node, after)| PlanStep::Place { service, slot, version, node, after }
        ),
        (replica(), desired).prop_map(|(replica, desired)| PlanStep::SetDesired { replica, desired }),
        (replica(), any::<bool>()).prop_map(|(replica, lost)| PlanStep::SetLost { replica, lost }),
        replica().prop_map(|replica| PlanStep::Forget { replica }),
        (service(), 0..5_u32, 0..3_u32).prop_map(|(service, slot, failures)| PlanStep::Backoff {
            service,
            slot,
            failures,
            not_before: START
        }),
        (service(), 0..5_u32, proptest::option::of(select(vec!["full", "down"]))).prop_map(
            |(service, slot, reason)| PlanStep::Pending { service, slot, reason: reason.map(str::to_owned) }
        ),
        service().prop_map(|service| PlanStep::ForgetService { service }),
        node().prop_map(|node| PlanStep::AddVolumeCopy { volume: data(), node }),
        node().prop_map(|node| PlanStep::PromoteVolume { volume: data(), node }),
    ]
}

fn data() -> VolumeName {
    "data".parse().expect("a name")
}

/// What a node may tell of a volume, true or not.
fn volumes_told() -> impl Strategy<Value = Command> {
    let version = (0..4_u64, 0..4_u64, 0..3_u8);
    (node(), 0..4_u64, proptest::option::of(version), 1..3_u64).prop_map(|(node, epoch, version, id)| {
        let version = version.map(|(epoch, seq, root)| {
            let (id, root) = (VersionId { epoch, seq }, VolumeRoot([root; 32]));
            VolumeVersion { id, root, files: 1, bytes: 1, at: START }
        });
        let copy = VolumeCopy { version, trouble: None };
        Command::Volumes { node, statuses: BTreeMap::from([(VolumeId(id), VolumeStatus { epoch, copy })]) }
    })
}

fn node_facts() -> impl Strategy<Value = NodeFacts> {
    let reserved = proptest::collection::vec(select(vec![22, 443]), 0..2);
    (select(vec![500, 4_000, 8_000]), reserved, 1..3_u16).prop_map(|(cpu_millis, reserved_ports, level)| {
        NodeFacts { cpu_millis, reserved_ports, level, ..facts("box") }
    })
}

fn command() -> impl Strategy<Value = Command> {
    let health =
        select(vec![NodeStatus::Up, NodeStatus::Up, NodeStatus::Up, NodeStatus::Unknown, NodeStatus::Down]);
    let ages = select(vec![0, 0, 0, 0, 1, 5_000, 300_000, 700_000]);
    prop_oneof![
        1 => Just(bootstrap()),
        3 => (proptest::option::of(0..=NODES + 1), 1..7_u8).prop_map(|(node, key)| join(node, key)),
        1 => (node(), node_facts()).prop_map(|(node, facts)| Command::Facts { node, facts }),
        1 => node().prop_map(|node| Command::Addresses { node, addresses: Vec::new() }),
        3 => (node(), health).prop_map(|(node, status)| Command::Health { node, status }),
        1 => (node(), proptest::option::of(Just(START))).prop_map(|(node, until)| Command::Hold { node, until }),
        9 => (0..200_u8, ages, write()).prop_map(|(n, age, write)| {
            Command::Write { request: RequestId([n; 16]), made_at: UtcMs(age), write, by: None }
        }),
        2 => (node(), proptest::collection::btree_map(replica(), (0..3_u32, phase()), 0..4)).prop_map(
            |(node, told)| {
                let statuses: BTreeMap<_, _> =
                    told.into_iter().map(|(id, (attempt, phase))| (id, status(attempt, phase))).collect();
                Command::Report { node, statuses }
            }
        ),
        4 => proptest::collection::vec(plan_step(), 0..5).prop_map(|steps| Command::Plan(Plan { steps })),
        1 => (0..=LEVEL).prop_map(|level| Command::Level { level }),
        3 => volumes_told(),
    ]
}

/// Steps and the leader's clock at each, which mostly goes on and at times goes back.
fn history() -> impl Strategy<Value = Vec<(UtcMs, Step)>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(command(), 0..4).prop_map(Step::Commands),
        4 => (0..NODES).prop_map(Step::Fill),
        3 => (1..=NODES, phase(), any::<bool>())
            .prop_map(|(node, phase, again)| Step::Advance { node, phase, again }),
        4 => (1..=NODES, select(vec![true, false, false])).prop_map(|(node, lost)| Step::Lost { node, lost }),
        2 => Just(Step::Forget),
        1 => Just(Step::Blank),
    ];
    proptest::collection::vec((0..100_000_u64, step), 1..60).prop_map(|steps| {
        let at = |n: u64, jitter: u64| UtcMs(START.0 + n * 20_000 + jitter);
        (0..).zip(steps).map(|(n, (jitter, step))| (at(n, jitter), step)).collect()
    })
}

fn start() -> ClusterState {
    let mut state = ClusterState::new();
    let members = [bootstrap(), join(None, 2), join(None, 3), join(None, 4)];
    state.apply(1, &Entry::new(START, members.to_vec()));
    state
}

fn advance(state: &mut ClusterState, entry: Option<&Entry>) {
    let index = state.applied + 1;
    match entry {
        Some(entry) => drop(state.apply(index, entry)),
        None => state.apply_blank(index),
    }
}

proptest! {
    /// The second state is rebuilt from its snapshot, and each entry from its encoding, before
    /// every step: members that restart at any point agree with those that never do.
    #[test]
    fn any_history_keeps_the_state_consistent_and_equal_everywhere(history in history()) {
        let (mut state, mut restarted) = (start(), start());
        for (at, step) in history {
            let entry = step.entry(&state, at);
            let before = state.clone();
            advance(&mut state, entry.as_ref());
            invariants::check(&state)?;
            invariants::check_step(&before, &state)?;

            restarted = decode_state(&encode_state(&restarted))?;
            let decoded = entry.as_ref().map(|entry| decode_entry(&encode_entry(entry))).transpose()?;
            advance(&mut restarted, decoded.as_ref());
            prop_assert_eq!(digest(&restarted), digest(&state));
            prop_assert_eq!(&restarted, &state);
        }
    }
}

#[test]
fn histories_reach_what_they_are_to_test() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut kinds = std::collections::BTreeSet::new();
    let (mut final_phases, mut followed) = (0, 0);
    for _ in 0..100 {
        let history = history().new_tree(&mut runner).expect("a history").current();
        let mut state = start();
        for (at, step) in history {
            let entry = step.entry(&state, at);
            advance(&mut state, entry.as_ref());
            kinds.extend(state.events.iter().map(|event| event.kind));
            final_phases += state.replicas.values().filter(|row| row.status.phase.is_final()).count();
            followed += state.replicas.values().filter(|row| row.after.is_some()).count();
        }
    }
    assert_eq!(kinds.len(), 12, "{kinds:?}");
    assert!(final_phases > 0 && followed > 0);
}

//! Whatever happens to a cluster, a plan holds, leaves nothing to do, and the incremental planner
//! agrees with the full one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Planner, plan};
use super::world::*;
use crate::cluster::{
    Availability, ClusterState, Command, Desired, NodeStatus, Outcome, Phase, Plan, PlanStep, Replica,
    ReplicaStatus, Write,
};
use crate::id::{NodeId, ReplicaId};
use crate::spec::{NetworkMode, ReplicaBounds, ServiceSpec};
use crate::time::UtcMs;

const NODES: u64 = 4;
const SERVICES: [&str; 4] = ["app", "db", "job", "web"];

/// Something that happens to the cluster.
#[derive(Debug, Clone)]
enum Happening {
    Submit { service: usize, shape: u8, max: u32, memory: u64, depends: Option<usize>, origin: u64 },
    Scale { service: usize, replicas: u32 },
    Stop(usize),
    Start(usize),
    Remove(usize),
    Status(u64, NodeStatus),
    Availability(u64, Availability),
    Hold(u64, u64),
    Report { nth: usize, phase: Phase, healthy: Option<bool> },
    AgentsAct,
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let service = || 0..SERVICES.len();
    let node = || 1..=NODES;
    let status = prop_oneof![Just(NodeStatus::Up), Just(NodeStatus::Unknown), Just(NodeStatus::Down)];
    let availability =
        prop_oneof![Just(Availability::Active), Just(Availability::Draining), Just(Availability::Leaving)];
    let phase = prop_oneof![
        Just(Phase::Pulling),
        Just(Phase::Starting),
        Just(Phase::Running),
        Just(Phase::Waiting),
        Just(Phase::Completed),
        Just(Phase::Failed),
        Just(Phase::Gone),
    ];
    prop_oneof![
        4 => (service(), 0_u8..7, 1_u32..5, 0_u64..700, proptest::option::of(service()), node()).prop_map(
            |(service, shape, max, memory, depends, origin)| Happening::Submit {
                service, shape, max, memory, depends, origin
            }
        ),
        1 => (service(), 1_u32..5).prop_map(|(service, replicas)| Happening::Scale { service, replicas }),
        1 => service().prop_map(Happening::Stop),
        1 => service().prop_map(Happening::Start),
        1 => service().prop_map(Happening::Remove),
        4 => (node(), status).prop_map(|(node, status)| Happening::Status(node, status)),
        2 => (node(), availability).prop_map(|(node, set)| Happening::Availability(node, set)),
        1 => (node(), 0_u64..5_000).prop_map(|(node, millis)| Happening::Hold(node, millis)),
        6 => (0_usize..20, phase, any::<Option<bool>>())
            .prop_map(|(nth, phase, healthy)| Happening::Report { nth, phase, healthy }),
        3 => Just(Happening::AgentsAct),
        3 => (0_u64..20_000).prop_map(Happening::Pass),
    ]
}

fn shaped(service: usize, shape: u8, max: u32, mib: u64, depends: Option<usize>) -> ServiceSpec {
    spec(SERVICES[service], |spec| {
        spec.replicas = ReplicaBounds { min: 1, max };
        spec.reservations = memory(mib);
        spec.depends_on =
            depends.filter(|other| *other < service).map(|other| name(SERVICES[other])).into_iter().collect();
        match shape {
            1 => spec.volumes = volume(true),
            2 => spec.volumes = volume(false),
            3 => probe(spec),
            6 => spec.volumes = mounted("data"),
            4 => {
                spec.network = NetworkMode::Host;
                spec.ports = vec![crate::spec::PortSpec {
                    container_port: 8000 + u16::try_from(service).expect("few services"),
                    host_port: None,
                    protocol: Default::default(),
                    host_ip: None,
                    publish: Default::default(),
                }];
            }
            5 => {
                spec.ports = vec![crate::spec::PortSpec {
                    container_port: 80,
                    host_port: Some(8000 + u16::try_from(service).expect("few services")),
                    protocol: Default::default(),
                    host_ip: None,
                    publish: Default::default(),
                }];
            }
            _ => {}
        }
    })
}

fn happen(world: &mut World, happening: &Happening) {
    let write = |write: Write| Command::Write {
        request: crate::id::RequestId(u128::from(world.state.applied).to_be_bytes()),
        made_at: world.now,
        write,
        by: None,
    };
    let service = |index: &usize| name(SERVICES[*index]);
    let command = match happening {
        Happening::Submit { service, shape, max, memory, depends, origin } => write(Write::Submit {
            spec: shaped(*service, *shape, *max, *memory, *depends).into(),
            origin: NodeId(*origin),
        }),
        Happening::Scale { service: index, replicas } => {
            write(Write::Scale { service: service(index), replicas: *replicas })
        }
        Happening::Stop(index) => write(Write::Stop { service: service(index), timeout_s: None }),
        Happening::Start(index) => write(Write::Start { service: service(index) }),
        Happening::Remove(index) => write(Write::Remove { service: service(index) }),
        Happening::Status(node, status) => Command::Health { node: NodeId(*node), status: *status },
        Happening::Availability(node, availability) => {
            write(Write::SetAvailability { node: NodeId(*node), availability: *availability })
        }
        Happening::Hold(node, millis) => {
            Command::Hold { node: NodeId(*node), until: Some(UtcMs(world.now.0 + millis)) }
        }
        Happening::Report { nth, phase, healthy } => {
            let Some((id, row)) = world.state.replicas.iter().nth(*nth) else { return };
            let status = ReplicaStatus { phase: *phase, healthy: *healthy, ..row.status.clone() };
            Command::Report { node: row.node, statuses: BTreeMap::from([(*id, status)]) }
        }
        Happening::AgentsAct => {
            world.agents_act();
            return;
        }
        Happening::Pass(millis) => {
            world.advance(*millis);
            return;
        }
    };
    world.apply(command);
}

/// What a plan changes, without the wording of reasons.
fn deeds(plan: &Plan) -> Vec<&PlanStep> {
    plan.steps.iter().filter(|step| !matches!(step, PlanStep::Pending { .. })).collect()
}

/// Never more replicas count than the bounds allow, and one plan supersedes two running replicas of a
/// service at most: one to update it, and one to move it off a node, which waits for no update.
fn check_bounds(before: &ClusterState, plan: &Plan, after: &ClusterState) {
    let mut superseded = BTreeMap::new();
    for step in &plan.steps {
        if let PlanStep::SetDesired { replica, desired: Desired::Retire } = step {
            let row = &before.replicas[replica];
            let moved = before.nodes.get(&row.node).map(|node| node.availability != Availability::Active);
            *superseded.entry((row.service.clone(), moved)).or_insert(0) +=
                u32::from(row.lost_since.is_none());
        }
    }
    for (name, service) in &after.services {
        let counting = after.replicas_of(name).filter(|(_, row)| row.counts()).count();
        assert!(counting <= service.spec().replicas.max as usize, "{name} has {counting} replicas");
    }
    for (of, count) in superseded {
        assert!(count <= 1, "{count} of {of:?} by\n{}", show(plan, UtcMs(0)));
    }
}

/// What happens, one after another; a plan is applied unless it gets lost with its leader's entry.
fn run<'a>(happenings: impl IntoIterator<Item = (&'a Happening, bool)>) {
    let mut world = World::new(NODES);
    let mut planner = Planner::new(&world.state, world.now);
    for (happening, lost) in happenings {
        happen(&mut world, happening);
        let (full, report) = plan(&world.state, &planner_observations(&mut planner, &world), world.now);
        let (step_by_step, _) = planner.plan(&world.state, world.now);
        assert_eq!(deeds(&step_by_step), deeds(&full), "after {happening:?}: the planners differ");
        assert!(report.wake_at().is_none_or(|at| at > world.now), "{report:?} is due at {:?}", world.now);
        assert_eq!(planner.wake_at().is_some(), report.wake_at().is_some(), "after {happening:?}");
        world.observations = planner_observations(&mut planner, &world);
        if lost {
            continue;
        }
        let before = world.state.clone();
        let outcome = world.apply(Command::Plan(full.clone()));
        assert_eq!(outcome, Outcome::Planned { dropped: Vec::new() }, "of\n{}", show(&full, world.now));
        assert_eq!(show(&world.plan().0, world.now), "", "is planned after\n{}", show(&full, world.now));
        check_bounds(&before, &full, &world.state);
    }
}

fn applied(happening: &Happening) -> (&Happening, bool) {
    (happening, false)
}

/// What the incremental planner has observed once it has seen the world as it is.
fn planner_observations(planner: &mut Planner, world: &World) -> super::super::Observations {
    planner.look(&world.state, world.now).clone()
}

/// Found by the property below.
#[test]
fn room_that_a_new_version_gives_up_goes_to_who_waits_in_the_same_plan() {
    use Happening::{Availability as SetAvailability, Status, Submit};
    let submit = |service, shape, memory| Submit { service, shape, max: 1, memory, depends: None, origin: 1 };
    let happenings = [
        Status(2, NodeStatus::Unknown),
        submit(3, 0, 197),
        Status(3, NodeStatus::Unknown),
        SetAvailability(1, Availability::Draining),
        submit(1, 4, 556),
        submit(2, 0, 272),
        Status(1, NodeStatus::Up),
        submit(1, 3, 0),
    ];
    run(happenings.iter().map(applied));
}

/// Found by the property below: what is left behind on a node that is being emptied waits for room, too.
#[test]
fn room_that_a_successor_gives_up_goes_to_who_is_left_behind_in_the_same_plan() {
    let submit = |service, shape, memory| Happening::Submit {
        service,
        shape,
        max: 1,
        memory,
        depends: None,
        origin: 1,
    };
    let happenings = [
        submit(3, 3, 0),
        Happening::Submit { service: 2, shape: 1, max: 1, memory: 0, depends: None, origin: 2 },
        submit(0, 3, 398),
        Happening::Status(3, NodeStatus::Down),
        submit(1, 3, 465),
        submit(2, 0, 293),
        Happening::AgentsAct,
        submit(1, 0, 267),
        submit(3, 5, 360),
        Happening::Availability(1, Availability::Draining),
        Happening::Pass(10_000),
    ];
    run(happenings.iter().map(applied));
}

/// Found by the property below: a drain gives the newest version, which nothing has proven.
#[test]
fn replicas_leave_a_node_one_at_a_time_also_where_they_get_a_new_version() {
    run(&[
        Happening::Submit { service: 2, shape: 1, max: 4, memory: 0, depends: None, origin: 4 },
        Happening::AgentsAct,
        Happening::Scale { service: 2, replicas: 3 },
        Happening::Submit { service: 2, shape: 3, max: 3, memory: 0, depends: None, origin: 1 },
        Happening::Availability(4, Availability::Draining),
        Happening::AgentsAct,
    ]);
}

/// Found by the property below: what is left of a slot on a node that a replica is moved to.
#[test]
fn a_replica_is_moved_to_a_node_where_an_earlier_one_of_its_slot_still_stops() {
    let submit = Happening::Submit { service: 0, shape: 4, max: 1, memory: 0, depends: None, origin: 1 };
    let drain = Happening::Availability(2, Availability::Draining);
    let down = |node| Happening::Status(node, NodeStatus::Down);
    let up = Happening::Status(2, NodeStatus::Up);
    run([submit, down(1), Happening::Start(0), down(2), up, drain].iter().map(applied));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn plans_hold_and_leave_nothing_to_do(
        happenings in proptest::collection::vec((happening(), proptest::bool::weighted(0.2)), 1..60),
    ) {
        run(happenings.iter().map(|(happening, lost)| (happening, *lost)));
    }

    /// When nodes come back and everything runs that is told to, every slot that can be filled is.
    #[test]
    fn cluster_comes_to_rest_when_faults_end(happenings in proptest::collection::vec(happening(), 1..40)) {
        let mut world = World::new(NODES);
        for happening in &happenings {
            happen(&mut world, happening);
            world.settle();
        }
        for node in 1..=NODES {
            happen(&mut world, &Happening::Status(node, NodeStatus::Up));
            happen(&mut world, &Happening::Availability(node, Availability::Active));
        }
        for _ in 0..40 {
            world.advance(400_000).settle();
            world.agents_act();
        }
        world.settle();
        for (name, service) in &world.state.services {
            let rows: Vec<(ReplicaId, &Replica)> = world.state.replicas_of(name).collect();
            let held: Vec<u32> = rows.iter().filter(|(_, row)| row.counts()).map(|(_, row)| row.slot).collect();
            for slot in 0..service.wanted() {
                prop_assert!(held.contains(&slot) || service.pending.contains_key(&slot), "{name}/{slot}: {rows:?}");
            }
            prop_assert!(rows.iter().all(|(_, row)| row.desired != Desired::Stop), "{name}: {rows:?}");
        }
    }
}

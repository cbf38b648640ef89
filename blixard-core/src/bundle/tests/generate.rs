//! Specifications that a bundle can say, and texts that are nearly bundles.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::id::ServiceName;
use crate::spec::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\0]{0,20}",
        "[a-z]{1,8}",
        Just("no".to_owned()),
        Just("~".to_owned()),
        Just(" # x: y".to_owned())
    ]
}

fn name() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?".prop_map(|name| name.parse().unwrap())
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9 #:'\"é_-]{1,5}){1,3}"
}

prop_compose! {
    fn published()(entries in btree_map((1..=u16::MAX, any::<bool>()), 1..=u16::MAX, 0..4), bridge in any::<bool>())
        -> (Vec<PortSpec>, NetworkMode) {
        let network = if bridge { NetworkMode::Bridge } else { NetworkMode::Host };
        let ports = entries.into_iter().map(|((host, tcp), container)| PortSpec {
            container_port: if bridge { container } else { host },
            host_port: (!bridge || host % 3 > 0).then_some(host),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            host_ip: (bridge && host % 5 == 1 && host % 3 > 0).then_some([127, 0, 0, 1].into()),
        });
        (ports.collect(), network)
    }
}

prop_compose! {
    fn limited()(
        cpu_shares in option::of(2..=262_144u64),
        cpu_quota_us in option::of(1_000..i64::MAX),
        memory in option::of(6u64 << 20..1 << 45),
        swap in option::of(0..1u64 << 40),
        blkio_weight in option::of(10..=1_000u16),
        pids in option::of(prop_oneof![Just(-1), 1..i64::MAX]),
        cpu_millis in 0..100_000u64,
        reserved in 0..6u64 << 20,
    ) -> (ResourceLimits, Reservations) {
        let memory_swap_bytes = memory.and_then(|memory| {
            swap.map(|swap| if swap % 5 == 0 { -1 } else { i64::try_from(memory + swap).unwrap() })
        });
        let limits = ResourceLimits { cpu_shares, cpu_quota_us, memory_bytes: memory, memory_swap_bytes, blkio_weight, pids };
        (limits, Reservations { cpu_millis, memory_bytes: reserved })
    }
}

prop_compose! {
    fn placed()(
        constraints in vec(("[a-z0-9./_-]{1,8}", any::<bool>(), "[^\0\\s]{1,8}"), 0..3),
        spread in option::of("[a-z]{1,8}"),
    ) -> PlacementSpec {
        let constraints = constraints.into_iter().filter(|(label, ..)| !label.starts_with("node.")).map(|(label, equal, value)| {
            let operator = if equal { ConstraintOperator::Equal } else { ConstraintOperator::NotEqual };
            Constraint { label, operator, value }
        });
        PlacementSpec { constraints: constraints.collect(), spread }
    }
}

prop_compose! {
    fn restarted()(policy in 0..5usize, count in option::of(1..=u32::MAX)) -> RestartSpec {
        let policies =
            [RestartPolicy::Never, RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::UnlessStopped];
        match policies.get(policy) {
            Some(&policy) => RestartSpec { policy, maximum_retry_count: count },
            None => RestartSpec::default(),
        }
    }
}

prop_compose! {
    pub(super) fn specs()(
        name in name(),
        reference in "[a-z]{1,8}(:[a-z0-9]{1,3})?",
        command in option::of(("[^\0]{1,8}", vec(text(), 0..3))),
        workdir in option::of(path()),
        (ports, network) in published(),
        volumes in btree_map(path(), (path(), any::<bool>()), 0..3),
        environment in btree_map("[a-zA-Z_.-][a-zA-Z0-9_.-]{0,6}", text(), 0..4),
        health in option::of(("/[!-\"$-~]{0,8}", 100..=86_400_000u64, 1..=86_400_000u64, 1..=1_000u32)),
        (min, max) in (1..=1_000u32, 1..=1_000u32),
        (limits, reservations) in limited(),
        (restart, placement) in (restarted(), placed()),
        (depends_on, stop_timeout_s) in (btree_set(name(), 0..3), 1..=3_600u32),
        min_healthy in option::of(0..=3_600_000u64),
    ) -> ServiceSpec {
        let healthcheck = health
            .filter(|_| ports.iter().any(|port| port.protocol == Protocol::Tcp))
            .map(|(path, interval_ms, timeout_ms, retries)| HealthSpec { path, interval_ms, timeout_ms, retries });
        ServiceSpec {
            depends_on: depends_on.into_iter().filter(|other| *other != name).collect(),
            name,
            image: ImageSpec {
                reference,
                digest: None,
                command: command.map(|(first, rest)| [vec![first], rest].concat()),
                workdir,
            },
            ports,
            volumes: volumes
                .into_iter()
                .map(|(target, (source, read_only))| VolumeSpec { source, target, read_only })
                .collect(),
            environment,
            healthcheck,
            replicas: ReplicaBounds { min: min.min(max), max: min.max(max) },
            limits,
            reservations,
            restart,
            stop_timeout_s,
            placement,
            network,
            min_healthy_ms: min_healthy.filter(|ms| *ms != MIN_HEALTHY_MS),
        }
    }
}

/// Pieces that together are often nearly a bundle.
pub(super) fn fragments() -> impl Strategy<Value = String> {
    let pieces = [
        "image:",
        "docker_image: ",
        "nginx",
        "ports:",
        "  - ",
        "- ",
        "container_port: ",
        "80",
        "\n",
        "\n  ",
        "\n\t",
        ": ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!str ",
        "!x ",
        "| ",
        ">-\n",
        "---\n",
        "...\n",
        "? ",
        "<<: ",
        "#",
        "%YAML 1.2\n",
        "~",
        "environment: ",
        "A=b",
        "replicas: ",
        "min: ",
        "99",
        "é",
        "\r\n",
        "  ",
        "volumes:",
        "source: ",
        "\\",
        "@",
        "`",
        "healthcheck: ",
        "path: /",
        "1m30s",
    ];
    vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|pieces| pieces.concat())
}

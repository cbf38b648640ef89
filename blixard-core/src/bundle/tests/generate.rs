//! Specifications that a bundle can say, and texts that are nearly bundles.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::id::ServiceName;
use crate::security::{CAPABILITIES, SecuritySpec};
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
            publish: if bridge && host % 7 == 1 && host % 3 > 0 { Publish::Node } else { Publish::Cluster },
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
        let constraints = constraints.into_iter().filter(|(label, _, value)| !label.starts_with("node.") && !value.contains(crate::text::is_unseen)).map(|(label, equal, value)| {
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
        security in secured(),
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
                .map(|(target, (source, read_only))| MountSpec::host_path(source, target, read_only))
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
            security,
        }
    }
}

/// Texts that somebody with bad intentions would send.
fn nasty() -> impl Strategy<Value = String> {
    let texts = [
        "",
        "/",
        "//",
        "/a/..",
        "/a/../b",
        "/a/",
        "/./a",
        "..",
        "../a",
        "relative/../../etc",
        "~/a",
        "a\0b",
        "/a\0",
        "a\nb",
        "/a\nb",
        "\u{1b}[31m",
        "/\u{202e}gpj",
        "\u{2066}x",
        "\u{feff}",
        "\u{e0041}",
        "\u{85}",
        "\u{7f}",
        "\t",
        " ",
        " a ",
        "=",
        "A=B",
        "==",
        "a==b",
        "!=",
        "-",
        ".",
        "0",
        "-1",
        "null",
        "~",
        "no",
        "true",
        "*a",
        "&a",
        "!x",
        "%",
        "@",
        "`",
        "{",
        "[",
        "#",
        "'",
        "\"",
        "\\",
        "\\u0000",
        "\u{10ffff}",
        "\u{fffe}",
        "é",
        "漢字",
        "sha256:../../x",
        "https://x/y",
        "a:b:c",
        "Nginx",
    ];
    let long = [255usize, 256, 1_024, 1_025, 4_095, 4_096, 20_000];
    prop_oneof![
        6 => prop::sample::select(texts.to_vec()).prop_map(str::to_owned),
        1 => prop::sample::select(long.to_vec()).prop_map(|length| "x".repeat(length)),
        1 => prop::sample::select(long.to_vec()).prop_map(|length| format!("/{}", "x".repeat(length))),
        1 => any::<String>(),
        1 => text(),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 2, 9, 10, 99, 100, 1_000, 1_001, 3_600, 3_601, 5_000, 65_535, 262_145, u64::from(u32::MAX)];
    prop_oneof![
        prop::sample::select(edges.to_vec()),
        Just(i64::MAX as u64),
        Just(i64::MAX as u64 + 1),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

/// Changes one thing of a specification, whatever comes of it.
fn spoil(spec: &mut ServiceSpec, what: usize, text: String, number: u64) {
    let short = number as u16;
    let port = PortSpec {
        container_port: short,
        host_port: Some(short),
        protocol: Protocol::Tcp,
        host_ip: None,
        publish: Default::default(),
    };
    let volume = MountSpec::host_path("/a".to_owned(), "/b".to_owned(), false);
    let health = HealthSpec { path: "/".to_owned(), interval_ms: 1_000, timeout_ms: 1_000, retries: 3 };
    match what {
        0 => spec.image.reference = text,
        1 => spec.image.command = Some(vec![text]),
        2 => spec.image.command = Some(vec!["a".to_owned(), text, String::new()]),
        3 => spec.image.command = Some(Vec::new()),
        4 => spec.image.workdir = Some(text),
        5 => spec.ports.push(port),
        6 => spec.ports.push(PortSpec { host_port: None, ..port }),
        7 => spec.ports.push(PortSpec { host_ip: Some((number as u32).into()), ..port }),
        8 => spec.ports.extend([port.clone(), port]),
        9 => spec.volumes.push(MountSpec { source: text, ..volume }),
        10 => spec.volumes.push(MountSpec { target: text, ..volume }),
        11 => spec.volumes.extend([volume.clone(), volume]),
        12 => drop(spec.environment.insert(text, "x".to_owned())),
        13 => drop(spec.environment.insert("A".to_owned(), text)),
        14 => spec.healthcheck = Some(HealthSpec { path: text, ..health }),
        15 => spec.healthcheck = Some(HealthSpec { interval_ms: number, ..health }),
        16 => spec.healthcheck = Some(HealthSpec { timeout_ms: number, ..health }),
        17 => spec.healthcheck = Some(HealthSpec { retries: number as u32, ..health }),
        18 => spec.replicas.min = number as u32,
        19 => spec.replicas.max = number as u32,
        20 => spec.limits.cpu_shares = Some(number),
        21 => spec.limits.cpu_quota_us = Some(number as i64),
        22 => spec.limits.memory_bytes = Some(number),
        23 => spec.limits.memory_swap_bytes = Some(number as i64),
        24 => spec.limits.blkio_weight = Some(short),
        25 => spec.limits.pids = Some(number as i64),
        26 => spec.reservations.cpu_millis = number,
        27 => spec.reservations.memory_bytes = number,
        28 => spec.restart.maximum_retry_count = Some(number as u32),
        29 => spec.depends_on.push(spec.name.clone()),
        30 => spec.depends_on.extend(spec.depends_on.clone()),
        31 => spec.stop_timeout_s = number as u32,
        32 => spec.placement.spread = Some(text),
        33 | 34 => spec.placement.constraints.push(Constraint {
            label: if what == 33 { text.clone() } else { "zone".to_owned() },
            operator: if number.is_multiple_of(2) {
                ConstraintOperator::Equal
            } else {
                ConstraintOperator::NotEqual
            },
            value: if what == 34 { text } else { "a".to_owned() },
        }),
        35 => spec.min_healthy_ms = Some(number),
        36 => spec.network = NetworkMode::Host,
        37 => spec.environment = (0..number % 20_000).map(|n| (format!("A{n}"), String::new())).collect(),
        38 => drop(spec.environment.insert("A".to_owned(), text.repeat(200_000 / text.len().max(1)))),
        39 => spec.security.user = Some(text),
        40 => spec.security.cap_drop.push(text),
        41 => spec.security.cap_add.extend([text.to_ascii_uppercase(), text]),
        42 => spec.security.cap_add.extend(["CHOWN".to_owned(), "NET_RAW".to_owned()]),
        _ => spec.image.digest = Some(text),
    }
}

/// How many things [`spoil`] can change.
const SPOILS: usize = 44;

prop_compose! {
    /// Specifications as clients of the API may send them: good ones and bad.
    pub(super) fn sent()(spec in specs(), spoils in vec((0..SPOILS, nasty(), number()), 0..3)) -> ServiceSpec {
        let mut spec = spec;
        spoils.into_iter().for_each(|(what, text, number)| spoil(&mut spec, what, text, number));
        spec
    }
}

fn secured() -> impl Strategy<Value = SecuritySpec> {
    let names = || btree_set(proptest::sample::select(&CAPABILITIES[..]), 0..4);
    let names = || names().prop_map(|names| names.into_iter().map(str::to_owned).collect());
    let user = option::of("[a-z0-9_]{1,6}(:[a-z0-9_]{1,6})?");
    (any::<bool>(), any::<bool>(), user, names(), names()).prop_map(
        |(read_only, no_new_privileges, user, cap_drop, cap_add)| SecuritySpec {
            read_only,
            no_new_privileges,
            user,
            cap_drop,
            cap_add,
        },
    )
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

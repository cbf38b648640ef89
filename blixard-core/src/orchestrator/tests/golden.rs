//! Golden plans: situations as text, each with the cluster before, the plan and its reasons.
//!
//! A file of `testdata/plans` is a transcript. A line that begins with `> ` is told to the cluster;
//! what follows `> submit NAME` is a bundle, and what follows `> plan` is what the planner answers,
//! which is then applied. A rule that changes shows as a difference of these files:
//! `BLIXARD_WRITE_PLANS=1 cargo test -p blixard-core golden` writes them anew.
//!
//! The form is that of cockroach's data-driven tests and of omicron's planner tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use super::world::{World, name, show};
use crate::bundle::{self, Context};
use crate::cluster::{
    Availability, Command, Desired, Node, NodeStatus, Outcome, Phase, Plan, PlanStep, Replica, Write,
};
use crate::id::ReplicaId;
use crate::orchestrator::{Report, ServiceReport};
use crate::scheduler::NodeUsage;
use crate::spec::{ReplicaBounds, ServiceSpec};
use crate::time::UtcMs;

/// Lists longer than this are abridged to what they begin and end with.
const LIST_MAX: usize = 16;

/// So few situations are too few: files that are not found would test nothing.
const SITUATIONS_MIN: usize = 20;

#[test]
fn golden_plans_are_as_they_were() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plans");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .expect("the directory of plans")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= SITUATIONS_MIN, "{} situations", paths.len());
    let differing: Vec<String> = paths.iter().filter_map(|path| difference(path)).collect();
    assert!(differing.is_empty(), "{}\nBLIXARD_WRITE_PLANS=1 writes them anew", differing.join("\n"));
}

/// Where a file differs from what its situation gives now, unless it is to be written anew.
fn difference(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).expect("a plan");
    let made = replay(&text);
    if std::env::var_os("BLIXARD_WRITE_PLANS").is_some() {
        std::fs::write(path, made).expect("a plan is written");
        return None;
    }
    if made == text {
        return None;
    }
    let line = made.lines().zip(text.lines()).take_while(|(made, text)| made == text).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Some(format!("{file}:{}: it is\n  {}\nand was\n  {}", line + 1, at(&made), at(&text)))
}

/// A transcript, with the answers that its commands get.
fn replay(text: &str) -> String {
    let mut world = World::new(0);
    let mut made = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(made, "{line}").expect("a string");
        let Some(told) = line.strip_prefix("> ") else { continue };
        let mut below = String::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("> ") && !line.is_empty()) {
            writeln!(below, "{line}").expect("a string");
        }
        if told == "plan" {
            made += &planned(&mut world);
        } else {
            made += &below;
            tell(&mut world, told, &below);
        }
    }
    made
}

/// The cluster, what the planner makes of it, why, and the cluster after it.
fn planned(world: &mut World) -> String {
    let mut text = cluster(world);
    let (plan, report) = world.plan();
    let steps = Plan {
        steps: plan.steps.iter().filter(|step| !matches!(step, PlanStep::Pending { .. })).cloned().collect(),
    };
    writeln!(text, "plan:{}", if steps.steps.is_empty() { " nothing" } else { "" }).expect("a string");
    list(&mut text, show(&steps, world.now).lines().map(|line| format!("  {line}")).collect());
    let outcome = world.apply(Command::Plan(plan));
    assert_eq!(outcome, Outcome::Planned { dropped: Vec::new() });
    writeln!(text, "reasons:").expect("a string");
    text += &reasons(world, &report);
    assert_eq!(world.plan().0, Plan::default(), "a second plan changes more, after\n{text}");
    text
}

/// Nodes with what is free on them, and replicas.
fn cluster(world: &World) -> String {
    let mut text = String::from("cluster:\n");
    let usage = NodeUsage::of(&world.state);
    for (id, node) in &world.state.nodes {
        let used = usage.node(*id).map_or(0, |used| used.memory_bytes);
        let free = node.facts.memory_bytes.saturating_sub(used) >> 20;
        writeln!(text, "  node {id} {}: {}, {free} MiB free", node.facts.name, condition(node, world.now))
            .expect("a string");
        let rows = world.state.replicas_on(*id).map(|(id, replica)| format!("    {}", row(id, replica)));
        list(&mut text, rows.collect());
    }
    text
}

fn list(text: &mut String, mut lines: Vec<String>) {
    if lines.len() > LIST_MAX {
        let indent = lines[0].len() - lines[0].trim_start().len();
        let left_out = lines.len() - 3;
        lines.splice(2..lines.len() - 1, [format!("{:indent$}({left_out} more)", "")]);
    }
    lines.iter().for_each(|line| writeln!(text, "{line}").expect("a string"));
}

fn condition(node: &Node, now: UtcMs) -> String {
    let mut words = format!("{:?}", node.status);
    if node.availability != Availability::Active {
        write!(words, ", {:?}", node.availability).expect("a string");
    }
    if let Some(until) = node.hold_until {
        write!(words, ", away for {} s more", until.since(now).as_secs()).expect("a string");
    }
    words.to_lowercase()
}

fn row(id: ReplicaId, replica: &Replica) -> String {
    let Replica { service, slot, version, status, .. } = replica;
    let mut words = format!("replica {id} {service}/{slot} v{version}");
    if replica.desired != Desired::Run {
        write!(words, ", to {:?}", replica.desired).expect("a string");
    }
    write!(words, ", {:?}", status.phase).expect("a string");
    let facts = [
        (status.healthy == Some(false), "unhealthy"),
        (status.proven, "proven"),
        (status.left, "left as it ended"),
        (replica.lost_since.is_some(), "lost"),
    ];
    for (_, fact) in facts.iter().filter(|(holds, _)| *holds) {
        write!(words, ", {fact}").expect("a string");
    }
    words.to_lowercase()
}

/// Each service in a sentence, why its slots wait, and when it is looked at again.
fn reasons(world: &World, report: &Report) -> String {
    let mut text = String::new();
    for name in world.state.services.keys() {
        let Some(found) = ServiceReport::of(&world.state, name) else { continue };
        let sentence = ServiceReport { waits: BTreeMap::new(), ..found.clone() };
        writeln!(text, "  {name}: {sentence}").expect("a string");
        let waits = found.waits.iter().map(|(slot, reason)| format!("    slot {slot}: {reason}"));
        list(&mut text, waits.collect());
        if let Some(at) = report.wakes.get(name) {
            writeln!(text, "    again in {} ms", at.since(world.now).as_millis()).expect("a string");
        }
    }
    text
}

/// Does what a line says.
fn tell(world: &mut World, told: &str, below: &str) {
    let (verb, rest) = told.split_once(' ').unwrap_or((told, ""));
    let words: Vec<&str> = rest.split(' ').collect();
    let service = || name(words[0]);
    match verb {
        "nodes" => *world = World::new(number(rest)),
        "node" => {
            let now = world.now;
            node(world.node(number(words[0])), words[1], words.get(2).copied(), now);
        }
        "submit" => {
            let spec = read(words[0], below);
            let ReplicaBounds { min, max } = spec.replicas;
            assert!(min <= max, "a bundle's bounds are checked");
            world.submit(spec);
        }
        "scale" => drop(world.write(Write::Scale { service: service(), replicas: number(words[1]) })),
        "stop" => drop(world.write(Write::Stop { service: service(), timeout_s: None })),
        "start" => drop(world.write(Write::Start { service: service() })),
        "rm" => drop(world.write(Write::Remove { service: service() })),
        "rollback" => drop(world.write(Write::Rollback { service: service(), version: None })),
        "replace" => drop(world.write(Write::Replace { replica: ReplicaId(number(rest)) })),
        "replica" => replica(world, number(words[0]), words[1], &words[2..].join(" ")),
        "wait" => drop(world.advance(millis(rest))),
        "act" => drop(world.agents_act()),
        "converge" => drop(world.converge()),
        _ => panic!("`{verb}` is not known"),
    }
}

fn node(node: &mut Node, word: &str, value: Option<&str>, now: UtcMs) {
    let value = value.unwrap_or_default();
    match word {
        "up" => node.status = NodeStatus::Up,
        "unknown" => node.status = NodeStatus::Unknown,
        "down" => node.status = NodeStatus::Down,
        "active" => node.availability = Availability::Active,
        "draining" => node.availability = Availability::Draining,
        "leaving" => node.availability = Availability::Leaving,
        "away" => node.hold_until = Some(UtcMs(now.0 + millis(value))),
        "memory" => node.facts.memory_bytes = number::<u64>(value) << 20,
        "label" => {
            let (key, value) = value.split_once('=').expect("a label is KEY=VALUE");
            node.facts.labels.insert(key.to_owned(), value.to_owned());
        }
        _ => panic!("`{word}` is not known of a node"),
    }
}

fn replica(world: &mut World, id: u64, word: &str, rest: &str) {
    match word {
        "pulls" => drop(world.phase(id, Phase::Pulling)),
        "runs" => drop(world.begins(id)),
        "is-proven" => drop(world.phase(id, Phase::Running)),
        "waits" => drop(world.phase(id, Phase::Waiting)),
        "again" => drop(world.again(id)),
        "fails" => drop(world.fail(id, rest)),
        "ends" => drop(world.ends(id, number(rest))),
        "healthy" => world.replica(id).status.healthy = Some(true),
        "unhealthy" => world.replica(id).status.healthy = Some(false),
        "gone" => drop(world.phase(id, Phase::Gone)),
        _ => panic!("`{word}` is not known of a replica"),
    }
}

/// The service of a bundle; of its image only that there is one matters here.
fn read(service: &str, bundle: &str) -> ServiceSpec {
    let text = format!("version: '1.0'\nname: {service}\nimage: {{docker_image: image}}\n{bundle}");
    let none = |_: &str| Err("there are none".to_owned());
    let context = Context {
        file_name: service,
        name: None,
        default_name: None,
        base_dir: Some("/srv"),
        env_files: &none,
    };
    let parsed = bundle::parse(text.as_bytes(), &context);
    parsed.spec.unwrap_or_else(|| panic!("{text}{:?}", parsed.diagnostics))
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

fn millis(text: &str) -> u64 {
    let duration = bundle::parse_duration(text).unwrap_or_else(|_| panic!("`{text}` is no duration"));
    u64::try_from(duration.as_millis()).expect("a test's")
}

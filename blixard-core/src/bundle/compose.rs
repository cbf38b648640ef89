//! A Compose file given where a bundle is expected: it is told from a bundle, and each of its
//! services is written out as the bundle that comes nearest to it.
//!
//! A draft is a proposal for a person to read: what a bundle cannot say, and what means something
//! else in one, stands in it as a comment. Nothing is submitted from it.

mod deploy;
mod plain;
mod ports;
mod security;

use super::diagnostic::{Fault, shorten};
use super::print::scalar;
use super::service::valid_name;
use super::source::Place;
use super::tree::{Key, Node, Value};
use super::walk::Walk;

/// The most services of a Compose file that are written out.
const DRAFTS_MAX: usize = 20;
const NOTHING_LIKE_IT: &str = "a bundle has nothing like it";

/// One service of a Compose file, as a bundle would have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What the bundle's file is to be called.
    pub file: String,
    /// The bundle.
    pub text: String,
}

type Entries = [(Key, Node)];

/// Whether a document's keys are those of a Compose file or of a Kubernetes manifest. Then that is
/// the one error, and for the former the services are drafted.
pub(super) fn refuse(walk: &mut Walk<'_>, entries: &Entries) -> Option<Vec<Draft>> {
    if get(entries, "image").is_some() {
        return None;
    }
    if let (Some(_), Some(kind)) = (get(entries, "apiVersion"), get(entries, "kind")) {
        let kind = text(kind).map(|kind| format!(" (kind {})", shorten(kind))).unwrap_or_default();
        let fault = Fault::new(format!("this is a Kubernetes manifest{kind}, not a bundle"));
        let hint = "write one bundle for each container: `image: {docker_image: …}`, `ports`, `replicas`; see docs/reference/bundle.md";
        walk.error(entries[0].0.place, fault.hint(hint));
        return Some(Vec::new());
    }
    let (place, services) = services(entries)?;
    let names: Vec<String> = services.iter().map(|(key, _)| shorten(&key.text)).take(DRAFTS_MAX).collect();
    let fault = Fault::new(format!(
        "this is a Compose file, not a bundle: it holds {}",
        match services.len() {
            0 => "no services".to_owned(),
            1 => format!("1 service ({})", names.join("")),
            several => format!("{several} services ({})", names.join(", ")),
        }
    ));
    walk.error(place, fault.hint("a bundle is one service: write a .bun file for each, and run each"));
    Some(services.into_iter().take(DRAFTS_MAX).filter_map(|(key, node)| draft(&key.text, node)).collect())
}

/// The services of a Compose file: what its `services` hold, or all of one of the oldest form, which has
/// nothing else.
fn services(entries: &Entries) -> Option<(Place, Vec<(Key, Node)>)> {
    if let Some((key, node)) = entries.iter().find(|(key, _)| key.text == "services") {
        let Value::Mapping(services) = &node.value else { return None };
        return Some((key.place, plain::merged(services)));
    }
    let is_service = |node: &Node| match &node.value {
        Value::Mapping(inner) => ["image", "build"].iter().any(|key| get(inner, key).is_some()),
        _ => false,
    };
    let mut services = plain::merged(entries);
    services.retain(|(key, _)| !key.text.starts_with("x-"));
    let place = services.first()?.0.place;
    services.iter().all(|(_, node)| is_service(node)).then_some((place, services))
}

fn draft(name: &str, node: Node) -> Option<Draft> {
    let Value::Mapping(mut entries) = node.value else { return None };
    let file = format!("{}.bun", valid_name(name)?);
    let mut out = Out { text: String::new(), unsaid: Vec::new() };
    for (key, node) in &mut entries {
        let variable = plain::unescape(node).filter(|_| TAKEN.contains(&key.text.as_str()));
        if let Some(variable) = variable {
            let variable = shorten(&variable);
            out.unsaid(&key.text, &format!("`{variable}` is not replaced: put what it stands for there"));
        }
    }
    out.line("version: \"1.0\"");
    image(&mut out, &entries);
    ports::ports(&mut out, &entries);
    volumes(&mut out, &entries);
    environment(&mut out, &entries);
    deploy::replicas(&mut out, &entries);
    resources(&mut out, &entries);
    security::security(&mut out, &entries);
    deploy::restart(&mut out, &entries);
    depends_on(&mut out, &entries);
    deploy::placement(&mut out, &entries);
    if let Some(period) = get(&entries, "stop_grace_period").and_then(text) {
        match super::parse_duration(period) {
            Ok(period) => out.line(&format!("stop_timeout: {}", period.as_secs().clamp(1, 3600))),
            Err(_) => out.unsaid("stop_grace_period", "write stop_timeout in seconds"),
        }
    }
    match get(&entries, "network_mode").and_then(text) {
        Some("host") => out.line("network: host"),
        Some("bridge") | None => {}
        Some(_) => out.unsaid("network_mode", "bridge and host are the networks there are"),
    }
    leftovers(&mut out, &entries);
    Some(Draft { file, text: out.finish() })
}

/// The keys of which a draft says what a bundle can.
const TAKEN: [&str; 24] = [
    "image",
    "command",
    "entrypoint",
    "working_dir",
    "volumes",
    "environment",
    "env_file",
    "deploy",
    "scale",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "cpus",
    "cpu_shares",
    "pids_limit",
    "user",
    "read_only",
    "security_opt",
    "cap_drop",
    "cap_add",
    "restart",
    "depends_on",
    "stop_grace_period",
    "network_mode",
];

/// The keys that nothing else took up.
fn leftovers(out: &mut Out, entries: &Entries) {
    deploy::others(out, entries);
    for (key, _) in entries {
        let instead = match key.text.as_str() {
            "ports" => continue,
            "container_name" => "containers are called by their service: NAME-0, NAME-1 and so on",
            known if TAKEN.contains(&known) || known.starts_with("x-") => continue,
            "build" => "build the image elsewhere, then `blixard image import FILE.tar` or a registry",
            "healthcheck" => "write healthcheck: {path: /…}; it is an HTTP GET on the first TCP port",
            "expose" => "write ports: [{container_port: N}]",
            "platform" => "write placement: {constraints: [node.arch==amd64]}, or another node.arch",
            "cpu_quota" | "cpu_period" => "write resources: {cpu_quota: N}, microseconds for each 100 ms",
            "blkio_config" => "write resources: {blkio_weight: N}, from 10 to 1000",
            "extends" | "<<" => "write out here what it stands for",
            _ => NOTHING_LIKE_IT,
        };
        out.unsaid(&key.text, instead);
    }
}

fn image(out: &mut Out, entries: &Entries) {
    out.line("image:");
    match get(entries, "image").and_then(text) {
        Some(image) => out.line(&format!("  docker_image: {}", scalar(image))),
        None => out.line("  docker_image: registry/name:tag   # the image that was built"),
    }
    let words = |key| get(entries, key).map(words);
    match (words("entrypoint"), words("command")) {
        (Some(entrypoint), command) => {
            let all: Vec<String> = entrypoint.into_iter().chain(command.into_iter().flatten()).collect();
            out.line(&format!("  command: [{}]", all.join(", ")));
        }
        (None, Some(command)) => {
            out.line("  # Replaces the image's ENTRYPOINT too: write that before it, if it has one.");
            out.line(&format!("  command: [{}]", command.join(", ")));
        }
        (None, None) => {}
    }
    if let Some(directory) = get(entries, "working_dir").and_then(text) {
        out.line(&format!("  workdir: {}", scalar(directory)));
    }
}

/// A command's words, each as YAML.
fn words(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Text(line) => match super::command::split(line) {
            Ok((words, _)) => words.iter().map(|word| scalar(word)).collect(),
            Err(_) => vec![scalar(line)],
        },
        _ => texts(node).map(scalar).collect(),
    }
}

fn volumes(out: &mut Out, entries: &Entries) {
    let Some(node) = get(entries, "volumes") else { return };
    let Value::List(items) = &node.value else { return out.unsaid("volumes", "write a list") };
    let mut lines = Vec::new();
    for item in items {
        if let Some(kind) = other_kind(item) {
            out.unsaid("volumes", &format!("one of type `{}`: {NOTHING_LIKE_IT}", shorten(kind)));
            continue;
        }
        let (source, target, read_only) = match &item.value {
            Value::Text(text) => {
                let mut parts = text.split(':');
                let (first, second) = (parts.next().unwrap_or_default(), parts.next());
                match second {
                    Some(target) => (first, target, parts.any(|mode| mode.split(',').any(|m| m == "ro"))),
                    None => ("", first, false),
                }
            }
            Value::Mapping(entries) => (
                get(entries, "source").and_then(text).unwrap_or_default(),
                get(entries, "target").and_then(text).unwrap_or_default(),
                get(entries, "read_only").is_some_and(is_true),
            ),
            _ => continue,
        };
        let is_volume = source.parse::<crate::id::VolumeName>().is_ok();
        let is_path = source.starts_with(['/', '.']);
        if !(is_path || is_volume) || !target.starts_with('/') {
            let volume = if source.is_empty() { target } else { source };
            let why = match volume.chars().next() {
                Some('$') => "holds a variable, which is not replaced: write the path",
                Some('~') => "has no meaning on another machine: write the absolute path",
                _ => "has no name: write one, and the cluster keeps it as a volume",
            };
            out.unsaid("volumes", &format!("`{}` {why}", shorten(volume)));
            continue;
        }
        let mode = if read_only { ", mode: ro" } else { "" };
        lines.push(format!("  - {{source: {}, target: {}{mode}}}", scalar(source), scalar(target)));
    }
    out.section("volumes:", &lines);
}

/// What a mount is of that is neither a path of the host nor a volume.
fn other_kind(item: &Node) -> Option<&str> {
    let Value::Mapping(entries) = &item.value else { return None };
    get(entries, "type").and_then(text).filter(|kind| !matches!(*kind, "bind" | "volume"))
}

fn environment(out: &mut Out, entries: &Entries) {
    if let Some(node) = get(entries, "env_file") {
        match texts(node).next() {
            Some(file) => out.line(&format!("env_file: {}", scalar(file))),
            None => out.unsaid("env_file", "name one file"),
        }
        if texts(node).count() > 1 {
            out.unsaid("env_file", "one file is read: join the others to it");
        }
    }
    let Some(node) = get(entries, "environment") else { return };
    let pairs: Vec<(&str, Option<&str>)> = match &node.value {
        Value::Mapping(entries) => {
            entries.iter().map(|(key, node)| (key.text.as_str(), text(node))).collect()
        }
        _ => texts(node)
            .map(|line| line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value))))
            .collect(),
    };
    let mut lines = Vec::new();
    for (name, value) in pairs {
        match value {
            Some(value) => lines.push(format!("  {}: {}", scalar(name), scalar(value))),
            None => {
                let name = shorten(name);
                out.unsaid("environment", &format!("`{name}` has no value: none is taken from a shell"));
            }
        }
    }
    out.section("environment:", &lines);
}

fn resources(out: &mut Out, entries: &Entries) {
    let of = |kind| {
        section(entries, "deploy").and_then(|d| section(d, "resources")).and_then(|r| section(r, kind))
    };
    let deployed = |kind, key| of(kind).and_then(|set| get(set, key)).and_then(text);
    let old = |key| get(entries, key).and_then(text);
    let mut lines = Vec::new();
    let mut memory = |key: &str, amount: Option<&str>| match amount.map(bytes) {
        Some(Some(bytes)) => lines.push(format!("  {key}: {bytes}")),
        Some(None) => out.unsaid(key, "write the memory with a unit such as 512MiB"),
        None => {}
    };
    let limit = deployed("limits", "memory").or_else(|| old("mem_limit"));
    memory("memory_limit", limit);
    memory("memory_swap", old("memswap_limit").filter(|_| limit.is_some()));
    memory("memory", deployed("reservations", "memory").or_else(|| old("mem_reservation")));
    let cpus = |text: &str| text.parse::<f64>().ok().filter(|cpus| *cpus >= 0.01 && *cpus < 10_000.0);
    if let Some(cpus) = deployed("limits", "cpus").or_else(|| old("cpus")).and_then(cpus) {
        lines.push(format!("  cpu_quota: {:.0}", cpus * 100_000.0));
    }
    if let Some(cpus) = deployed("reservations", "cpus").and_then(cpus) {
        lines.push(format!("  cpu: {:.0}m", cpus * 1000.0));
    }
    let pids = deployed("limits", "pids").or_else(|| old("pids_limit"));
    for (key, count) in [("cpu_shares", old("cpu_shares")), ("pids_limit", pids)] {
        if let Some(count) = count.and_then(|text| text.parse::<i64>().ok()) {
            lines.push(format!("  {key}: {count}"));
        }
    }
    if limit.is_none() && old("memswap_limit").is_some() {
        out.unsaid("memswap_limit", "memory_swap needs a memory_limit beside it");
    }
    out.section("resources:", &lines);
}

/// An amount of memory as Compose reads it: `k`, `m` and `g` are powers of 1024.
fn bytes(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let amount: f64 = digits.parse().ok()?;
    let unit = match text[digits.len()..].trim_end_matches('b') {
        "" => return Some(format!("{amount:.0}")),
        "k" => "KiB",
        "m" => "MiB",
        "g" => "GiB",
        _ => return None,
    };
    Some(format!("{amount}{unit}"))
}

fn depends_on(out: &mut Out, entries: &Entries) {
    let Some(node) = get(entries, "depends_on") else { return };
    let names: Vec<&str> = match &node.value {
        Value::Mapping(entries) => {
            for (key, _) in entries {
                let said = section(entries, &key.text).unwrap_or_default();
                out.others(&format!("depends_on.{}", key.text), said, &[], |key| match key {
                    "condition" => {
                        "it must run, and be healthy where it has a healthcheck, or have ended with code 0"
                    }
                    _ => NOTHING_LIKE_IT,
                });
            }
            entries.iter().map(|(key, _)| key.text.as_str()).collect()
        }
        _ => texts(node).collect(),
    };
    let names: Vec<String> =
        names.into_iter().filter_map(valid_name).map(|name| scalar(name.as_str())).collect();
    out.line(&format!("depends_on: [{}]", names.join(", ")));
}

struct Out {
    text: String,
    /// What a bundle cannot say, and what to do instead.
    unsaid: Vec<String>,
}

impl Out {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn section(&mut self, heading: &str, lines: &[String]) {
        if !lines.is_empty() {
            self.line(heading);
            lines.iter().for_each(|line| self.line(line));
        }
    }

    fn unsaid(&mut self, key: &str, instead: &str) {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let line = format!("# not taken over: {}: {instead}", shorten(key));
        let line: String = line.chars().map(printable).collect();
        if !self.unsaid.contains(&line) {
            self.unsaid.push(line);
        }
    }

    /// Says of the keys of `path` that are not among `known` what to do instead.
    fn others(&mut self, path: &str, entries: &Entries, known: &[&str], instead: fn(&str) -> &'static str) {
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            self.unsaid(&format!("{path}.{}", key.text), instead(&key.text));
        }
    }

    fn finish(mut self) -> String {
        for line in std::mem::take(&mut self.unsaid) {
            self.line(&line);
        }
        self.text
    }
}

fn get<'n>(entries: &'n Entries, key: &str) -> Option<&'n Node> {
    let (_, node) = entries.iter().find(|(known, _)| known.text == key)?;
    (!matches!(node.value, Value::Null)).then_some(node)
}

fn section<'n>(entries: &'n Entries, key: &str) -> Option<&'n Entries> {
    match &get(entries, key)?.value {
        Value::Mapping(entries) => Some(entries),
        _ => None,
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn is_true(node: &Node) -> bool {
    let words = ["true", "yes", "y", "on"];
    text(node).is_some_and(|text| words.iter().any(|word| text.eq_ignore_ascii_case(word)))
}

/// A fault that a bundle's rule finds, as a comment says it.
fn said(fault: Fault) -> String {
    let hint = fault.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{}{hint}", fault.message)
}

/// The texts of a list, or the one text.
fn texts(node: &Node) -> impl Iterator<Item = &str> {
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    items.iter().filter_map(text)
}

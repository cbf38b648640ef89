//! The bundle as a whole, and the sections too small for a file of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use super::diagnostic::{Fault, shorten};
use super::near::near;
use super::number::{number, whole};
use super::source::{Place, Source};
use super::tree::{self, Value};
use super::walk::{Section, Walk};
use super::{
    Context, command, compose, duration, environment, placement, ports, resources, security, volumes,
};
use crate::id::ServiceName;
use crate::image_reference::{ImageReference, ReferenceError};
use crate::limits::{
    MIN_HEALTHY_TIME_MAX, PROBE_INTERVAL, PROBE_INTERVAL_MIN, PROBE_MAX, PROBE_RETRIES, PROBE_RETRIES_MAX,
    PROBE_TIMEOUT, REPLICAS_PER_SERVICE_MAX, STOP_TIMEOUT_S, STOP_TIMEOUT_S_MAX,
};
use crate::spec::{
    HealthSpec, ImageSpec, MIN_HEALTHY_MS, NetworkMode, PortSpec, Protocol, ReplicaBounds, RestartPolicy,
    RestartSpec, ServiceSpec,
};

const KEYS: [&str; 17] = [
    "version",
    "name",
    "image",
    "ports",
    "volumes",
    "environment",
    "env_file",
    "healthcheck",
    "replicas",
    "resources",
    "restart_policy",
    "depends_on",
    "stop_timeout",
    "placement",
    "network",
    "min_healthy_time",
    "security",
];
const SMALLEST: &str = "the smallest bundle is `version: \"1.0\"` and `image: {docker_image: nginx}`";
/// The longest path of a health check, in bytes.
const PROBE_PATH_BYTES_MAX: usize = 1_024;
/// The longest name of a service, in bytes.
const NAME_BYTES_MAX: usize = 63;
const NAME_RULE: &str = "1 to 63 lower-case letters, digits and hyphens, no hyphen first or last";

/// Reads the service; absent only when an error was reported.
pub(super) fn read(walk: &mut Walk<'_>, source: &Source<'_>, context: &Context<'_>) -> Option<ServiceSpec> {
    let root = tree::read(source, walk).filter(|node| !matches!(node.value, Value::Null));
    let Some(node) = root else {
        if !walk.failed() {
            walk.error(Place::line(1), Fault::new("the bundle is empty").hint(SMALLEST));
        }
        return None;
    };
    let Value::Mapping(entries) = &node.value else {
        let message = format!("a bundle is keys and values, not {}", node.kind());
        walk.error(node.place, Fault::new(message).hint(SMALLEST));
        return None;
    };
    if let Some(drafts) = compose::refuse(walk, entries) {
        walk.draft(drafts);
        return None;
    }
    let root = walk.fields("", node.place.start(), entries, &KEYS);
    version(walk, &root);
    let name = name(walk, &root, context);
    let network = walk.key(&root, "network", network).unwrap_or_default();
    let ports = ports::read(walk, &root, network);
    let (limits, reservations) = resources::read(walk, &root);
    let healthcheck = healthcheck(walk, &root, &ports);
    let image = image(walk, &root);
    let volumes = volumes::read(walk, &root, context.base_dir);
    let environment = environment::read(walk, &root, context.env_files);
    let replicas = replicas(walk, &root);
    let restart = restart(walk, &root);
    let depends_on = depends_on(walk, &root, name.as_ref());
    let stop_timeout_s = walk.key(&root, "stop_timeout", stop_timeout).unwrap_or(STOP_TIMEOUT_S);
    let placement = placement::read(walk, &root);
    let security = security::read(walk, &root);
    let min_healthy = walk.key(&root, "min_healthy_time", min_healthy);
    Some(ServiceSpec {
        name: name?,
        image: image?,
        ports,
        volumes,
        environment,
        healthcheck,
        replicas,
        limits,
        reservations,
        restart,
        depends_on,
        stop_timeout_s,
        placement,
        network,
        min_healthy_ms: min_healthy.and_then(unless_usual),
        security,
    })
}

fn version(walk: &mut Walk<'_>, root: &Section<'_>) {
    let known = |text: &str| {
        let fault = || Fault::new(format!("takes \"1.0\", not `{}`", shorten(text)));
        if matches!(text, "1.0" | "1") { Ok(()) } else { Err(fault()) }
    };
    if root.get("version").is_none() {
        let fault = Fault::new("`version` is missing and taken as \"1.0\"");
        walk.warn(root.place, fault.hint("write version: \"1.0\" so that the bundle keeps its meaning"));
    }
    walk.key(root, "version", known);
}

fn name(walk: &mut Walk<'_>, root: &Section<'_>, context: &Context<'_>) -> Option<ServiceName> {
    let written = root.get("name").map(|field| walk.value(&field, service_name));
    if let Some(name) = context.name {
        return Some(name.clone());
    }
    if let Some(name) = written {
        return name;
    }
    let made = context.default_name.and_then(valid_name);
    if made.is_none() {
        let message = match context.default_name {
            Some(file) => format!("`name` is missing, and none can be made of `{}`", shorten(file)),
            None => "`name` is missing".to_owned(),
        };
        walk.error(root.place, Fault::new(message).hint(format!("add name: {NAME_RULE}")));
    }
    if let (Some(made), Some(file)) = (&made, context.default_name)
        && made.as_str() != file
    {
        let how = if file.trim().len() > NAME_BYTES_MAX { "cut and changed" } else { "changed" };
        let message =
            format!("`name` is missing: the file's name, `{}`, is {how} to `{made}`", shorten(file));
        walk.warn(root.place, Fault::new(message).hint(format!("write name: {made}, or another")));
    }
    made
}

fn service_name(text: &str) -> Result<ServiceName, Fault> {
    ServiceName::try_from(text.to_owned()).map_err(|_| {
        let hint = match valid_name(text) {
            Some(name) => format!("{NAME_RULE}: `{name}` would do"),
            None => NAME_RULE.to_owned(),
        };
        Fault::new(format!("takes the name of a service, not `{}`", shorten(text))).hint(hint)
    })
}

/// The valid name most like `text`: in lower case, with a hyphen for what cannot stand in one.
pub(super) fn valid_name(text: &str) -> Option<ServiceName> {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.trim().chars().map(letter).collect();
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    let mut name = words.join("-");
    name.truncate(NAME_BYTES_MAX);
    ServiceName::try_from(name.trim_end_matches('-').to_owned()).ok()
}

fn image(walk: &mut Walk<'_>, root: &Section<'_>) -> Option<ImageSpec> {
    let example = "image: {docker_image: nginx}";
    let Some(field) = root.get("image") else {
        walk.error(root.place, Fault::new("`image` is missing").hint(format!("add {example}")));
        return None;
    };
    let section = walk.section(&field, &["docker_image", "command", "workdir"], example)?;
    let reference = walk.required(&section, "docker_image", reference);
    let command = image_command(walk, &section);
    let workdir = walk.key(&section, "workdir", volumes::container_path);
    Some(ImageSpec { reference: reference?, digest: None, command, workdir })
}

pub(super) fn reference(text: &str) -> Result<String, Fault> {
    let fault = |err: ReferenceError| {
        let hint = "for example nginx, nginx:1.27 or registry.lan:5000/app@sha256:…";
        Fault::new(format!("takes an image, not `{}`: {}", shorten(text), err.fault)).hint(hint)
    };
    text.parse::<ImageReference>().map(|_| text.to_owned()).map_err(fault)
}

fn image_command(walk: &mut Walk<'_>, image: &Section<'_>) -> Option<Vec<String>> {
    let field = image.get("command")?;
    if let Value::Text(_) = field.node.value {
        let (words, warning) = walk.value(&field, command::split)?;
        if let Some(warning) = warning {
            walk.warn(field.node.place, warning.of(&field.path));
        }
        return Some(words);
    }
    let mut words = Vec::new();
    let items = walk.list(&field, "[nginx, -g, \"daemon off;\"]");
    for item in &items {
        words.extend(walk.value(item, |text| Ok(text.to_owned())));
    }
    let empty = items.is_empty() && matches!(field.node.value, Value::List(_));
    if empty || items.len() == words.len() && words.first().is_some_and(String::is_empty) {
        walk.fail(&field, no_program());
    }
    Some(words)
}

pub(super) fn no_program() -> Fault {
    Fault::new("names no program").hint("leave it out to run the image's own command")
}

fn network(text: &str) -> Result<NetworkMode, Fault> {
    match text {
        "bridge" => Ok(NetworkMode::Bridge),
        "host" => Ok(NetworkMode::Host),
        other => Err(Fault::new(format!("takes bridge or host, not `{}`", shorten(other)))),
    }
}

fn healthcheck(walk: &mut Walk<'_>, root: &Section<'_>, ports: &[PortSpec]) -> Option<HealthSpec> {
    let field = root.get("healthcheck")?;
    let section = walk.section(&field, &["path", "interval", "timeout", "retries"], "{path: /health}")?;
    let path = walk.required(&section, "path", probe_path);
    let interval = walk.key(&section, "interval", probe_interval);
    let timeout = walk.key(&section, "timeout", probe_timeout);
    let retries = walk.key(&section, "retries", probe_retries);
    // A port that is there and faulty is told of already.
    if let Some(fault) = nothing_to_probe(ports)
        && root.get("ports").is_none_or(|_| !ports.is_empty())
    {
        walk.error(field.key, fault.of(&field.path));
    }
    Some(HealthSpec {
        path: path?,
        interval_ms: interval.unwrap_or(ms(PROBE_INTERVAL)),
        timeout_ms: timeout.unwrap_or(ms(PROBE_TIMEOUT)),
        retries: retries.unwrap_or(PROBE_RETRIES),
    })
}

/// The fault of a health check without a port to ask.
pub(super) fn nothing_to_probe(ports: &[PortSpec]) -> Option<Fault> {
    let hint = "add ports: [{container_port: 80}]; the first TCP port is asked";
    let none = ports.iter().all(|port| port.protocol != Protocol::Tcp);
    none.then(|| Fault::new("needs a TCP port to ask").hint(hint))
}

pub(super) fn probe_interval(text: &str) -> Result<u64, Fault> {
    duration::duration(ms(PROBE_INTERVAL_MIN), ms(PROBE_MAX))(text)
}

pub(super) fn probe_timeout(text: &str) -> Result<u64, Fault> {
    duration::duration(1, ms(PROBE_MAX))(text)
}

pub(super) fn probe_retries(text: &str) -> Result<u32, Fault> {
    number(1..=i64::from(PROBE_RETRIES_MAX))(text)
}

/// The default written out is the same as left out: no version of its own.
pub(super) fn unless_usual(min_healthy_ms: u64) -> Option<u64> {
    Some(min_healthy_ms).filter(|ms| *ms != MIN_HEALTHY_MS)
}

pub(super) fn min_healthy(text: &str) -> Result<u64, Fault> {
    duration::duration(0, ms(MIN_HEALTHY_TIME_MAX))(text)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn probe_path(text: &str) -> Result<String, Fault> {
    let fits = text.starts_with('/')
        && text.len() <= PROBE_PATH_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic());
    if fits && !text.contains('#') {
        return Ok(text.to_owned());
    }
    let fault = Fault::new(format!("takes the path of an HTTP request, not `{}`", shorten(text)));
    Err(fault.hint("it begins with `/` and has no blanks and no `#`, for example /health"))
}

fn replicas(walk: &mut Walk<'_>, root: &Section<'_>) -> ReplicaBounds {
    let Some(field) = root.get("replicas") else { return ReplicaBounds::default() };
    let Some(section) = walk.section(&field, &["min", "max"], "{min: 1, max: 3}") else {
        return ReplicaBounds::default();
    };
    let min = walk.key(&section, "min", replica_count);
    let max = walk.key(&section, "max", replica_count);
    if let (Some(min), Some(max), Some(field)) = (min, max, section.get("max"))
        && let Some(fault) = crossed(min, max)
    {
        walk.fail(&field, fault);
    }
    let min = min.unwrap_or(1);
    ReplicaBounds { min, max: max.unwrap_or(min) }
}

pub(super) fn replica_count(text: &str) -> Result<u32, Fault> {
    number(1..=i64::from(REPLICAS_PER_SERVICE_MAX))(text)
}

/// The fault of `max` when it is below `min`.
pub(super) fn crossed(min: u32, max: u32) -> Option<Fault> {
    (min > max).then(|| Fault::new(format!("is {max}, less than `replicas.min` with {min}")))
}

fn restart(walk: &mut Walk<'_>, root: &Section<'_>) -> RestartSpec {
    let Some(field) = root.get("restart_policy") else { return RestartSpec::default() };
    let keys = ["name", "maximum_retry_count"];
    let Some(section) = walk.section(&field, &keys, "{name: always}") else { return RestartSpec::default() };
    let policy = walk.required(&section, "name", restart_policy);
    let maximum_retry_count = walk.key(&section, "maximum_retry_count", retry_count).flatten();
    if let (Some(policy), Some(_), Some(field)) =
        (policy, maximum_retry_count, section.get("maximum_retry_count"))
        && policy != RestartPolicy::OnFailure
    {
        walk.warn(field.key, Fault::new("counts only with `name: on-failure`").of(&field.path));
    }
    RestartSpec { policy: policy.unwrap_or_default(), maximum_retry_count }
}

/// How often to start again; 0 is no bound.
pub(super) fn retry_count(text: &str) -> Result<Option<u32>, Fault> {
    Ok(Some(number(0..=i64::from(u32::MAX))(text)?).filter(|count| *count > 0))
}

fn restart_policy(text: &str) -> Result<RestartPolicy, Fault> {
    match text {
        // A tool that took `no` for a truth value writes it back as `false`.
        "no" | "No" | "NO" | "false" => Ok(RestartPolicy::Never),
        "always" => Ok(RestartPolicy::Always),
        "on-failure" => Ok(RestartPolicy::OnFailure),
        "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
        other => {
            let known = ["no", "always", "on-failure", "unless-stopped"];
            let fault = Fault::new(format!("takes {}, not `{}`", known.join(", "), shorten(other)));
            Err(match near(other, &known) {
                Some(meant) => fault.hint(format!("did you mean `{meant}`?")),
                None => fault,
            })
        }
    }
}

fn depends_on(walk: &mut Walk<'_>, root: &Section<'_>, name: Option<&ServiceName>) -> Vec<ServiceName> {
    let Some(field) = root.get("depends_on") else { return Vec::new() };
    let mut needed = Vec::new();
    let mut seen = BTreeSet::new();
    for item in walk.list(&field, "[postgres, redis]") {
        let Some(other) = walk.value(&item, service_name) else { continue };
        if Some(&other) == name {
            walk.fail(&item, waits_for_itself());
        } else if seen.insert(other.clone()) {
            needed.push(other);
        } else {
            walk.warn(item.node.place, named_again(&other).of(&item.path));
        }
    }
    needed
}

pub(super) fn waits_for_itself() -> Fault {
    Fault::new("is the service itself, which would wait for ever")
}

pub(super) fn named_again(other: &ServiceName) -> Fault {
    Fault::new(format!("names `{other}` again"))
}

pub(super) fn stop_timeout(text: &str) -> Result<u32, Fault> {
    let seconds = whole(text, 1..=i64::from(STOP_TIMEOUT_S_MAX))
        .map_err(|fault| fault.hint("in seconds, without a unit"))?;
    u32::try_from(seconds).map_err(|_| Fault::new("is too large"))
}

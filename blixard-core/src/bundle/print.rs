//! A specification as the text of a bundle.

use std::fmt::Write;

use super::duration;
use crate::spec::{NetworkMode, Publish, Reservations, ResourceLimits, RestartPolicy, ServiceSpec};
use crate::text::is_unseen;

/// Writes `spec` as a bundle, which reads back as the same specification. The digest that the image
/// stood for at submission is no part of a bundle and stands there as a comment.
pub fn to_bundle(spec: &ServiceSpec) -> String {
    let mut out = Printer { text: String::new() };
    out.line(0, "version: \"1.0\"");
    out.entry(0, "name", spec.name.as_str());
    image(&mut out, spec);
    ports(&mut out, spec);
    volumes(&mut out, spec);
    if !spec.environment.is_empty() {
        out.line(0, "environment:");
        for (name, value) in &spec.environment {
            out.line(1, &format!("{}: {}", scalar(name), scalar(value)));
        }
    }
    if let Some(health) = &spec.healthcheck {
        out.line(0, "healthcheck:");
        out.entry(1, "path", &health.path);
        out.line(1, &format!("interval: {}", duration::show(health.interval_ms)));
        out.line(1, &format!("timeout: {}", duration::show(health.timeout_ms)));
        out.number(1, "retries", health.retries);
    }
    out.line(0, "replicas:");
    out.number(1, "min", spec.replicas.min);
    out.number(1, "max", spec.replicas.max);
    resources(&mut out, &spec.limits, spec.reservations);
    if let Some(policy) = policy(spec.restart.policy) {
        out.line(0, "restart_policy:");
        out.entry(1, "name", policy);
        if let Some(count) = spec.restart.maximum_retry_count {
            out.number(1, "maximum_retry_count", count);
        }
    }
    if !spec.depends_on.is_empty() {
        out.line(0, "depends_on:");
        spec.depends_on.iter().for_each(|name| out.item(1, name.as_str()));
    }
    out.number(0, "stop_timeout", spec.stop_timeout_s);
    placement(&mut out, spec);
    let network = match spec.network {
        NetworkMode::Bridge => "bridge",
        NetworkMode::Host => "host",
    };
    out.entry(0, "network", network);
    out.line(0, &format!("min_healthy_time: {}", duration::show(spec.min_healthy_ms())));
    security(&mut out, spec);
    out.text
}

fn security(out: &mut Printer, spec: &ServiceSpec) {
    let security = &spec.security;
    if security.is_default() {
        return;
    }
    out.line(0, "security:");
    for (key, value) in [("read_only", security.read_only), ("no_new_privileges", security.no_new_privileges)]
    {
        if value {
            out.line(1, &format!("{key}: true"));
        }
    }
    if let Some(user) = &security.user {
        out.entry(1, "user", user);
    }
    for (key, names) in [("cap_drop", &security.cap_drop), ("cap_add", &security.cap_add)] {
        if !names.is_empty() {
            out.line(1, &format!("{key}:"));
            names.iter().for_each(|name| out.item(2, name));
        }
    }
}

fn image(out: &mut Printer, spec: &ServiceSpec) {
    out.line(0, "image:");
    out.entry(1, "docker_image", &spec.image.reference);
    if let Some(digest) = &spec.image.digest {
        let digest: String = digest.chars().filter(char::is_ascii_graphic).collect();
        out.line(1, &format!("# at submission: {digest}"));
    }
    if let Some(command) = &spec.image.command {
        out.line(1, "command:");
        command.iter().for_each(|word| out.item(2, word));
    }
    if let Some(workdir) = &spec.image.workdir {
        out.entry(1, "workdir", workdir);
    }
}

fn ports(out: &mut Printer, spec: &ServiceSpec) {
    if !spec.ports.is_empty() {
        out.line(0, "ports:");
    }
    for port in &spec.ports {
        out.line(1, &format!("- container_port: {}", port.container_port));
        if let Some(host_port) = port.host_port {
            out.number(2, "host_port", host_port);
        }
        if let Some(host_ip) = port.host_ip {
            out.entry(2, "host_ip", &host_ip.to_string());
        }
        out.entry(2, "protocol", &port.protocol.to_string());
        if port.publish != Publish::default() {
            out.entry(2, "publish", &port.publish.to_string());
        }
    }
}

fn volumes(out: &mut Printer, spec: &ServiceSpec) {
    if !spec.volumes.is_empty() {
        out.line(0, "volumes:");
    }
    for volume in &spec.volumes {
        out.line(1, &format!("- source: {}", scalar(&volume.source)));
        out.entry(2, "target", &volume.target);
        out.entry(2, "mode", if volume.read_only { "ro" } else { "rw" });
    }
}

fn resources(out: &mut Printer, limits: &ResourceLimits, reservations: Reservations) {
    let swap = limits.memory_swap_bytes.map(|swap| u64::try_from(swap).map_or("-1".to_owned(), memory));
    let cpu = Some(reservations.cpu_millis).filter(|millis| *millis > 0);
    let reserved = Some(reservations.memory_bytes).filter(|bytes| *bytes > 0);
    let entries = [
        ("cpu", cpu.map(show_cpu)),
        ("memory", reserved.map(memory)),
        ("cpu_shares", limits.cpu_shares.map(|shares| shares.to_string())),
        ("cpu_quota", limits.cpu_quota_us.map(|quota| quota.to_string())),
        ("memory_limit", limits.memory_bytes.map(memory)),
        ("memory_swap", swap),
        ("blkio_weight", limits.blkio_weight.map(|weight| weight.to_string())),
        ("pids_limit", limits.pids.map(|pids| pids.to_string())),
    ];
    let mut entries = entries.into_iter().filter_map(|(key, value)| Some((key, value?))).peekable();
    if entries.peek().is_some() {
        out.line(0, "resources:");
    }
    entries.for_each(|(key, value)| out.line(1, &format!("{key}: {value}")));
}

fn placement(out: &mut Printer, spec: &ServiceSpec) {
    let placement = &spec.placement;
    if placement.constraints.is_empty() && placement.spread.is_none() {
        return;
    }
    out.line(0, "placement:");
    if !placement.constraints.is_empty() {
        out.line(1, "constraints:");
        placement.constraints.iter().for_each(|constraint| out.item(2, &constraint.to_string()));
    }
    if let Some(spread) = &placement.spread {
        out.entry(1, "spread", spread);
    }
}

fn policy(policy: RestartPolicy) -> Option<&'static str> {
    match policy {
        RestartPolicy::Unsaid => None,
        RestartPolicy::Never => Some("no"),
        RestartPolicy::Always => Some("always"),
        RestartPolicy::OnFailure => Some("on-failure"),
        RestartPolicy::UnlessStopped => Some("unless-stopped"),
    }
}

/// Bytes in the largest unit that leaves a whole number.
fn memory(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

fn show_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1_000) { (millis / 1_000).to_string() } else { format!("{millis}m") }
}

struct Printer {
    text: String,
}

impl Printer {
    fn line(&mut self, depth: usize, line: &str) {
        self.text.push_str(&"  ".repeat(depth));
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn entry(&mut self, depth: usize, key: &str, value: &str) {
        self.line(depth, &format!("{key}: {}", scalar(value)));
    }

    fn number(&mut self, depth: usize, key: &str, value: impl Into<u64>) {
        self.line(depth, &format!("{key}: {}", value.into()));
    }

    fn item(&mut self, depth: usize, value: &str) {
        self.line(depth, &format!("- {}", scalar(value)));
    }
}

/// A text as YAML: bare where every reader takes it for the same text, else in double quotes.
pub(super) fn scalar(text: &str) -> String {
    const WORDS: [&str; 11] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"];
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-./@+=:!?~%".contains(c);
    if first
        && text.chars().all(bare)
        && !text.ends_with(':')
        && !WORDS.contains(&&*text.to_ascii_lowercase())
    {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // What YAML does not take as it is, or not the same everywhere.
            c if is_unseen(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                let code = u32::from(c);
                let _ = if code > 0xffff {
                    write!(quoted, "\\U{code:08X}")
                } else {
                    write!(quoted, "\\u{code:04X}")
                };
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

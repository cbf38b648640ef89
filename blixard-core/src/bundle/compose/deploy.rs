//! `deploy` of a Compose file's service, and what stands beside it for the same.

use super::super::diagnostic::shorten;
use super::super::placement::{self, check_label};
use super::super::print::scalar;
use super::super::service;
use super::super::tree::Value;
use super::{Entries, NOTHING_LIKE_IT, Out, get, said, section, text, texts};

pub(super) fn replicas(out: &mut Out, entries: &Entries) {
    let deployed = section(entries, "deploy").and_then(|deploy| get(deploy, "replicas"));
    let Some(count) = deployed.or_else(|| get(entries, "scale")).and_then(text) else { return };
    match service::replica_count(count) {
        Ok(count) => out.line(&format!("replicas: {{min: {count}}}")),
        Err(fault) => out.unsaid("replicas", &said(fault)),
    }
}

/// `deploy.restart_policy`, or without it `restart`.
pub(super) fn restart(out: &mut Out, entries: &Entries) {
    if let Some(policy) = section(entries, "deploy").and_then(|deploy| section(deploy, "restart_policy")) {
        return deployed_restart(out, policy);
    }
    let Some(policy) = get(entries, "restart").and_then(text) else { return };
    let (name, count) = policy.split_once(':').unwrap_or((policy, ""));
    match name {
        "no" | "false" | "always" | "unless-stopped" | "on-failure" => {
            let name = if name == "false" { "no" } else { name };
            let count =
                count.parse::<u32>().map(|n| format!(", maximum_retry_count: {n}")).unwrap_or_default();
            out.line(&format!("restart_policy: {{name: {name}{count}}}"));
        }
        _ => out.unsaid("restart", "write restart_policy: {name: always}"),
    }
}

fn deployed_restart(out: &mut Out, policy: &Entries) {
    let of = |key| get(policy, key).and_then(text);
    let name = match of("condition").unwrap_or("any") {
        "none" => "no",
        "on-failure" => "on-failure",
        "any" => "always",
        _ => return out.unsaid("deploy.restart_policy", "write restart_policy: {name: always}"),
    };
    let mut count = String::new();
    match of("max_attempts").map(service::retry_count) {
        Some(Ok(Some(attempts))) if name == "on-failure" => {
            count = format!(", maximum_retry_count: {attempts}");
        }
        Some(Ok(Some(_))) => {
            out.unsaid("deploy.restart_policy.max_attempts", "they are counted with on-failure alone");
        }
        Some(Err(fault)) => out.unsaid("deploy.restart_policy.max_attempts", &said(fault)),
        Some(Ok(None)) | None => {}
    }
    out.line(&format!("restart_policy: {{name: {name}{count}}}"));
    let known = ["condition", "max_attempts"];
    out.others("deploy.restart_policy", policy, &known, |key| match key {
        "delay" => "starts wait 1, 2, 4 s and so on up to 5 min",
        "window" => "a run of 10 s forgives the failures before it",
        _ => NOTHING_LIKE_IT,
    });
}

pub(super) fn placement(out: &mut Out, entries: &Entries) {
    let Some(set) = section(entries, "deploy").and_then(|deploy| section(deploy, "placement")) else {
        return;
    };
    let mut lines = Vec::new();
    let mut constraints = Vec::new();
    for written in get(set, "constraints").into_iter().flat_map(texts) {
        match constraint(written) {
            Ok(constraint) => constraints.push(scalar(&constraint)),
            Err(why) => {
                out.unsaid("deploy.placement.constraints", &format!("`{}`: {why}", shorten(written)));
            }
        }
    }
    if !constraints.is_empty() {
        lines.push(format!("  constraints: [{}]", constraints.join(", ")));
    }
    let mut spread = None;
    if let Some(Value::List(preferences)) = get(set, "preferences").map(|node| &node.value) {
        for preference in preferences {
            let Value::Mapping(preference) = &preference.value else { continue };
            let written = get(preference, "spread").and_then(text).unwrap_or_default();
            match (label(written), spread) {
                (Ok(label), None) => spread = Some(label),
                (Ok(_), Some(_)) => {
                    out.unsaid("deploy.placement.preferences", "replicas are spread over one label");
                }
                (Err(why), _) => {
                    out.unsaid("deploy.placement.preferences", &format!("`{}`: {why}", shorten(written)));
                }
            }
        }
    }
    lines.extend(spread.map(|label| format!("  spread: {}", scalar(label))));
    out.section("placement:", &lines);
    out.others("deploy.placement", set, &["constraints", "preferences"], |key| match key {
        "max_replicas_per_node" => "there is no such bound; replicas are spread over the nodes",
        _ => NOTHING_LIKE_IT,
    });
}

/// A constraint as a bundle has it.
fn constraint(written: &str) -> Result<String, String> {
    let (left, right) = written.split_at(written.find(['=', '!']).unwrap_or(written.len()));
    let mut constraint = placement::constraint(&format!("{}{right}", label(left)?)).map_err(said)?;
    if constraint.label == "node.arch" {
        constraint.value = match constraint.value.as_str() {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            _ => constraint.value,
        };
    }
    Ok(constraint.to_string())
}

/// What a bundle calls what Compose knows of a node.
fn label(written: &str) -> Result<&str, String> {
    let own = match written.trim() {
        "node.hostname" => return Ok("node.name"),
        "node.platform.os" => return Ok("node.os"),
        "node.platform.arch" => return Ok("node.arch"),
        other => other.strip_prefix("node.labels.").filter(|own| !own.starts_with("node.")),
    };
    let own =
        own.ok_or("write a label that `blixard node --label` gives, or node.name, node.arch, node.os")?;
    check_label(own).map(|()| own).map_err(said)
}

/// What nothing else took up.
pub(super) fn others(out: &mut Out, entries: &Entries) {
    let Some(deploy) = section(entries, "deploy") else { return };
    match get(deploy, "mode").and_then(text) {
        None | Some("replicated") => {}
        Some("global") => {
            out.unsaid("deploy.mode", "a replica on every node: write replicas: {min: N} for N nodes");
        }
        Some(_) => {
            out.unsaid("deploy.mode", "write restart_policy: {name: on-failure}: code 0 completes a service");
        }
    }
    let known = ["mode", "replicas", "resources", "restart_policy", "placement"];
    out.others("deploy", deploy, &known, |key| match key {
        "update_config" => {
            "an update replaces one replica after another; min_healthy_time says how long one must run"
        }
        _ => NOTHING_LIKE_IT,
    });
    let Some(resources) = section(deploy, "resources") else { return };
    out.others("deploy.resources", resources, &["limits", "reservations"], |_| NOTHING_LIKE_IT);
    for (kind, known) in [("limits", &["cpus", "memory", "pids"][..]), ("reservations", &["cpus", "memory"])]
    {
        let of_kind = section(resources, kind).unwrap_or_default();
        out.others(&format!("deploy.resources.{kind}"), of_kind, known, |_| NOTHING_LIKE_IT);
    }
}

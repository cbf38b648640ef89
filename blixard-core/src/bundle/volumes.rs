//! `volumes`: host paths and volumes of the cluster in the container.

use std::collections::BTreeMap;

use super::diagnostic::{Fault, shorten};
use super::walk::{Section, Walk};
use crate::id::VolumeName;
use crate::limits::PATH_BYTES_MAX;
use crate::spec::{MountKind, MountSpec};
use crate::text::is_unseen;

const EXAMPLE: &str = "[{source: /srv/web, target: /usr/share/nginx/html, mode: ro}]";

/// `base_dir` is the absolute directory that relative sources count from.
pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>, base_dir: Option<&str>) -> Vec<MountSpec> {
    let Some(field) = root.get("volumes") else { return Vec::new() };
    let mut volumes = Vec::new();
    let mut targets = Targets::default();
    for item in walk.list(&field, EXAMPLE) {
        let Some(section) = walk.section(&item, &["source", "target", "mode"], "{source: /a, target: /b}")
        else {
            continue;
        };
        let source = walk.required(&section, "source", |text| source(text, base_dir));
        let target = walk.required(&section, "target", target);
        let read_only = walk.key(&section, "mode", mode).unwrap_or(false);
        if let (Some(target), Some(field)) = (&target, section.get("target"))
            && let Err(fault) = targets.take(target, || format!("on line {}", field.node.place.line))
        {
            walk.fail(&field, fault);
        }
        if let (Some(source), Some(target)) = (source, target) {
            volumes.push(match source {
                Source::HostPath(path) => MountSpec::host_path(path, target, read_only),
                Source::Volume(name) => MountSpec::volume(name, target, read_only),
            });
        }
    }
    if volumes.iter().any(|mount| mount.kind == MountKind::HostPath) {
        let message = "`volumes`: a path is a plain bind: it pins the replicas to the node that the bundle is submitted on";
        let hint = "a bare name, `source: data`, is a volume that the cluster keeps and copies";
        walk.warn(field.key, Fault::new(message).hint(hint));
    }
    volumes
}

/// The targets of a specification's volumes, each with where it is said.
#[derive(Default)]
pub(super) struct Targets(BTreeMap<String, String>);

impl Targets {
    /// Refuses a target that another volume has.
    pub(super) fn take(&mut self, target: &str, said: impl FnOnce() -> String) -> Result<(), Fault> {
        match self.0.get(target) {
            Some(first) => Err(Fault::new(format!("is `{}`, as {first}", shorten(target)))),
            None => {
                self.0.insert(target.to_owned(), said());
                Ok(())
            }
        }
    }
}

fn mode(text: &str) -> Result<bool, Fault> {
    match text {
        "ro" => Ok(true),
        "rw" => Ok(false),
        other => Err(Fault::new(format!("takes ro or rw, not `{}`", shorten(other)))),
    }
}

/// What a mount is of, as a bundle says it.
pub(super) enum Source {
    HostPath(String),
    Volume(VolumeName),
}

/// A name without a `/` is a volume's; paths are absolute or begin with `./` or `../`.
fn source(text: &str, base_dir: Option<&str>) -> Result<Source, Fault> {
    if text.contains('/') || text.starts_with(['~', '.']) || text.is_empty() {
        return host_path(text, base_dir).map(Source::HostPath);
    }
    volume_name(text).map(Source::Volume)
}

pub(super) fn volume_name(text: &str) -> Result<VolumeName, Fault> {
    check_path(text)?;
    text.parse().map_err(|_| {
        Fault::new(format!("is `{}`, which is neither a path nor a volume's name", shorten(text)))
            .hint("name a volume by 1 to 63 letters, digits, `_`, `.` and hyphens, or write `./DIRECTORY`")
    })
}

pub(super) fn host_path(text: &str, base_dir: Option<&str>) -> Result<String, Fault> {
    check_path(text)?;
    if text.starts_with('~') {
        return Err(Fault::new(format!("is `{}`: `~` has no meaning on another machine", shorten(text)))
            .hint("write the absolute path"));
    }
    if text.starts_with('/') {
        return Ok(clean(text));
    }
    match base_dir {
        Some(base) => Ok(clean(&format!("{base}/{text}"))),
        None => Err(Fault::new(format!("is `{}`, and there is no directory it counts from", shorten(text)))
            .hint("write the absolute path, or give the bundle as a file")),
    }
}

pub(super) fn target(text: &str) -> Result<String, Fault> {
    match container_path(text)? {
        path if path == "/" => Err(Fault::new("cannot be `/`: that is the image's own tree")),
        path => Ok(path),
    }
}

/// An absolute path in the container.
pub(super) fn container_path(text: &str) -> Result<String, Fault> {
    check_path(text)?;
    if !text.starts_with('/') {
        return Err(Fault::new(format!("takes an absolute path in the container, not `{}`", shorten(text))));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(Fault::new(format!("takes a path without `..`, not `{}`", shorten(text))));
    }
    Ok(clean(text))
}

fn check_path(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        Err(Fault::new("is empty"))
    } else if text.contains(char::is_control) {
        Err(Fault::new("holds a control character"))
    } else if text.contains(is_unseen) {
        Err(Fault::new("holds a character that is not seen"))
    } else if text.len() > PATH_BYTES_MAX {
        Err(Fault::new(format!("is longer than {PATH_BYTES_MAX} bytes, which no path is")))
    } else {
        Ok(())
    }
}

/// The absolute `path` without `.`, `..` and empty parts, as text: links are not followed.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

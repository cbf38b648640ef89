//! `volumes`: host paths bound into the container.

use std::collections::BTreeMap;

use super::diagnostic::{Fault, shorten};
use super::walk::{Section, Walk};
use crate::limits::PATH_BYTES_MAX;
use crate::spec::MountSpec;
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
        let source = walk.required(&section, "source", |text| host_path(text, base_dir));
        let target = walk.required(&section, "target", target);
        let read_only = walk.key(&section, "mode", mode).unwrap_or(false);
        if let (Some(target), Some(field)) = (&target, section.get("target"))
            && let Err(fault) = targets.take(target, || format!("on line {}", field.node.place.line))
        {
            walk.fail(&field, fault);
        }
        if let (Some(source), Some(target)) = (source, target) {
            volumes.push(MountSpec { source, target, read_only, checked: false });
        }
    }
    if !volumes.is_empty() {
        let message = "`volumes`: a volume is a plain host bind for now: it pins the replicas to the node the bundle is submitted on";
        walk.warn(field.key, Fault::new(message));
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

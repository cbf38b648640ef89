//! `security`: what the processes of a container may do.

use super::diagnostic::{Fault, shorten};
use super::near::near;
use super::walk::{Section, Walk};
use crate::security::{ALL_CAPABILITIES, CAPABILITIES, SecuritySpec, capability, check_user};

const KEYS: [&str; 5] = ["read_only", "no_new_privileges", "user", "cap_drop", "cap_add"];

pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>) -> SecuritySpec {
    let Some(field) = root.get("security") else { return SecuritySpec::default() };
    let Some(section) = walk.section(&field, &KEYS, "{no_new_privileges: true, cap_drop: [ALL]}") else {
        return SecuritySpec::default();
    };
    SecuritySpec {
        read_only: walk.key(&section, "read_only", truth).unwrap_or(false),
        no_new_privileges: walk.key(&section, "no_new_privileges", truth).unwrap_or(false),
        user: walk.key(&section, "user", user),
        cap_drop: capabilities(walk, &section, "cap_drop", true),
        cap_add: capabilities(walk, &section, "cap_add", false),
    }
}

fn truth(text: &str) -> Result<bool, Fault> {
    match text {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        other => Err(Fault::new(format!("takes true or false, not `{}`", shorten(other)))),
    }
}

/// The rule for a user.
///
/// # Errors
/// Why it is none.
pub(super) fn user(text: &str) -> Result<String, Fault> {
    match check_user(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(why) => Err(Fault::new(why).hint("for example 1000, www-data or 1000:1000")),
    }
}

/// The rule for a capability; `all` is whether it may be all of them.
///
/// # Errors
/// Why it is none.
pub(super) fn name(text: &str, all: bool) -> Result<String, Fault> {
    if all && text.eq_ignore_ascii_case(ALL_CAPABILITIES) {
        return Ok(ALL_CAPABILITIES.to_owned());
    }
    capability(text).ok_or_else(|| {
        let fault = Fault::new(format!("takes capabilities, not `{}`", shorten(text)));
        let name = text.to_ascii_uppercase();
        match near(name.strip_prefix("CAP_").unwrap_or(&name), &CAPABILITIES) {
            Some(meant) => fault.hint(format!("did you mean `{meant}`?")),
            None => fault.hint("capabilities(7) lists them; for example NET_RAW"),
        }
    })
}

/// The names of a list, each once.
fn capabilities(walk: &mut Walk<'_>, section: &Section<'_>, key: &str, all: bool) -> Vec<String> {
    let Some(field) = section.get(key) else { return Vec::new() };
    let mut names: Vec<String> = Vec::new();
    for item in walk.list(&field, "[NET_RAW]") {
        let found = walk.value(&item, |text| name(text, all));
        names.extend(found.filter(|found| !names.contains(found)));
    }
    names
}

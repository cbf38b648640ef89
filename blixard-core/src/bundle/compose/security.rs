//! What the processes of a Compose file's service may do.

use super::super::diagnostic::shorten;
use super::super::print::scalar;
use super::super::security::{name, user};
use super::{Entries, NOTHING_LIKE_IT, Out, get, is_true, said, text, texts};

pub(super) fn security(out: &mut Out, entries: &Entries) {
    let mut lines = Vec::new();
    if get(entries, "read_only").is_some_and(is_true) {
        lines.push("  read_only: true".to_owned());
    }
    let mut no_new_privileges = false;
    for option in get(entries, "security_opt").into_iter().flat_map(texts) {
        match option.split_once([':', '=']).unwrap_or((option, "true")) {
            ("no-new-privileges", value) => no_new_privileges |= value == "true",
            _ => out.unsaid("security_opt", &format!("`{}`: {NOTHING_LIKE_IT}", shorten(option))),
        }
    }
    if no_new_privileges {
        lines.push("  no_new_privileges: true".to_owned());
    }
    match get(entries, "user").and_then(text).map(user) {
        Some(Ok(user)) => lines.push(format!("  user: {}", scalar(&user))),
        Some(Err(fault)) => out.unsaid("user", &said(fault)),
        None => {}
    }
    for (key, all) in [("cap_drop", true), ("cap_add", false)] {
        let mut names = Vec::new();
        for written in get(entries, key).into_iter().flat_map(texts) {
            match name(written, all) {
                Ok(name) => names.push(name),
                Err(fault) => out.unsaid(key, &said(fault)),
            }
        }
        if !names.is_empty() {
            lines.push(format!("  {key}: [{}]", names.join(", ")));
        }
    }
    out.section("security:", &lines);
}

//! `placement`: which nodes may run a replica.

use super::diagnostic::{Fault, shorten};
use super::walk::{Section, Walk};
use crate::spec::{Constraint, ConstraintOperator, PlacementSpec};
use crate::text::is_unseen;

/// The labels that every node has by itself.
const BUILT_IN: [&str; 4] = ["node.id", "node.name", "node.arch", "node.os"];
/// The longest label key or value, in bytes, as for the labels of nodes.
const LABEL_BYTES_MAX: usize = 128;

pub(super) fn read(walk: &mut Walk<'_>, root: &Section<'_>) -> PlacementSpec {
    let mut placement = PlacementSpec::default();
    let Some(field) = root.get("placement") else { return placement };
    let example = "{constraints: [\"disk==ssd\"], spread: zone}";
    let Some(section) = walk.section(&field, &["constraints", "spread"], example) else { return placement };
    if let Some(field) = section.get("constraints") {
        for item in walk.list(&field, "[\"disk==ssd\", \"zone!=a\"]") {
            placement.constraints.extend(walk.value(&item, constraint));
        }
    }
    placement.spread = walk.key(&section, "spread", |text| check_label(text).map(|()| text.to_owned()));
    placement
}

pub(super) fn constraint(text: &str) -> Result<Constraint, Fault> {
    let (operator, at) = match (text.find("=="), text.find("!=")) {
        (Some(equal), Some(differs)) if differs < equal => (ConstraintOperator::NotEqual, differs),
        (Some(equal), _) => (ConstraintOperator::Equal, equal),
        (None, Some(differs)) => (ConstraintOperator::NotEqual, differs),
        (None, None) => {
            let fault =
                Fault::new(format!("takes a label, `==` or `!=`, and a value, not `{}`", shorten(text)));
            let meant = text.split_once('=').map(|(label, value)| (label.trim(), value.trim()));
            return Err(match meant.filter(|(label, _)| check_label(label).is_ok()) {
                Some((label, value)) => fault.hint(format!("write {label}=={}", shorten(value))),
                None => fault.hint("for example disk==ssd, zone!=a or node.name==box1"),
            });
        }
    };
    let (label, value) = (text[..at].trim(), text[at + 2..].trim());
    check_label(label)?;
    if value.is_empty() || value.len() > LABEL_BYTES_MAX {
        let message =
            format!("compares `{label}` with a value that is empty or longer than {LABEL_BYTES_MAX} bytes");
        return Err(Fault::new(message));
    }
    if value.contains(is_unseen) {
        return Err(Fault::new(format!(
            "compares `{label}` with a value that holds a control character, or one that is not seen"
        )));
    }
    Ok(Constraint { label: label.to_owned(), operator, value: value.to_owned() })
}

pub(super) fn check_label(label: &str) -> Result<(), Fault> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.chars().all(fits) {
        let fault = Fault::new(format!("takes no label called `{}`", shorten(label)));
        return Err(fault.hint("a label is 1 to 128 letters, digits and `.`, `_`, `-`, `/`"));
    }
    if label.starts_with("node.") && !BUILT_IN.contains(&label) {
        let fault = Fault::new(format!("asks for `{label}`, which no node has"));
        return Err(fault.hint(format!("the labels under node. are {}", BUILT_IN.join(", "))));
    }
    Ok(())
}

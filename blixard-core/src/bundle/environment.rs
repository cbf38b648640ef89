//! Environment variables: a list of `NAME=value`, a mapping, or lines of a file.

use std::collections::BTreeMap;

use super::diagnostic::{Fault, Severity, shorten};
use super::source::{Place, Source};
use super::tree::Value;
use super::walk::{Field, Section, Walk};

/// The longest name of a variable, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The longest `${…}` that is looked for, in bytes: so a text of many that are not closed is read quickly.
const VARIABLE_BYTES_MAX: usize = 1_024;
const EXAMPLE: &str = "[LOG_LEVEL=info] or {LOG_LEVEL: info}";

/// The variables of `env_file` and over them those of `environment`.
pub(super) fn read(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    env_files: &dyn Fn(&str) -> Result<String, String>,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    if let Some(field) = section.get("env_file")
        && let Some(path) = walk.value(&field, |text| Ok(text.to_owned()))
    {
        match env_files(&path) {
            Ok(text) => file(walk, field.node.place, &path, &text, &mut variables),
            Err(why) => {
                let fault = Fault::new(format!("cannot be read: {why}"));
                walk.fail(&field, fault.hint("the path counts from the bundle's directory"));
            }
        }
    }
    if let Some(field) = section.get("environment") {
        match &field.node.value {
            Value::Mapping(_) => variables.extend(mapping(walk, &field)),
            _ => variables.extend(list(walk, &field)),
        }
    }
    variables
}

fn list(walk: &mut Walk<'_>, field: &Field<'_>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for item in walk.list(field, EXAMPLE) {
        if let Value::Mapping(_) = item.node.value {
            let fault = Fault::new("takes NAME=value, not a mapping");
            walk.fail(&item, fault.hint("without the dashes, `environment` is a mapping"));
            continue;
        }
        let Some((name, value)) = walk.value(&item, pair) else { continue };
        if let Some(fault) = literal(&name, &value) {
            walk.warn(item.node.place, fault);
        }
        if variables.insert(name.clone(), value).is_some() {
            walk.fail(
                &item,
                Fault::new(format!("sets `{}` again", shorten(&name))).hint("keep one of the two"),
            );
        }
    }
    variables
}

fn mapping(walk: &mut Walk<'_>, field: &Field<'_>) -> BTreeMap<String, String> {
    let Value::Mapping(entries) = &field.node.value else { return BTreeMap::new() };
    let mut variables = BTreeMap::new();
    for (key, node) in entries {
        let path = format!("{}.{}", field.path, shorten(&key.text));
        if let Err(fault) = check_name(&key.text) {
            walk.error(key.place, fault.of(&field.path));
        }
        let field = Field { path, key: key.place, node };
        if matches!(node.value, Value::Null) {
            walk.fail(&field, Fault::new("has no value").hint("write \"\" for an empty one"));
        } else if let Some(value) = walk.value(&field, |text| Ok(text.to_owned())) {
            if let Some(fault) = literal(&key.text, &value) {
                walk.warn(node.place, fault);
            }
            variables.insert(key.text.clone(), value);
        }
    }
    variables
}

/// Reads lines of `NAME=value`. Blank lines and those that begin with `#` say nothing; the value
/// is the rest of the line, quotes and all; a later line replaces an earlier one.
fn file(walk: &mut Walk<'_>, at: Place, path: &str, text: &str, variables: &mut BTreeMap<String, String>) {
    let source = match Source::new(path, text.as_bytes()) {
        Ok(source) => source,
        Err(diagnostic) => return walk.add_whole(at, *diagnostic),
    };
    for (number, line) in source.lines().iter().enumerate().map(|(index, line)| (index + 1, line)) {
        let line = line.trim_start();
        if line.trim_end().is_empty() || line.starts_with('#') {
            continue;
        }
        match pair(line) {
            Ok((name, value)) => {
                if value.len() > 1 && ['"', '\''].iter().any(|q| value.starts_with(*q) && value.ends_with(*q))
                {
                    let message = format!("the quotes belong to the value of `{}`", shorten(&name));
                    let fault = Fault::new(message).hint("leave them out: a value is the rest of its line");
                    walk.add_of(Severity::Warning, at, &source, number, fault);
                }
                if let Some(fault) = literal(&name, &value) {
                    walk.add_of(Severity::Warning, at, &source, number, fault);
                }
                variables.insert(name, value);
            }
            Err(mut fault) => {
                fault.message = format!("the line {}", fault.message);
                walk.add_of(Severity::Error, at, &source, number, fault);
            }
        }
    }
}

/// The warning for a value in which other tools would replace a variable.
fn literal(name: &str, value: &str) -> Option<Fault> {
    let variable = variable(value)?;
    let message = format!("`{}` holds `{}`, which is not replaced", shorten(name), shorten(variable));
    let hint =
        "values are taken as they are written: put what it stands for there, or leave it when it is meant so";
    Some(Fault::new(message).hint(hint))
}

/// The first `$NAME`, `${NAME...}` or `$(NAME)` of a text.
fn variable(text: &str) -> Option<&str> {
    text.match_indices('$').find_map(|(at, _)| variable_at(&text[at..]))
}

/// The variable that `text`, which begins with `$`, begins with. One that does not end soon is none.
pub(super) fn variable_at(text: &str) -> Option<&str> {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = text.get(1..)?;
    let end = match rest.chars().next()? {
        open @ ('{' | '(') => {
            let close = if open == '{' { '}' } else { ')' };
            let near = &rest[..rest.floor_char_boundary(VARIABLE_BYTES_MAX)];
            rest[1..].starts_with(letter).then(|| near.find(close))?? + 2
        }
        c if letter(c) => 1 + rest.find(|c: char| !letter(c) && !c.is_ascii_digit()).unwrap_or(rest.len()),
        _ => return None,
    };
    text.get(..end)
}

fn pair(text: &str) -> Result<(String, String), Fault> {
    let Some((name, value)) = text.split_once('=') else {
        let fault = Fault::new(format!("has no `=` in `{}`", shorten(text)));
        return Err(fault.hint("write NAME=value; values are not taken from where the command runs"));
    };
    check_name(name)?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn check_name(name: &str) -> Result<(), Fault> {
    let first = |c: char| c.is_ascii_alphabetic() || "_.-".contains(c);
    let fits = |c: char| first(c) || c.is_ascii_digit();
    if name.len() > NAME_BYTES_MAX {
        let message =
            format!("takes no variable called `{}`, longer than {NAME_BYTES_MAX} bytes", shorten(name));
        return Err(Fault::new(message));
    }
    if name.starts_with(first) && name.chars().all(fits) {
        return Ok(());
    }
    let fault = Fault::new(format!("takes no variable called `{}`", shorten(name)));
    Err(fault.hint("names are letters, digits and `_`, `.`, `-`, the first no digit"))
}

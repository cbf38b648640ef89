//! What Compose does to a file before it reads it, as far as a draft can: merge keys, and `$$`.

use std::collections::BTreeSet;

use super::super::environment::variable_at;
use super::super::tree::{Key, Node, Value};

/// The entries of a mapping, and behind them what `<<` merges in that they do not say themselves. It is
/// no more than the tree holds, in which aliases are written out.
pub(super) fn merged(entries: &[(Key, Node)]) -> Vec<(Key, Node)> {
    let merges = |(key, node): &&(Key, Node)| key.text == "<<" && mergeable(node);
    let own = entries.iter().filter(|entry| !merges(entry));
    let mut all: Vec<_> = own.map(|(key, node)| (key.clone(), merge(node))).collect();
    let mut known: BTreeSet<String> = all.iter().map(|(key, _)| key.text.clone()).collect();
    for (_, node) in entries.iter().filter(merges) {
        for source in sources(node) {
            let Value::Mapping(entries) = &source.value else { continue };
            all.extend(merged(entries).into_iter().filter(|(key, _)| known.insert(key.text.clone())));
        }
    }
    all
}

fn merge(node: &Node) -> Node {
    let value = match &node.value {
        Value::List(items) => Value::List(items.iter().map(merge).collect()),
        Value::Mapping(entries) => Value::Mapping(merged(entries)),
        single => single.clone(),
    };
    Node { place: node.place, value }
}

fn mergeable(node: &Node) -> bool {
    sources(node).iter().all(|source| matches!(source.value, Value::Mapping(_)))
}

/// The mappings of a list of them, or the one.
fn sources(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        _ => std::slice::from_ref(node),
    }
}

/// Writes `$` for each `$$` in the texts of `node`, and gives the first variable that Compose would
/// replace in them.
pub(super) fn unescape(node: &mut Node) -> Option<String> {
    let of_all = |first: Option<String>, node: &mut Node| {
        let found = unescape(node);
        first.or(found)
    };
    match &mut node.value {
        Value::Null => None,
        Value::Text(text) => {
            let (plain, variable) = literal(text);
            *text = plain;
            variable
        }
        Value::List(items) => items.iter_mut().fold(None, of_all),
        Value::Mapping(entries) => entries.iter_mut().map(|(_, node)| node).fold(None, of_all),
    }
}

fn literal(text: &str) -> (String, Option<String>) {
    let (mut plain, mut variable, mut rest) = (String::new(), None, text);
    while let Some((before, behind)) = rest.split_once('$') {
        plain.push_str(before);
        plain.push('$');
        if let Some(behind) = behind.strip_prefix('$') {
            rest = behind;
            continue;
        }
        variable = variable.or_else(|| variable_at(&rest[before.len()..]).map(str::to_owned));
        rest = behind;
    }
    plain.push_str(rest);
    (plain, variable)
}

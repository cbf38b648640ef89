//! YAML text as a tree in which every value knows its place.
//!
//! Aliases are written out, within bounds on depth, number and size, so that a short text cannot
//! stand for a huge tree. Keys are texts and stand once.

use std::borrow::Cow;
use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::diagnostic::{Fault, shorten};
use super::source::{Place, Source};
use super::walk::Walk;
use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_DEPTH_MAX, BUNDLE_NODES_MAX};

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing: `key:`, `~` or `null`.
    Null,
    /// Anything that is not a list or a mapping, as it is written. Whether it is a number or a
    /// truth value is for its key to say: so `no` stays `no` and `1.0` stays `1.0`.
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

impl Node {
    /// What the value is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "a single value",
            Value::List(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    fn cost(&self) -> Cost {
        let mut cost = Cost { nodes: 1, bytes: 0, depth: 1 };
        match &self.value {
            Value::Null => {}
            Value::Text(text) => cost.bytes = text.len(),
            Value::List(items) => items.iter().for_each(|item| cost.hold(item.cost())),
            Value::Mapping(entries) => {
                for (key, value) in entries {
                    cost.hold(Cost { nodes: 1, bytes: key.text.len(), depth: 1 });
                    cost.hold(value.cost());
                }
            }
        }
        cost
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Cost {
    fn hold(&mut self, inner: Self) {
        self.nodes += inner.nodes;
        self.bytes += inner.bytes;
        self.depth = self.depth.max(inner.depth + 1);
    }
}

/// Reads the one document of `source`. Without one, or when the text is not YAML, there is no
/// tree; what is wrong is told to `walk`.
pub(super) fn read(source: &Source<'_>, walk: &mut Walk<'_>) -> Option<Node> {
    let mut parser = Parser::new_from_str(source.text());
    let mut builder =
        Builder { walk, open: Vec::new(), anchors: BTreeMap::new(), spent: Cost::default(), root: None };
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(syntax(source, &error)),
        };
        if let Err((place, fault)) = step {
            builder.walk.error(place, fault);
            return None;
        }
    }
    builder.root
}

fn syntax(source: &Source<'_>, error: &ScanError) -> (Place, Fault) {
    let mut place = Place::from(*error.marker());
    // The end of the text is shown on the last line that says something.
    while place.line > 1 && source.line(place.line).trim().is_empty() {
        place = Place::at(place.line - 1, source.line(place.line - 1).chars().count() + 1);
    }
    if error.info().contains("recursion limit") {
        return (place, too_deep());
    }
    let fault = Fault::new(format!("this is not YAML: {}", error.info()));
    let line = source.line(place.line);
    let indentation = &line[..line.len() - line.trim_start().len()];
    if indentation.contains('\t') {
        (place, fault.hint("indent with spaces: YAML does not allow tabs there"))
    } else if tab(error.info()) {
        (place, fault.hint("write a space in place of the tab: YAML does not allow tabs there"))
    } else if error.info().contains("mapping values are not allowed") {
        (
            place,
            fault.hint("put quotes around a value with `: ` in it, and nested keys on lines of their own"),
        )
    } else if error.info().contains("quoted scalar") {
        (place, fault.hint("is the quote closed?"))
    } else {
        (place, fault)
    }
}

/// Whether the parser complains of a tab: it names it, or a blank that it lacks, which a tab is not to it.
fn tab(info: &str) -> bool {
    info.contains("tab") || info.contains("a valid YAML whitespace") || info == "expected whitespace"
}

fn too_deep() -> Fault {
    Fault::new(format!("values are nested more than {BUNDLE_DEPTH_MAX} deep"))
}

type Step = Result<(), (Place, Fault)>;

struct Builder<'b, 's> {
    walk: &'b mut Walk<'s>,
    open: Vec<Open>,
    /// What each anchor names; one that is still open is not there yet.
    anchors: BTreeMap<usize, Node>,
    spent: Cost,
    root: Option<Node>,
}

/// A list or mapping whose end is still to come.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Mapping { entries: Vec<(Key, Node)>, lines: BTreeMap<String, usize>, key: Option<Key> },
}

impl Builder<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Step {
        let place = Place::from(span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => Err((
                place,
                Fault::new("a bundle is one YAML document").hint("put each service into a file of its own"),
            )),
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                let null = style == ScalarStyle::Plain
                    && tag.is_none()
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                self.check_tag(place, tag);
                let value = if null { Value::Null } else { Value::Text(text.into_owned()) };
                self.close(Node { place, value }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.enter(place, anchor, tag, Content::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                let content = Content::Mapping { entries: Vec::new(), lines: BTreeMap::new(), key: None };
                self.enter(place, anchor, tag, content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { place, anchor, content }) = self.open.pop() else { return Ok(()) };
                let value = match content {
                    Content::List(items) => Value::List(items),
                    Content::Mapping { entries, .. } => Value::Mapping(entries),
                };
                self.anchor(anchor, place, &value);
                self.put(Node { place, value })
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err((place, Fault::new("this alias stands for something that holds it")));
                };
                let node = Node { place, value: node.value.clone() };
                self.spend(place, node.cost())?;
                self.put(node)
            }
        }
    }

    fn enter(&mut self, place: Place, anchor: usize, tag: Option<Cow<'_, Tag>>, content: Content) -> Step {
        self.check_tag(place, tag);
        self.spend(place, Cost { nodes: 1, bytes: 0, depth: 1 })?;
        if let Some(Open { content: Content::Mapping { key: None, .. }, .. }) = self.open.last() {
            return Err((place, Fault::new("a key is a single value, not a list or a mapping")));
        }
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    fn close(&mut self, node: Node, anchor: usize) -> Step {
        self.spend(node.place, node.cost())?;
        self.anchor(anchor, node.place, &node.value);
        self.put(node)
    }

    fn anchor(&mut self, anchor: usize, place: Place, value: &Value) {
        if anchor != 0 {
            self.anchors.insert(anchor, Node { place, value: value.clone() });
        }
    }

    /// Puts a finished value where it belongs.
    fn put(&mut self, node: Node) -> Step {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.content {
            Content::List(items) => items.push(node),
            Content::Mapping { entries, lines, key } => match key.take() {
                None => {
                    let text = match node.value {
                        Value::Text(text) => text,
                        Value::Null => "null".to_owned(),
                        Value::List(_) | Value::Mapping(_) => {
                            return Err((
                                node.place,
                                Fault::new("a key is a single value, not a list or a mapping"),
                            ));
                        }
                    };
                    *key = Some(Key { place: node.place, text });
                }
                Some(name) => match lines.get(&name.text) {
                    Some(first) => {
                        let message =
                            format!("`{}` stands here twice, first on line {first}", shorten(&name.text));
                        self.walk.error(name.place, Fault::new(message).hint("keep one of the two"));
                    }
                    None => {
                        lines.insert(name.text.clone(), name.place.line);
                        entries.push((name, node));
                    }
                },
            },
        }
        Ok(())
    }

    fn check_tag(&mut self, place: Place, tag: Option<Cow<'_, Tag>>) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            let message = format!("the tag `{}` means nothing in a bundle", shorten(&tag.to_string()));
            self.walk.error(place, Fault::new(message).hint("leave it out"));
        }
    }

    fn spend(&mut self, place: Place, cost: Cost) -> Step {
        self.spent.nodes += cost.nodes;
        self.spent.bytes += cost.bytes;
        if self.open.len() + cost.depth > BUNDLE_DEPTH_MAX {
            return Err((place, too_deep()));
        }
        if self.spent.nodes > BUNDLE_NODES_MAX {
            let message = format!("the bundle has more than {BUNDLE_NODES_MAX} values, aliases written out");
            return Err((place, Fault::new(message)));
        }
        if self.spent.bytes > BUNDLE_BYTES_MAX {
            let message = format!("the bundle has more than {BUNDLE_BYTES_MAX} bytes, aliases written out");
            return Err((place, Fault::new(message)));
        }
        Ok(())
    }
}

//! A walk over the tree that collects every fault instead of ending at the first.

use std::collections::BTreeMap;

use super::SpecFault;
use super::compose::Draft;
use super::diagnostic::{Diagnostic, Fault, Severity, shorten};
use super::near::near;
use super::source::{Place, Source};
use super::tree::{Key, Node, Value};
use crate::limits::BUNDLE_FAULTS_MAX;

/// The faults found so far.
#[derive(Debug)]
pub(super) struct Walk<'s> {
    source: &'s Source<'s>,
    /// Each with its place in the bundle, and for one in another file its place there.
    found: Vec<(Place, Option<Place>, Diagnostic)>,
    /// Faults that were one too many.
    unsaid: usize,
    failed: bool,
    /// What a file that is no bundle would be as bundles.
    drafts: Vec<Draft>,
}

/// A mapping whose keys are known.
#[derive(Debug)]
pub(super) struct Section<'n> {
    path: String,
    /// Where a key that is missing is missed.
    pub(super) place: Place,
    fields: BTreeMap<&'n str, (Place, &'n Node)>,
    /// The keys without a value.
    empty: BTreeMap<&'n str, Place>,
}

/// A value with the name by which messages call it.
#[derive(Debug, Clone)]
pub(super) struct Field<'n> {
    pub(super) path: String,
    /// The place of its key; of itself for an item of a list.
    pub(super) key: Place,
    pub(super) node: &'n Node,
}

impl<'s> Walk<'s> {
    pub(super) fn new(source: &'s Source<'s>) -> Self {
        Self { source, found: Vec::new(), unsaid: 0, failed: false, drafts: Vec::new() }
    }

    pub(super) fn error(&mut self, place: Place, fault: Fault) {
        self.add(Severity::Error, place, fault);
    }

    /// A fault of the service as a whole.
    pub(super) fn whole(&mut self, fault: SpecFault) {
        self.error(Place::line(1), Fault { message: fault.message, hint: fault.hint });
    }

    pub(super) fn warn(&mut self, place: Place, fault: Fault) {
        self.add(Severity::Warning, place, fault);
    }

    fn add(&mut self, severity: Severity, place: Place, fault: Fault) {
        let source = self.source;
        let place = source.within(place);
        self.keep(severity, place, None, || Diagnostic::new(severity, source, place, fault));
    }

    /// A fault of the file that the bundle names at `place`.
    pub(super) fn add_of(
        &mut self,
        severity: Severity,
        place: Place,
        file: &Source<'_>,
        line: usize,
        fault: Fault,
    ) {
        let inner = Place::line(line);
        self.keep(severity, place, Some(inner), || Diagnostic::new(severity, file, inner, fault));
    }

    /// A fault of the file that the bundle names at `place`, which makes the whole of it unusable.
    pub(super) fn add_whole(&mut self, place: Place, diagnostic: Diagnostic) {
        self.keep(diagnostic.severity, place, None, || diagnostic);
    }

    fn keep(
        &mut self,
        severity: Severity,
        place: Place,
        inner: Option<Place>,
        make: impl FnOnce() -> Diagnostic,
    ) {
        self.failed |= severity == Severity::Error;
        if self.found.len() < BUNDLE_FAULTS_MAX {
            self.found.push((place, inner, make()));
        } else {
            self.unsaid += 1;
        }
    }

    /// Keeps what the text would be as bundles.
    pub(super) fn draft(&mut self, drafts: Vec<Draft>) {
        self.drafts = drafts;
    }

    pub(super) fn take_drafts(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.drafts)
    }

    /// Whether an error was found.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// What was found, in the order of the file.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(place, inner, diagnostic)| {
            (place.line, place.column, inner.map(|inner| inner.line), diagnostic.severity)
        });
        // What is an error need not be warned of as well.
        self.found.dedup_by(|(place, inner, next), (at, there, first)| {
            (*place, *inner) == (*at, *there) && first.severity < next.severity
        });
        let unsaid = self.unsaid;
        let mut found: Vec<Diagnostic> = self.found.into_iter().map(|(.., diagnostic)| diagnostic).collect();
        if let Some(last) = found.last_mut().filter(|_| unsaid > 0) {
            last.message = format!("{} ({unsaid} more are not shown)", last.message);
        }
        found
    }

    /// The mapping at `field`, which has no keys but `keys`. One that is not there is warned of.
    pub(super) fn section<'n>(
        &mut self,
        field: &Field<'n>,
        keys: &[&str],
        example: &str,
    ) -> Option<Section<'n>> {
        let Value::Mapping(entries) = &field.node.value else {
            let fault = Fault::new(format!("takes keys and values, not {}", field.node.kind()));
            self.fail(field, fault.hint(format!("for example {example}")));
            return None;
        };
        let item = field.key == field.node.place;
        let place = if item { field.key.start() } else { field.key };
        Some(self.fields(&field.path, place, entries, keys))
    }

    /// The same for a mapping whose kind is known; what is missing in it is missed at `place`.
    pub(super) fn fields<'n>(
        &mut self,
        path: &str,
        place: Place,
        entries: &'n [(Key, Node)],
        keys: &[&str],
    ) -> Section<'n> {
        let mut section =
            Section { path: path.to_owned(), place, fields: BTreeMap::new(), empty: BTreeMap::new() };
        for (key, node) in entries {
            let path = section.path_of(&key.text);
            if !keys.contains(&key.text.as_str()) {
                self.unknown(key, &path, keys);
            } else if matches!(node.value, Value::Null) {
                self.warn(key.place, Fault::new("has no value and is ignored").of(&path));
                section.empty.insert(&key.text, key.place);
            } else {
                section.fields.insert(&key.text, (key.place, node));
            }
        }
        section
    }

    fn unknown(&mut self, key: &Key, path: &str, keys: &[&str]) {
        if key.text == "<<" {
            let hint = "write the keys out, or alias whole values";
            return self.error(key.place, Fault::new("merge keys (`<<`) are not supported").hint(hint));
        }
        let hint = match near(&key.text, keys) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known here: {}", keys.join(", ")),
        };
        self.warn(key.place, Fault::new("is unknown and ignored").of(path).hint(hint));
    }

    /// The items of the list at `field`; those that are nothing are errors.
    pub(super) fn list<'n>(&mut self, field: &Field<'n>, example: &str) -> Vec<Field<'n>> {
        let Value::List(items) = &field.node.value else {
            let fault = Fault::new(format!("takes a list, not {}", field.node.kind()));
            self.fail(field, fault.hint(format!("for example {example}")));
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(at, node)| Field { path: format!("{}[{at}]", field.path), key: node.place, node })
            .collect()
    }

    /// The single value at `field`, as `parse` reads it.
    pub(super) fn value<T>(
        &mut self,
        field: &Field<'_>,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let Value::Text(text) = &field.node.value else {
            self.fail(field, Fault::new(format!("takes a single value, not {}", field.node.kind())));
            return None;
        };
        let value = whole_text(text).and_then(|()| parse(text));
        value.map_err(|fault| self.fail(field, fault)).ok()
    }

    /// The single value of a key, when it is there.
    pub(super) fn key<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let field = section.get(key)?;
        self.value(&field, parse)
    }

    /// The single value of a key that must be there.
    pub(super) fn required<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let Some(field) = section.get(key) else {
            let (place, what) = match section.empty.get(key) {
                Some(place) => (*place, "has no value"),
                None => (section.place, "is missing"),
            };
            self.error(place, Fault::new(what).of(&section.path_of(key)));
            return None;
        };
        self.value(&field, parse)
    }

    /// An error about the value at `field`.
    pub(super) fn fail(&mut self, field: &Field<'_>, fault: Fault) {
        let place = if matches!(field.node.value, Value::Null) { field.key } else { field.node.place };
        self.error(place, fault.of(&field.path));
    }
}

/// Refuses what ends a text early.
pub(super) fn whole_text(text: &str) -> Result<(), Fault> {
    if text.contains('\0') {
        return Err(Fault::new("holds a NUL character, which no program can be given"));
    }
    Ok(())
}

impl<'n> Section<'n> {
    pub(super) fn get(&self, key: &str) -> Option<Field<'n>> {
        let (place, node) = *self.fields.get(key)?;
        Some(Field { path: self.path_of(key), key: place, node })
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        let key = shorten(key);
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

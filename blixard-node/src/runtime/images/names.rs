//! What the images of an archive are called: by the archive, or by whoever imports it. Pure.

use std::collections::BTreeMap;

/// Where the two common kinds of tools write an image's name.
const FULL_NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";
/// What Docker writes for a repository or a tag that there is not.
const NO_NAME: &str = "<none>";

/// What an archive calls an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// By a reference.
    Full(String),
    /// By a tag alone, as the OCI layout allows: of which repository, only its owner knows.
    Tag(String),
    /// Not at all.
    None,
}

impl Name {
    /// What an OCI layout's entry with these annotations is called.
    pub(super) fn of(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let note = |key| annotations.and_then(|notes| notes.get(key)).filter(|text| is_said(text));
        if let Some(full) = note(FULL_NAME) {
            return Self::Full(full.clone());
        }
        match note(REFERENCE_NAME) {
            Some(text) if text.contains(['/', ':', '@']) => Self::Full(text.clone()),
            Some(tag) => Self::Tag(tag.clone()),
            None => Self::None,
        }
    }

    /// What an image with these tags in Docker's older form is called.
    pub(super) fn of_tags(tags: Vec<String>) -> Vec<Self> {
        let names: Vec<Self> = tags.into_iter().filter(|tag| is_said(tag)).map(Self::Full).collect();
        if names.is_empty() { vec![Self::None] } else { names }
    }

    /// Whether an image that is called so is to be imported: by the importer's name, else by its own.
    pub(super) fn is_asked(&self, wanted: Option<&str>) -> bool {
        wanted.is_some() || matches!(self, Self::Full(_))
    }

    /// What the archive calls it; for what it does not name, the word that Docker writes.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Full(name) => name,
            Self::Tag(tag) => tag,
            Self::None => NO_NAME,
        }
    }

    fn tag(&self) -> Option<&str> {
        match self {
            Self::Full(name) => name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/')),
            Self::Tag(tag) => Some(tag),
            Self::None => None,
        }
    }
}

/// Whether a name is one.
fn is_said(name: &str) -> bool {
    !name.is_empty() && !name.contains(NO_NAME)
}

/// The references of an archive's images, in their order; those without one are left out.
///
/// `wanted` is what the importer calls them: with a tag only a single image, else each by the tag it
/// has already.
///
/// # Errors
/// In words, when nothing names an image, or `wanted` does not fit them.
pub(super) fn references(names: &[Name], wanted: Option<&str>) -> Result<BTreeMap<Name, String>, String> {
    let mut distinct: Vec<&Name> = names.iter().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let Some(wanted) = wanted else { return own(&distinct) };
    let last = wanted.rsplit('/').next().unwrap_or(wanted);
    if wanted.contains('@') {
        return Err(format!("an image is named by a tag, not by a digest: {wanted:?}"));
    }
    match distinct.as_slice() {
        [only] if last.contains(':') => Ok([((*only).clone(), wanted.to_owned())].into()),
        several if last.contains(':') => Err(format!(
            "the archive holds {} images: name them {:?} without a tag, so that each keeps its own",
            several.len(),
            wanted.rsplit_once(':').map_or(wanted, |(name, _)| name)
        )),
        all => {
            let mut named: BTreeMap<Name, String> = BTreeMap::new();
            for name in all {
                let reference = format!("{wanted}:{}", name.tag().unwrap_or("latest"));
                if named.values().any(|taken| *taken == reference) {
                    return Err(format!("the archive holds several images that would be {reference}"));
                }
                named.insert((*name).clone(), reference);
            }
            Ok(named)
        }
    }
}

fn own(names: &[&Name]) -> Result<BTreeMap<Name, String>, String> {
    let full: BTreeMap<Name, String> = names
        .iter()
        .filter_map(|name| match name {
            Name::Full(text) => Some(((*name).clone(), text.clone())),
            _ => None,
        })
        .collect();
    if !full.is_empty() {
        return Ok(full);
    }
    let tag = names.iter().find_map(|name| match name {
        Name::Tag(tag) => Some(tag.chars().take(128).collect::<String>()),
        _ => None,
    });
    Err(match tag {
        Some(tag) => format!(
            "the archive names its image only {tag:?}, which is a tag: say what it is called, as in `blixard image import --name team/app FILE`"
        ),
        None => "the archive names no image: save it by name, as in `docker save NAME:TAG`, or say what it is called, as in `blixard image import --name team/app:1 FILE`".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_archive_or_its_importer() {
        let full = |text: &str| Name::Full(text.into());
        let tag = |text: &str| Name::Tag(text.into());
        let check = |names: &[Name], wanted: Option<&str>, expect: Result<&[&str], &str>| {
            let found = references(names, wanted).map(|named| named.into_values().collect::<Vec<_>>());
            match expect {
                Ok(expect) => assert_eq!(found.expect("named"), expect, "{names:?} {wanted:?}"),
                Err(text) => {
                    let error = found.expect_err(text);
                    assert!(error.contains(text), "{error}");
                }
            }
        };
        check(&[full("a/b:1"), full("a/b:1"), Name::None], None, Ok(&["a/b:1"]));
        check(&[tag("latest")], None, Err("only \"latest\", which is a tag"));
        check(&[Name::None], None, Err("names no image"));
        check(&[], None, Err("names no image"));
        check(&[tag("2.0")], Some("team/app"), Ok(&["team/app:2.0"]));
        check(&[tag("2.0")], Some("reg.lan:5000/app:3"), Ok(&["reg.lan:5000/app:3"]));
        check(&[Name::None], Some("reg.lan:5000/app"), Ok(&["reg.lan:5000/app:latest"]));
        check(&[full("reg:5000/x")], Some("app"), Ok(&["app:latest"]));
        check(&[full("x:1"), full("x:2")], Some("app"), Ok(&["app:1", "app:2"]));
        check(&[full("x:1"), full("x:2")], Some("app:3"), Err("holds 2 images"));
        check(&[full("x:1"), full("y:1")], Some("app"), Err("several images that would be app:1"));
        check(&[tag("1")], Some("app@sha256:0"), Err("by a tag, not by a digest"));
    }

    #[test]
    fn annotations_name_images_in_two_ways() {
        let check = |notes: &[(&str, &str)], expect: Name| {
            let notes = notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(Name::of(Some(&notes)), expect);
        };
        check(&[(FULL_NAME, "docker.io/a/b:1"), (REFERENCE_NAME, "1")], Name::Full("docker.io/a/b:1".into()));
        check(&[(REFERENCE_NAME, "a/b:1")], Name::Full("a/b:1".into()));
        check(&[(REFERENCE_NAME, "latest")], Name::Tag("latest".into()));
        check(&[(REFERENCE_NAME, "")], Name::None);
        check(&[(FULL_NAME, "<none>:<none>"), (REFERENCE_NAME, "<none>")], Name::None);
        assert_eq!(Name::of(None), Name::None);
    }

    #[test]
    fn tags_that_docker_writes_for_none_name_nothing() {
        let check = |tags: &[&str], expect: &[Name]| {
            assert_eq!(Name::of_tags(tags.iter().map(|&tag| tag.to_owned()).collect()), expect, "{tags:?}");
        };
        check(&[], &[Name::None]);
        check(&["<none>:<none>"], &[Name::None]);
        check(&["", "team/app:<none>"], &[Name::None]);
        check(&["<none>:<none>", "team/app:1"], &[Name::Full("team/app:1".into())]);
    }
}

//! Paths within a volume: raw bytes, as file systems have them.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::PATH_BYTES_MAX;

/// The longest name of one file, in bytes: the kernel's bound.
const NAME_BYTES_MAX: usize = 255;

/// A path below the root of a volume, its parts joined by `/`. Of any encoding; never empty, never with a
/// part that leads elsewhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Box<[u8]>);

/// Why bytes are no path within a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no path within a volume: {reason}", path.escape_ascii())]
pub struct PathError {
    path: Vec<u8>,
    reason: &'static str,
}

impl TreePath {
    /// Checks a path.
    ///
    /// # Errors
    /// When it is empty or too long, begins or ends at a `/`, holds NUL, or has a part that is empty, `.`
    /// or `..`.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        let refused = |reason| Err(PathError { path: bytes.get(..200).unwrap_or(bytes).to_vec(), reason });
        if bytes.len() > PATH_BYTES_MAX {
            return refused("it is longer than any path");
        }
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" => return refused("it has an empty part"),
                b"." | b".." => return refused("it has a part that leads elsewhere"),
                part if part.contains(&0) => return refused("it holds NUL"),
                part if part.len() > NAME_BYTES_MAX => return refused("a part is longer than any name"),
                _ => {}
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The path of `name` in the directory `parent`; without one, in the root.
    ///
    /// # Errors
    /// As [`TreePath::new`].
    pub fn in_directory(parent: Option<&Self>, name: &[u8]) -> Result<Self, PathError> {
        match parent {
            None => Self::new(name),
            Some(parent) => Self::new(&[&parent.0, &b"/"[..], name].concat()),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory it is in; absent: the root.
    pub fn parent(&self) -> Option<Self> {
        let end = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(Self(self.0[..end].into()))
    }

    /// Whether it is below the directory `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

/// For people: bytes that are no printable ASCII are escaped.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = TreePath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path within a volume")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<TreePath, E> {
                TreePath::new(bytes).map_err(E::custom)
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::TreePath;

    #[test]
    fn no_path_leads_out_of_its_volume() {
        for good in [&b"a"[..], b"a/b", b".a/..b/...", b"\xff\xfe/ ", b"a\nb"] {
            let path = TreePath::new(good).expect("a path");
            let bytes = rmp_serde::to_vec(&path).expect("encoded");
            let read: TreePath = rmp_serde::from_slice(&bytes).expect("decoded");
            assert_eq!(read, path, "{}", good.escape_ascii());
        }
        let long = [b'x'; 256];
        let deep = b"a/".repeat(2_048);
        for bad in [
            &b""[..],
            b"/",
            b"/etc/passwd",
            b"a/",
            b"a//b",
            b".",
            b"..",
            b"../a",
            b"a/../b",
            b"a/..",
            b"a/./b",
            b"a\0b",
            &long,
            &deep,
        ] {
            assert!(TreePath::new(bad).is_err(), "{}", bad.escape_ascii());
            let encoded = rmp_serde::to_vec(&Raw(bad)).expect("encoded");
            assert!(rmp_serde::from_slice::<TreePath>(&encoded).is_err(), "{}", bad.escape_ascii());
        }
    }

    struct Raw<'a>(&'a [u8]);

    impl serde::Serialize for Raw<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    #[test]
    fn what_is_below_a_directory_is_by_parts() {
        let path = |text: &str| TreePath::new(text.as_bytes()).expect("a path");
        assert!(path("a/b").is_below(&path("a")));
        assert!(!path("ab").is_below(&path("a")) && !path("a").is_below(&path("a")));
        assert_eq!((path("a/b/c").parent(), path("a").parent()), (Some(path("a/b")), None));
    }
}

//! Image references: what `nginx`, `registry.lan:5000/app:1` or `app@sha256:…` stand for.
//!
//! Parses by the grammar of the distribution project (github.com/distribution/reference) and
//! normalises as Docker does. It never asks a registry. Bundles, the API, the CLI and the image
//! store all read references through it, so that one image has one name everywhere.

use std::fmt;
use std::str::FromStr;

/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of references that name neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// The longest registry and repository together, in bytes: the distribution project's bound.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

/// A full image reference. Shown as `registry/repository[:tag][@digest]`, which parses to the
/// same value again.
///
/// # Invariants
/// At least one of tag and digest is present.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {fault}")]
pub struct ReferenceError {
    /// What was read.
    pub text: String,
    /// What is wrong with it.
    pub fault: String,
}

impl ImageReference {
    /// Reads a reference. One without a registry belongs to `default_registry`; only on
    /// [`DEFAULT_REGISTRY`] does a repository of one part get the prefix `library/`.
    ///
    /// # Errors
    /// When the text breaks the grammar; the error says where.
    pub fn parse(text: &str, default_registry: &str) -> Result<Self, ReferenceError> {
        parse(text, default_registry)
            .map_err(|fault| ReferenceError { text: text.chars().take(300).collect(), fault })
    }

    /// The registry's host, perhaps with a port: `docker.io`, `registry.lan:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, when named or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The reference as people write it, and as it is shown everywhere: without Docker's own registry,
    /// which is the default one: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let short = whole.strip_prefix("docker.io/").unwrap_or(&whole);
        short.strip_prefix("library/").filter(|_| short.len() < whole.len()).unwrap_or(short).to_owned()
    }

    /// The digest, when named: `sha256:` and 64 hex digits.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text, DEFAULT_REGISTRY)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Checks that a text is a digest as images use them: `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn parse(text: &str, default_registry: &str) -> Result<ImageReference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest
        && !is_digest(digest)
    {
        return Err(format!("the digest {digest:?} is not sha256: and 64 lower-case hex digits"));
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (default_registry, name),
    };
    check_registry(registry)?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    for part in path.split('/') {
        check_part(part)?;
    }
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err(format!("the name is longer than {NAME_BYTES_MAX} bytes"));
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(ImageReference { registry: registry.to_owned(), repository, tag, digest: digest.map(str::to_owned) })
}

/// Whether the first part of a name is a registry rather than the start of a path.
fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '[']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest
                .split_once(']')
                .ok_or_else(|| format!("the registry {registry:?} lacks a closing bracket"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{address:?} is not an IPv6 address"));
            }
            (None, port.strip_prefix(':').or(if port.is_empty() { None } else { Some(port) }))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if let Some(port) = port
        && !port.parse::<u16>().is_ok_and(|number| number > 0 && !port.starts_with('+'))
    {
        return Err(format!("the registry's port {port:?} is not a number from 1 to 65535"));
    }
    let label_fits = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label_fits) => {
            Err(format!("the registry {registry:?} is not a host name or address"))
        }
        _ => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let fits =
        |(at, b): (usize, u8)| b.is_ascii_alphanumeric() || b == b'_' || (at > 0 && (b == b'.' || b == b'-'));
    if tag.is_empty() || tag.len() > TAG_BYTES_MAX || !tag.bytes().enumerate().all(fits) {
        return Err(format!(
            "the tag {tag:?} is not 1 to {TAG_BYTES_MAX} letters, digits, '_', '.' or '-', the first no '.' or '-'"
        ));
    }
    Ok(())
}

/// Checks one part of a path: runs of lower-case letters and digits, between them one `.`, one or
/// two `_`, or any number of `-`.
fn check_part(part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err("a part of the name is empty".into());
    }
    let lower = part.to_ascii_lowercase();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators_fit = lower
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'));
    let ends_fit = lower.bytes().next().is_some_and(word) && lower.bytes().last().is_some_and(word);
    if !(separators_fit && ends_fit) {
        return Err(format!(
            "{part:?} is not lower-case letters and digits with single '.', '_', '__' or '-' between"
        ));
    }
    if lower != part {
        return Err(format!("{part:?} has upper-case letters; repository names are lower-case"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn what_is_shown_is_short_and_means_the_same() {
        let check = |text: &str, expect: &str| {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!(reference.familiar(), expect);
            assert_eq!(expect.parse(), Ok(reference));
        };
        check("nginx", "nginx:latest");
        check("docker.io/library/nginx:1", "nginx:1");
        check("docker.io/team/app:1", "team/app:1");
        check("registry.lan:5000/library/app", "registry.lan:5000/library/app:latest");
        let digest = format!("sha256:{}", "ab".repeat(32));
        check(&format!("app@{digest}"), &format!("app@{digest}"));
    }

    #[test]
    fn references_normalise_as_docker_does() {
        let check = |text: &str, expect: &str| {
            let reference: ImageReference = text.parse().expect(text);
            assert_eq!(reference.to_string(), expect.replace("HEX", HEX), "{text}");
        };
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine");
        check("bitnami/redis", "docker.io/bitnami/redis:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check("registry.lan:5000/team/app:1", "registry.lan:5000/team/app:1");
        check("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest");
        check("[::1]:5000/app:2", "[::1]:5000/app:2");
        check("[fd00::1]/app", "[fd00::1]/app:latest");
        check("MyHost/app", "MyHost/app:latest");
        check("foo:5000", "docker.io/library/foo:5000");
        check("a__b/c-d---e.f", "docker.io/a__b/c-d---e.f:latest");
        check(&format!("nginx@sha256:{HEX}"), "docker.io/library/nginx@sha256:HEX");
        check(&format!("r.io/nginx:1@sha256:{HEX}"), "r.io/nginx:1@sha256:HEX");
    }

    #[test]
    fn short_names_belong_to_the_default_registry() {
        let check = |text: &str, default: &str, expect: &str| {
            assert_eq!(ImageReference::parse(text, default).expect(text).to_string(), expect);
        };
        check("nginx", "registry.lan:5000", "registry.lan:5000/nginx:latest");
        check("team/app:2", "registry.lan", "registry.lan/team/app:2");
        check("docker.io/nginx", "registry.lan", "docker.io/library/nginx:latest");
    }

    #[test]
    fn faults_are_named() {
        let check = |text: &str, fault: &str| {
            let error = text.parse::<ImageReference>().expect_err(text);
            assert!(error.to_string().contains(fault), "{text}: {error}");
        };
        check("", "empty");
        check("Nginx", "upper-case");
        check("BAD!!", "\"BAD!!\" is not lower-case letters and digits");
        check("nginx:", "tag");
        check("nginx:-1", "tag");
        check("nginx: 1", "tag");
        check(&format!("nginx:{}", "t".repeat(129)), "tag");
        check("nginx@sha256:abc", "digest");
        check("nginx@", "digest");
        check(&format!("nginx@sha512:{HEX}"), "digest");
        check("a//b", "empty");
        check("a/", "empty");
        check("/a", "empty");
        check("a..b", "not lower-case");
        check("a___b", "not lower-case");
        check("-a", "not lower-case");
        check("a b", "not lower-case");
        check("reg.lan:0/a", "port");
        check("reg.lan:99999/a", "port");
        check("reg.lan:x/a", "port");
        check("-reg.lan/a", "host name");
        check("[::1/a", "bracket");
        check("[zz]/a", "IPv6");
        check("http://reg.lan/a", "port");
        check(&"a/".repeat(128), "empty");
        check(&format!("{}a", "a/".repeat(128)), "longer");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert_eq!(reference.to_string().parse::<ImageReference>(), Ok(reference));
            }
        }

        #[test]
        fn what_is_shown_parses_to_the_same(text in "([a-z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9]{1,6}([._-][a-z]{1,3}/[a-z]{1,4})?(:[a-z0-9.]{1,6})?") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert_eq!(reference.to_string().parse::<ImageReference>(), Ok(reference));
            }
        }
    }
}

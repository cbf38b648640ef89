//! The registries file: how to reach each image registry, and with which credentials.
//!
//! Only reads and checks the file; `registry.rs` acts by it. The format is documented in
//! `docs/reference/registries.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blixard_core::image_reference::{DEFAULT_REGISTRY, ImageReference, ReferenceError};
use blixard_core::text::one_line;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The largest registries file read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How to reach registries. The default knows none: anonymous HTTPS, plain HTTP to this machine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    #[serde(default)]
    default_registry: Option<Host>,
    #[serde(default, deserialize_with = "registries")]
    registries: BTreeMap<String, Registry>,
}

/// How to reach one registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "RawRegistry")]
pub(super) struct Registry {
    /// Hosts asked before the registry itself, in this order.
    pub(super) mirrors: Vec<String>,
    /// Whether to speak plain HTTP; absent means only to this machine.
    pub(super) plain_http: Option<bool>,
    /// A PEM file with certificates to trust besides the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// Whether to accept any certificate.
    pub(super) skip_verify: bool,
    /// Whom to log in as.
    pub(super) credentials: Option<Credentials>,
}

/// A user name and password. Shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.username)
    }
}

/// Why a registries file cannot be used. The text starts with the file's path and, where there is
/// one, the line and column.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistriesError {
    /// The file cannot be read.
    #[error("{}: cannot read the registries file: {reason}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file's content is wrong.
    #[error("{}:{line}:{column}: {fault}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong there.
        fault: String,
    },
}

impl Registries {
    /// Reads and checks a registries file.
    ///
    /// # Errors
    /// When the file cannot be read, is larger than 1 MiB, or its content is wrong.
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        let failed = |reason: String| RegistriesError::Read { path: path.to_owned(), reason };
        let bytes_total = std::fs::metadata(path).map_err(|err| failed(err.to_string()))?.len();
        if bytes_total > FILE_BYTES_MAX {
            return Err(failed(format!("it is {bytes_total} bytes long, at most {FILE_BYTES_MAX} are read")));
        }
        Self::parse(&std::fs::read(path).map_err(|err| failed(err.to_string()))?, path)
    }

    /// The warning for a file that others than its owner may read although it holds a password.
    pub fn exposed(&self, path: &Path) -> Option<String> {
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        let secret = self.registries.values().any(|registry| registry.credentials.is_some());
        (secret && mode & 0o077 != 0).then(|| {
            let file = path.display();
            format!("others may read the passwords in {file} (mode {mode:o}): chmod 600 {file}")
        })
    }

    /// Checks the content of a registries file; `path` is only for errors.
    ///
    /// # Errors
    /// When the content is wrong, saying where.
    pub fn parse(content: &[u8], path: &Path) -> Result<Self, RegistriesError> {
        serde_json::from_slice(content).map_err(|err| {
            let text = err.to_string();
            let place = format!(" at line {} column {}", err.line(), err.column());
            RegistriesError::Content {
                path: path.to_owned(),
                line: err.line(),
                // Where the file ends before a line's first character, it is 0.
                column: err.column().max(1),
                fault: one_line(&text.strip_suffix(&place).unwrap_or(&text)),
            }
        })
    }

    /// Reads an image reference; one without a registry belongs to the file's default.
    ///
    /// # Errors
    /// When the text is no reference.
    pub fn reference(&self, text: &str) -> Result<ImageReference, ReferenceError> {
        ImageReference::parse(
            text,
            self.default_registry.as_ref().map_or(DEFAULT_REGISTRY, |Host(host)| host),
        )
    }

    /// What is set for a registry's host.
    pub(super) fn registry(&self, host: &str) -> Registry {
        self.registries.get(host).cloned().unwrap_or_default()
    }
}

impl Registry {
    /// Whether to speak plain HTTP to `host`: as set, else as Docker does, to this machine only.
    pub(super) fn is_plain_http(&self, host: &str) -> bool {
        self.plain_http.unwrap_or_else(|| is_loopback(host))
    }
}

/// A host without its port.
pub(super) fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    }
}

/// Whether a host, perhaps with a port, is this machine by its name alone.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A registry's host as references name it. Checked as it is read, where its place in the file is known.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Host(String);

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        checked_host(&text).map(Self)
    }
}

/// Reads registries by host, each set once however it is spelled.
fn registries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Registry>, D::Error> {
    struct ByHost;

    impl<'de> Visitor<'de> for ByHost {
        type Value = BTreeMap<String, Registry>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                let host = checked_host(&key).map_err(A::Error::custom)?;
                if found.contains_key(&host) {
                    let fault = format!("registry {host} is set twice, the second time as {key:?}");
                    return Err(A::Error::custom(fault));
                }
                found.insert(host, map.next_value()?);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_map(ByHost)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistry {
    #[serde(default)]
    mirrors: Vec<Host>,
    #[serde(default)]
    plain_http: Option<bool>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl TryFrom<RawRegistry> for Registry {
    type Error = String;

    fn try_from(raw: RawRegistry) -> Result<Self, String> {
        let credentials = match (raw.username, raw.password, raw.auth) {
            (None, None, None) => None,
            (Some(username), Some(password), None) => Some(Credentials { username, password }),
            (None, None, Some(auth)) => Some(decode_auth(&auth)?),
            (_, _, Some(_)) => return Err("set either auth or username and password, not both".into()),
            (Some(_), None, None) => return Err("username is set without password".into()),
            (None, Some(_), None) => return Err("password is set without username".into()),
        };
        if raw.plain_http == Some(true) && (raw.skip_verify || raw.ca_file.is_some()) {
            return Err("plain_http is set, so skip_verify and ca_file have no effect".into());
        }
        Ok(Self {
            mirrors: raw.mirrors.into_iter().map(|Host(host)| host).collect(),
            plain_http: raw.plain_http,
            ca_file: raw.ca_file,
            skip_verify: raw.skip_verify,
            credentials,
        })
    }
}

/// A registry's host as references name it, from what users write, as `https://index.docker.io/v1/`
/// in files copied from Docker.
fn checked_host(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or(text);
    let host = host.strip_suffix("/v1/").or(host.strip_suffix("/v2/")).unwrap_or(host).trim_end_matches('/');
    let fault = || format!("{text:?} is not a registry: expected HOST or HOST:PORT");
    if host.is_empty() || host.contains('/') {
        return Err(fault());
    }
    let probe = ImageReference::parse("probe", host).map_err(|_| fault())?;
    Ok(probe.registry().to_owned())
}

/// Reads the `auth` of Docker's config.json: base64 of `username:password`.
fn decode_auth(auth: &str) -> Result<Credentials, String> {
    let fault = "auth is not base64 of USERNAME:PASSWORD";
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| fault)?;
    let text = String::from_utf8(bytes).map_err(|_| fault)?;
    let (username, password) = text.split_once(':').ok_or(fault)?;
    Ok(Credentials { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> Result<Registries, RegistriesError> {
        Registries::parse(content.as_bytes(), Path::new("r.json"))
    }

    #[test]
    fn settings_are_found_by_the_registrys_host() {
        let registries = parse(
            r#"{"default_registry": "reg.lan:5000", "registries": {
                "https://index.docker.io/v1/": {"mirrors": ["mirror.lan"], "auth": "dXNlcjpwYTpzcw=="},
                "reg.lan:5000": {"plain_http": true, "username": "u", "password": "p"}}}"#,
        )
        .expect("valid");
        let docker = registries.registry("docker.io");
        assert_eq!(docker.mirrors, ["mirror.lan"]);
        let credentials = docker.credentials.expect("auth");
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("user", "pa:ss"));
        assert!(!format!("{credentials:?}").contains("pa:ss"));
        assert!(registries.registry("reg.lan:5000").is_plain_http("reg.lan:5000"));
        assert_eq!(registries.reference("app").expect("short").to_string(), "reg.lan:5000/app:latest");
        assert!(registries.registry("other").credentials.is_none());
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_plain_http_by_default() {
        let check = |host: &str, expect: bool| {
            assert_eq!(Registry::default().is_plain_http(host), expect, "{host}");
        };
        check("localhost", true);
        check("localhost:5000", true);
        check("127.9.0.1:5000", true);
        check("[::1]:5000", true);
        check("10.0.0.1:5000", false);
        check("docker.io", false);
        check("localhost.evil.example", false);
        let https = Registry { plain_http: Some(false), ..Registry::default() };
        assert!(!https.is_plain_http("localhost"));
    }

    #[test]
    fn passwords_that_others_may_read_are_told_of() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("r.json");
        let check = |content: &str, mode: u32, expect: bool| {
            std::fs::write(&path, content).expect("room");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
            let told = Registries::read(&path).expect("valid").exposed(&path);
            assert_eq!(told.is_some(), expect, "{content} {mode:o}: {told:?}");
            assert!(!told.unwrap_or_default().contains("hush"));
        };
        let secret = r#"{"registries": {"a.b": {"username": "u", "password": "hush"}}}"#;
        check(secret, 0o600, false);
        check(secret, 0o400, false);
        check(secret, 0o644, true);
        check(secret, 0o640, true);
        check(r#"{"registries": {"a.b": {"plain_http": true}}}"#, 0o644, false);
    }

    #[test]
    fn faults_name_file_line_and_column() {
        let check = |content: &str, expect: &str| {
            let error = parse(content).expect_err(content).to_string();
            assert!(error.contains(expect), "{content}: {error}");
        };
        check(
            "{\n  \"registries\": {\n    \"a.b\": {\"plain\": true}\n  }\n}",
            "r.json:3:19: unknown field `plain`",
        );
        check("", "r.json:1:1: EOF");
        check("[1", "r.json:1:");
        check("\u{0}\u{1}", "r.json:1:1: expected value");
        check(
            r#"{"registries": {"a.b": {"username": "u"}}}"#,
            "r.json:1:41: username is set without password",
        );
        check(r#"{"registries": {"a.b": {"auth": "%%"}}}"#, "auth is not base64");
        check(r#"{"registries": {"a.b": {"auth": "dQ=="}}}"#, "auth is not base64");
        check(r#"{"registries": {"a.b/path": {}}}"#, "r.json:1:26: \"a.b/path\" is not a registry");
        check("{\"registries\": {\n  \"a.b\": {},\n  \"\": {}}}", "r.json:3:4: \"\" is not a registry");
        check(
            "{\"registries\": {\"a.b\": {\n\"mirrors\": [\n  \"http://m:x\"]}}}",
            "r.json:3:15: \"http://m:x\" is not a registry",
        );
        check(
            "{\"registries\": {\n\"docker.io\": {},\n\"index.docker.io\": {}}}",
            "r.json:3:17: registry docker.io is set twice, the second time as \"index.docker.io\"",
        );
        check("{\n\"default_registry\": 5}", "r.json:2:21: ");
        check(r#"{"registries": {"a.b": {"plain_http": true, "skip_verify": true}}}"#, "no effect");
        check("{\n  \"default_registry\": \"\"}", "r.json:2:25: \"\" is not a registry");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Registries::read(Path::new("/nonexistent/r.json")).expect_err("missing").to_string();
        assert!(error.starts_with("/nonexistent/r.json: cannot read"), "{error}");
    }

    #[test]
    fn registries_files_survive_every_damage() {
        let file = r#"{"default_registry": "reg.lan:5000", "registries": {
            "https://index.docker.io/v1/": {"mirrors": ["mirror.lan", "[::1]:5000"], "auth": "dXNlcjpwYTpzcw=="},
            "reg.lan:5000": {"plain_http": true, "username": "u", "password": "p"},
            "b.c": {"ca_file": "/etc/ca.pem", "skip_verify": true}}}"#;
        damage::survives("registries file", &[file.as_bytes().to_vec()], |input| {
            let read = Registries::parse(input, Path::new("r.json")).map_err(|error| error.to_string())?;
            for (host, registry) in &read.registries {
                for host in registry.mirrors.iter().chain([host]) {
                    assert_eq!(checked_host(host).as_ref(), Ok(host), "it stands for itself");
                }
            }
            Ok(())
        });
    }
}
